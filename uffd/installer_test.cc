#include "uffd/installer.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"
#include "uffd/kernel_guest.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;
using Touch = SimulatedUffd::Touch;

constexpr HostAddress kFirst{0x200000000};
constexpr HostAddress kSecond{0x100000000};

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// Two regions of 100 pages, simulated.
class InstallerTest : public testing::Test {
 protected:
  explicit InstallerTest(uint64_t features = 0) {
    uffd_.SetFeatures(features);
    uffd_.Map(kFirst, size_, fd_.get(), 0);
    uffd_.Map(kSecond, size_, fd_.get(), size_.value());
    strategies_ = StrategiesFor(ram_, uffd_);
  }

  HostAddress at(uint64_t page) const {
    return page < 100 ? kFirst + BytesIn(PageCount(page))
                      : kSecond + BytesIn(PageCount(page - 100));
  }
  std::vector<uint8_t> Content(uint64_t page) const {
    std::vector<uint8_t> bytes(kPageSize);
    EXPECT_EQ(::pread(fd_.get(), bytes.data(), kPageSize, page * kPageSize),
              static_cast<ssize_t>(kPageSize));
    return bytes;
  }
  bool HasPatterns(PageRun run) const {
    for (uint64_t page = run.first.value(); page < run.end().value(); ++page) {
      if (Content(page) != PatternOf(PageIndex(page))) return false;
    }
    return true;
  }
  ReceiveResult Install(PageRun run) {
    return installer_.InstallData(run, PatternOf(run));
  }

  const ByteCount size_ = BytesIn(PageCount(100));
  const UniqueFd fd_ = *CreateMemfd("ram", size_ + size_, 0);
  const DestinationRam ram_ = *DestinationRam::Create(
      LayoutOf({PageCount(100), PageCount(100)}),
      {{kFirst, fd_.get(), 0}, {kSecond, fd_.get(), size_.value()}});
  const std::unique_ptr<PageState> state_ = *PageState::Create(PageCount(200));
  SimulatedUffd uffd_;
  InstallGate gate_{/*needed=*/false};
  InstallStrategies strategies_;
  Installer installer_{&ram_, &uffd_, state_.get(), &gate_, &strategies_};
};

TEST_F(InstallerTest, OneCallPerRegion) {
  const ReceiveResult result = Install(Pages(90, 20));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.received, PageCount(20));
  EXPECT_EQ(uffd_.calls(Call::kCopy), 2);
  EXPECT_TRUE(HasPatterns(Pages(90, 20)));
  EXPECT_TRUE(state_->IsReceived(PageIndex(109)));
  EXPECT_EQ(state_->missing(), PageCount(180));
}

TEST_F(InstallerTest, WakesWhoWaits) {
  ASSERT_EQ(uffd_.TouchPage(1, at(5)), Touch::kWaiting);
  ASSERT_EQ(uffd_.TouchPage(2, at(6)), Touch::kWaiting);
  EXPECT_TRUE(Install(Pages(5, 1)).status.ok());
  EXPECT_FALSE(uffd_.IsWaiting(1));
  EXPECT_TRUE(uffd_.IsWaiting(2));
  EXPECT_TRUE(installer_.InstallZero(Pages(6, 1)).status.ok());
  EXPECT_FALSE(uffd_.IsWaiting(2));
  EXPECT_TRUE(state_->IsZero(PageIndex(6)));
}

TEST_F(InstallerTest, GoesOnAfterPartialProgress) {
  uffd_.StopNextAfter(PageCount(7));
  const ReceiveResult result = Install(Pages(0, 64));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.received, PageCount(64));
  EXPECT_EQ(uffd_.calls(Call::kCopy), 2);
  EXPECT_EQ(installer_.retries(), 0u);
  EXPECT_TRUE(HasPatterns(Pages(0, 64)));
}

TEST_F(InstallerTest, LeavesPagesAloneThatAreThere) {
  const std::string kept = "written by the guest";
  ASSERT_EQ(::pwrite(fd_.get(), kept.data(), kept.size(), 3 * kPageSize),
            static_cast<ssize_t>(kept.size()));
  const ReceiveResult result = Install(Pages(0, 8));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.received, PageCount(8));
  EXPECT_EQ(installer_.already_present(), 1u);
  EXPECT_TRUE(HasPatterns(Pages(0, 3)));
  EXPECT_TRUE(HasPatterns(Pages(4, 4)));
  const std::vector<uint8_t> page = Content(3);
  EXPECT_EQ(std::string(page.begin(), page.begin() + kept.size()), kept);
}

