#include "cmd/demovm/final_report.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace postcopy::demovm {
namespace {

// What ToString(GuestMismatch) gives needs no escapes.
std::string FirstCorruption(const FinalReport& report) {
  if (!report.progress.status.ok()) {
    return "the guest has failed, see stderr";
  }
  if (report.progress.first_mismatch.has_value()) {
    return ToString(*report.progress.first_mismatch);
  }
  if (report.verdict.has_value() &&
      report.verdict->first_mismatch.has_value()) {
    return ToString(*report.verdict->first_mismatch);
  }
  return "";
}

}  // namespace

bool IsCorrect(const FinalReport& report) {
  return report.progress.status.ok() && report.progress.mismatches == 0 &&
         (!report.verdict.has_value() || report.verdict->ok());
}

std::string ToJson(const FinalReport& report) {
  const GuestVerdict none;
  const GuestVerdict& verdict =
      report.verdict.has_value() ? *report.verdict : none;
  return absl::StrCat(
      "{\"checked\":", report.verdict.has_value() ? "true" : "false",
      ",\"steps\":", report.progress.steps,
      ",\"pages_written\":", report.progress.page_writes,
      ",\"pages_checked\":", verdict.pages,
      ",\"corrupt_pages\":", verdict.corrupt_pages + verdict.corrupt_sums,
      ",\"guest_corrupt_pages\":", report.progress.mismatches,
      ",\"first_corruption\":\"", FirstCorruption(report), "\"}");
}

absl::Status WriteReport(const FinalReport& report, int fd) {
  if (!report.progress.status.ok()) {
    std::fprintf(stderr, "demovm: the guest has failed: %s\n",
                 std::string(report.progress.status.message()).c_str());
  }
  if (report.verdict.has_value()) {
    std::fprintf(stderr, "demovm: %s\n", ToString(*report.verdict).c_str());
  }
  if (fd < 0) return absl::OkStatus();
  const std::string line = absl::StrCat(ToJson(report), "\n");
  const ssize_t written = ::write(fd, line.data(), line.size());
  const int error = errno;
  ::close(fd);
  if (written == static_cast<ssize_t>(line.size())) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot write the report: ", strerror(error)));
}

}  // namespace postcopy::demovm
