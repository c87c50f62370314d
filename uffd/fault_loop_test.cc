#include "uffd/fault_loop.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dirtytrack/memfd.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;
using Touch = SimulatedUffd::Touch;

constexpr uint64_t kPages = 4096;
constexpr HostAddress kBase{0x100000000};
constexpr HostAddress kOutside{0x900000000};

PageRun Page(uint64_t page) { return {PageIndex(page), PageCount(1)}; }

class FaultLoopTest : public testing::Test {
 protected:
  explicit FaultLoopTest(uint64_t features = 0, bool file_given = true)
      : file_given_(file_given) {
    uffd_.SetFeatures(features);
    uffd_.Map(kBase, size_, fd_.get(), 0);
    uffd_.Map(kOutside, size_, other_fd_.get(), 0);
    strategies_ = StrategiesFor(ram_, uffd_);
    EXPECT_TRUE(
        uffd_.Register(kOutside, size_, UFFDIO_REGISTER_MODE_MISSING).ok());
    EXPECT_TRUE(loop_->SetSource(&source_).ok());
  }
  ~FaultLoopTest() override { loop_->Stop(); }

  HostAddress at(uint64_t page) const {
    return kBase + BytesIn(PageCount(page));
  }
  // Thread `page` touches page `page`.
  void Fault(uint64_t page) {
    EXPECT_EQ(uffd_.TouchPage(static_cast<int>(page), at(page)),
              Touch::kWaiting);
  }
  // Reads all there is.
  absl::Status Serve() {
    while (true) {
      const absl::StatusOr<bool> served = loop_->ServeOnce();
      if (!served.ok()) return served.status();
      if (!*served) return absl::OkStatus();
    }
  }
  void Install(uint64_t page) {
    EXPECT_TRUE(installer_.InstallData(Page(page), PatternOf(PageIndex(page)))
                    .status.ok());
  }
  uint64_t Counted(std::atomic<uint64_t> FaultCounters::* counter) const {
    return (loop_->counters().*counter).load();
  }

  const ByteCount size_ = BytesIn(PageCount(kPages));
  const UniqueFd fd_ = *CreateMemfd("ram", size_, 0);
  const UniqueFd other_fd_ = *CreateMemfd("other", size_, 0);
  const bool file_given_;
  DestinationRam ram_ =
      *DestinationRam::Create(LayoutOf({PageCount(kPages)}),
                              {{kBase, file_given_ ? fd_.get() : -1, 0}});
  const std::unique_ptr<PageState> state_ =
      *PageState::Create(PageCount(kPages));
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  InstallGate gate_{/*needed=*/false};
  InstallStrategies strategies_;
  MemoryChanges changes_{&ram_, state_.get(), &strategies_};
  Installer installer_{&ram_, &uffd_, state_.get(), &gate_, &strategies_};
  AfterFaultOrder order_;
  FakePageSource source_;
  std::thread::id ended_by_;
  std::promise<absl::Status> end_;
  const std::unique_ptr<FaultLoop> loop_ =
      *FaultLoop::Create({.ram = &ram_,
                          .ops = &uffd_,
                          .state = state_.get(),
                          .gate = &gate_,
                          .changes = &changes_,
                          .installer = &installer_,
                          .order = &order_,
                          .clock = &clock_,
                          .on_given_up = [] {},
                          .on_end =
                              [this](const absl::Status& status) {
                                ended_by_ = std::this_thread::get_id();
                                end_.set_value(status);
                              }});
};

TEST_F(FaultLoopTest, OneRequestForAllThatWait) {
  for (const uint64_t page : {9, 3, 7}) Fault(page);
  EXPECT_EQ(uffd_.TouchPage(100, at(3)), Touch::kWaiting);
  EXPECT_TRUE(Serve().ok());
  ASSERT_EQ(source_.urgent().size(), 1u);
  EXPECT_EQ(source_.urgent()[0],
            (std::vector<PageIndex>{PageIndex(9), PageIndex(3), PageIndex(7)}));
  EXPECT_EQ(Counted(&FaultCounters::faults), 4u);
  EXPECT_EQ(Counted(&FaultCounters::duplicates), 1u);
  EXPECT_EQ(loop_->outstanding(), 3u);
}

TEST_F(FaultLoopTest, ABatchIsNoMoreThanARequestCanHold) {
  for (uint64_t page = 0; page < kMaxUrgentPages + 1; ++page) Fault(page);
  EXPECT_TRUE(Serve().ok());
  ASSERT_EQ(source_.urgent().size(), 2u);
  EXPECT_EQ(source_.urgent()[0].size(), kMaxUrgentPages);
  EXPECT_EQ(source_.urgent()[1].size(), 1u);
}

