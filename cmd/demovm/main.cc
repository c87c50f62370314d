// demovm: a small VMM with a guest that checks its own memory, to show and to
// test migrations with.
//
// As a source it starts the guest and attaches it to pageserverd; as a
// destination it attaches empty RAM to faultd and waits. SIGTERM stops the
// guest, checks every page of it and ends the program: exit code 0 if all of
// memory is right, 1 otherwise.

#include <cstdio>
#include <memory>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "cmd/daemon/daemon.h"
#include "cmd/demovm/demo_vmm.h"
#include "cmd/demovm/dirty_tracking.h"
#include "cmd/demovm/final_report.h"
#include "cmd/demovm/guest_ram.h"
#include "cmd/demovm/machine.h"
#include "dirtytrack/types.h"

using postcopy::ByteCount;

ABSL_FLAG(std::string, role, "", "source or destination");
ABSL_FLAG(std::string, vmm_socket, "", "the daemon's Unix socket");
ABSL_FLAG(std::string, name, "demo", "the VM's name");
ABSL_FLAG(std::string, guest, "kvm",
          "kvm: a guest of /dev/kvm; process: threads of this process");
ABSL_FLAG(ByteCount, ram, ByteCount(512 << 20), "guest RAM, such as 4GiB");
ABSL_FLAG(
    std::string, memory, "shared",
    "what guest RAM is made of: shared (memfds), private (anonymous), huge "
    "(memfds of 2 MiB pages), huge-private; the other side may have other");
ABSL_FLAG(int, vcpus, 2, "1 to 8");
ABSL_FLAG(uint64_t, write_rate_mib_per_s, 300,
          "how fast the guest writes, all vCPUs together; 0: as it can");
ABSL_FLAG(int, fill_percent, 80,
          "how much of its data the guest has written before it starts");
ABSL_FLAG(int, hot_percent, 25,
          "how much of its data the guest rewrites at random");
ABSL_FLAG(std::string, dirty_tracking, "",
          "source: kvm-manual (default), kvm-log, kvm-ring: mark a shared log "
          "from KVM's bitmaps, cleared in two steps or one, or its rings; log "
          "(--guest=process, its default): the guest's program marks it; "
          "pagemap-scan: let the daemon ask the kernel (Linux 6.7)");
ABSL_FLAG(bool, minor_faults, false,
          "destination: have pages of the guest's memory file mapped when they "
          "are fresh, instead of having stale ones punched out");
ABSL_FLAG(int, ready_fd, -1,
          "descriptor to which a line of JSON is written once attached");
ABSL_FLAG(int, report_fd, -1,
          "descriptor to which the final report is written, a line of JSON");

namespace {

absl::StatusOr<std::unique_ptr<postcopy::demovm::Machine>> NewMachine(
    postcopy::demovm::KvmTracking kvm_tracking) {
  using namespace postcopy::demovm;  // NOLINT: a file of its own program
  const MachineOptions options{
      .vcpus = absl::GetFlag(FLAGS_vcpus),
      .write_rate_mib_per_s = absl::GetFlag(FLAGS_write_rate_mib_per_s),
      .kvm_tracking = kvm_tracking,
      .hot_percent = absl::GetFlag(FLAGS_hot_percent),
      .fill_percent = absl::GetFlag(FLAGS_fill_percent)};
  const auto kind = ParseRamKind(absl::GetFlag(FLAGS_memory));
  if (!kind.has_value()) {
    return absl::InvalidArgumentError(
        "--memory must be shared, private, huge or huge-private");
  }
  auto ram = GuestRam::Create(absl::GetFlag(FLAGS_ram), kLowRamMax, *kind);
  if (!ram.ok()) return ram.status();
  return absl::GetFlag(FLAGS_guest) == "kvm"
             ? CreateKvmMachine(options, *std::move(ram))
             : CreateProcessMachine(options, *std::move(ram));
}

}  // namespace

int main(int argc, char** argv) {
  using namespace postcopy;  // NOLINT: main is outside it
  absl::SetProgramUsageMessage("a small VMM whose guest checks its memory");
  absl::ParseCommandLine(argc, argv);
  BlockEndSignals();
  const std::string role = absl::GetFlag(FLAGS_role);
  if (role != "source" && role != "destination") {
    return FailWith(
        absl::InvalidArgumentError("--role must be source or destination"), 2);
  }
  const bool source = role == "source";
  const auto tracking = demovm::ChooseTracking(
      absl::GetFlag(FLAGS_dirty_tracking), absl::GetFlag(FLAGS_guest));
  if (!tracking.ok()) return FailWith(tracking.status(), 2);
  // A destination finds no dirty pages: it needs nothing special of its KVM.
  auto machine =
      NewMachine(source ? tracking->kvm : demovm::TrackingChoice().kvm);
  if (!machine.ok()) return FailWith(machine.status(), 2);
  if (source) {
    if (absl::Status s = (*machine)->Start(); !s.ok()) return FailWith(s, 1);
  }
  auto vmm = demovm::DemoVmm::Attach(
      *std::move(machine),
      {.name = absl::GetFlag(FLAGS_name),
       .socket_path = absl::GetFlag(FLAGS_vmm_socket),
       .role = source ? VmmRole::kSource : VmmRole::kDestination,
       .dirty_tracking = tracking->pagemap_scan
                             ? demovm::DemoVmm::DirtyTracking::kPagemapScan
                             : demovm::DemoVmm::DirtyTracking::kLog,
       .minor_faults = absl::GetFlag(FLAGS_minor_faults)});
  if (!vmm.ok()) return FailWith(vmm.status(), 1);
  const absl::Status ready =
      TellReady(absl::GetFlag(FLAGS_ready_fd), {{"attached", "true"}});
  if (!ready.ok()) return FailWith(ready, 1);
  WaitForEnd();
  auto report = (*vmm)->Finish();
  if (!report.ok()) return FailWith(report.status(), 1);
  const absl::Status told =
      demovm::WriteReport(*report, absl::GetFlag(FLAGS_report_fd));
  return told.ok() && demovm::IsCorrect(*report) ? 0 : 1;
}
