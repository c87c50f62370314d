// What both kinds of machine share: the life of a machine, its threads, its
// progress and its state. A kind adds how a vCPU runs and what it consists of.
#ifndef CMD_DEMOVM_MACHINE_BASE_H_
#define CMD_DEMOVM_MACHINE_BASE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/demovm/guest_abi.h"
#include "cmd/demovm/guest_image.h"
#include "cmd/demovm/machine.h"
#include "cmd/demovm/machine_state.h"
#include "cmd/demovm/vcpu_gate.h"
#include "cmd/demovm/write_pacer.h"
#include "dirtytrack/page_bitmap.h"

namespace postcopy::demovm {

class MachineBase : public Machine {
 public:
  absl::string_view kind() const final { return ToString(kind_); }
  const GuestRam& ram() const final { return ram_; }
  absl::Status Start() final;
  absl::Status Pause() final;
  absl::StatusOr<std::string> SaveState() final;
  absl::Status LoadState(absl::string_view blob) final;
  absl::Status Resume() final;
  GuestProgress Progress() final;
  absl::StatusOr<GuestClaims> Claims() final;

 protected:
  // `vcpu_bytes` is the size of what SaveVcpu() gives.
  MachineBase(MachineKind kind, const MachineOptions& options, GuestRam ram,
              const GuestParams& params, size_t vcpu_bytes);

  // Ends the vCPUs' threads. Every kind's destructor begins with it, as the
  // threads run functions of that kind.
  void EndThreads();

  int vcpus() const { return static_cast<int>(params_.vcpus); }
  const GuestParams& params() const { return params_; }
  const VcpuGate& gate() const { return gate_; }

  // What a kind is made of. The first four are called while no vCPU runs.
  //
  // Makes the vCPU stand at the program's beginning.
  virtual absl::Status ResetVcpu(int vcpu, const GuestRegisters& registers) = 0;
  virtual absl::StatusOr<std::string> SaveVcpu(int vcpu) = 0;
  // Checks `state` first, against `params`, which become the machine's only if
  // all vCPUs load. INVALID_ARGUMENT if it is none. REQUIRES: vcpu_bytes long.
  virtual absl::Status LoadVcpu(int vcpu, absl::string_view state,
                                const GuestParams& params) = 0;
  virtual absl::StatusOr<GuestRegisters> Registers(int vcpu) = 0;
  // On the vCPU's thread: runs it until the gate is closed, or returns why it
  // cannot go on.
  virtual absl::Status RunVcpu(int vcpu) = 0;
  // Makes RunVcpu(), on `thread`, see that the gate is closed. Any thread.
  virtual void KickVcpu(int vcpu, pthread_t thread) = 0;

  // RunVcpu() passes on what the vCPU reports, on its thread. Sleeps as long
  // as the vCPU is ahead of its rate.
  void OnReport(int vcpu, uint32_t kind, const uint64_t numbers[4]);

  // Makes every vCPU that runs return from RunVcpu() once. For the thread that
  // the other methods belong to.
  void Interrupt();
  // Reports and clears the pages of `dirty`, which has a bit for each RAM page.
  void TakeDirty(PageBitmapView dirty, DirtyReport report) const;

 private:
  enum class Stage { kNew, kRunning, kPaused };

  struct Vcpu {
    explicit Vcpu(double bytes_per_second) : pacer(bytes_per_second) {}

    WritePacer pacer;  // of the vCPU's thread
    std::atomic<uint64_t> steps{0};
    std::atomic<uint64_t> page_writes{0};
    std::atomic<uint64_t> checks{0};
    std::atomic<uint64_t> mismatches{0};
  };

  absl::Status Require(Stage stage, absl::string_view call) const;
  void ThreadMain(int vcpu);
  void Run();
  void CloseAndKick();
  void Fail(absl::Status status);
  absl::Status failure();
  void RecordMismatch(const GuestMismatch& mismatch);
  void SetProgress(int vcpu, const uint64_t numbers[4]);
  void KeepRate(int vcpu, uint64_t page_writes);
  // Takes the exact progress of paused vCPUs from their registers.
  absl::Status ReadProgress();
  absl::Status LoadVcpus(const MachineState& state);

  const MachineKind kind_;
  const size_t vcpu_bytes_;
  const GuestRam ram_;
  GuestParams params_;  // changes in LoadState() only
  Stage stage_ = Stage::kNew;
  VcpuGate gate_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;

  std::mutex mutex_;
  // Guarded by mutex_:
  std::vector<std::thread> threads_;
  absl::Status failure_;
  std::optional<GuestMismatch> first_mismatch_;
};

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_MACHINE_BASE_H_
