// What both kinds of machine promise, on RAM of two regions.
#include "cmd/demovm/machine.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cmd/demovm/dirty_tracking.h"
#include "cmd/demovm/guest_abi.h"
#include "cmd/demovm/guest_checker.h"
#include "cmd/demovm/machine_state.h"
#include "dirtytrack/check.h"
#include "gtest/gtest.h"

namespace postcopy::demovm {
namespace {

constexpr uint64_t kMebibyte = 1 << 20;
constexpr ByteCount kRamBytes{8 * kMebibyte};
constexpr ByteCount kLowBytes{4 * kMebibyte};

GuestRam MakeRam(ByteCount bytes = kRamBytes) {
  absl::StatusOr<GuestRam> ram = GuestRam::Create(bytes, kLowBytes);
  POSTCOPY_CHECK(ram.ok());
  return *std::move(ram);
}

bool MemfdsAreEmpty(const GuestRam& ram) {
  for (const RamBlock& block : ram.blocks()) {
    if (lseek(block.memfd.get(), 0, SEEK_DATA) >= 0) return false;
  }
  return true;
}

void CopyPage(const GuestRam& from, const GuestRam& to, PageIndex page) {
  std::memcpy(to.PageAddress(page), from.PageAddress(page), kPageSize);
}

void CopyAll(const GuestRam& from, const GuestRam& to) {
  for (uint64_t page = 0; page < PagesIn(from.bytes()).value(); ++page) {
    CopyPage(from, to, PageIndex(page));
  }
}

// The first page that differs, or the number of pages.
uint64_t FirstDifference(const GuestRam& a, const GuestRam& b) {
  const uint64_t pages = PagesIn(a.bytes()).value();
  uint64_t page = 0;
  while (page < pages &&
         std::memcmp(a.PageAddress(PageIndex(page)),
                     b.PageAddress(PageIndex(page)), kPageSize) == 0) {
    ++page;
  }
  return page;
}

struct Kind {
  const char* name;
  MachineKind kind;
  absl::StatusOr<std::unique_ptr<Machine>> (*create)(const MachineOptions&,
                                                     GuestRam);
  KvmTracking kvm_tracking = KvmTracking::kManual;
};

constexpr Kind kKvm{"kvm", MachineKind::kKvm, &CreateKvmMachine};
constexpr Kind kProcess{"process", MachineKind::kProcess,
                        &CreateProcessMachine};
constexpr Kind kKvmLog{"kvm_log", MachineKind::kKvm, &CreateKvmMachine,
                       KvmTracking::kLog};
constexpr Kind kKvmManual{"kvm_manual", MachineKind::kKvm, &CreateKvmMachine,
                          KvmTracking::kManual};
constexpr Kind kKvmRing{"kvm_ring", MachineKind::kKvm, &CreateKvmMachine,
                        KvmTracking::kRing};

class MachineTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam().kind == MachineKind::kKvm &&
        access("/dev/kvm", R_OK | W_OK) != 0) {
      GTEST_SKIP() << "cannot open /dev/kvm: " << std::strerror(errno);
    }
    if (GetParam().kvm_tracking != KvmTracking::kRing) return;
    const absl::Status status =
        GetParam().create(Options(), MakeRam()).status();
    // This host's KVM may have no rings.
    if (absl::IsFailedPrecondition(status)) GTEST_SKIP() << status;
  }

  // Two vCPUs, as fast as they can.
  static MachineOptions Options() {
    return {.vcpus = 2,
            .write_rate_mib_per_s = 0,
            .kvm_tracking = GetParam().kvm_tracking};
  }

  static std::unique_ptr<Machine> Create(
      const MachineOptions& options = Options(), GuestRam ram = MakeRam()) {
    auto machine = GetParam().create(options, std::move(ram));
    EXPECT_TRUE(machine.ok()) << machine.status();
    return *std::move(machine);
  }

  // Waits for `done(progress)`, in vain if the guest fails.
  template <typename Done>
  static GuestProgress WaitFor(Machine& machine, Done done) {
    const auto give_up =
        std::chrono::steady_clock::now() + std::chrono::seconds(60);
    GuestProgress progress = machine.Progress();
    while (!done(progress) && progress.status.ok() &&
           std::chrono::steady_clock::now() < give_up) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      progress = machine.Progress();
    }
    EXPECT_TRUE(done(progress)) << progress.status;
    return progress;
  }

  static GuestProgress RunSteps(Machine& machine, uint64_t steps) {
    const uint64_t until = machine.Progress().steps + steps;
    return WaitFor(machine, [until](const GuestProgress& progress) {
      return progress.steps >= until;
    });
  }

  static GuestVerdict Check(Machine& machine) {
    absl::StatusOr<GuestClaims> claims = machine.Claims();
    EXPECT_TRUE(claims.ok()) << claims.status();
    return CheckGuest(machine.ram(), *claims);
  }

  // A machine that has run for some steps and is paused.
  static std::unique_ptr<Machine> PausedMachine() {
    auto machine = Create();
    EXPECT_TRUE(machine->Start().ok());
    RunSteps(*machine, 5000);
    EXPECT_TRUE(machine->Pause().ok());
    return machine;
  }

  static uint32_t EntryOf(Machine& machine, uint64_t page) {
    uint32_t entry;
    std::memcpy(&entry,
                machine.ram().guest_physical_zero() +
                    EntryAddress(machine.Claims()->params, page),
                sizeof(entry));
    return entry;
  }

  // True if a vCPU of the paused machine stands in the midst of rewriting it.
  static bool IsInFlight(Machine& machine, uint64_t page) {
    const GuestClaims claims = *machine.Claims();
    for (const auto& registers : claims.registers) {
      if (registers[kInFlight] == page + 1) return true;
    }
    return false;
  }

  // A page of the paused machine's hot set that is not zero nor in flight.
  static uint64_t QuietHotPage(Machine& machine) {
    uint64_t page = machine.Claims()->params.first_data_page;
    while (IsZeroEntry(EntryOf(machine, page)) || IsInFlight(machine, page)) {
      ++page;
    }
    return page;
  }

  // Runs the paused machine until `page` has another version, and pauses it.
  static void RunUntilRewritten(Machine& machine, uint64_t page) {
    const uint32_t entry = EntryOf(machine, page);
    do {
      ASSERT_TRUE(machine.Resume().ok());
      RunSteps(machine, 1000);
      ASSERT_TRUE(machine.Pause().ok());
    } while (EntryOf(machine, page) == entry || IsInFlight(machine, page));
  }
};