TEST_F(FaultLoopTest, TellsWhenAFaultWasFirstRead) {
  clock_.Advance(50);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  clock_.Advance(50);
  EXPECT_EQ(uffd_.TouchPage(100, at(5)), Touch::kWaiting);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(loop_->Resolve(PageIndex(5)), 50);
  EXPECT_EQ(loop_->Resolve(PageIndex(5)), std::nullopt);
}

// The guest found the page and threw it away again before the installer could
// write down that it had come.
TEST_F(FaultLoopTest, ADuplicateIsWokenByTheAnswer) {
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.TouchPage(100, at(5)), Touch::kWaiting);
  EXPECT_TRUE(Serve().ok());
  state_->MarkReceived(Page(5), /*is_zero=*/true);
  EXPECT_TRUE(uffd_.IsWaiting(100));
  EXPECT_TRUE(loop_->Resolve(PageIndex(5)).has_value());
  EXPECT_TRUE(Serve().ok());
  EXPECT_FALSE(uffd_.IsWaiting(100));
}

TEST_F(FaultLoopTest, ForeignAddressesAreCounted) {
  EXPECT_EQ(uffd_.TouchPage(1, kOutside), Touch::kWaiting);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(Counted(&FaultCounters::foreign), 1u);
  EXPECT_TRUE(source_.urgent().empty());
}

TEST_F(FaultLoopTest, ZerosAreAnsweredHere) {
  state_->MarkReceived(Page(5), /*is_zero=*/true);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_FALSE(uffd_.IsWaiting(5));
  EXPECT_EQ(Counted(&FaultCounters::local), 1u);
  EXPECT_TRUE(source_.urgent().empty());
}

// A host without memory to spare for a moment: the page is tried again, and
// the serving of all others goes on.
TEST_F(FaultLoopTest, ZerosThatFindNoMemoryAreTriedAgain) {
  state_->MarkReceived(Page(5), /*is_zero=*/true);
  uffd_.FailNext(Call::kZeroPage, ENOMEM);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(Counted(&FaultCounters::deferred), 1u);
  EXPECT_EQ(Counted(&FaultCounters::local), 1u);
  EXPECT_FALSE(uffd_.IsWaiting(5));
  EXPECT_EQ(uffd_.TouchPage(5, at(5)), Touch::kPresent);
}

TEST_F(FaultLoopTest, ALateMessageWakes) {
  Fault(5);
  // Brought by somebody who has not woken anybody yet.
  ASSERT_EQ(::pwrite(fd_.get(), "x", 1, 5 * kPageSize), 1);
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  EXPECT_TRUE(Serve().ok());
  EXPECT_FALSE(uffd_.IsWaiting(5));
  EXPECT_EQ(Counted(&FaultCounters::late), 1u);
}

TEST_F(FaultLoopTest, ALostPageIsPoisonedNotZeroed) {
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  Fault(5);
  EXPECT_EQ(uffd_.TouchPage(100, at(5)), Touch::kWaiting);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.waiting(), 0u);
  EXPECT_EQ(uffd_.TouchPage(101, at(5)), Touch::kPoisoned);
  EXPECT_EQ(Counted(&FaultCounters::lost), 1u);
  EXPECT_EQ(uffd_.calls(Call::kZeroPage), 0);
}

TEST_F(FaultLoopTest, AKernelThatCannotPoisonEndsTheLoop) {
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  uffd_.FailNext(Call::kPoison, EINVAL);
  Fault(5);
  EXPECT_TRUE(absl::IsInternal(Serve()));
  EXPECT_TRUE(uffd_.IsWaiting(5));  // rather than zeros
}

// The kernel says EAGAIN while somebody gives memory up.
TEST_F(FaultLoopTest, PoisoningIsTriedAgain) {
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  uffd_.FailNext(Call::kPoison, EAGAIN);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.TouchPage(101, at(5)), Touch::kPoisoned);
  EXPECT_EQ(Counted(&FaultCounters::deferred), 1u);
}

TEST_F(FaultLoopTest, UnexpectedEventsEndItBehindTheFaults) {
  uffd_msg event = {};
  event.event = UFFD_EVENT_REMOVE;
  uffd_.Inject(event);
  Fault(5);
  EXPECT_TRUE(absl::IsFailedPrecondition(Serve()));
  EXPECT_EQ(source_.TimesAsked(PageIndex(5)), 1);
  EXPECT_EQ(Counted(&FaultCounters::unexpected_events), 1u);
}

