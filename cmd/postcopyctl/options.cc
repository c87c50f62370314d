#include "cmd/postcopyctl/options.h"

#include <cstddef>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/security/client_security.h"

namespace postcopy {
namespace {

template <typename... Parts>
absl::Status UsageError(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status CheckId(absl::string_view flag, absl::string_view id) {
  if (IsValidId(id)) return absl::OkStatus();
  return UsageError(flag, "=", id, " must be 1 to ", kIdBytesMax,
                    " characters of A-Z, a-z, 0-9, '.', '_' and '-'");
}

absl::Status CheckRounds(const Options& options, v1::MigrationPolicy policy) {
  if (options.rounds_max > kRoundsMax) {
    return UsageError("--rounds_max=", options.rounds_max, " is more than ",
                      kRoundsMax);
  }
  if (options.rounds_max > 0 && policy == v1::MIGRATION_POLICY_POSTCOPY_ONLY) {
    return UsageError(
        "--rounds_max contradicts --policy=postcopy-only, which makes no "
        "rounds");
  }
  return absl::OkStatus();
}

absl::Status CheckAddresses(const Options& options) {
  if (options.source.empty() || options.destination.empty()) {
    return UsageError("migrate needs both --source and --destination");
  }
  if (options.source == options.destination) {
    return UsageError(
        "--source and --destination are the same daemon, but a migration has "
        "two");
  }
  if (options.source_data.empty()) {
    // The default could not be dialled from another host.
    if (absl::StartsWith(options.source, "unix:")) {
      return UsageError(
          "--source is a Unix socket, so migrate needs "
          "--source_data=host:port too");
    }
    return absl::OkStatus();
  }
  return CheckAddress("--source_data", options.source_data);
}

// Where pageserverd serves the data plane unless it is told otherwise.
std::string DefaultDataAddress(const std::string& source) {
  return absl::StrCat(source.substr(0, source.rfind(':')), ":7401");
}

}  // namespace

absl::StatusOr<OutputFormat> ParseOutputFormat(absl::string_view text) {
  if (text == "table") return OutputFormat::kTable;
  if (text == "json") return OutputFormat::kJson;
  return UsageError("--output=", text, " must be table or json");
}

absl::Status CheckAddress(absl::string_view flag, absl::string_view address) {
  if (absl::StartsWith(address, "unix:") && address.size() > 5) {
    return absl::OkStatus();
  }
  size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == absl::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port == 0 ||
      port > 65535) {
    return UsageError(flag, "=", address, " must be host:port");
  }
  return absl::OkStatus();
}

absl::Status CheckBandwidth(ByteCount bandwidth) {
  if (bandwidth.empty() || bandwidth >= kBandwidthMin) return absl::OkStatus();
  return UsageError("--bandwidth=", ToString(bandwidth), " is less than ",
                    ToString(kBandwidthMin), " per second; 0 means no limit");
}

absl::Status CheckCommon(const Options& options) {
  absl::Status status = ParseOutputFormat(options.output).status();
  if (status.ok() && !options.source.empty()) {
    status = CheckAddress("--source", options.source);
  }
  if (status.ok() && !options.destination.empty()) {
    status = CheckAddress("--destination", options.destination);
  }
  if (status.ok() && !options.migration_id.empty()) {
    status = CheckId("--migration_id", options.migration_id);
  }
  if (status.ok() && options.timeout <= absl::ZeroDuration()) {
    status = UsageError("--timeout must be more than nothing");
  }
  return status;
}

absl::Status CheckSecurity(const Options& options) {
  if (options.insecure && !options.tls_dir.empty()) {
    return UsageError("--tls_dir and --insecure contradict each other");
  }
  if (options.insecure || !options.tls_dir.empty()) return absl::OkStatus();
  for (const std::string& address : {options.source, options.destination}) {
    if (!address.empty() && !IsUnixAddress(address)) {
      return UsageError(address,
                        " would be dialled in plaintext: give --tls_dir with "
                        "certificates, or --insecure if that is what you want");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAnyAddress(const Options& options) {
  if (!options.source.empty() || !options.destination.empty()) {
    return absl::OkStatus();
  }
  return UsageError("--source or --destination is needed: which daemon?");
}

absl::Status CheckMigrationId(const Options& options) {
  if (!options.migration_id.empty()) return absl::OkStatus();
  return UsageError("--migration_id is needed: which migration?");
}

namespace {

// The policies as orchestrators call them are two fields of the protocol.
absl::Status ParseDecision(const Options& options, MigrateOptions* result) {
  absl::string_view policy = options.policy;
  if (policy == "manual" || policy == "auto") {
    result->policy = v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY;
    result->mode = policy == "auto" ? v1::SWITCH_OVER_MODE_AUTO
                                    : v1::SWITCH_OVER_MODE_MANUAL;
  } else if (!ParsePolicy(policy, &result->policy)) {
    return UsageError("--policy=", policy,
                      " must be manual, auto, postcopy-only or precopy-only");
  }
  if (options.deadline_per_gib < absl::ZeroDuration() ||
      options.deadline_per_gib > kDeadlinePerGibMax) {
    return UsageError("--deadline_per_gib must be 0 to ",
                      absl::FormatDuration(kDeadlinePerGibMax));
  }
  result->deadline_ms_per_gib = static_cast<uint32_t>(
      absl::ToInt64Milliseconds(options.deadline_per_gib));
  return CheckRounds(options, result->policy);
}

absl::Status CheckHooks(const Options& options, const MigrateOptions& result) {
  if (options.pause_command.empty() && options.resume_command.empty()) {
    return absl::OkStatus();
  }
  if (result.mode == v1::SWITCH_OVER_MODE_AUTO) {
    return UsageError(
        "--pause_command and --resume_command contradict --policy=auto, where "
        "the source stops the guest without asking");
  }
  if (options.pause_command.empty()) {
    return UsageError(
        "--resume_command needs --pause_command: it lets run what that has "
        "stopped");
  }
  return absl::OkStatus();
}

// What `create` and `migrate` both want, but for the addresses.
absl::StatusOr<MigrateOptions> ToCommonOptions(const Options& options,
                                               absl::string_view command) {
  MigrateOptions result;
  if (options.vm.empty()) {
    return UsageError(command, " needs --vm: which VM?");
  }
  absl::Status status = CheckId("--vm", options.vm);
  if (status.ok()) status = CheckBandwidth(options.bandwidth);
  if (status.ok()) status = ParseDecision(options, &result);
  if (!status.ok()) return status;
  if (!ParsePullOrder(options.pull_order, &result.pull_order)) {
    return UsageError("--pull_order=", options.pull_order,
                      " must be adaptive, linear, after-fault, around-faults "
                      "or recently-dirtied");
  }
  result.source_address = options.source;
  result.destination_address = options.destination;
  result.source_data_address = options.source_data.empty()
                                   ? DefaultDataAddress(options.source)
                                   : options.source_data;
  result.vm_name = options.vm;
  result.migration_id = options.migration_id.empty() ? RandomId(options.vm)
                                                     : options.migration_id;
  result.bandwidth = options.bandwidth;
  result.compress = options.compress;
  result.rounds_max = options.rounds_max;
  result.timeout = options.timeout;
  return result;
}

}  // namespace

absl::StatusOr<CreateRequests> ToCreateRequests(const Options& options) {
  absl::Status status = CheckMigrationId(options);
  if (status.ok()) status = CheckAnyAddress(options);
  if (!status.ok()) return status;
  if (!options.source_data.empty()) {
    status = CheckAddress("--source_data", options.source_data);
    if (!status.ok()) return status;
  } else if (!options.destination.empty() &&
             (options.source.empty() ||
              absl::StartsWith(options.source, "unix:"))) {
    return UsageError(
        "create at a destination needs --source_data=host:port: where it "
        "fetches pages");
  }
  absl::StatusOr<MigrateOptions> common = ToCommonOptions(options, "create");
  if (!common.ok()) return common.status();
  CreateRequests requests = RequestsFor(*common);
  requests.source.set_validate_only(options.dry_run);
  requests.destination.set_validate_only(options.dry_run);
  return requests;
}

absl::StatusOr<MigrateOptions> ToMigrateOptions(const Options& options) {
  absl::StatusOr<MigrateOptions> result = ToCommonOptions(options, "migrate");
  if (!result.ok()) return result.status();
  absl::Status status = CheckAddresses(options);
  if (status.ok()) status = CheckHooks(options, *result);
  if (!status.ok()) return status;
  result->pause_command = options.pause_command;
  result->resume_command = options.resume_command;
  return result;
}

}  // namespace postcopy
