#include "uffd/background_pull.h"

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"
#include "uffd/bulk_share.h"
#include "uffd/destination_ram.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

constexpr uint64_t kMaxBulk = kMaxBulkPages.value();

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

class BackgroundPullTest : public testing::Test {
 protected:
  void Begin(uint64_t pages, uint64_t bytes_per_second,
             BulkShare* share = nullptr) {
    state_ = *PageState::Create(PageCount(pages));
    ram_.emplace(
        *DestinationRam::Create(LayoutOf({PageCount(pages)}),
                                {{.host_address = HostAddress(1 << 30)}}));
    pull_ = std::make_unique<BackgroundPull>(
        &*ram_, state_.get(), &order_, &clock_, bytes_per_second,
        [this](const absl::Status& status) { end_.set_value(status); }, share);
    EXPECT_TRUE(pull_->Start().ok());
  }
  void Receive(PageRun run) {
    state_->MarkReceived(run, false);
    pull_->OnAnswer(run.first, ByteCount(0));
    if (state_->missing().empty()) pull_->OnComplete();
  }
  absl::Status AwaitEnd() { return end_.get_future().get(); }

  SimulatedClock clock_;
  AfterFaultOrder order_;
  FakePageSource source_;
  std::promise<absl::Status> end_;
  std::unique_ptr<PageState> state_;
  std::optional<DestinationRam> ram_;
  std::unique_ptr<BackgroundPull> pull_;
};

TEST_F(BackgroundPullTest, AsksNothingUntilEnabled) {
  Begin(1000, 0);
  pull_->SetSource(&source_);
  pull_->Stop();
  EXPECT_TRUE(source_.bulk().empty());
}

TEST_F(BackgroundPullTest, KeepsFourInFlight) {
  Begin(1000, 0);
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(4);
  Receive(Pages(64, 64));
  source_.AwaitBulk(5);
  Receive(Pages(900, 10));  // not an answer to a request
  pull_->Stop();
  EXPECT_EQ(source_.bulk(),
            (std::vector<PageRun>{Pages(0, 64), Pages(64, 64), Pages(128, 64),
                                  Pages(192, 64), Pages(256, 64)}));
  EXPECT_EQ(pull_->requests(), 5u);
}

TEST(RoomForBulkTest, TwoLargeRequestsFourFullOnesOrManySmallOnes) {
  EXPECT_TRUE(RoomForBulk({}));
  EXPECT_TRUE(RoomForBulk({Pages(0, 512)}));
  EXPECT_FALSE(RoomForBulk({Pages(0, 512), Pages(512, 512)}));
  std::vector<PageRun> full(kFullBulkOutstanding - 1,
                            {PageIndex(0), kMaxBulkPages});
  EXPECT_TRUE(RoomForBulk(full));
  full.push_back(full.front());
  EXPECT_FALSE(RoomForBulk(full));
  EXPECT_TRUE(RoomForBulk({Pages(0, 96), Pages(100, 96)}));
  EXPECT_FALSE(RoomForBulk({Pages(0, 96), Pages(100, 97)}));
  std::vector<PageRun> small(kMaxBulkOutstanding - 1, Pages(7, 1));
  EXPECT_TRUE(RoomForBulk(small));
  small.push_back(Pages(8, 1));
  EXPECT_FALSE(RoomForBulk(small));
}

TEST_F(BackgroundPullTest, ScatteredPagesAreAskedForManyAtATime) {
  Begin(1000, 0);
  for (uint64_t page = 1; page < 1000; page += 2) {
    state_->MarkReceived(Pages(page, 1), false);
  }
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(kMaxBulkOutstanding);
  pull_->Stop();
  EXPECT_EQ(source_.bulk().size(), kMaxBulkOutstanding);
  EXPECT_EQ(source_.bulk().back(), Pages(2 * (kMaxBulkOutstanding - 1), 1));
}

TEST_F(BackgroundPullTest, AnErrorBehindTheEndIsTold) {
  std::vector<absl::Status> ends;
  std::promise<void> ended;
  state_ = *PageState::Create(PageCount(1));
  ram_.emplace(*DestinationRam::Create(
      LayoutOf({PageCount(1)}), {{.host_address = HostAddress(1 << 30)}}));
  BackgroundPull pull(&*ram_, state_.get(), &order_, &clock_, 0,
                      [&](const absl::Status& status) {
                        ends.push_back(status);
                        if (ends.size() == 1) ended.set_value();
                      });
  ASSERT_TRUE(pull.Start().ok());
  state_->MarkReceived(Pages(0, 1), true);
  pull.OnComplete();
  ended.get_future().wait();
  pull.Fail(absl::InternalError("later"));
  pull.Fail(absl::InternalError("later still"));
  pull.Stop();
  ASSERT_EQ(ends.size(), 2u);
  EXPECT_TRUE(ends[0].ok());
  EXPECT_EQ(ends[1], absl::InternalError("later"));
}