TEST_F(FaultLoopTest, MoreThanCanBeDeferredComeAgain) {
  constexpr uint64_t kMore = kMaxDeferredFaults + 2;
  state_->MarkReceived({PageIndex(0), PageCount(kMore)}, /*is_zero=*/true);
  uffd_.FailNext(Call::kZeroPage, ENOMEM, kMore);
  for (uint64_t page = 0; page < kMore; ++page) Fault(page);
  EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_EQ(Counted(&FaultCounters::deferred), kMore);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.waiting(), 0u);
  EXPECT_EQ(Counted(&FaultCounters::local), kMore + 2);  // two came twice
  EXPECT_EQ(Counted(&FaultCounters::overflowed), 2u);
}

TEST_F(FaultLoopTest, OtherKindsOfFaultAreUnexpected) {
  for (const uint64_t flag :
       {UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_MINOR}) {
    uffd_msg message = {};
    message.event = UFFD_EVENT_PAGEFAULT;
    message.arg.pagefault.flags = flag;
    message.arg.pagefault.address = kBase.value();
    uffd_.Inject(message);
    EXPECT_TRUE(absl::IsFailedPrecondition(Serve()));
  }
  EXPECT_TRUE(source_.urgent().empty());
}

class MinorFaultLoopTest : public FaultLoopTest {
 protected:
  MinorFaultLoopTest() : FaultLoopTest(UFFD_FEATURE_MINOR_SHMEM) {}

  // Page `page` has bytes in its file.
  void Write(uint64_t page) {
    const std::vector<uint8_t> bytes = PatternOf(PageIndex(page));
    ASSERT_EQ(::pwrite(fd_.get(), bytes.data(), kPageSize,
                       static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(kPageSize));
  }
};

TEST_F(MinorFaultLoopTest, APrecopiedPageIsShown) {
  Write(5);
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.waiting(), 0u);
  EXPECT_TRUE(source_.urgent().empty());
  EXPECT_EQ(Counted(&FaultCounters::minor), 1u);
  EXPECT_EQ(Counted(&FaultCounters::late), 1u);
}

// A thread that writes into the file may hold its lock, and fault.
TEST_F(MinorFaultLoopTest, TheLoopServesUntilAnAnswerIsInstalled) {
  ASSERT_TRUE(loop_->Start().ok());
  state_->MarkReceived(Page(1), /*is_zero=*/true);
  FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
  Fault(1);
  while (uffd_.IsWaiting(1)) std::this_thread::yield();
}

TEST_F(MinorFaultLoopTest, AStalePageIsFetched) {
  Write(5);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(source_.TimesAsked(PageIndex(5)), 1);
  EXPECT_EQ(uffd_.waiting(), 1u);
  Install(5);
  EXPECT_EQ(uffd_.waiting(), 0u);
}

TEST_F(MinorFaultLoopTest, WhatCannotBeShownNowIsTriedAgain) {
  Write(5);
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  uffd_.FailNext(Call::kContinue, EAGAIN);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.waiting(), 0u);
  EXPECT_EQ(Counted(&FaultCounters::deferred), 1u);
  EXPECT_EQ(Counted(&FaultCounters::late), 1u);
}

TEST_F(MinorFaultLoopTest, ALostPageIsPoisonedNotZeroed) {
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  Fault(5);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.TouchPage(1, at(5)), Touch::kPoisoned);
  EXPECT_EQ(Counted(&FaultCounters::lost), 1u);
}

TEST_F(MinorFaultLoopTest, ADeadVmmEndsTheLoop) {
  Write(5);
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  Fault(5);
  uffd_.KillProcess();
  EXPECT_TRUE(absl::IsAborted(Serve()));
}

TEST_F(MinorFaultLoopTest, AnotherFileThanTheMappedOneEndsTheLoop) {
  Write(5);
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  uffd_.FailNext(Call::kContinue, EFAULT, 2);
  Fault(5);
  EXPECT_TRUE(absl::IsFailedPrecondition(Serve()));
}

TEST_F(MinorFaultLoopTest, AnotherErrorEndsTheLoop) {
  Write(5);
  state_->MarkReceived(Page(5), /*is_zero=*/false);
  uffd_.FailNext(Call::kContinue, EIO);
  Fault(5);
  EXPECT_TRUE(absl::IsInternal(Serve()));
}

