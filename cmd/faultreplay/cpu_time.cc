#include "cmd/faultreplay/cpu_time.h"

#include <time.h>

#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

int64_t NanosOf(clockid_t clock) {
  timespec time;
  if (::clock_gettime(clock, &time) != 0) return 0;
  return time.tv_sec * kNanosPerSecond + time.tv_nsec;
}

}  // namespace

int64_t ThreadCpuNanos(pthread_t thread) {
  clockid_t clock;
  return ::pthread_getcpuclockid(thread, &clock) == 0 ? NanosOf(clock) : 0;
}

int64_t ProcessCpuNanos(pid_t pid) {
  clockid_t clock;
  return ::clock_getcpuclockid(pid, &clock) == 0 ? NanosOf(clock) : 0;
}

uint64_t PrivateRssBytes(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string line;
  while (std::getline(status, line)) {
    if (!absl::StartsWith(line, "RssAnon:")) continue;
    const std::vector<std::string> parts =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    uint64_t kib = 0;
    if (parts.size() > 1 && absl::SimpleAtoi(parts[1], &kib)) return kib << 10;
  }
  return 0;
}

}  // namespace postcopy
