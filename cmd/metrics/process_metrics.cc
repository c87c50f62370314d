#include "cmd/metrics/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "cmd/metrics/build_info.h"

namespace postcopy {
namespace {

std::string ReadFile(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Fields of /proc/self/stat, counted from 1 as proc(5) does.
constexpr size_t kUserTicks = 14;
constexpr size_t kSystemTicks = 15;
constexpr size_t kStartTicks = 22;
constexpr size_t kVirtualBytes = 23;
constexpr size_t kResidentPages = 24;

// Those behind the name, which may have blanks in it. Empty if it cannot be
// read.
std::vector<uint64_t> StatFields() {
  const std::string text = ReadFile("/proc/self/stat");
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return {};
  // The name's number is 2. Negative fields become 0; none is of interest.
  std::vector<uint64_t> fields(3);
  for (absl::string_view field :
       absl::StrSplit(text.substr(name_end + 1), ' ', absl::SkipEmpty())) {
    uint64_t value = 0;
    if (!absl::SimpleAtoi(field, &value)) value = 0;
    fields.push_back(value);
  }
  return fields;
}

double Seconds(clockid_t clock) {
  timespec time = {};
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) +
         static_cast<double>(time.tv_nsec) * 1e-9;
}

// When the host booted, in seconds since 1970, as seen by the first call: a
// clock that is set later must not look like a restart. Not from /proc/stat,
// which a service with ProcSubset=pid does not have.
double BootSeconds() {
  static const double seconds =
      Seconds(CLOCK_REALTIME) - Seconds(CLOCK_BOOTTIME);
  return seconds;
}

void AddStat(MetricFamilies& families) {
  const std::vector<uint64_t> fields = StatFields();
  if (fields.size() <= kResidentPages) return;
  const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  const auto seconds = [&](size_t field) {
    return static_cast<double>(fields[field]) / ticks;
  };
  families.Counter("process_cpu_seconds_total",
                   "User and system CPU time of this process.",
                   seconds(kUserTicks) + seconds(kSystemTicks));
  families.Gauge("process_resident_memory_bytes",
                 "Resident memory of this process.",
                 static_cast<double>(fields[kResidentPages]) *
                     static_cast<double>(::sysconf(_SC_PAGESIZE)));
  families.Gauge("process_virtual_memory_bytes",
                 "Virtual memory of this process.",
                 static_cast<double>(fields[kVirtualBytes]));
  families.Gauge("process_start_time_seconds",
                 "When this process started, in seconds since 1970.",
                 BootSeconds() + seconds(kStartTicks));
}

std::optional<size_t> OpenDescriptors() {
  std::error_code error;
  std::filesystem::directory_iterator at("/proc/self/fd", error);
  size_t count = 0;
  for (; !error && at != std::filesystem::directory_iterator();
       at.increment(error)) {
    ++count;
  }
  // Less the one that counts.
  return error ? std::nullopt : std::optional<size_t>(count - 1);
}

void AddDescriptors(MetricFamilies& families) {
  if (const std::optional<size_t> open = OpenDescriptors()) {
    families.Gauge("process_open_fds", "Open descriptors.",
                   static_cast<double>(*open));
  }
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    families.Gauge("process_max_fds", "Most descriptors it may have open.",
                   static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace

void AddProcessMetrics(MetricFamilies& families) {
  families.Gauge("postcopy_build_info",
                 "Always 1; the labels say which build this is.", 1,
                 {{"version", BuildVersion()}, {"commit", BuildCommit()}});
  AddStat(families);
  AddDescriptors(families);
}

}  // namespace postcopy
