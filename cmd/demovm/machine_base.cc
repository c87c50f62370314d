#include "cmd/demovm/machine_base.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy::demovm {
namespace {

constexpr double kMebibyte = 1 << 20;
constexpr size_t kWordsPerReport = 512;  // 128 MiB of RAM

}  // namespace

std::string ToString(const GuestMismatch& mismatch) {
  if (mismatch.kind == GuestMismatch::Kind::kSum) {
    return absl::StrCat("sum: the version table is not what vCPU ",
                        mismatch.vcpu, " wrote");
  }
  const uint32_t version = mismatch.entry & ~kZeroedBit;
  return absl::StrCat(ToString(mismatch.page), ": word ", mismatch.word,
                      " is 0x", absl::Hex(mismatch.found), ", not as version ",
                      version, IsZeroEntry(mismatch.entry) ? " (zeros)" : "",
                      " has it");
}

MachineBase::MachineBase(MachineKind kind, const MachineOptions& options,
                         GuestRam ram, const GuestParams& params,
                         size_t vcpu_bytes)
    : kind_(kind),
      vcpu_bytes_(vcpu_bytes),
      ram_(std::move(ram)),
      params_(params),
      gate_(options.vcpus) {
  for (int vcpu = 0; vcpu < options.vcpus; ++vcpu) {
    vcpus_.push_back(std::make_unique<Vcpu>(options.write_rate_mib_per_s *
                                            kMebibyte / options.vcpus));
  }
}

absl::Status MachineBase::Require(Stage stage, absl::string_view call) const {
  if (stage_ == stage) return absl::OkStatus();
  static constexpr absl::string_view kNames[] = {"new", "running", "paused"};
  return absl::FailedPreconditionError(absl::StrCat(
      call, " wants a machine that is ", kNames[static_cast<int>(stage)],
      "; this one is ", kNames[static_cast<int>(stage_)]));
}

absl::Status MachineBase::Start() {
  if (auto status = Require(Stage::kNew, "Start"); !status.ok()) return status;
  const std::vector<GuestRegisters> registers = InstallGuest(params_, ram_);
  for (int vcpu = 0; vcpu < vcpus(); ++vcpu) {
    auto status = ResetVcpu(vcpu, registers[vcpu]);
    if (!status.ok()) return status;
  }
  Run();
  return absl::OkStatus();
}

absl::Status MachineBase::Resume() {
  if (auto status = Require(Stage::kPaused, "Resume"); !status.ok()) {
    return status;
  }
  if (auto status = failure(); !status.ok()) return status;
  Run();
  return absl::OkStatus();
}

void MachineBase::Run() {
  gate_.Open();
  std::lock_guard lock(mutex_);
  for (int vcpu = static_cast<int>(threads_.size()); vcpu < vcpus(); ++vcpu) {
    threads_.emplace_back([this, vcpu] { ThreadMain(vcpu); });
  }
  stage_ = Stage::kRunning;
}

void MachineBase::ThreadMain(int vcpu) {
  while (gate_.Park()) {
    if (auto status = RunVcpu(vcpu); !status.ok()) Fail(std::move(status));
  }
}

absl::Status MachineBase::Pause() {
  if (auto status = Require(Stage::kRunning, "Pause"); !status.ok()) {
    return status;
  }
  CloseAndKick();
  gate_.WaitUntilParked();
  stage_ = Stage::kPaused;
  if (!failure().ok()) return absl::OkStatus();
  return ReadProgress();
}

void MachineBase::CloseAndKick() {
  gate_.Close();
  std::lock_guard lock(mutex_);
  for (size_t vcpu = 0; vcpu < threads_.size(); ++vcpu) {
    KickVcpu(static_cast<int>(vcpu), threads_[vcpu].native_handle());
  }
}

void MachineBase::Interrupt() {
  if (stage_ != Stage::kRunning) return;
  CloseAndKick();
  gate_.WaitUntilParked();
  // A guest that has failed keeps the gate closed. None can fail while parked.
  if (failure().ok()) gate_.Open();
}