TEST_P(MachineTest, RunsAndChecksItself) {
  auto machine = PausedMachine();
  const GuestProgress progress = machine->Progress();
  EXPECT_TRUE(progress.status.ok()) << progress.status;
  EXPECT_GE(progress.steps, 5000u);
  EXPECT_GE(progress.checks, progress.steps - 2);
  EXPECT_GT(progress.page_writes, progress.steps / 2);
  EXPECT_EQ(progress.mismatches, 0u);
  const GuestVerdict verdict = Check(*machine);
  EXPECT_TRUE(verdict.ok()) << ToString(verdict);
  EXPECT_GT(verdict.pages, 1900u);
  EXPECT_GT(verdict.zero_pages, verdict.pages / 8);
  EXPECT_LT(verdict.zero_pages, verdict.pages / 2 + verdict.pages / 4);
}

TEST_P(MachineTest, StandsStillWhilePaused) {
  auto machine = PausedMachine();
  GuestRam copy = MakeRam();
  CopyAll(machine->ram(), copy);
  const uint64_t steps = machine->Progress().steps;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(machine->Progress().steps, steps);
  EXPECT_EQ(FirstDifference(machine->ram(), copy), PagesIn(kRamBytes).value());
}

TEST_P(MachineTest, PausesAndResumesOften) {
  auto machine = Create();
  ASSERT_TRUE(machine->Start().ok());
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(machine->Pause().ok());
    ASSERT_TRUE(machine->Resume().ok());
  }
  RunSteps(*machine, 1000);
  ASSERT_TRUE(machine->Pause().ok());
  const GuestVerdict verdict = Check(*machine);
  EXPECT_TRUE(verdict.ok()) << ToString(verdict);
}

