// Keeps a MigrationBoard informed of one side of a migration.
#ifndef CMD_POSTCOPYCTL_SIDE_WATCHER_H_
#define CMD_POSTCOPYCTL_SIDE_WATCHER_H_

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/daemon_client.h"
#include "cmd/postcopyctl/migration_board.h"
#include "grpcpp/client_context.h"

namespace postcopy {

struct WatchOptions {
  // How often the daemon reports at least.
  absl::Duration progress_interval = absl::Milliseconds(250);
  // A stream that says nothing for this long is opened anew.
  absl::Duration silence_max = absl::Seconds(10);
  // Pause between two attempts.
  absl::Duration retry_pause = absl::Milliseconds(200);
  // A side is lost when nothing has come from it for this long.
  absl::Duration reconnect_timeout = absl::Seconds(30);
};

// Watches from construction until the migration has ended on this side, the
// side is lost, or the watcher is destroyed (which waits for its thread).
class SideWatcher {
 public:
  // `client` and `board` must outlive this object.
  SideWatcher(DaemonClient* client, std::string migration_id,
              const WatchOptions& options, MigrationBoard* board);
  SideWatcher(const SideWatcher&) = delete;
  SideWatcher& operator=(const SideWatcher&) = delete;
  ~SideWatcher();

  // Breaks a stream that has been silent for too long: a host that is gone
  // sends nothing, not even an end. Call this about once a second; the thread
  // that reads cannot do it.
  void BreakSilentStream();

 private:
  void Run();
  absl::Status WatchOnce();
  void Receive(const v1::Migration& migration);
  bool MayRetry(const absl::Status& status);
  // True if stopped meanwhile.
  bool PauseUnlessStopped();

  DaemonClient* const client_;
  const std::string migration_id_;
  const WatchOptions options_;
  MigrationBoard* const board_;

  absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  // By Uptime().
  absl::Duration last_heard_ ABSL_GUARDED_BY(mutex_);
  absl::Duration stream_opened_ ABSL_GUARDED_BY(mutex_);
  // The stream being read; null if there is none.
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;

  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_SIDE_WATCHER_H_