// Of memory whose file nobody gave: the VMM has registered it so by itself, and
// a wake would make it fault again for ever.
class FilelessFaultLoopTest : public FaultLoopTest {
 protected:
  FilelessFaultLoopTest()
      : FaultLoopTest(UFFD_FEATURE_MINOR_SHMEM, /*file_given=*/false) {}
};

TEST_F(FilelessFaultLoopTest, AMinorFaultIsUnexpected) {
  uffd_msg message = {};
  message.event = UFFD_EVENT_PAGEFAULT;
  message.arg.pagefault.flags = UFFD_PAGEFAULT_FLAG_MINOR;
  message.arg.pagefault.address = kBase.value();
  uffd_.Inject(message);
  EXPECT_TRUE(absl::IsFailedPrecondition(Serve()));
}

class ProtectedFaultLoopTest : public FaultLoopTest {
 protected:
  ProtectedFaultLoopTest() : FaultLoopTest(UFFD_FEATURE_WP_HUGETLBFS_SHMEM) {
    Install(5);
    uffd_.Protect(at(5));
    Fault(5);
  }
};

TEST_F(ProtectedFaultLoopTest, APageThatIsWrittenIsUnprotected) {
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.TouchPage(1, at(5)), Touch::kPresent);
  EXPECT_EQ(uffd_.waiting(), 0u);
  EXPECT_EQ(Counted(&FaultCounters::write_protect), 1u);
}

TEST_F(ProtectedFaultLoopTest, WhoseProtectionStaysFaultsAgain) {
  uffd_.FailNext(Call::kUnprotect, EAGAIN);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(uffd_.waiting(), 0u);
  EXPECT_EQ(Counted(&FaultCounters::write_protect), 2u);
}

TEST_F(ProtectedFaultLoopTest, ADeadVmmEndsTheLoop) {
  uffd_.KillProcess();
  EXPECT_TRUE(absl::IsAborted(Serve()));
}

TEST_F(FaultLoopTest, ARefusedRequestIsAskedAgainOnceTheSourceIsBack) {
  source_.Refuse(absl::UnavailableError("gone"));
  Fault(5);
  Fault(6);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(Counted(&FaultCounters::request_failures), 1u);
  EXPECT_TRUE(loop_->SetSource(nullptr).ok());
  Fault(7);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(source_.urgent().size(), 1u);
  Install(6);  // the bulk lane was quicker

  FakePageSource other;
  EXPECT_TRUE(loop_->SetSource(&other).ok());
  ASSERT_EQ(other.urgent().size(), 1u);
  EXPECT_EQ(other.TimesAsked(PageIndex(5)), 1);
  EXPECT_EQ(other.TimesAsked(PageIndex(6)), 0);
  EXPECT_EQ(other.TimesAsked(PageIndex(7)), 1);
  EXPECT_EQ(loop_->outstanding(), 2u);
}

TEST_F(FaultLoopTest, ASourceThatIsBackAndRefusesIsAnError) {
  Fault(5);
  EXPECT_TRUE(loop_->SetSource(nullptr).ok());
  EXPECT_TRUE(Serve().ok());
  source_.Refuse(absl::UnavailableError("gone again"));
  EXPECT_TRUE(absl::IsUnavailable(loop_->SetSource(&source_)));
  EXPECT_EQ(loop_->outstanding(), 1u);
}

TEST_F(FaultLoopTest, AFullTableLeavesTheRestWithTheKernel) {
  for (uint64_t page = 0; page < kMaxOutstandingFaults + 2; ++page) Fault(page);
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(loop_->outstanding(), kMaxOutstandingFaults);
  EXPECT_EQ(Counted(&FaultCounters::faults), kMaxOutstandingFaults);
  Install(0);
  EXPECT_TRUE(loop_->Resolve(PageIndex(0)).has_value());
  EXPECT_TRUE(Serve().ok());
  EXPECT_EQ(Counted(&FaultCounters::faults), kMaxOutstandingFaults + 1);
  EXPECT_EQ(source_.TimesAsked(PageIndex(kMaxOutstandingFaults)), 1);
}

