#include "cmd/postcopyctl/flags.h"

#include <cstdint>
#include <string>

#include "absl/flags/flag.h"
#include "absl/time/time.h"
#include "dirtytrack/types.h"

// help_command.cc describes them for users.
ABSL_FLAG(std::string, source, "", "Control plane of the source.");
ABSL_FLAG(std::string, destination, "", "Control plane of the destination.");
ABSL_FLAG(std::string, source_data, "", "Data plane of the source.");
ABSL_FLAG(std::string, vm, "", "Name of the VM.");
ABSL_FLAG(std::string, migration_id, "", "Id of the migration.");
ABSL_FLAG(std::string, policy, "manual", "How to migrate.");
ABSL_FLAG(postcopy::ByteCount, bandwidth, postcopy::ByteCount(0),
          "Bulk bytes per second; 0 = no limit.");
ABSL_FLAG(bool, compress, false, "Compress pages on the bulk lane.");
ABSL_FLAG(std::string, pull_order, "adaptive", "What is fetched first.");
ABSL_FLAG(uint32_t, rounds_max, 0, "Most rounds; 0 = the daemon's default.");
ABSL_FLAG(absl::Duration, deadline_per_gib, absl::ZeroDuration(),
          "Of precopy, for each GiB; 0 = the daemon's default.");
ABSL_FLAG(bool, dry_run, false, "Check everything, create nothing.");
ABSL_FLAG(std::string, pause_command, "", "Stops the guest at the source.");
ABSL_FLAG(std::string, resume_command, "", "Lets the guest run.");
ABSL_FLAG(bool, lose_missing_pages, false, "Yes to what abandon does.");
ABSL_FLAG(absl::Duration, timeout, absl::InfiniteDuration(),
          "For the whole command.");
ABSL_FLAG(std::string, output, "table", "table or json.");
ABSL_FLAG(std::string, tls_dir, "", "Certificates to dial with.");
ABSL_FLAG(bool, insecure, false, "Dial in plaintext.");
ABSL_FLAG(std::string, dir, "", "Where dev-certs writes.");
ABSL_FLAG(std::string, hosts, "", "For whom dev-certs makes certificates.");
ABSL_FLAG(bool, force, false, "dev-certs overwrites.");

namespace postcopy {

Options OptionsFromFlags() {
  return {.source = absl::GetFlag(FLAGS_source),
          .destination = absl::GetFlag(FLAGS_destination),
          .source_data = absl::GetFlag(FLAGS_source_data),
          .vm = absl::GetFlag(FLAGS_vm),
          .migration_id = absl::GetFlag(FLAGS_migration_id),
          .policy = absl::GetFlag(FLAGS_policy),
          .bandwidth = absl::GetFlag(FLAGS_bandwidth),
          .compress = absl::GetFlag(FLAGS_compress),
          .pull_order = absl::GetFlag(FLAGS_pull_order),
          .rounds_max = absl::GetFlag(FLAGS_rounds_max),
          .deadline_per_gib = absl::GetFlag(FLAGS_deadline_per_gib),
          .dry_run = absl::GetFlag(FLAGS_dry_run),
          .pause_command = absl::GetFlag(FLAGS_pause_command),
          .resume_command = absl::GetFlag(FLAGS_resume_command),
          .lose_missing_pages = absl::GetFlag(FLAGS_lose_missing_pages),
          .timeout = absl::GetFlag(FLAGS_timeout),
          .output = absl::GetFlag(FLAGS_output),
          .tls_dir = absl::GetFlag(FLAGS_tls_dir),
          .insecure = absl::GetFlag(FLAGS_insecure),
          .dir = absl::GetFlag(FLAGS_dir),
          .hosts = absl::GetFlag(FLAGS_hosts),
          .force = absl::GetFlag(FLAGS_force)};
}

}  // namespace postcopy