TEST_F(InstallerTest, NeverFillsAReceivedPageAgain) {
  // Page 4 was received, and its content is gone: that is not ours to mend.
  state_->MarkReceived(Pages(4, 1), /*is_zero=*/false);
  EXPECT_EQ(Install(Pages(0, 8)).received, PageCount(7));
  EXPECT_TRUE(installer_.InstallZero(Pages(4, 1)).status.ok());
  EXPECT_EQ(uffd_.TouchPage(1, at(4)), Touch::kWaiting);
  // Woken, it faults again, and the fault loop decides.
  EXPECT_TRUE(Install(Pages(4, 1)).status.ok());
  EXPECT_TRUE(uffd_.IsWaiting(1));
  EXPECT_EQ(uffd_.calls(Call::kZeroPage), 0);
}

// An answer that was under way when the source was given up for lost: the page
// is not here, whatever the kernel says of it.
TEST_F(InstallerTest, APageThatIsPoisonedMeanwhileIsNotReceived) {
  uffd_.BeforeNext(Call::kCopy, [this] {
    EXPECT_TRUE(installer_.Poison(Pages(5, 1)).ok());
  });
  const ReceiveResult data = Install(Pages(4, 3));
  EXPECT_TRUE(data.status.ok()) << data.status;
  EXPECT_EQ(data.received, PageCount(2));
  EXPECT_FALSE(state_->IsReceived(PageIndex(5)));
  EXPECT_TRUE(state_->IsReceived(PageIndex(6)));
  uffd_.BeforeNext(Call::kZeroPage, [this] {
    EXPECT_TRUE(installer_.Poison(Pages(9, 1)).ok());
  });
  EXPECT_EQ(installer_.InstallZero(Pages(9, 1)).received, PageCount(0));
  EXPECT_FALSE(state_->IsReceived(PageIndex(9)));
  EXPECT_EQ(installer_.AdmitZero(Pages(9, 2)).received, PageCount(1));
  EXPECT_FALSE(state_->IsReceived(PageIndex(9)));
  EXPECT_TRUE(state_->IsZero(PageIndex(10)));
  EXPECT_EQ(uffd_.TouchPage(1, at(5)), Touch::kPoisoned);
  EXPECT_EQ(uffd_.TouchPage(2, at(9)), Touch::kPoisoned);
  EXPECT_EQ(installer_.already_present(), 0u);
}

// Else zeros would be asked for again for ever.
TEST_F(InstallerTest, WhatTheKernelCannotPoisonIsReceivedAsBefore) {
  uffd_.FailNext(Call::kPoison, EINVAL);
  EXPECT_TRUE(absl::IsUnimplemented(installer_.Poison(Pages(5, 1))));
  EXPECT_EQ(installer_.AdmitZero(Pages(5, 1)).received, PageCount(1));
  EXPECT_EQ(uffd_.calls(Call::kZeroPage), 0);
}

TEST_F(InstallerTest, ZerosAdmittedWhilePagesArePoisonedAreOneOrTheOther) {
  std::thread admits([this] {
    for (uint64_t page = 0; page < 200; ++page) {
      EXPECT_TRUE(installer_.AdmitZero(Pages(page, 1)).status.ok());
    }
  });
  for (uint64_t page = 200; page-- > 0;) {
    EXPECT_TRUE(installer_.Poison(Pages(page, 1)).ok());
  }
  admits.join();
  for (uint64_t page = 0; page < 200; ++page) {
    const bool poisoned =
        uffd_.TouchPage(static_cast<int>(page), at(page)) == Touch::kPoisoned;
    EXPECT_NE(poisoned, state_->IsReceived(PageIndex(page))) << page;
  }
}

TEST_F(InstallerTest, AdmittedZerosStayHoles) {
  ASSERT_EQ(uffd_.TouchPage(1, at(99)), Touch::kWaiting);
  std::array<uffd_msg, 4> messages;
  ASSERT_EQ(uffd_.Read(absl::MakeSpan(messages)).messages, 1u);
  const ReceiveResult result = installer_.AdmitZero(Pages(0, 200));
  EXPECT_EQ(result.received, PageCount(200));
  EXPECT_EQ(uffd_.calls(Call::kZeroPage), 0);
  EXPECT_FALSE(ram_.HasData(PageIndex(99)));
  // The thread has faulted again, and finds the loop knowing better.
  ASSERT_EQ(uffd_.Read(absl::MakeSpan(messages)).messages, 1u);
  EXPECT_TRUE(installer_.InstallZero(Pages(99, 1)).status.ok());
  EXPECT_FALSE(uffd_.IsWaiting(1));
}

