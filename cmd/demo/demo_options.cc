#include "cmd/demo/demo_options.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cmd/demovm/dirty_tracking.h"
#include "cmd/demovm/guest_ram.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/options.h"
#include "cmd/postcopyctl/units.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr uint64_t kMiB = 1024 * 1024;
// The guest's own program and tables need some of it.
constexpr ByteCount kRamMin{16 * kMiB};
// A typing mistake, not a demo.
constexpr ByteCount kRamMax{1024 * 1024 * kMiB};
constexpr uint32_t kVcpusMax = 8;
constexpr absl::Duration kRunAfterMax = absl::Minutes(10);
// What the guest dirties under a dirty log, on two CPUs that the daemons share,
// is a little more than this.
constexpr ByteCount kBandwidth{64 * kMiB};
// With much RAM the demo would take too long at that.
constexpr ByteCount kMuchRam{1024 * kMiB};
constexpr ByteCount kBandwidthForMuchRam{128 * kMiB};
// For the daemons, the dirty logs and everybody else.
constexpr ByteCount kMemoryReserve{1024 * kMiB};
// Slower than any machine that is worth the demo.
constexpr uint64_t kSlowestBytesPerSecond = 32 * kMiB;

absl::Status CheckRam(ByteCount ram) {
  if (ram < kRamMin || ram > kRamMax || ram.value() % kMiB != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--ram=", ToString(ram), " must be a number of whole MiB from ",
        ToString(kRamMin), " to ", ToString(kRamMax)));
  }
  return absl::OkStatus();
}

absl::Status CheckGuest(const DemoOptions& options) {
  if (options.vcpus < 1 || options.vcpus > kVcpusMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--vcpus must be 1 to ", kVcpusMax));
  }
  if (!options.memory.empty() &&
      !demovm::ParseRamKind(options.memory).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--memory=", options.memory,
                     " must be shared, private, huge or huge-private"));
  }
  auto status =
      demovm::ChooseTracking(options.dirty_tracking, options.guest).status();
  status.Update(WriteRateMib(options.write_rate).status());
  return status;
}

}  // namespace

absl::Status ValidateDemoOptions(const DemoOptions& options) {
  v1::MigrationPolicy policy;
  absl::Status status = CheckRam(options.ram);
  if (status.ok()) status = CheckGuest(options);
  if (status.ok()) status = CheckBandwidth(options.bandwidth);
  if (status.ok()) status = ParseOutputFormat(options.output).status();
  if (status.ok() && !ParsePolicy(options.policy, &policy)) {
    status = absl::InvalidArgumentError(
        absl::StrCat("--policy=", options.policy,
                     " must be precopy-then-postcopy, postcopy-only or "
                     "precopy-only"));
  }
  if (status.ok() && options.security != "tls" &&
      options.security != "insecure") {
    status = absl::InvalidArgumentError(absl::StrCat(
        "--security=", options.security, " must be tls or insecure"));
  }
  if (status.ok() && (options.run_after < absl::ZeroDuration() ||
                      options.run_after > kRunAfterMax)) {
    status = absl::InvalidArgumentError("--run_after must be 0s to 10m");
  }
  return status;
}

ByteCount DefaultBandwidth(ByteCount ram) {
  return ram > kMuchRam ? kBandwidthForMuchRam : kBandwidth;
}

absl::Duration TimeForAllOf(ByteCount ram) {
  return absl::Seconds(30) + absl::Seconds(static_cast<int64_t>(
                                 ram.value() / kSlowestBytesPerSecond));
}

absl::Status CheckMemory(ByteCount ram, absl::string_view meminfo) {
  ByteCount needed = ram + ram + kMemoryReserve;
  for (absl::string_view line : absl::StrSplit(meminfo, '\n')) {
    std::vector<absl::string_view> words =
        absl::StrSplit(line, ' ', absl::SkipEmpty());
    uint64_t kib = 0;
    if (words.size() < 2 || words[0] != "MemAvailable:" ||
        !absl::SimpleAtoi(words[1], &kib) || kib > UINT64_MAX / 1024) {
      continue;
    }
    ByteCount available(kib * 1024);
    if (available >= needed) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat(
        "two VMs of ", ToString(ram), " and the rest need ",
        FormatBytes(needed), " of memory, but only ", FormatBytes(available),
        " are available; choose a smaller --ram"));
  }
  // Rather try than refuse on a kernel that words it differently.
  return absl::OkStatus();
}

absl::StatusOr<DemoPrograms> FindPrograms(const std::string& own_path,
                                          DemoPrograms programs) {
  std::string directory = own_path.substr(0, own_path.rfind('/'));
  auto find = [&directory](const char* name, std::string* path) {
    if (path->empty()) {
      *path = absl::StrCat(directory, "/../", name, "/", name);
    }
    if (::access(path->c_str(), X_OK) == 0) return absl::OkStatus();
    return absl::NotFoundError(
        absl::StrCat("the program ", name, " is not at ", *path,
                     "; build it, or name it with --", name));
  };
  absl::Status status = find("pageserverd", &programs.pageserverd);
  if (status.ok()) status = find("faultd", &programs.faultd);
  if (status.ok()) status = find("demovm", &programs.demovm);
  if (!status.ok()) return status;
  return programs;
}

absl::Status FitToMachine(DemoOptions* options, std::ostream* err) {
  std::stringstream meminfo;
  meminfo << std::ifstream("/proc/meminfo").rdbuf();
  absl::Status status = CheckMemory(options->ram, meminfo.str());
  if (!status.ok()) return status;
  if (options->guest == "kvm" &&
      !UniqueFd(::open("/dev/kvm", O_RDWR | O_CLOEXEC)).valid()) {
    *err << "demo: /dev/kvm cannot be opened, so the guest is a process"
         << std::endl;
    options->guest = "process";
    status = demovm::ChooseTracking(options->dirty_tracking, options->guest)
                 .status();
    if (!status.ok()) return status;
  }
  std::error_code error;
  std::string self = std::filesystem::read_symlink("/proc/self/exe", error);
  absl::StatusOr<DemoPrograms> programs = FindPrograms(self, options->programs);
  if (programs.ok()) options->programs = *programs;
  return programs.status();
}

absl::StatusOr<uint64_t> WriteRateMib(const std::string& write_rate) {
  if (write_rate.empty()) return 0;
  ByteCount rate;
  std::string error;
  if (!ParseByteCount(write_rate, &rate, &error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--write_rate=", write_rate, ": ", error));
  }
  if (rate.value() % kMiB != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--write_rate=", write_rate, " must be whole MiB"));
  }
  return rate.value() / kMiB;
}

}  // namespace postcopy
