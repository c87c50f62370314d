// Drives one migration from creation to completion on both daemons.
#ifndef CMD_POSTCOPYCTL_MIGRATE_H_
#define CMD_POSTCOPYCTL_MIGRATE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/daemon_client.h"
#include "cmd/postcopyctl/hook.h"
#include "cmd/postcopyctl/migration_board.h"
#include "cmd/postcopyctl/side_watcher.h"
#include "cmd/security/client_security.h"
#include "dirtytrack/types.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// What to migrate and how. Valid options only: see ValidateMigrateOptions().
struct MigrateOptions {
  // host:port of the two control planes.
  std::string source_address;
  std::string destination_address;
  // host:port of the source's data plane, as seen from the destination host.
  std::string source_data_address;
  // How the control planes are dialled.
  ClientSecurity security;
  std::string vm_name;
  std::string migration_id;
  v1::MigrationPolicy policy = v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY;
  // AUTO: the source may switch over before we ask for it.
  v1::SwitchOverMode mode = v1::SWITCH_OVER_MODE_MANUAL;
  // 0 = the daemon's default.
  uint32_t deadline_ms_per_gib = 0;
  // Per second, for the bulk lane; 0 = no limit.
  ByteCount bandwidth;
  // Compress pages on the bulk lane, where that makes them smaller.
  bool compress = false;
  // In which order the destination fetches the rest.
  v1::PullOrder pull_order = v1::PULL_ORDER_ADAPTIVE;
  // 0 = the daemon's default.
  uint32_t rounds_max = 0;
  // For all of it. When it is over before the switch-over, the migration is
  // cancelled; after it, it goes on alone.
  absl::Duration timeout = absl::InfiniteDuration();
  // For VMMs with an API of their own; empty: none. See hook.h.
  std::string pause_command;
  std::string resume_command;

  // For tests; nobody else has a reason to change these.
  absl::Duration call_timeout = kCallTimeout;
  absl::Duration switch_over_timeout = absl::Minutes(2);
  absl::Duration hook_timeout = kHookTimeout;
  WatchOptions watch;
};

// What creates the two sides. The request ids are new ones.
struct CreateRequests {
  v1::CreateMigrationRequest source;
  v1::CreateMigrationRequest destination;
};
CreateRequests RequestsFor(const MigrateOptions& options);

// Who wants to see it happen. Called from the thread that called Migrate().
class MigrateObserver {
 public:
  virtual ~MigrateObserver() = default;

  // Something changed, or a tenth of a second is over.
  virtual void OnView(const MigrationView& view, absl::Duration elapsed) = 0;
  // A sentence for the user.
  virtual void OnMessage(absl::string_view message) = 0;
};

// How it ended.
struct MigrateResult {
  // OK: both sides are complete. Otherwise the sentence says what happened and
  // where the guest runs; ExitCodeOf() fits the code.
  absl::Status status;
  // Both sides as last seen; default if there never was one.
  v1::Migration source;
  v1::Migration destination;
  // From the first call to the end.
  absl::Duration total = absl::ZeroDuration();
};

// Blocks until the migration has ended or goes on without us. `interrupted` is
// asked about ten times a second whether the user wants to stop: before the
// switch-over that cancels the migration.
MigrateResult Migrate(const MigrateOptions& options,
                      const std::function<bool()>& interrupted,
                      MigrateObserver* observer);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_MIGRATE_H_