TEST_F(InstallerTest, AdmittedZerosDoNotTouchReceivedPages) {
  EXPECT_TRUE(Install(Pages(10, 1)).status.ok());
  EXPECT_EQ(installer_.AdmitZero(Pages(5, 10)).received, PageCount(9));
  EXPECT_FALSE(state_->IsZero(PageIndex(10)));
  EXPECT_TRUE(state_->IsZero(PageIndex(11)));
  EXPECT_FALSE(state_->IsReceived(PageIndex(15)));
}

TEST_F(InstallerTest, RetriesUpToTheLimit) {
  uffd_.FailNext(Call::kCopy, EAGAIN, kMaxInstallRetries);
  EXPECT_TRUE(Install(Pages(0, 2)).status.ok());
  EXPECT_EQ(installer_.retries(), static_cast<uint64_t>(kMaxInstallRetries));
}

TEST_F(InstallerTest, GivesUpOnePastTheLimit) {
  uffd_.FailNext(Call::kCopy, EAGAIN, kMaxInstallRetries + 1);
  const ReceiveResult result = Install(Pages(0, 2));
  EXPECT_TRUE(absl::IsUnavailable(result.status)) << result.status;
  EXPECT_EQ(state_->missing(), PageCount(200));
  EXPECT_TRUE(Install(Pages(0, 2)).status.ok());
}

TEST_F(InstallerTest, DropsWhatIsUnmapped) {
  uffd_.Unmap(kSecond);
  const ReceiveResult result = Install(Pages(98, 4));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.received, PageCount(4));
  EXPECT_EQ(installer_.unmapped(), 2u);
  EXPECT_TRUE(HasPatterns(Pages(98, 2)));
}

TEST_F(InstallerTest, SplitMappingsTakeOnePageAtATime) {
  uffd_.FailNext(Call::kCopy, ENOENT);
  EXPECT_TRUE(Install(Pages(0, 64)).status.ok());
  EXPECT_EQ(installer_.unmapped(), 0u);
  EXPECT_EQ(uffd_.calls(Call::kCopy), 3);
  EXPECT_TRUE(HasPatterns(Pages(0, 64)));
}

TEST_F(InstallerTest, TellsADeadVmmFromOtherErrors) {
  uffd_.FailNext(Call::kCopy, EFAULT);
  EXPECT_TRUE(absl::IsInternal(Install(Pages(0, 1)).status));
  uffd_.FailNext(Call::kZeroPage, ENOMEM);
  EXPECT_TRUE(
      absl::IsResourceExhausted(installer_.InstallZero(Pages(0, 1)).status));
  uffd_.KillProcess();
  EXPECT_TRUE(absl::IsAborted(Install(Pages(0, 1)).status));
  EXPECT_EQ(state_->missing(), PageCount(200));
}

// Where what the guest cannot see may be stale.
class MinorInstallerTest : public InstallerTest {
 protected:
  MinorInstallerTest() : InstallerTest(UFFD_FEATURE_MINOR_SHMEM) {}

  // Each of `run` has bytes that nobody wants.
  void MakeStale(PageRun run) {
    const std::vector<uint8_t> stale(BytesIn(run.count).value(), 0xee);
    ASSERT_EQ(::pwrite(fd_.get(), stale.data(), stale.size(),
                       run.first.value() * kPageSize),
              static_cast<ssize_t>(stale.size()));
  }
  bool IsZeros(uint64_t page) const {
    return Content(page) == std::vector<uint8_t>(kPageSize);
  }
};

TEST_F(MinorInstallerTest, DataReplacesWhatIsStale) {
  MakeStale(Pages(90, 20));
  ASSERT_EQ(uffd_.TouchPage(1, at(95)), Touch::kWaiting);
  EXPECT_EQ(Install(Pages(90, 20)).received, PageCount(20));
  EXPECT_TRUE(HasPatterns(Pages(90, 20)));
  EXPECT_FALSE(uffd_.IsWaiting(1));
  EXPECT_EQ(uffd_.TouchPage(1, at(109)), Touch::kPresent);
  EXPECT_EQ(uffd_.calls(Call::kContinue), 2);
}

TEST_F(MinorInstallerTest, HolesAreCopiedInto) {
  EXPECT_EQ(Install(Pages(0, 64)).received, PageCount(64));
  EXPECT_TRUE(HasPatterns(Pages(0, 64)));
  EXPECT_EQ(uffd_.calls(Call::kCopy), 1);
  EXPECT_EQ(uffd_.calls(Call::kContinue), 0);
  // Up to the first stale page it is copied, from there on written.
  MakeStale(Pages(74, 1));
  EXPECT_EQ(Install(Pages(64, 20)).received, PageCount(20));
  EXPECT_TRUE(HasPatterns(Pages(64, 20)));
  EXPECT_EQ(uffd_.calls(Call::kContinue), 1);
}