TEST_P(MachineTest, GoesOnInAnotherMachine) {
  auto machine = PausedMachine();
  // Several times: each one stops between other instructions.
  for (int i = 0; i < 5; ++i) {
    absl::StatusOr<std::string> state = machine->SaveState();
    ASSERT_TRUE(state.ok()) << state.status();
    auto next = Create();
    ASSERT_TRUE(next->LoadState(*state).ok());
    EXPECT_TRUE(MemfdsAreEmpty(next->ram())) << "LoadState touches no RAM";
    CopyAll(machine->ram(), next->ram());
    EXPECT_EQ(next->Progress().steps, machine->Progress().steps);
    EXPECT_EQ(next->Progress().page_writes, machine->Progress().page_writes);
    ASSERT_TRUE(next->Resume().ok());
    RunSteps(*next, 5000);
    ASSERT_TRUE(next->Pause().ok());
    machine = std::move(next);
    const GuestVerdict verdict = Check(*machine);
    EXPECT_TRUE(verdict.ok()) << ToString(verdict);
  }
  EXPECT_EQ(machine->Progress().mismatches, 0u);
}

TEST_P(MachineTest, ACorruptByteIsNoticed) {
  auto machine = PausedMachine();
  const uint64_t page = QuietHotPage(*machine);
  machine->ram().PageAddress(PageIndex(page))[999] ^= 0x10;
  const GuestVerdict verdict = Check(*machine);
  EXPECT_EQ(verdict.corrupt_pages, 1u);
  EXPECT_EQ(verdict.corrupt_sums, 0u);
  ASSERT_TRUE(verdict.first_mismatch.has_value());
  EXPECT_EQ(verdict.first_mismatch->page, PageIndex(page));
  EXPECT_EQ(verdict.first_mismatch->word, 999u / 8);

  ASSERT_TRUE(machine->Resume().ok());
  const GuestProgress progress = WaitFor(
      *machine, [](const GuestProgress& p) { return p.mismatches > 0; });
  ASSERT_TRUE(progress.first_mismatch.has_value());
  EXPECT_EQ(progress.first_mismatch->kind, GuestMismatch::Kind::kPage);
  EXPECT_EQ(progress.first_mismatch->page, PageIndex(page));
  EXPECT_EQ(progress.first_mismatch->word, 999u / 8);
  // It travels with the state.
  ASSERT_TRUE(machine->Pause().ok());
  auto next = Create();
  ASSERT_TRUE(next->LoadState(*machine->SaveState()).ok());
  EXPECT_GE(next->Progress().mismatches, 1u);
  ASSERT_TRUE(next->Progress().first_mismatch.has_value());
  EXPECT_EQ(ToString(*next->Progress().first_mismatch),
            ToString(*progress.first_mismatch));
}

TEST_P(MachineTest, ALostWriteIsNoticed) {
  auto machine = PausedMachine();
  const uint64_t page = QuietHotPage(*machine);
  GuestRam old = MakeRam();
  CopyPage(machine->ram(), old, PageIndex(page));
  RunUntilRewritten(*machine, page);
  CopyPage(old, machine->ram(), PageIndex(page));
  EXPECT_EQ(Check(*machine).corrupt_pages, 1u);
  ASSERT_TRUE(machine->Resume().ok());
  WaitFor(*machine, [](const GuestProgress& p) { return p.mismatches > 0; });
}

TEST_P(MachineTest, AnOldPageWithItsOldEntryIsNoticed) {
  auto machine = PausedMachine();
  const uint64_t page = QuietHotPage(*machine);
  GuestRam old = MakeRam();
  CopyPage(machine->ram(), old, PageIndex(page));
  const uint32_t entry = EntryOf(*machine, page);
  RunUntilRewritten(*machine, page);
  CopyPage(old, machine->ram(), PageIndex(page));
  std::memcpy(machine->ram().guest_physical_zero() +
                  EntryAddress(machine->Claims()->params, page),
              &entry, sizeof(entry));
  const GuestVerdict verdict = Check(*machine);
  EXPECT_EQ(verdict.corrupt_pages, 0u) << ToString(verdict);
  EXPECT_EQ(verdict.corrupt_sums, 1u) << ToString(verdict);
  ASSERT_TRUE(machine->Resume().ok());
  const GuestProgress progress = WaitFor(
      *machine, [](const GuestProgress& p) { return p.mismatches > 0; });
  EXPECT_EQ(progress.first_mismatch->kind, GuestMismatch::Kind::kSum);
}

TEST_P(MachineTest, ALostPageIsNoticed) {
  auto machine = PausedMachine();
  const uint64_t page = QuietHotPage(*machine);
  std::memset(machine->ram().PageAddress(PageIndex(page)), 0, kPageSize);
  EXPECT_EQ(Check(*machine).corrupt_pages, 1u);
  ASSERT_TRUE(machine->Resume().ok());
  WaitFor(*machine, [](const GuestProgress& p) { return p.mismatches > 0; });
}

