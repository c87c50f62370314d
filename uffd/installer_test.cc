#include "uffd/installer.h"

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
  InstallerTest() {
    uffd_.Map(kFirst, size_, fd_.get(), 0);
    uffd_.Map(kSecond, size_, fd_.get(), size_.value());
    EXPECT_TRUE(uffd_.Register(kFirst, size_).ok());
    EXPECT_TRUE(uffd_.Register(kSecond, size_).ok());
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
  Installer installer_{&ram_, &uffd_, state_.get(), &gate_,
                       SmallPageStrategies(2)};
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

TEST(KernelInstallerTest, InstallsUnderAGuestThatTouches) {
  std::string reason;
  const auto guest =
      KernelGuest::Create({PageCount(64), PageCount(64)}, &reason);
  if (guest == nullptr) GTEST_SKIP() << reason;
  const auto ops = guest->TakeOps();
  const DestinationRam ram =
      *DestinationRam::Create(guest->layout(), guest->regions());
  const auto state = *PageState::Create(PageCount(128));
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(
        ops->Register(ram.region(i).address, ram.region(i).bytes()).ok());
  }
  InstallGate gate(/*needed=*/false);
  Installer installer(&ram, ops.get(), state.get(), &gate,
                      SmallPageStrategies(2));
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
