// What postcopyctl was asked to do, and whether that makes sense.
#ifndef CMD_POSTCOPYCTL_OPTIONS_H_
#define CMD_POSTCOPYCTL_OPTIONS_H_

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/migrate.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Slower would not move a large VM in a lifetime; the daemons refuse it too.
inline constexpr ByteCount kBandwidthMin{1024 * 1024};
// The daemons' limit.
inline constexpr uint32_t kRoundsMax = 1000;
inline constexpr absl::Duration kDeadlinePerGibMax = absl::Hours(1);

enum class OutputFormat { kTable, kJson };

// The flags as given; see --help.
struct Options {
  std::string source;
  std::string destination;
  std::string source_data;
  std::string vm;
  std::string migration_id;
  std::string policy = "manual";
  ByteCount bandwidth;
  bool compress = false;
  std::string pull_order = "adaptive";
  uint32_t rounds_max = 0;
  absl::Duration deadline_per_gib = absl::ZeroDuration();
  bool dry_run = false;
  std::string pause_command;
  std::string resume_command;
  bool lose_missing_pages = false;
  absl::Duration timeout = absl::InfiniteDuration();
  std::string output = "table";
  // How daemons at TCP are dialled: by certificates of a directory, or in
  // plaintext.
  std::string tls_dir;
  bool insecure = false;
  // dev-certs only.
  std::string dir;
  std::string hosts;
  bool force = false;
  // Which of them were given.
  std::set<std::string> given;
};

// Each fails with INVALID_ARGUMENT and a sentence.

absl::StatusOr<OutputFormat> ParseOutputFormat(absl::string_view text);
// "10.0.0.1:7100", "[::1]:7100", "host:7100", "unix:/path". `flag` is for the
// message.
absl::Status CheckAddress(absl::string_view flag, absl::string_view address);
absl::Status CheckBandwidth(ByteCount bandwidth);
// What holds for every command.
absl::Status CheckCommon(const Options& options);
// For those that dial control planes: at TCP by --tls_dir or --insecure.
absl::Status CheckSecurity(const Options& options);
// --source or --destination or both.
absl::Status CheckAnyAddress(const Options& options);
absl::Status CheckMigrationId(const Options& options);

// The requests of `create`, for the sides whose address is given.
absl::StatusOr<CreateRequests> ToCreateRequests(const Options& options);

// What `migrate` needs; fills in what was left out.
absl::StatusOr<MigrateOptions> ToMigrateOptions(const Options& options);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_OPTIONS_H_