TEST_F(BackgroundPullTest, EndsWhenNothingIsMissing) {
  Begin(100, 0);
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(2);
  Receive(Pages(64, 36));
  Receive(Pages(0, 64));
  EXPECT_TRUE(AwaitEnd().ok());
  EXPECT_EQ(source_.bulk().size(), 2u);
}

TEST_F(BackgroundPullTest, EndsWithoutEverHavingAsked) {
  Begin(100, 0);
  Receive(Pages(0, 100));
  EXPECT_TRUE(AwaitEnd().ok());
}

TEST_F(BackgroundPullTest, AsksAgainForWhatAnAnswerLacks) {
  Begin(64, 0);
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(1);
  Receive(Pages(0, 60));
  source_.AwaitBulk(2);
  EXPECT_EQ(source_.bulk()[1], Pages(60, 4));
}

TEST_F(BackgroundPullTest, ReportsTheFirstFailure) {
  Begin(100, 0);
  pull_->Fail(absl::AbortedError("first"));
  pull_->Fail(absl::InternalError("second"));
  EXPECT_EQ(AwaitEnd(), absl::AbortedError("first"));
}

TEST_F(BackgroundPullTest, ANewSourceIsAskedForWhatWasInFlight) {
  Begin(128, 0);
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(2);
  pull_->SetSource(nullptr);
  FakePageSource other;
  pull_->SetSource(&other);
  other.AwaitBulk(2);
  pull_->Stop();
  EXPECT_EQ(other.bulk(), (std::vector<PageRun>{Pages(0, 64), Pages(64, 64)}));
}

TEST_F(BackgroundPullTest, ARefusalIsNotRepeated) {
  source_.Refuse(absl::UnavailableError("gone"));
  Begin(128, 0);
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(1);
  FakePageSource other;
  pull_->SetSource(&other);
  other.AwaitBulk(2);
  pull_->Stop();
  EXPECT_EQ(source_.bulk().size(), 1u);
  EXPECT_EQ(pull_->failures(), 1u);
}

// Answers from within the request.
class ImmediateSource final : public PageSource {
 public:
  explicit ImmediateSource(std::function<void(PageRun)> answer)
      : answer_(std::move(answer)) {}
  absl::Status RequestUrgent(absl::Span<const PageIndex>) override {
    return absl::UnimplementedError("bulk only");
  }
  absl::Status RequestBulk(PageRun run) override {
    answer_(run);
    return absl::OkStatus();
  }

 private:
  const std::function<void(PageRun)> answer_;
};

TEST_F(BackgroundPullTest, HonoursTheLimit) {
  constexpr uint64_t kRequests = 50;
  constexpr uint64_t kRate = 1 << 20;
  ImmediateSource source([this](PageRun run) { Receive(run); });
  Begin(kRequests * kMaxBulk, kRate);
  pull_->SetSource(&source);
  pull_->Enable();
  EXPECT_TRUE(AwaitEnd().ok());
  // Two requests are the burst; each other one waits for its bytes.
  const int64_t least =
      static_cast<int64_t>((kRequests - 2) * kMaxBulk * kPageSize) *
      kNanosPerSecond / kRate;
  EXPECT_GE(clock_.NowNanos(), least);
  EXPECT_LE(clock_.NowNanos(), least + least / 100);
}

// Who wakes up late has not lost the time.
TEST_F(BackgroundPullTest, KeepsTheRateWhenItWakesUpLate) {
  constexpr uint64_t kRequests = 50;
  constexpr uint64_t kRate = 256 << 20;
  constexpr int64_t kRequestNanos =
      int64_t{kMaxBulk} * kPageSize * kNanosPerSecond / kRate;
  clock_.OversleepBy(kRequestNanos / 2);
  ImmediateSource source([this](PageRun run) { Receive(run); });
  Begin(kRequests * kMaxBulk, kRate);
  pull_->SetSource(&source);
  pull_->Enable();
  EXPECT_TRUE(AwaitEnd().ok());
  EXPECT_LE(clock_.NowNanos(), (kRequests - 1) * kRequestNanos);
}