TEST_F(FaultLoopTest, ThreadSleepsWhileFullAndIsWokenByRoom) {
  ASSERT_TRUE(loop_->Start().ok());
  for (uint64_t page = 0; page < kMaxOutstandingFaults + 1; ++page) Fault(page);
  while (loop_->outstanding() < kMaxOutstandingFaults) {
    std::this_thread::yield();
  }
  const int reads = uffd_.calls(Call::kRead);
  Install(0);
  EXPECT_TRUE(loop_->Resolve(PageIndex(0)).has_value());
  while (source_.TimesAsked(PageIndex(kMaxOutstandingFaults)) == 0) {
    std::this_thread::yield();
  }
  loop_->Stop();
  // No busy loop: nothing but the last message and what tells of its absence.
  EXPECT_LE(uffd_.calls(Call::kRead), reads + 3);
}

TEST_F(FaultLoopTest, ThreadServesAndStops) {
  ASSERT_TRUE(loop_->Start().ok());
  for (uint64_t page = 0; page < 100; ++page) {
    Fault(page);
    while (source_.TimesAsked(PageIndex(page)) == 0) std::this_thread::yield();
  }
  loop_->Stop();
  EXPECT_EQ(loop_->outstanding(), 100u);
}

// A source whose network takes nothing more.
class StuckSource final : public PageSource {
 public:
  absl::Status RequestUrgent(absl::Span<const PageIndex> /*pages*/) override {
    entered = true;
    while (stuck) std::this_thread::yield();
    return absl::OkStatus();
  }
  absl::Status RequestBulk(PageRun /*run*/) override {
    return absl::OkStatus();
  }

  std::atomic<bool> entered{false};
  std::atomic<bool> stuck{true};
};

TEST_F(FaultLoopTest, ShowsLifeUnlessItsThreadIsStuck) {
  EXPECT_TRUE(loop_->ShowsLife());
  EXPECT_TRUE(loop_->ShowsLife()) << "no thread, no worry";
  StuckSource source;
  ASSERT_TRUE(loop_->SetSource(&source).ok());
  ASSERT_TRUE(loop_->Start().ok());
  for (int i = 0; i < 10; ++i) {
    while (!loop_->ShowsLife()) std::this_thread::yield();
  }
  Fault(1);
  while (!source.entered) std::this_thread::yield();
  loop_->ShowsLife();  // whatever was asked before; asks
  EXPECT_FALSE(loop_->ShowsLife());
  EXPECT_FALSE(loop_->ShowsLife());
  source.stuck = false;
  while (!loop_->ShowsLife()) std::this_thread::yield();
  loop_->Stop();
  EXPECT_TRUE(loop_->ShowsLife());
  EXPECT_TRUE(loop_->ShowsLife());
}

TEST_F(FaultLoopTest, ThreadReportsWhyItEnded) {
  ASSERT_TRUE(loop_->Start().ok());
  uffd_.FailNext(Call::kRead, EIO);
  Fault(1);
  EXPECT_TRUE(absl::IsInternal(end_.get_future().get()));
}

TEST_F(FaultLoopTest, ThreadEndsWithTheVmm) {
  state_->MarkReceived(Page(5), /*is_zero=*/true);
  uffd_.KillProcess();
  ASSERT_TRUE(loop_->Start().ok());
  Fault(5);
  EXPECT_TRUE(absl::IsAborted(end_.get_future().get()));
}

// A VMM that gives memory up.
class GivingUpTest : public testing::Test {
 protected:
  GivingUpTest() {
    uffd_.SetFeatures(UFFD_FEATURE_EVENT_REMOVE);
    uffd_.Map(kBase, size_, fd_.get(), 0);
    strategies_ = StrategiesFor(ram_, uffd_);
    EXPECT_TRUE(loop_->SetSource(&source_).ok());
  }
  ~GivingUpTest() override { loop_->Stop(); }

  HostAddress at(uint64_t page) const {
    return kBase + BytesIn(PageCount(page));
  }
  void Fault(uint64_t page) {
    EXPECT_EQ(uffd_.TouchPage(static_cast<int>(page), at(page)),
              Touch::kWaiting);
  }

  const ByteCount size_ = BytesIn(PageCount(kPages));
  const UniqueFd fd_ = *CreateMemfd("ram", size_, 0);
  DestinationRam ram_ = *DestinationRam::Create(LayoutOf({PageCount(kPages)}),
                                                {{kBase, fd_.get(), 0}});
  const std::unique_ptr<PageState> state_ =
      *PageState::Create(PageCount(kPages));
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  InstallGate gate_{/*needed=*/true};
  InstallStrategies strategies_;
  MemoryChanges changes_{&ram_, state_.get(), &strategies_};
  Installer installer_{&ram_, &uffd_, state_.get(), &gate_, &strategies_};
  AfterFaultOrder order_;
  FakePageSource source_;
  int given_up_ = 0;
  const std::unique_ptr<FaultLoop> loop_ =
      *FaultLoop::Create({.ram = &ram_,
                          .ops = &uffd_,
                          .state = state_.get(),
                          .gate = &gate_,
                          .changes = &changes_,
                          .installer = &installer_,
                          .order = &order_,
                          .clock = &clock_,
                          .on_given_up = [this] { ++given_up_; },
                          .on_end = [](const absl::Status&) {}});
};

