#include "uffd/fault_records.h"

#include <linux/userfaultfd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/pending_faults.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;

constexpr PageCount kPages{256};
constexpr HostAddress kBase{0x100000000};

std::vector<FaultRecord> TakeAll(FaultRecords& records) {
  std::vector<FaultRecord> taken;
  while (const std::optional<FaultRecord> record = records.Take()) {
    taken.push_back(*record);
  }
  return taken;
}

TEST(FaultRecordsTest, AtItsLimitAndOnePast) {
  const auto records = std::make_unique<FaultRecords>();
  for (size_t i = 0; i < kFaultRecordsMax; ++i) {
    records->Add({.page = PageIndex(i)});
  }
  EXPECT_EQ(records->lost(), 0u);
  records->Add({.page = PageIndex(1)});
  records->Add({.page = PageIndex(1), .ended = true});
  records->Add({.page = PageIndex(2), .ended = true});
  EXPECT_EQ(records->lost(), 1u);
  EXPECT_EQ(records->lost_ends(), 2u);
  const std::vector<FaultRecord> taken = TakeAll(*records);
  ASSERT_EQ(taken.size(), kFaultRecordsMax);
  EXPECT_EQ(taken.back().page, PageIndex(kFaultRecordsMax - 1));
  records->Add({.page = PageIndex(9)});
  EXPECT_EQ(TakeAll(*records),
            (std::vector<FaultRecord>{{.page = PageIndex(9)}}));
}

// The loop and receivers add while a writer takes.
TEST(FaultRecordsTest, WhatIsTakenAndLostIsWhatWasAdded) {
  constexpr uint64_t kEach = 100'000;
  constexpr uint32_t kThreads = 3;
  const auto records = std::make_unique<FaultRecords>();
  std::atomic<uint32_t> running{kThreads};
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t i = 1; i <= kEach; ++i) {
        records->Add({.page = PageIndex(i),
                      .read_ns = static_cast<int64_t>(i),
                      .thread = thread,
                      .ended = thread == 2});
      }
      running.fetch_sub(1);
    });
  }
  std::vector<uint64_t> last(kThreads), taken(kThreads);
  while (true) {
    const bool all = running.load() == 0;
    for (const FaultRecord& record : TakeAll(*records)) {
      ASSERT_GT(record.page.value(), last[record.thread]);
      ASSERT_EQ(record.read_ns, static_cast<int64_t>(record.page.value()));
      last[record.thread] = record.page.value();
      ++taken[record.thread];
    }
    if (all) break;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken[0] + taken[1] + records->lost(), 2 * kEach);
  EXPECT_EQ(taken[2] + records->lost_ends(), kEach);
}

// A DestinationVm with its threads, and time that goes on when the test says.
class RecordedVmTest : public testing::Test {
 protected:
  RecordedVmTest() {
    uffd_.Map(kBase, BytesIn(kPages), fd_.get(), 0);
    uffd_.SetFeatures(UFFD_FEATURE_THREAD_ID);
    clock_.Advance(1000);
    vm_ = *DestinationVm::Create(LayoutOf({kPages}), {{kBase, fd_.get(), 0}},
                                 Share(&uffd_), &clock_);
  }
  ~RecordedVmTest() override { vm_->Abort(); }

  void Serve() {
    ASSERT_TRUE(vm_->RecordFaults(records_).ok());
    const PageBitmap stale = *PageBitmap::Create(kPages);
    ASSERT_TRUE(vm_->DiscardStale(stale.view()).ok());
    ASSERT_TRUE(
        vm_->StartServing(&source_, 0, [](const absl::Status&) {}).ok());
  }
  void Touch(int thread, uint64_t page) {
    uffd_.TouchPage(thread, kBase + BytesIn(PageCount(page)));
  }
  // The next row, which somebody is about to add.
  FaultRecord Next() {
    std::optional<FaultRecord> record;
    while (!(record = records_->Take()).has_value()) std::this_thread::yield();
    return *record;
  }

  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(kPages), 0);
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  FakePageSource source_;
  std::shared_ptr<FaultRecords> records_ = std::make_shared<FaultRecords>();
  std::unique_ptr<DestinationVm> vm_;
};

TEST_F(RecordedVmTest, AFaultHasARowWhenItIsReadAndOneWhenItEnds) {
  Serve();
  const int64_t began_ns = clock_.NowNanos();
  uffd_.BeforeNext(Call::kRead, [&] { clock_.Advance(7); });
  Touch(1, 5);
  EXPECT_EQ(Next(), (FaultRecord{.page = PageIndex(5),
                                 .read_ns = began_ns + 7,
                                 .stages_ns = {7},
                                 .thread = 1}));
  source_.AwaitUrgent(1);
  clock_.Advance(1000);
  uffd_.BeforeNext(Call::kCopy, [&] { clock_.Advance(9); });
  EXPECT_TRUE(vm_->OnUrgentPages(
                     Answer(std::vector<PageIndex>{PageIndex(5)}, {}).runs())
                  .ok());
  EXPECT_EQ(Next(), (FaultRecord{.page = PageIndex(5),
                                 .read_ns = began_ns + 7,
                                 .stages_ns = {7, 0, 1000, 9},
                                 .ended = true}));
  EXPECT_EQ(records_->Take(), std::nullopt);
}

TEST_F(RecordedVmTest, WhatTheBulkLaneBringsEndsAFaultToo) {
  Serve();
  Touch(1, 5);
  EXPECT_FALSE(Next().ended);
  source_.AwaitUrgent(1);
  clock_.Advance(20);
  EXPECT_TRUE(
      vm_->OnBulkPages(Answer(PageRun{PageIndex(4), PageCount(2)}, {}).runs())
          .ok());
  vm_->FaultStages();  // what was posted is seen to
  const FaultRecord end = Next();
  EXPECT_TRUE(end.ended);
  EXPECT_EQ(end.stages_ns[2], 20u);
  EXPECT_EQ(records_->Take(), std::nullopt);
}

TEST_F(RecordedVmTest, WhatIsAnsweredHereHasOneRow) {
  const Answer zeros(PageRun{PageIndex(4), PageCount(2)}, {4, 5});
  ASSERT_TRUE(vm_->StorePrecopied(zeros.runs()).ok());
  Serve();
  Touch(2, 5);
  const FaultRecord record = Next();
  EXPECT_EQ(record.page, PageIndex(5));
  EXPECT_EQ(record.thread, 2u);
  EXPECT_FALSE(record.ended);
  while (uffd_.IsWaiting(2)) std::this_thread::yield();
  EXPECT_EQ(records_->Take(), std::nullopt);
}

TEST_F(RecordedVmTest, ItIsLetGoWithTheVm) {
  EXPECT_TRUE(vm_->RecordFaults(std::make_shared<FaultRecords>()).ok());
  Serve();
  const absl::Status late = vm_->RecordFaults(nullptr);
  EXPECT_TRUE(absl::IsFailedPrecondition(late)) << late;
  const std::weak_ptr<FaultRecords> watched = records_;
  records_.reset();
  EXPECT_FALSE(watched.expired());
  vm_->Abort();
  EXPECT_FALSE(watched.expired());
  vm_ = *DestinationVm::Create(LayoutOf({kPages}), {{kBase, fd_.get(), 0}},
                               Share(&uffd_), &clock_);
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace postcopy
