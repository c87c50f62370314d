#include "uffd/map_ahead.h"

#include <unistd.h>

#include <cerrno>
#include <memory>
#include <thread>
#include <vector>

#include "dirtytrack/memfd.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"
#include "uffd/install_gate.h"
#include "uffd/kernel_guest.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;
using Touch = SimulatedUffd::Touch;

constexpr HostAddress kBase{0x100000000};
constexpr PageCount kPages{2000};

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

class MapAheadTest : public testing::Test {
 protected:
  MapAheadTest() {
    uffd_.SetFeatures(UFFD_FEATURE_MINOR_SHMEM);
    uffd_.Map(kBase, BytesIn(kPages), fd_.get(), 0);
    strategies_ = StrategiesFor(ram_, uffd_);
  }

  // As precopy would.
  void Store(PageRun run) {
    const std::vector<uint8_t> bytes = PatternOf(run);
    ASSERT_EQ(::pwrite(fd_.get(), bytes.data(), bytes.size(),
                       static_cast<off_t>(OffsetOf(run.first).value())),
              static_cast<ssize_t>(bytes.size()));
    state_->MarkReceived(run, /*is_zero=*/false);
  }
  void Run(MapAhead* ahead, PageCount until) {
    ASSERT_TRUE(ahead->Start().ok());
    ahead->Go();
    while (ahead->done() < until) std::this_thread::yield();
    ahead->Stop();
  }
  Touch TouchOf(uint64_t page) {
    return uffd_.TouchPage(static_cast<int>(page),
                           kBase + BytesIn(PageCount(page)));
  }

  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(kPages), 0);
  const DestinationRam ram_ =
      *DestinationRam::Create(LayoutOf({kPages}), {{kBase, fd_.get(), 0}});
  const std::unique_ptr<PageState> state_ = *PageState::Create(kPages);
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  InstallGate gate_{/*needed=*/false};
  InstallStrategies strategies_;
  Installer installer_{&ram_, &uffd_, state_.get(), &gate_, &strategies_};
};

TEST_F(MapAheadTest, ShowsWhatHasComeInRuns) {
  Store(Pages(10, 1030));
  Store(Pages(1500, 2));
  state_->MarkReceived(Pages(1600, 100), /*is_zero=*/true);
  MapAhead ahead(&ram_, state_.get(), &installer_, &clock_);
  Run(&ahead, PageCount(1032));
  EXPECT_EQ(ahead.done(), PageCount(1032));
  EXPECT_EQ(uffd_.calls(Call::kContinue), 4);
  for (const uint64_t page : {10, 1039, 1500, 1501}) {
    EXPECT_EQ(TouchOf(page), Touch::kPresent) << page;
  }
  for (const uint64_t page : {9, 1040, 1600}) {
    EXPECT_EQ(TouchOf(page), Touch::kWaiting) << page;
  }
}

TEST_F(MapAheadTest, WaitsForMessagesToBeRead) {
  Store(Pages(0, 10));
  uffd_.FailNext(Call::kContinue, EAGAIN, 3);
  MapAhead ahead(&ram_, state_.get(), &installer_, &clock_);
  Run(&ahead, PageCount(10));
  EXPECT_EQ(uffd_.calls(Call::kContinue), 4);
}

TEST_F(MapAheadTest, StopsWhileTheKernelRefuses) {
  Store(Pages(0, 10));
  uffd_.FailNext(Call::kContinue, EAGAIN, 1'000'000'000);
  MapAhead ahead(&ram_, state_.get(), &installer_, &clock_);
  ASSERT_TRUE(ahead.Start().ok());
  ahead.Go();
  while (uffd_.calls(Call::kContinue) < 10) std::this_thread::yield();
  ahead.Stop();
  EXPECT_EQ(ahead.done(), PageCount(0));
}

TEST_F(MapAheadTest, GoesOverWhatIsInSightOrVanished) {
  Store(Pages(0, 10));
  ASSERT_TRUE(uffd_.Continue(kBase, ByteCount(kPageSize), true).ok());
  state_->MarkReceived(Pages(10, 1), /*is_zero=*/false);
  MapAhead ahead(&ram_, state_.get(), &installer_, &clock_);
  Run(&ahead, PageCount(11));
  EXPECT_EQ(TouchOf(9), Touch::kPresent);
}

TEST_F(MapAheadTest, EndsWithTheVmm) {
  Store(Pages(0, 10));
  Store(Pages(100, 10));
  uffd_.KillProcess();
  MapAhead ahead(&ram_, state_.get(), &installer_, &clock_);
  ASSERT_TRUE(ahead.Start().ok());
  ahead.Go();
  while (uffd_.calls(Call::kContinue) == 0) std::this_thread::yield();
  ahead.Stop();
  EXPECT_EQ(uffd_.calls(Call::kContinue), 1);
  EXPECT_EQ(ahead.done(), PageCount(0));
}

}  // namespace
}  // namespace postcopy