TEST_F(MinorInstallerTest, ZerosReplaceWhatIsStale) {
  MakeStale(Pages(5, 2));
  ASSERT_EQ(uffd_.TouchPage(1, at(5)), Touch::kWaiting);
  EXPECT_EQ(installer_.InstallZero(Pages(5, 1)).received, PageCount(1));
  EXPECT_FALSE(uffd_.IsWaiting(1));
  EXPECT_TRUE(IsZeros(5));
  EXPECT_EQ(installer_.AdmitZero(Pages(6, 100)).received, PageCount(100));
  EXPECT_FALSE(ram_.HasData(PageIndex(6)));
  EXPECT_TRUE(state_->IsZero(PageIndex(6)));
}

TEST_F(MinorInstallerTest, ALateAnswerChangesNothing) {
  EXPECT_TRUE(Install(Pages(0, 3)).status.ok());
  MakeStale(Pages(0, 3));  // the guest writes
  EXPECT_EQ(Install(Pages(0, 4)).received, PageCount(1));
  EXPECT_TRUE(installer_.InstallZero(Pages(1, 1)).status.ok());
  EXPECT_TRUE(installer_.AdmitZero(Pages(2, 1)).status.ok());
  for (const uint64_t page : {0, 1, 2}) {
    EXPECT_EQ(Content(page), std::vector<uint8_t>(kPageSize, 0xee)) << page;
  }
  EXPECT_TRUE(HasPatterns(Pages(3, 1)));
}

// Zeros that somebody has written to meanwhile, not through the guest's
// mapping, are shown as they are.
TEST_F(MinorInstallerTest, ZerosThatAreInTheFileAreShown) {
  EXPECT_TRUE(installer_.AdmitZero(Pages(7, 1)).status.ok());
  MakeStale(Pages(7, 1));
  ASSERT_EQ(uffd_.TouchPage(1, at(7)), Touch::kWaiting);
  EXPECT_EQ(installer_.TryZero(PageIndex(7)), EEXIST);
  EXPECT_FALSE(uffd_.IsWaiting(1));
  ASSERT_EQ(uffd_.TouchPage(1, at(8)), Touch::kWaiting);
  EXPECT_TRUE(installer_.AdmitZero(Pages(8, 1)).status.ok());
  EXPECT_TRUE(uffd_.IsWaiting(1));
  MakeStale(Pages(8, 1));
  uffd_.FailNext(Call::kContinue, ENOMEM);
  EXPECT_EQ(installer_.TryZero(PageIndex(8)), ENOMEM);
  EXPECT_EQ(installer_.TryZero(PageIndex(8)), EEXIST);
  EXPECT_FALSE(uffd_.IsWaiting(1));
}

TEST_F(MinorInstallerTest, RevealsWhatWasStored) {
  MakeStale(Pages(0, 3));
  state_->MarkReceived(Pages(0, 3), /*is_zero=*/false);
  ASSERT_EQ(uffd_.TouchPage(1, at(1)), Touch::kWaiting);
  EXPECT_EQ(installer_.TryReveal(PageIndex(1)), 0);
  EXPECT_FALSE(uffd_.IsWaiting(1));
  EXPECT_EQ(installer_.TryReveal(PageIndex(1)), 0);
  EXPECT_EQ(installer_.TryReveal(PageIndex(3)), EFAULT);
  uffd_.FailNext(Call::kContinue, EAGAIN);
  EXPECT_EQ(installer_.TryReveal(PageIndex(0)), EAGAIN);
  uffd_.FailNext(Call::kContinue, EAGAIN);
  EXPECT_EQ(installer_.RevealSome(Pages(0, 3)), PageCount(0));
  // Up to the one that is in sight, that one, and the last.
  EXPECT_EQ(installer_.RevealSome(Pages(0, 3)), PageCount(1));
  EXPECT_EQ(installer_.RevealSome(Pages(1, 2)), PageCount(1));
  EXPECT_EQ(installer_.RevealSome(Pages(2, 1)), PageCount(1));
  EXPECT_EQ(uffd_.TouchPage(1, at(2)), Touch::kPresent);
  EXPECT_TRUE(installer_.MayBeOutOfSight(PageIndex(0)));
}