// The kernel gives faults out before what happened before them.
TEST_F(GivingUpTest, RemovalsOfAReadComeBeforeItsFaults) {
  uffd_.GiveUp(at(5), ByteCount(kPageSize));
  Fault(5);
  Fault(6);
  EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_EQ(source_.TimesAsked(PageIndex(5)), 0);
  EXPECT_EQ(source_.TimesAsked(PageIndex(6)), 1);
  EXPECT_FALSE(uffd_.IsWaiting(5));
  EXPECT_EQ(given_up_, 1);
}

// With the table full of faults the message behind them is read all the same:
// until then nothing could be installed, and no room would ever come.
TEST_F(GivingUpTest, IsReadWhenThereIsNoRoomForFaults) {
  constexpr uint64_t kMore = kMaxOutstandingFaults + 3;
  for (uint64_t page = 0; page < kMore; ++page) Fault(page);
  uffd_.GiveUp(at(kPages - 1), ByteCount(kPageSize));
  while (uffd_.IsChanging()) EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_TRUE(uffd_.EndGivingUp());
  EXPECT_EQ(loop_->counters().overflowed.load(), 3u);
  EXPECT_EQ(loop_->outstanding(), kMaxOutstandingFaults);
  // Those that were let go come again when half of the table is free, and not
  // before.
  for (uint64_t page = 0; page < kMaxOutstandingFaults / 2; ++page) {
    EXPECT_EQ(source_.TimesAsked(PageIndex(kMore - 1)), 0);
    EXPECT_TRUE(installer_
                    .InstallData({PageIndex(page), PageCount(1)},
                                 PatternOf(PageIndex(page)))
                    .status.ok());
    EXPECT_TRUE(loop_->Resolve(PageIndex(page)).has_value());
    EXPECT_TRUE(loop_->ServeOnce().ok());
  }
  while (*loop_->ServeOnce()) {
  }
  EXPECT_EQ(source_.TimesAsked(PageIndex(kMore - 1)), 1);
}

// Forces what takes the kernel a descheduled thread: the page is found missing,
// then given up, its message read and the memory emptied, and only then copied.
// Without the gate the guest gets back what it threw away.
TEST_F(GivingUpTest, AnInstallBetweenCheckAndCopyBringsNothingBack) {
  Fault(5);
  EXPECT_TRUE(loop_->ServeOnce().ok());
  std::thread reader;
  std::atomic<bool> read{false};
  uffd_.BeforeNext(Call::kCopy, [&] {
    uffd_.GiveUp(at(5), ByteCount(kPageSize));
    reader = std::thread([&] {
      EXPECT_TRUE(loop_->ServeOnce().ok());
      read.store(true);
    });
    while (!read.load() && !gate_.IsClosing()) std::this_thread::yield();
    uffd_.EndGivingUp();  // does nothing unless the message has been read
  });
  EXPECT_TRUE(
      installer_
          .InstallData({PageIndex(5), PageCount(1)}, PatternOf(PageIndex(5)))
          .status.ok());
  reader.join();
  uffd_.EndGivingUp();
  EXPECT_TRUE(state_->IsZero(PageIndex(5)));
  uffd_.TouchPage(100, at(5));
  EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_EQ(uffd_.TouchPage(101, at(5)), Touch::kPresent);
  std::vector<uint8_t> bytes(kPageSize, 1);
  ASSERT_EQ(::pread(fd_.get(), bytes.data(), kPageSize, 5 * kPageSize),
            static_cast<ssize_t>(kPageSize));
  EXPECT_EQ(bytes, std::vector<uint8_t>(kPageSize));
}

