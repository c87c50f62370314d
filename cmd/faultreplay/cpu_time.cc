#include "cmd/faultreplay/cpu_time.h"

#include <time.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

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

int64_t TaskCpuNanos(pid_t pid, pid_t tid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/task/", tid, "/stat"));
  std::string line;
  std::getline(file, line);
  // The name, in parentheses, may have spaces and parentheses itself.
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  const std::vector<std::string> fields =
      absl::StrSplit(line.substr(name_end + 1), ' ', absl::SkipEmpty());
  // Fields 14 and 15 of proc(5), which counts from 1; the name is the second.
  constexpr size_t kUser = 14 - 3, kSystem = 15 - 3;
  int64_t user = 0, system = 0;
  if (fields.size() <= kSystem || !absl::SimpleAtoi(fields[kUser], &user) ||
      !absl::SimpleAtoi(fields[kSystem], &system)) {
    return 0;
  }
  return (user + system) * (kNanosPerSecond / ::sysconf(_SC_CLK_TCK));
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
