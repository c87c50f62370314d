// What is known of a migration: where the threads that watch the two daemons
// meet the thread that decides.
#ifndef CMD_POSTCOPYCTL_MIGRATION_BOARD_H_
#define CMD_POSTCOPYCTL_MIGRATION_BOARD_H_

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "postcopy/v1/common.pb.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// One side as last seen.
struct SideView {
  // Default (state UNSPECIFIED) until the first message.
  v1::Migration migration;
  // OK while messages arrive; otherwise why they do not.
  absl::Status stream;
  // True: nobody tries any more to get messages; `stream` says why.
  bool lost = false;
};

// Both sides at one moment.
struct MigrationView {
  SideView source;
  SideView destination;
  // The answer to SwitchOver, once there is one.
  std::optional<absl::Status> switch_over;
};

// Thread-safe.
class MigrationBoard {
 public:
  // A message from a daemon arrived: its stream is fine. An older message
  // never undoes a newer state: one that has ended stays.
  void Update(v1::Role role, const v1::Migration& migration);
  // The stream of a daemon broke; it is being opened again.
  void SetInterrupted(v1::Role role, const absl::Status& why);
  // The stream of a daemon broke for good.
  void SetLost(v1::Role role, const absl::Status& why);
  // SwitchOver was answered; nullopt: it is about to be called (again).
  void SetSwitchOver(std::optional<absl::Status> answer);

  MigrationView View() const;
  // Returns when something changed since `version` or after `timeout`; sets
  // `version` to that of the result. Start with 0.
  MigrationView AwaitChange(uint64_t* version, absl::Duration timeout) const;

 private:
  SideView& Side(v1::Role role) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  MigrationView view_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_MIGRATION_BOARD_H_