TEST_F(BackgroundPullTest, ZerosAreNotHeldAgainstTheLimit) {
  ImmediateSource source([this](PageRun run) {
    state_->MarkReceived(run, true);
    pull_->OnAnswer(run.first, ByteCount(UINT64_MAX));
  });
  Begin(50 * kMaxBulk, /*bytes_per_second=*/1);
  pull_->SetSource(&source);
  pull_->Enable();
  EXPECT_TRUE(AwaitEnd().ok());
  EXPECT_EQ(clock_.NowNanos(), 0);
}

TEST_F(BackgroundPullTest, TheLimitCanBeLifted) {
  ImmediateSource source([this](PageRun run) { Receive(run); });
  Begin(50 * kMaxBulk, /*bytes_per_second=*/1);
  pull_->SetSource(&source);
  pull_->Enable();
  while (pull_->requests() == 0) std::this_thread::yield();
  pull_->SetLimit(0);
  EXPECT_TRUE(AwaitEnd().ok());
}

TEST_F(BackgroundPullTest, StopsUnderALimit) {
  Begin(50 * kMaxBulk, /*bytes_per_second=*/1);
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(2);
  pull_->Stop();
  EXPECT_EQ(source_.bulk().size(), 2u);
}

// A share of as many requests as one VM has, and somebody else who wants some.
class SharedPullTest : public BackgroundPullTest {
 protected:
  ~SharedPullTest() override { pull_.reset(); }  // before the share

  void BeginShared(uint64_t pages, uint64_t bytes_per_second = 0) {
    Begin(pages, bytes_per_second, &share_);
    pull_->SetSource(&source_);
    pull_->Enable();
  }
  void TakeAll() {
    for (size_t i = 0; i < kFullBulkOutstanding; ++i) {
      taken_.push_back(*share_.Acquire(&other_));
    }
  }
  void AwaitInFlight(size_t count) {
    while (share_.in_flight() != count) std::this_thread::yield();
  }
  void AwaitWaiting(size_t count) {
    while (share_.waiting() != count) std::this_thread::yield();
  }

  // On a clock of its own: permits expire when a test says so.
  SimulatedClock share_clock_;
  BulkShare share_{kFullBulkOutstanding, &share_clock_};
  BulkShare::Member other_;
  std::vector<BulkShare::Permit> taken_;
};

TEST_F(SharedPullTest, OneVmAloneHasAllItCanUse) {
  BeginShared(1000);
  source_.AwaitBulk(kFullBulkOutstanding);
  EXPECT_EQ(share_.in_flight(), kFullBulkOutstanding);
  Receive(Pages(0, 64));
  source_.AwaitBulk(kFullBulkOutstanding + 1);
  pull_->Stop();
  EXPECT_EQ(share_.expired(), 0u);
}

// Small requests may be many, but the others must find permits.
TEST_F(BackgroundPullTest, NoVmTakesMoreThanHalfOfTheShare) {
  SimulatedClock share_clock;
  BulkShare share(kMaxBulkOutstanding, &share_clock);
  Begin(1000, 0, &share);
  for (uint64_t page = 1; page < 1000; page += 2) {
    state_->MarkReceived(Pages(page, 1), false);
  }
  pull_->SetSource(&source_);
  pull_->Enable();
  source_.AwaitBulk(kMaxBulkOutstanding / 2);
  EXPECT_FALSE(share.HasPlenty());
  BulkShare::Member other;
  std::vector<BulkShare::Permit> taken;
  for (size_t i = 0; i < kMaxBulkOutstanding / 2; ++i) {
    taken.push_back(*share.Acquire(&other));
  }
  // What it has comes back, and it asks for no more than the others leave.
  Receive(Pages(0, 1));
  EXPECT_EQ(source_.bulk().size(), kMaxBulkOutstanding / 2);
  for (const BulkShare::Permit& permit : taken) share.Release(permit);
  Receive(Pages(2, 1));
  source_.AwaitBulk(kMaxBulkOutstanding / 2 + 2);
  pull_.reset();  // before the share
}

TEST_F(SharedPullTest, WaitsForItsTurn) {
  TakeAll();
  BeginShared(1000);
  AwaitWaiting(1);
  EXPECT_TRUE(source_.bulk().empty());
  share_.Release(taken_[0]);
  source_.AwaitBulk(1);
  AwaitWaiting(1);
  share_.Release(taken_[1]);
  source_.AwaitBulk(2);
}