TEST_F(MinorInstallerTest, RevealsUpToTheEndOfAMapping) {
  MakeStale(Pages(0, 3));
  state_->MarkReceived(Pages(0, 3), /*is_zero=*/false);
  uffd_.FailNext(Call::kContinue, ENOENT);  // two mappings
  EXPECT_EQ(installer_.RevealSome(Pages(0, 3)), PageCount(1));
  EXPECT_EQ(uffd_.TouchPage(1, at(0)), Touch::kPresent);
  uffd_.Unmap(kFirst);
  EXPECT_EQ(installer_.RevealSome(Pages(1, 2)), PageCount(1));
  EXPECT_EQ(installer_.TryReveal(PageIndex(1)), 0);
  uffd_.KillProcess();
  EXPECT_EQ(installer_.TryReveal(PageIndex(100)), ESRCH);
  EXPECT_EQ(installer_.RevealSome(Pages(100, 1)), std::nullopt);
}

// By a VMM that gives it up unseen, or because it is another file.
TEST_F(MinorInstallerTest, WhatIsEmptiedMeanwhileIsWrittenAgainUpToALimit) {
  MakeStale(Pages(0, 2));
  uffd_.FailNext(Call::kContinue, EFAULT, kMaxEmptied);
  EXPECT_EQ(Install(Pages(0, 2)).received, PageCount(2));
  EXPECT_TRUE(HasPatterns(Pages(0, 2)));
  EXPECT_EQ(installer_.retries(), uint64_t{kMaxEmptied});
  MakeStale(Pages(2, 1));
  uffd_.FailNext(Call::kContinue, EFAULT, kMaxEmptied + 1);
  const absl::Status status = Install(Pages(2, 1)).status;
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_FALSE(state_->IsReceived(PageIndex(2)));
}

TEST_F(MinorInstallerTest, GoesOnAfterPartialProgress) {
  MakeStale(Pages(2, 2));
  ASSERT_TRUE(uffd_.Continue(at(3), ByteCount(kPageSize), true).ok());
  const ReceiveResult result = Install(Pages(0, 64));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.received, PageCount(64));
  EXPECT_EQ(installer_.already_present(), 1u);
}

TEST_F(MinorInstallerTest, TellsWhatTheFileSystemSays) {
  MakeStale(Pages(0, 1));
  ASSERT_EQ(::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_TRUE(absl::IsInternal(Install(Pages(0, 1)).status));
  EXPECT_TRUE(absl::IsInternal(installer_.InstallZero(Pages(0, 1)).status));
  EXPECT_TRUE(absl::IsInternal(installer_.AdmitZero(Pages(0, 1)).status));
  EXPECT_EQ(state_->missing(), PageCount(200));
}

TEST_F(InstallerTest, WhatIsThereIsInSight) {
  EXPECT_TRUE(Install(Pages(0, 3)).status.ok());
  ASSERT_EQ(uffd_.TouchPage(1, at(5)), Touch::kWaiting);
  EXPECT_EQ(installer_.RevealSome(Pages(0, 3)), PageCount(3));
  EXPECT_EQ(installer_.TryReveal(PageIndex(5)), 0);
  EXPECT_TRUE(uffd_.IsWaiting(1));  // and has faulted again
  EXPECT_EQ(uffd_.calls(Call::kContinue), 0);
}

TEST(KernelInstallerTest, InstallsUnderAGuestThatTouches) {
  std::string reason;
  const auto guest =
      KernelGuest::Create({PageCount(64), PageCount(64)}, &reason);
  if (guest == nullptr) GTEST_SKIP() << reason;
  const auto ops = guest->TakeOps();
  const DestinationRam ram =
      *DestinationRam::Create(guest->layout(), guest->regions());
  const auto state = *PageState::Create(PageCount(128));
  const InstallStrategies strategies = StrategiesFor(ram, *ops);
  InstallGate gate(/*needed=*/false);
  Installer installer(&ram, ops.get(), state.get(), &gate, &strategies);
  guest->WriteFile(PageIndex(63), PatternOf(PageIndex(63)));
  std::thread toucher([&] {
    for (uint64_t i = 0; i < 128; ++i) {
      EXPECT_TRUE(HasPattern(guest->at(PageIndex(i)), PageIndex(i))) << i;
    }
  });
  const std::vector<uint8_t> bytes = PatternOf(Pages(0, 128));
  const ReceiveResult result = installer.InstallData(Pages(0, 128), bytes);
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.received, PageCount(128));
  EXPECT_EQ(installer.already_present(), 1u);
  toucher.join();
}

}  // namespace
}  // namespace postcopy
