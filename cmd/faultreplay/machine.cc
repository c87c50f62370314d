#include "cmd/faultreplay/machine.h"

#include <sched.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

std::string CpuModel() {
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  while (std::getline(info, line)) {
    const size_t colon = line.find(": ");
    if (absl::StartsWith(line, "model name") && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "CPU of an unknown model";
}

}  // namespace

absl::StatusOr<Placement> ParsePlacement(absl::string_view name) {
  if (name == "one") return Placement::kOne;
  if (name == "free") return Placement::kFree;
  if (name == "spread") return Placement::kSpread;
  return absl::InvalidArgumentError(
      absl::StrCat("placement \"", name, "\": there are one, free and spread"));
}

absl::StatusOr<PlacedCpus> Place(Placement placement) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return absl::ErrnoToStatus(errno, "sched_getaffinity");
  }
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(static_cast<size_t>(cpu), &allowed)) cpus.push_back(cpu);
  }
  const std::string all = absl::StrJoin(cpus, ",");
  switch (placement) {
    case Placement::kFree:
      return PlacedCpus{absl::StrCat("free on CPUs ", all), {}};
    case Placement::kSpread:
      return PlacedCpus{absl::StrCat("touching threads bound to CPUs ", all,
                                     " in turn, the rest free on them"),
                        cpus};
    case Placement::kOne:
      break;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(cpus.front()), &one);
  if (::sched_setaffinity(0, sizeof(one), &one) != 0) {
    return absl::ErrnoToStatus(errno, "sched_setaffinity");
  }
  return PlacedCpus{absl::StrCat("all of it on CPU ", cpus.front()), {}};
}

Noise MeasureNoise(int64_t duration_ns) {
  Clock* const clock = Clock::Monotonic();
  const int64_t begin_ns = clock->NowNanos();
  int64_t last_ns = begin_ns;
  int64_t lost_ns = 0;
  Noise noise;
  while (last_ns - begin_ns < duration_ns) {
    const int64_t now_ns = clock->NowNanos();
    const int64_t gap_ns = now_ns - last_ns;
    noise.longest_gap_ns = std::max(noise.longest_gap_ns, gap_ns);
    if (gap_ns > kGapNanos) lost_ns += gap_ns;
    last_ns = now_ns;
  }
  noise.lost = static_cast<double>(lost_ns) /
               static_cast<double>(std::max<int64_t>(last_ns - begin_ns, 1));
  return noise;
}

std::string DescribeMachine() {
  utsname system;
  struct sysinfo memory;
  if (::uname(&system) != 0 || ::sysinfo(&memory) != 0) return "unknown";
  const uint64_t bytes = uint64_t{memory.totalram} * memory.mem_unit;
  return absl::StrCat(system.sysname, " ", system.release, ", ", ::get_nprocs(),
                      " CPUs, ", CpuModel(), ", ", bytes >> 30, " GiB");
}

}  // namespace postcopy