TEST_F(SharedPullTest, AnAnswerGivesThePermitBack) {
  BeginShared(128);
  source_.AwaitBulk(2);
  Receive(Pages(0, 64));
  AwaitInFlight(1);
}

TEST_F(SharedPullTest, TheEndGivesPermitsBack) {
  BeginShared(128);
  source_.AwaitBulk(2);
  // All came over the other lane.
  state_->MarkReceived(Pages(0, 128), false);
  pull_->OnComplete();
  EXPECT_TRUE(AwaitEnd().ok());
  EXPECT_EQ(share_.in_flight(), 0u);
  pull_->OnAnswer(PageIndex(0), ByteCount(0));  // late
}

TEST_F(SharedPullTest, AFailureGivesPermitsBack) {
  BeginShared(128);
  source_.AwaitBulk(2);
  pull_->Fail(absl::AbortedError("gone"));
  EXPECT_FALSE(AwaitEnd().ok());
  EXPECT_EQ(share_.in_flight(), 0u);
}

TEST_F(SharedPullTest, AFailureEndsTheWait) {
  TakeAll();
  BeginShared(128);
  AwaitWaiting(1);
  pull_->Fail(absl::AbortedError("gone"));
  EXPECT_FALSE(AwaitEnd().ok());
  EXPECT_EQ(share_.waiting(), 0u);
}

TEST_F(SharedPullTest, StopGivesPermitsBack) {
  BeginShared(1000);
  source_.AwaitBulk(2);
  pull_->Stop();
  EXPECT_EQ(share_.in_flight(), 0u);
}

TEST_F(SharedPullTest, IsDestroyedWhileItWaits) {
  TakeAll();
  BeginShared(1000);
  AwaitWaiting(1);
  pull_.reset();
  EXPECT_EQ(share_.waiting(), 0u);
  EXPECT_EQ(share_.in_flight(), kFullBulkOutstanding);
  EXPECT_TRUE(source_.bulk().empty());
}

TEST_F(SharedPullTest, ALostSourceGivesPermitsBack) {
  BeginShared(1000);
  source_.AwaitBulk(kFullBulkOutstanding);
  pull_->SetSource(nullptr);
  EXPECT_EQ(share_.in_flight(), 0u);
}

TEST_F(SharedPullTest, ALostSourceLeavesTheQueue) {
  TakeAll();
  BeginShared(1000);
  AwaitWaiting(1);
  pull_->SetSource(nullptr);
  AwaitWaiting(0);
  FakePageSource back;
  pull_->SetSource(&back);
  AwaitWaiting(1);
  share_.Release(taken_[0]);
  back.AwaitBulk(1);
  pull_->Stop();
}

TEST_F(SharedPullTest, ARefusalGivesThePermitBack) {
  source_.Refuse(absl::UnavailableError("gone"));
  BeginShared(1000);
  source_.AwaitBulk(1);
  AwaitInFlight(0);
}

TEST_F(SharedPullTest, TheLastRequestsKeepNoPermitBeyondTheirs) {
  BeginShared(64);  // one request, and then nothing to ask for
  source_.AwaitBulk(1);
  AwaitInFlight(1);
}

TEST_F(SharedPullTest, ALimitIsWaitedForWithoutAPermit) {
  BeginShared(1000, /*bytes_per_second=*/1);
  source_.AwaitBulk(2);  // the burst
  Receive(Pages(0, 64));
  Receive(Pages(64, 64));
  // The simulated sleeps of the limit are short, so that it comes by often.
  AwaitInFlight(0);
  TakeAll();
  AwaitWaiting(1);
  pull_->Stop();
  EXPECT_EQ(source_.bulk().size(), 2u);
}

TEST_F(SharedPullTest, ASourceThatHangsIsNotWaitedFor) {
  BeginShared(1000);
  source_.AwaitBulk(2);
  std::thread clock([this] { share_clock_.Advance(kBulkPermitNanos); });
  TakeAll();  // the permits of the one that hangs, when they have expired
  clock.join();
  EXPECT_EQ(share_.expired(), kFullBulkOutstanding);
  // And its answer, when it comes after all, takes nothing away.
  Receive(Pages(0, 64));
  AwaitWaiting(1);
  EXPECT_EQ(share_.in_flight(), kFullBulkOutstanding);
  share_.Release(taken_[0]);
  source_.AwaitBulk(3);
}

}  // namespace
}  // namespace postcopy
