#include "cmd/demovm/dirty_tracking.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy::demovm {
namespace {

constexpr absl::string_view kOfKvm =
    "kvm-log, kvm-manual, kvm-ring or pagemap-scan";
constexpr absl::string_view kOfProcess = "log or pagemap-scan";

std::optional<KvmTracking> ParseKvmTracking(absl::string_view name) {
  if (name == "kvm-log") return KvmTracking::kLog;
  if (name == "kvm-manual") return KvmTracking::kManual;
  if (name == "kvm-ring") return KvmTracking::kRing;
  return std::nullopt;
}

}  // namespace

absl::StatusOr<TrackingChoice> ChooseTracking(absl::string_view name,
                                              absl::string_view guest) {
  if (guest != "kvm" && guest != "process") {
    return absl::InvalidArgumentError(
        absl::StrCat("--guest=", guest, " must be kvm or process"));
  }
  if (name.empty()) return TrackingChoice();
  if (name == "pagemap-scan") return TrackingChoice{.pagemap_scan = true};
  const bool is_kvm = guest == "kvm";
  const std::optional<KvmTracking> kvm = ParseKvmTracking(name);
  if (is_kvm && kvm.has_value()) return TrackingChoice{.kvm = *kvm};
  if (!is_kvm && name == "log") return TrackingChoice();
  if (is_kvm && name == "log") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--dirty_tracking=log is for --guest=process, whose program marks its "
        "own pages; with --guest=kvm it must be ",
        kOfKvm));
  }
  if (kvm.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--dirty_tracking=", name,
        " needs --guest=kvm; with --guest=process it must be ", kOfProcess));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--dirty_tracking=", name, " must be ", is_kvm ? kOfKvm : kOfProcess));
}

}  // namespace postcopy::demovm