TEST_P(MachineTest, KeepsTheWriteRate) {
  MachineOptions options = Options();
  options.write_rate_mib_per_s = 20;
  auto machine = Create(options);
  ASSERT_TRUE(machine->Start().ok());
  const uint64_t first = RunSteps(*machine, 1000).page_writes;
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t last = RunSteps(*machine, 2000).page_writes;
  const std::chrono::duration<double> took =
      std::chrono::steady_clock::now() - begin;
  const double rate = (last - first) * kPageSize / took.count() / kMebibyte;
  // A slow host may be slower, none faster (but for what may be caught up).
  EXPECT_LT(rate, 30);
  // Pausing does not wait for a sleeping vCPU.
  ASSERT_TRUE(machine->Pause().ok());
}

TEST_P(MachineTest, RefusesCallsOutOfOrder) {
  auto machine = Create();
  const auto code = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(machine->Pause().code(), code);
  EXPECT_EQ(machine->Resume().code(), code);
  EXPECT_EQ(machine->SaveState().status().code(), code);
  EXPECT_EQ(machine->Claims().status().code(), code);
  ASSERT_TRUE(machine->Start().ok());
  EXPECT_EQ(machine->Start().code(), code);
  EXPECT_EQ(machine->Resume().code(), code);
  EXPECT_EQ(machine->SaveState().status().code(), code);
  EXPECT_EQ(machine->LoadState("").code(), code);
  ASSERT_TRUE(machine->Pause().ok());
  EXPECT_EQ(machine->Pause().code(), code);
  EXPECT_EQ(machine->LoadState("").code(), code);
}

TEST_P(MachineTest, RefusesBytesThatAreNoState) {
  const std::string good = *PausedMachine()->SaveState();
  auto machine = Create();
  for (size_t size = 0; size < good.size(); size += 7) {
    EXPECT_EQ(machine->LoadState(good.substr(0, size)).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(machine->LoadState(good + "x").code(),
            absl::StatusCode::kInvalidArgument);
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] ^= 0x40;
    EXPECT_EQ(machine->LoadState(bad).code(),
              absl::StatusCode::kInvalidArgument)
        << "byte " << at;
  }
  EXPECT_TRUE(machine->LoadState(good).ok()) << "none of these did harm";
}

TEST_P(MachineTest, RefusesTheStateOfAnotherMachine) {
  const std::string state = *PausedMachine()->SaveState();
  MachineOptions options = Options();
  options.vcpus = 3;
  absl::Status status = Create(options)->LoadState(state);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("2 vCPUs, this one has 3"),
            absl::string_view::npos)
      << status;
  status =
      Create(Options(), MakeRam(ByteCount(10 * kMebibyte)))->LoadState(state);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("pages of RAM"), absl::string_view::npos)
      << status;
}

// What a hostile source may send: well-formed, with any value.
TEST_P(MachineTest, RefusesValuesThatNoGuestHas) {
  const std::string good = *PausedMachine()->SaveState();
  const size_t vcpu_bytes =
      (good.size() - EncodeState({.vcpus = {""}}).size()) / 2;
  const MachineState state = *DecodeState(good, GetParam().kind, vcpu_bytes);
  auto machine = Create();
  const auto refuses = [&](const MachineState& bad) {
    return machine->LoadState(EncodeState(bad)).code() ==
           absl::StatusCode::kInvalidArgument;
  };
  for (size_t at = 0; at < sizeof(GuestParams); at += 4) {
    MachineState bad = state;
    const bool free_choice = at >= offsetof(GuestParams, hot_percent);
    if (free_choice) break;
    reinterpret_cast<uint8_t*>(&bad.params)[at + 3] ^= 0x80;
    EXPECT_TRUE(refuses(bad)) << "parameter at " << at;
  }
  MachineState bad = state;
  bad.params.hot_percent = 101;
  EXPECT_TRUE(refuses(bad));
  bad = state;
  bad.params.never_mask = 0xffffffff;
  EXPECT_TRUE(refuses(bad));
  bad = state;
  bad.vcpus[1].assign(vcpu_bytes, '\xff');
  EXPECT_TRUE(refuses(bad));
  bad = state;
  bad.vcpus.pop_back();
  EXPECT_TRUE(refuses(bad));
  EXPECT_TRUE(machine->LoadState(good).ok());
}