// A thread that touches memory at its new place before the move is told.
TEST_F(GivingUpTest, WhoIsQuickerThanARemapIsWoken) {
  uffd_.Map(kOutside, size_, fd_.get(), 0);
  EXPECT_TRUE(
      uffd_.Register(kOutside, size_, UFFDIO_REGISTER_MODE_MISSING).ok());
  EXPECT_EQ(uffd_.TouchPage(1, kOutside), Touch::kWaiting);
  EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_EQ(loop_->counters().foreign.load(), 1u);
  uffd_msg remap = {};
  remap.event = UFFD_EVENT_REMAP;
  remap.arg.remap.from = at(5).value();
  remap.arg.remap.to = kOutside.value();
  remap.arg.remap.len = kPageSize;
  uffd_.Inject(remap);
  EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_TRUE(loop_->ServeOnce().ok());
  EXPECT_EQ(source_.TimesAsked(PageIndex(5)), 1);
}

TEST_F(GivingUpTest, AnAnswerForWhatIsUnmappedIsDropped) {
  Fault(5);
  EXPECT_TRUE(loop_->ServeOnce().ok());
  uffd_msg unmap = {};
  unmap.event = UFFD_EVENT_UNMAP;
  unmap.arg.remove.start = at(5).value();
  unmap.arg.remove.end = at(6).value();
  uffd_.Inject(unmap);
  EXPECT_TRUE(loop_->ServeOnce().ok());
  const PageRun page{PageIndex(5), PageCount(1)};
  EXPECT_TRUE(installer_.InstallZero(page).status.ok());
  EXPECT_TRUE(installer_.InstallData(page, PatternOf(page)).status.ok());
  EXPECT_TRUE(installer_.Poison(page).ok());
  EXPECT_EQ(uffd_.calls(Call::kZeroPage), 0);
  EXPECT_EQ(uffd_.calls(Call::kCopy), 0);
}

TEST_F(GivingUpTest, AThreadThatServesNeitherSpinsNorSleepsOverIt) {
  constexpr uint64_t kMore = kMaxOutstandingFaults + 3;
  for (uint64_t page = 0; page < kMore; ++page) Fault(page);
  ASSERT_TRUE(loop_->Start().ok());
  while (loop_->counters().overflowed.load() < 3) std::this_thread::yield();
  for (uint64_t page = 0; page < kMaxOutstandingFaults; ++page) {
    EXPECT_TRUE(installer_
                    .InstallData({PageIndex(page), PageCount(1)},
                                 PatternOf(PageIndex(page)))
                    .status.ok());
    loop_->Resolve(PageIndex(page));
  }
  while (source_.TimesAsked(PageIndex(kMore - 1)) == 0) {
    std::this_thread::yield();
  }
  loop_->Stop();
  EXPECT_LE(uffd_.calls(Call::kRead), 2 * static_cast<int>(kMore));
}

// Installing waits for the loop to read what is said of memory given up.
TEST_F(GivingUpTest, TheLoopServesUntilAnAnswerIsInstalled) {
  ASSERT_TRUE(loop_->Start().ok());
  FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
  Fault(1);
  source_.AwaitUrgent(1);
  EXPECT_TRUE(loop_->Resolve(PageIndex(1)).has_value());
  uffd_.GiveUp(at(5), ByteCount(kPageSize));
  stand_in.Serve();
  EXPECT_FALSE(uffd_.IsChanging());
  EXPECT_TRUE(uffd_.EndGivingUp());
}

// Who receives answers, here the test's own thread, for the fault loop's.
class StandInTest : public FaultLoopTest {
 protected:
  void SetUp() override { ASSERT_TRUE(loop_->Start().ok()); }

  int reads() { return uffd_.calls(Call::kRead); }
  void Answer(uint64_t page) {
    Install(page);
    EXPECT_TRUE(loop_->Resolve(PageIndex(page)).has_value());
  }
};

TEST_F(StandInTest, ServesTheNextFaultAndWakesNobody) {
  Fault(1);
  source_.AwaitUrgent(1);
  {
    FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
    Answer(1);
    const int before = reads();
    Fault(2);
    Fault(3);
    stand_in.Serve();
    EXPECT_EQ(reads(), before + 1);
    ASSERT_EQ(source_.urgent().size(), 2u);
    EXPECT_EQ(source_.urgent()[1],
              (std::vector<PageIndex>{PageIndex(2), PageIndex(3)}));
  }
  EXPECT_EQ(loop_->outstanding(), 2u);
}

TEST_F(StandInTest, TheLoopIsBackBehindIt) {
  Fault(1);
  source_.AwaitUrgent(1);
  {
    FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
    Answer(1);
    Fault(2);  // and nobody serves it
  }
  source_.AwaitUrgent(2);
  Fault(3);
  source_.AwaitUrgent(3);
}

