// The guest program as threads of this process: for hosts without KVM, and for
// sanitizers, which see nothing of a real guest.
#include <cstring>
#include <utility>
#include <vector>

#include "cmd/demovm/guest_program.h"
#include "cmd/demovm/machine.h"
#include "cmd/demovm/machine_base.h"
#include "dirtytrack/page_bitmap.h"

namespace postcopy::demovm {
namespace {

class ProcessMachine : public MachineBase {
 public:
  ProcessMachine(const MachineOptions& options, GuestRam ram,
                 const GuestParams& params, PageBitmap dirty)
      : MachineBase(MachineKind::kProcess, options, std::move(ram), params,
                    sizeof(GuestRegisters)),
        dirty_(std::move(dirty)),
        vcpus_(options.vcpus) {}
  ~ProcessMachine() override { EndThreads(); }

  absl::Status StartDirtyLogging() override;
  absl::Status CollectDirty(DirtyReport report) override;
  absl::Status StopDirtyLogging() override;

 protected:
  absl::Status ResetVcpu(int vcpu, const GuestRegisters& registers) override;
  absl::StatusOr<std::string> SaveVcpu(int vcpu) override;
  absl::Status LoadVcpu(int vcpu, absl::string_view state,
                        const GuestParams& params) override;
  absl::StatusOr<GuestRegisters> Registers(int vcpu) override;
  absl::Status RunVcpu(int vcpu) override;
  // The program looks at the gate after every step.
  void KickVcpu(int, pthread_t) override {}

 private:
  struct Reporter {
    ProcessMachine* machine;
    int vcpu;
  };
  static void Report(void* context, GuestReport kind,
                     const uint64_t numbers[4]);

  // A bit per RAM page, set by the program at every write, logging or not.
  PageBitmap dirty_;
  bool logging_ = false;
  std::vector<GuestRegisters> vcpus_;
};

absl::Status ProcessMachine::ResetVcpu(int vcpu,
                                       const GuestRegisters& registers) {
  vcpus_[vcpu] = registers;
  return absl::OkStatus();
}

absl::StatusOr<std::string> ProcessMachine::SaveVcpu(int vcpu) {
  return std::string(reinterpret_cast<const char*>(&vcpus_[vcpu]),
                     sizeof(GuestRegisters));
}

absl::Status ProcessMachine::LoadVcpu(int vcpu, absl::string_view state,
                                      const GuestParams& params) {
  GuestRegisters registers;
  std::memcpy(&registers, state.data(), sizeof(registers));
  auto status = CheckRegisters(registers, params, static_cast<uint32_t>(vcpu),
                               /*within_step=*/false);
  if (status.ok()) vcpus_[vcpu] = registers;
  return status;
}

absl::StatusOr<GuestRegisters> ProcessMachine::Registers(int vcpu) {
  return vcpus_[vcpu];
}

void ProcessMachine::Report(void* context, GuestReport kind,
                            const uint64_t numbers[4]) {
  const auto* reporter = static_cast<const Reporter*>(context);
  reporter->machine->OnReport(reporter->vcpu, kind, numbers);
}

absl::Status ProcessMachine::RunVcpu(int vcpu) {
  Reporter reporter{.machine = this, .vcpu = vcpu};
  const GuestThread thread{
      .registers = vcpus_[vcpu].data(),
      .ram = ram().guest_physical_zero(),
      .dirty_bits = reinterpret_cast<uint64_t*>(dirty_.view().words()),
      .stop = gate().closed_flag(),
      .report_context = &reporter,
      .report = &Report};
  // The program gets the VMM's own copy of the parameters, not the one in RAM:
  // where it reads and writes must not depend on bytes of guest RAM.
  RunGuestThread(&params(), static_cast<uint32_t>(vcpu), &thread);
  return absl::OkStatus();
}

absl::Status ProcessMachine::StartDirtyLogging() {
  for (size_t i = 0; i < dirty_.view().word_count(); ++i) {
    dirty_.view().TakeWord(i);
  }
  logging_ = true;
  return absl::OkStatus();
}

absl::Status ProcessMachine::CollectDirty(DirtyReport report) {
  if (!logging_) {
    return absl::FailedPreconditionError(
        "CollectDirty wants dirty logging to be on: call StartDirtyLogging");
  }
  TakeDirty(dirty_.view(), report);
  return absl::OkStatus();
}

absl::Status ProcessMachine::StopDirtyLogging() {
  logging_ = false;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Machine>> CreateProcessMachine(
    const MachineOptions& options, GuestRam ram) {
  absl::StatusOr<GuestParams> params = MakeGuestParams(options, ram);
  if (!params.ok()) return params.status();
  absl::StatusOr<PageBitmap> dirty = PageBitmap::Create(PagesIn(ram.bytes()));
  if (!dirty.ok()) return dirty.status();
  return std::make_unique<ProcessMachine>(options, std::move(ram), *params,
                                          *std::move(dirty));
}

}  // namespace postcopy::demovm