TEST_P(MachineTest, RefusesOptionsOutOfRange) {
  const auto code_of = [](const MachineOptions& options, ByteCount bytes) {
    return GetParam().create(options, MakeRam(bytes)).status().code();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code_of({.vcpus = 0}, kRamBytes), invalid);
  EXPECT_EQ(code_of({.vcpus = kMaxVcpus + 1}, kRamBytes), invalid);
  EXPECT_EQ(code_of({.hot_percent = 0}, kRamBytes), invalid);
  EXPECT_EQ(code_of({.hot_percent = 101}, kRamBytes), invalid);
  EXPECT_EQ(code_of({.never_written_one_in = 1}, kRamBytes), invalid);
  EXPECT_EQ(code_of({.never_written_one_in = 12}, kRamBytes), invalid);
  EXPECT_EQ(code_of({.fill_percent = 101}, kRamBytes), invalid);
  EXPECT_EQ(code_of({.vcpus = kMaxVcpus}, ByteCount(2 * kMebibyte)), invalid);
}

TEST_P(MachineTest, RunsWithEveryOptionAtItsLimits) {
  for (const MachineOptions& options :
       {MachineOptions{.vcpus = 1, .hot_percent = 1, .fill_percent = 0},
        MachineOptions{.vcpus = kMaxVcpus,
                       .write_rate_mib_per_s = 0,
                       .hot_percent = 100,
                       .never_written_one_in = 2,
                       .fill_percent = 100},
        MachineOptions{.never_written_one_in = 0},
        MachineOptions{.never_written_one_in = 1 << 20}}) {
    auto machine = Create(options);
    ASSERT_TRUE(machine->Start().ok());
    RunSteps(*machine, 2000);
    ASSERT_TRUE(machine->Pause().ok());
    const GuestVerdict verdict = Check(*machine);
    EXPECT_TRUE(verdict.ok()) << ToString(verdict);
    EXPECT_EQ(machine->Progress().mismatches, 0u);
  }
}

// A copy of a machine's RAM that is kept up to date by nothing but what is
// reported.
class DirtyLoggingTest : public MachineTest {
 protected:
  // A machine that runs and logs, and its copy.
  void Begin(const MachineOptions& options = Options(),
             ByteCount bytes = kRamBytes) {
    machine_ = Create(options, MakeRam(bytes));
    copy_.emplace(MakeRam(bytes));
    ASSERT_TRUE(machine_->Start().ok());
    ASSERT_TRUE(machine_->StartDirtyLogging().ok());
    CopyAll(machine_->ram(), *copy_);
  }

  // Copies what is reported; returns how many pages.
  absl::StatusOr<uint64_t> Collect() {
    uint64_t reported = 0;
    absl::Status status = machine_->CollectDirty(
        [&](SlotId id, uint64_t first_word, absl::Span<const uint64_t> words) {
          const Slot slot = machine_->ram().slots()[id.slot];
          for (size_t i = 0; i < words.size() * 64; ++i) {
            if ((words[i / 64] >> i % 64 & 1) == 0) continue;
            ++reported;
            CopyPage(machine_->ram(), *copy_,
                     slot.pages().first + PageCount(first_word * 64 + i));
          }
        });
    if (!status.ok()) return status;
    return reported;
  }

  // REQUIRES: paused.
  void ExpectExactCopy() {
    EXPECT_EQ(FirstDifference(machine_->ram(), *copy_),
              PagesIn(machine_->ram().bytes()).value());
  }

  std::unique_ptr<Machine> machine_;
  std::optional<GuestRam> copy_;
};

TEST_P(DirtyLoggingTest, IsExact) {
  Begin();
  uint64_t reported = 0;
  for (int round = 0; round < 20; ++round) {
    RunSteps(*machine_, 500);
    absl::StatusOr<uint64_t> pages = Collect();
    ASSERT_TRUE(pages.ok()) << pages.status();
    reported += *pages;
  }
  ASSERT_TRUE(machine_->Pause().ok());
  ASSERT_TRUE(Collect().ok());
  ExpectExactCopy();
  EXPECT_GT(reported, 0u);
  EXPECT_EQ(Collect().value(), 0u) << "what was collected is forgotten";
  const GuestVerdict verdict = Check(*machine_);
  EXPECT_TRUE(verdict.ok()) << ToString(verdict);
  ASSERT_TRUE(machine_->StopDirtyLogging().ok());
  EXPECT_EQ(Collect().status().code(), absl::StatusCode::kFailedPrecondition);
}