TEST_F(StandInTest, NotForever) {
  FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
  stand_in.Serve();  // nobody faults
  // Nor while others' faults are answered here.
  state_->MarkReceived(Page(1), /*is_zero=*/true);
  Fault(1);
  uffd_.BeforeNext(Call::kRead,
                   [&] { clock_.Advance(kStandInMillis * kNanosPerMilli); });
  stand_in.Serve();
  EXPECT_EQ(Counted(&FaultCounters::local), 1u);
  EXPECT_EQ(loop_->outstanding(), 0u);
}

TEST_F(StandInTest, NotWhileOthersWaitForPages) {
  for (const uint64_t page : {1, 2}) {
    Fault(page);
    source_.AwaitUrgent(page);
  }
  FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
  Fault(3);
  source_.AwaitUrgent(3);
}

TEST_F(StandInTest, NotForALargeAnswer) {
  {
    FaultLoop::StandIn stand_in(loop_.get(), kStandInPagesMax);
    const int before = reads();
    Fault(1);
    stand_in.Serve();
    EXPECT_EQ(reads(), before + 1);
  }
  Answer(1);
  FaultLoop::StandIn stand_in(loop_.get(), kStandInPagesMax + PageCount(1));
  Fault(2);
  source_.AwaitUrgent(2);
}

// Zeros that cannot be filled in now.
TEST_F(StandInTest, LeavesWhatIsDeferredToTheLoop) {
  state_->MarkReceived(Page(1), /*is_zero=*/true);
  uffd_.FailNext(Call::kZeroPage, ENOMEM);
  Fault(1);
  {
    FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
    stand_in.Serve();
    EXPECT_EQ(Counted(&FaultCounters::deferred), 1u);
  }
  while (uffd_.IsWaiting(1)) std::this_thread::yield();
  EXPECT_EQ(uffd_.TouchPage(100, at(1)), Touch::kPresent);
}

TEST_F(StandInTest, AnErrorEndsTheLoopByItsOwnThread) {
  uffd_msg unknown = {};
  unknown.event = UFFD_EVENT_FORK;
  {
    FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
    uffd_.Inject(unknown);
    stand_in.Serve();
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(end_.get_future().get()));
  EXPECT_NE(ended_by_, std::this_thread::get_id());
  // And then there is nothing to stand in for.
  FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
  const int before = reads();
  stand_in.Serve();
  EXPECT_EQ(reads(), before);
}

TEST_F(StandInTest, StopWaitsForIt) {
  std::promise<void> stands_in;
  std::promise<void> may_end;
  std::atomic<bool> stopped{false};
  std::thread receiver([&] {
    FaultLoop::StandIn stand_in(loop_.get(), PageCount(1));
    stands_in.set_value();
    may_end.get_future().wait();
    stand_in.Serve();
    EXPECT_FALSE(stopped.load());
  });
  stands_in.get_future().wait();
  std::thread stopper([&] {
    loop_->Stop();
    stopped.store(true);
  });
  may_end.set_value();
  stopper.join();
  receiver.join();
}

TEST(KernelFaultLoopTest, AUserfaultfdMadeBlockingEndsTheLoop) {
  std::string reason;
  const auto guest = KernelGuest::Create({PageCount(1)}, &reason);
  if (guest == nullptr) GTEST_SKIP() << reason;
  const auto ops = guest->TakeOps();
  ASSERT_EQ(::fcntl(ops->poll_fd(), F_SETFL, O_RDWR), 0);
  DestinationRam ram =
      *DestinationRam::Create(guest->layout(), guest->regions());
  const auto state = *PageState::Create(PageCount(1));
  InstallGate gate(/*needed=*/false);
  const InstallStrategies strategies = StrategiesFor(ram, *ops);
  MemoryChanges changes(&ram, state.get(), &strategies);
  Installer installer(&ram, ops.get(), state.get(), &gate, &strategies);
  AfterFaultOrder order;
  SimulatedClock clock;
  std::promise<absl::Status> end;
  const auto loop = *FaultLoop::Create(
      {.ram = &ram,
       .ops = ops.get(),
       .state = state.get(),
       .gate = &gate,
       .changes = &changes,
       .installer = &installer,
       .order = &order,
       .clock = &clock,
       .on_given_up = [] {},
       .on_end = [&](const absl::Status& status) { end.set_value(status); }});
  ASSERT_TRUE(loop->Start().ok());
  EXPECT_TRUE(absl::IsInternal(end.get_future().get()));
}

}  // namespace
}  // namespace postcopy