void MachineBase::EndThreads() {
  gate_.End();
  CloseAndKick();
  // No vCPU's Fail() can want the mutex for long: it takes it to kick only.
  std::vector<std::thread> threads;
  {
    std::lock_guard lock(mutex_);
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

// A guest that lost one vCPU is of no use: all stop.
void MachineBase::Fail(absl::Status status) {
  {
    std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = std::move(status);
  }
  CloseAndKick();
}

absl::Status MachineBase::failure() {
  std::lock_guard lock(mutex_);
  return failure_;
}

absl::StatusOr<std::string> MachineBase::SaveState() {
  if (auto status = Require(Stage::kPaused, "SaveState"); !status.ok()) {
    return status;
  }
  if (auto status = failure(); !status.ok()) return status;
  MachineState state{.kind = kind_, .params = params_};
  for (int vcpu = 0; vcpu < vcpus(); ++vcpu) {
    absl::StatusOr<std::string> saved = SaveVcpu(vcpu);
    if (!saved.ok()) return saved.status();
    state.vcpus.push_back(*std::move(saved));
  }
  std::lock_guard lock(mutex_);
  state.first_mismatch = first_mismatch_;
  return EncodeState(state);
}

absl::Status MachineBase::LoadState(absl::string_view blob) {
  if (auto status = Require(Stage::kNew, "LoadState"); !status.ok()) {
    return status;
  }
  absl::StatusOr<MachineState> state = DecodeState(blob, kind_, vcpu_bytes_);
  if (!state.ok()) return state.status();
  if (auto status = LoadVcpus(*state); !status.ok()) return status;
  params_ = state->params;
  stage_ = Stage::kPaused;
  {
    std::lock_guard lock(mutex_);
    first_mismatch_ = state->first_mismatch;
  }
  return ReadProgress();
}

absl::Status MachineBase::LoadVcpus(const MachineState& state) {
  auto status = CheckGuestParams(state.params, vcpus(), ram_);
  if (status.ok() && state.vcpus.size() != params_.vcpus) {
    status = absl::InvalidArgumentError(
        absl::StrCat("the state has ", state.vcpus.size(),
                     " vCPUs and says it has ", params_.vcpus));
  }
  for (int vcpu = 0; status.ok() && vcpu < vcpus(); ++vcpu) {
    status = LoadVcpu(vcpu, state.vcpus[vcpu], state.params);
  }
  return status;
}

absl::Status MachineBase::ReadProgress() {
  for (int vcpu = 0; vcpu < vcpus(); ++vcpu) {
    absl::StatusOr<GuestRegisters> registers = Registers(vcpu);
    if (!registers.ok()) return registers.status();
    const uint64_t numbers[4] = {
        (*registers)[kSteps], (*registers)[kPageWrites], (*registers)[kChecks],
        (*registers)[kMismatches]};
    SetProgress(vcpu, numbers);
  }
  return absl::OkStatus();
}

void MachineBase::SetProgress(int vcpu, const uint64_t numbers[4]) {
  vcpus_[vcpu]->steps = numbers[0];
  vcpus_[vcpu]->page_writes = numbers[1];
  vcpus_[vcpu]->checks = numbers[2];
  vcpus_[vcpu]->mismatches = numbers[3];
}

void MachineBase::RecordMismatch(const GuestMismatch& mismatch) {
  std::lock_guard lock(mutex_);
  if (!first_mismatch_.has_value()) first_mismatch_ = mismatch;
}

void MachineBase::OnReport(int vcpu, uint32_t kind, const uint64_t numbers[4]) {
  switch (kind) {
    case kReportProgress:
      SetProgress(vcpu, numbers);
      KeepRate(vcpu, numbers[1]);
      return;
    case kReportBadPage:
      RecordMismatch({.kind = GuestMismatch::Kind::kPage,
                      .page = PageIndex(numbers[0]),
                      .entry = static_cast<uint32_t>(numbers[1]),
                      .word = numbers[2],
                      .found = numbers[3]});
      return;
    case kReportBadSum:
      RecordMismatch({.kind = GuestMismatch::Kind::kSum, .vcpu = numbers[0]});
      return;
    default:
      // A guest with wrong RAM may say anything.
      return;
  }
}

void MachineBase::KeepRate(int vcpu, uint64_t page_writes) {
  const auto now = WritePacer::Clock::now();
  const auto go_on = vcpus_[vcpu]->pacer.GoOnAt(page_writes, now);
  if (go_on > now) gate_.SleepUntil(go_on);
}

void MachineBase::TakeDirty(PageBitmapView dirty, DirtyReport report) const {
  for (const RamBlock& block : ram_.blocks()) {
    // RAM ends and begins at multiples of 2 MiB, so slots share no word.
    const PageRun shown = block.slot.pages();
    const size_t base = shown.first.value() / PageBitmapView::kPagesPerWord;
    const size_t count = PageBitmapView::WordCount(shown.count);
    std::array<uint64_t, kWordsPerReport> words;
    for (size_t first = 0; first < count; first += words.size()) {
      const size_t now = std::min(words.size(), count - first);
      uint64_t any = 0;
      for (size_t i = 0; i < now; ++i) {
        words[i] = dirty.TakeWord(base + first + i);
        any |= words[i];
      }
      if (any != 0) {
        report(block.slot.id, first, absl::MakeConstSpan(words.data(), now));
      }
    }
  }
}

GuestProgress MachineBase::Progress() {
  GuestProgress progress;
  for (const auto& vcpu : vcpus_) {
    progress.steps += vcpu->steps;
    progress.page_writes += vcpu->page_writes;
    progress.checks += vcpu->checks;
    progress.mismatches += vcpu->mismatches;
  }
  std::lock_guard lock(mutex_);
  progress.first_mismatch = first_mismatch_;
  progress.status = failure_;
  return progress;
}

absl::StatusOr<GuestClaims> MachineBase::Claims() {
  if (auto status = Require(Stage::kPaused, "Claims"); !status.ok()) {
    return status;
  }
  GuestClaims claims{.params = params_};
  for (int vcpu = 0; vcpu < vcpus(); ++vcpu) {
    absl::StatusOr<GuestRegisters> registers = Registers(vcpu);
    if (!registers.ok()) return registers.status();
    claims.registers.push_back(*registers);
  }
  return claims;
}

}  // namespace postcopy::demovm