// Collecting and pausing both make vCPUs leave the guest.
TEST_P(DirtyLoggingTest, IsExactAcrossManyPauses) {
  Begin();
  for (int round = 0; round < 200; ++round) {
    ASSERT_TRUE(Collect().ok());
    ASSERT_TRUE(Collect().ok());
    ASSERT_TRUE(machine_->Pause().ok());
    ASSERT_TRUE(Collect().ok());
    ExpectExactCopy();
    ASSERT_TRUE(machine_->Resume().ok());
  }
  RunSteps(*machine_, 1000);
  EXPECT_EQ(machine_->Progress().mismatches, 0u);
}

// More pages than a ring of each vCPU has room for.
TEST_P(DirtyLoggingTest, IsExactWhenNobodyCollectsForLong) {
  MachineOptions options = Options();
  options.hot_percent = 100;
  Begin(options, ByteCount(64 * kMebibyte));
  RunSteps(*machine_, 60000);
  ASSERT_TRUE(machine_->Pause().ok());
  absl::StatusOr<uint64_t> reported = Collect();
  ASSERT_TRUE(reported.ok()) << reported.status();
  EXPECT_GT(*reported, 10000u);
  ExpectExactCopy();
}

TEST_P(DirtyLoggingTest, StartsClean) {
  Begin();
  RunSteps(*machine_, 1000);
  ASSERT_TRUE(machine_->Pause().ok());
  ASSERT_TRUE(machine_->StartDirtyLogging().ok());
  EXPECT_EQ(Collect().value(), 0u);
}

TEST_P(DirtyLoggingTest, GoesOnAndOff) {
  Begin();
  ASSERT_TRUE(machine_->StopDirtyLogging().ok());
  ASSERT_TRUE(machine_->StopDirtyLogging().ok()) << "twice is no harm";
  RunSteps(*machine_, 5000);
  ASSERT_TRUE(machine_->StartDirtyLogging().ok());
  CopyAll(machine_->ram(), *copy_);
  RunSteps(*machine_, 5000);
  ASSERT_TRUE(machine_->Pause().ok());
  ASSERT_TRUE(Collect().ok());
  ExpectExactCopy();
}

std::string NameOf(const testing::TestParamInfo<Kind>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Kinds, MachineTest, testing::Values(kKvm, kProcess),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Modes, DirtyLoggingTest,
                         testing::Values(kKvmLog, kKvmManual, kKvmRing,
                                         kProcess),
                         NameOf);

// A guest whose program is gone does what no guest should.
class KvmMachineTest : public testing::TestWithParam<Kind> {};

TEST_P(KvmMachineTest, SaysWhyAGuestStopped) {
  auto created = GetParam().create(
      {.vcpus = 2, .kvm_tracking = GetParam().kvm_tracking}, MakeRam());
  if (!created.ok()) GTEST_SKIP() << created.status();
  Machine& machine = **created;
  ASSERT_TRUE(machine.Start().ok());
  ASSERT_TRUE(machine.Pause().ok());
  const GuestParams params = machine.Claims()->params;
  std::memset(machine.ram().guest_physical_zero() + params.program_address,
              0xf4, params.mailbox_address - params.program_address);
  ASSERT_TRUE(machine.StartDirtyLogging().ok());
  ASSERT_TRUE(machine.Resume().ok());
  const auto collect = [&machine] {
    return machine.CollectDirty(
        [](SlotId, uint64_t, absl::Span<const uint64_t>) {});
  };
  const auto give_up =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (machine.Progress().status.ok() &&
         std::chrono::steady_clock::now() < give_up) {
    EXPECT_TRUE(collect().ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(machine.Progress().status.code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(collect().ok()) << "who collects does not let it run again";
  EXPECT_TRUE(machine.Pause().ok());
  EXPECT_EQ(machine.SaveState().status(), machine.Progress().status);
  EXPECT_EQ(machine.Resume(), machine.Progress().status);
}

INSTANTIATE_TEST_SUITE_P(Modes, KvmMachineTest,
                         testing::Values(kKvmLog, kKvmManual, kKvmRing),
                         NameOf);

}  // namespace
}  // namespace postcopy::demovm
