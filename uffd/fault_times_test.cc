#include "uffd/fault_times.h"

#include <linux/userfaultfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/latency_histogram.h"
#include "uffd/pending_faults.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;
using Touch = SimulatedUffd::Touch;

constexpr PageCount kPages{256};
constexpr HostAddress kBase{0x100000000};

// The only duration that `histogram` has; its maximum is exact.
uint64_t Only(const LatencySnapshot& histogram) {
  EXPECT_EQ(histogram.count(), 1u);
  EXPECT_EQ(histogram.sum_ns(), histogram.max_ns());
  return histogram.max_ns();
}

std::vector<uint64_t> SumsOf(
    const std::array<LatencySnapshot, kFaultStages>& stages) {
  std::vector<uint64_t> sums;
  for (const LatencySnapshot& stage : stages) sums.push_back(stage.sum_ns());
  return sums;
}

std::vector<uint64_t> StagesOf(const PendingFaults::Fault& fault,
                               int64_t answered_ns, int64_t installed_ns) {
  const auto times = std::make_unique<FaultTimes>();
  times->Record(PageIndex(3), fault, answered_ns, installed_ns);
  const std::vector<uint64_t> sums = SumsOf(times->Stages());
  EXPECT_EQ(sums[1] + sums[2] + sums[3], Only(times->Latency()));
  return sums;
}

TEST(FaultTimesTest, StagesAddUpToTheLatency) {
  EXPECT_EQ(StagesOf({.first_read_ns = 100, .unread_ns = 7, .asked_ns = 120},
                     1120, 1129),
            (std::vector<uint64_t>{7, 20, 1000, 9}));
}

TEST(FaultTimesTest, WhatComesUnaskedHasWaitedToBeAskedFor) {
  EXPECT_EQ(StagesOf({.first_read_ns = 100}, 150, 160),
            (std::vector<uint64_t>{0, 50, 0, 10}));
}

// Answers to a request before, or to the other lane, know nothing of the fault.
TEST(FaultTimesTest, StagesAddUpInAnyOrderOfTimes) {
  EXPECT_EQ(StagesOf({.first_read_ns = 100, .asked_ns = 120}, 50, 160),
            (std::vector<uint64_t>{0, 0, 0, 60}));
  EXPECT_EQ(StagesOf({.first_read_ns = 100, .asked_ns = 120}, 110, 160),
            (std::vector<uint64_t>{0, 10, 0, 50}));
  EXPECT_EQ(StagesOf({.first_read_ns = 100, .asked_ns = 120}, 180, 160),
            (std::vector<uint64_t>{0, 20, 40, 0}));
  EXPECT_EQ(StagesOf({.first_read_ns = 100, .asked_ns = 120}, 130, 90),
            (std::vector<uint64_t>{0, 0, 0, 0}));
}

// Waits for threads of the object under test, in real time.
void Until(const std::function<bool()>& condition) {
  while (!condition()) std::this_thread::yield();
}

// A DestinationVm with its threads, and time that goes on when the test says.
class VmTimesTest : public testing::Test {
 protected:
  VmTimesTest() {
    uffd_.Map(kBase, BytesIn(kPages), fd_.get(), 0);
    clock_.Advance(1000);
  }
  ~VmTimesTest() override {
    if (vm_ != nullptr) vm_->Abort();
  }

  void Serve(uint64_t features = UFFD_FEATURE_THREAD_ID) {
    uffd_.SetFeatures(features);
    vm_ = *DestinationVm::Create(LayoutOf({kPages}), {{kBase, fd_.get(), 0}},
                                 Share(&uffd_), &clock_);
    const PageBitmap stale = *PageBitmap::Create(kPages);
    ASSERT_TRUE(vm_->DiscardStale(stale.view()).ok());
    EXPECT_EQ(vm_->FaultStages().stalled_ns, 0u);  // before there is anything
    ASSERT_TRUE(
        vm_->StartServing(&source_, 0, [](const absl::Status&) {}).ok());
  }
  // `thread` touches `page`, and the message has been read.
  void Fault(int thread, uint64_t page) {
    const uint64_t before = vm_->counters().faults;
    ASSERT_EQ(uffd_.TouchPage(thread, kBase + BytesIn(PageCount(page))),
              Touch::kWaiting);
    Until([&] { return vm_->counters().faults > before; });
    // Whoever sees the count may be before the table.
    Until([&] { return Waits(thread); });
  }
  bool Waits(int thread) {
    for (const FaultingThread& known : Threads()) {
      if (known.id == static_cast<uint32_t>(thread)) return true;
    }
    return uffd_.features() == 0;
  }
  absl::Status Urgent(uint64_t page, const std::set<uint64_t>& zeros = {}) {
    return vm_->OnUrgentPages(
        Answer(std::vector<PageIndex>{PageIndex(page)}, zeros).runs());
  }
  absl::Status Bulk(PageRun run, const std::set<uint64_t>& zeros = {}) {
    return vm_->OnBulkPages(Answer(run, zeros).runs());
  }
  std::vector<uint64_t> Stages() { return SumsOf(vm_->FaultStages().stages); }
  uint64_t Stalled() { return vm_->FaultStages().stalled_ns; }
  std::vector<FaultingThread> Threads() {
    return vm_->FaultStages().threads.threads;
  }

  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(kPages), 0);
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  FakePageSource source_;
  std::unique_ptr<DestinationVm> vm_;
};

TEST_F(VmTimesTest, EachStageIsExact) {
  Serve();
  vm_->OnSourceLost();
  uffd_.BeforeNext(Call::kRead, [&] { clock_.Advance(7); });
  Fault(1, 5);
  clock_.Advance(20);  // nobody to ask
  EXPECT_TRUE(vm_->OnSourceBack(&source_).ok());
  clock_.Advance(1000);
  EXPECT_EQ(Stalled(), 1020u);  // while it waits
  uffd_.BeforeNext(Call::kCopy, [&] { clock_.Advance(9); });
  EXPECT_TRUE(Urgent(5).ok());
  clock_.Advance(5000);
  EXPECT_EQ(Stages(), (std::vector<uint64_t>{7, 20, 1000, 9}));
  EXPECT_EQ(Only(vm_->FaultLatency()), 1029u);
  EXPECT_EQ(Stalled(), 1029u);
  EXPECT_EQ(Threads(), (std::vector<FaultingThread>{{1, 1, 1029, 1029}}));
}

// The request that failed with its source is not the one that was answered.
TEST_F(VmTimesTest, ALostSourceIsNotTheAnsweringOfTheNext) {
  Serve();
  Fault(1, 5);
  source_.AwaitUrgent(1);
  clock_.Advance(100);
  vm_->OnSourceLost();
  clock_.Advance(300);
  FakePageSource next;
  EXPECT_TRUE(vm_->OnSourceBack(&next).ok());
  clock_.Advance(40);
  EXPECT_TRUE(Urgent(5).ok());
  EXPECT_EQ(Stages(), (std::vector<uint64_t>{0, 400, 40, 0}));
  EXPECT_EQ(Stalled(), 440u);
  vm_->Abort();
}

// An answer that the host has no memory for is there, and not under way.
TEST_F(VmTimesTest, AnAnswerThatIsGivenAgainWasThereTheFirstTime) {
  Serve();
  Fault(1, 5);
  source_.AwaitUrgent(1);
  clock_.Advance(100);
  uffd_.FailNext(Call::kCopy, ENOMEM, 1 << 20);
  const int64_t before = clock_.NowNanos();
  EXPECT_FALSE(Urgent(5).ok());
  uffd_.FailNext(Call::kCopy, 0, 0);
  clock_.Advance(50);
  EXPECT_TRUE(Urgent(5).ok());
  const uint64_t trying = clock_.NowNanos() - before;
  EXPECT_EQ(Stages(), (std::vector<uint64_t>{0, 0, 100, trying}));
  EXPECT_EQ(Stalled(), 100 + trying);
  // The next answer is a new one.
  Fault(1, 6);
  source_.AwaitUrgent(2);
  clock_.Advance(10);
  EXPECT_TRUE(Urgent(6).ok());
  EXPECT_EQ(Stages(), (std::vector<uint64_t>{0, 0, 110, trying}));
}

TEST_F(VmTimesTest, OverlappingWaitsStallOnce) {
  Serve();
  Fault(1, 5);
  clock_.Advance(10);
  Fault(2, 6);
  clock_.Advance(10);
  EXPECT_TRUE(Urgent(5).ok());
  clock_.Advance(10);
  EXPECT_TRUE(Urgent(6).ok());
  clock_.Advance(100);
  Fault(1, 7);
  clock_.Advance(3);
  EXPECT_EQ(Stalled(), 33u);
  EXPECT_EQ(Threads(),
            (std::vector<FaultingThread>{{1, 2, 23, 20}, {2, 1, 20, 20}}));
  EXPECT_EQ(vm_->FaultLatency().sum_ns(), 40u);
}

TEST_F(VmTimesTest, ThreadsAtOnePageWaitEach) {
  Serve();
  Fault(1, 5);
  clock_.Advance(10);
  Fault(2, 5);
  clock_.Advance(30);
  EXPECT_TRUE(Urgent(5).ok());
  EXPECT_EQ(Threads(),
            (std::vector<FaultingThread>{{1, 1, 40, 40}, {2, 1, 30, 30}}));
  EXPECT_EQ(vm_->counters().duplicate_faults, 1u);
  EXPECT_EQ(Only(vm_->FaultLatency()), 40u);
}

TEST_F(VmTimesTest, WithoutTheFeatureNobodyIsNamed) {
  Serve(/*features=*/0);
  Fault(1, 5);
  source_.AwaitUrgent(1);
  clock_.Advance(10);
  EXPECT_TRUE(Urgent(5).ok());
  EXPECT_EQ(vm_->FaultStages().threads, FaultingThreads());
  EXPECT_EQ(Stalled(), 10u);
}

TEST_F(VmTimesTest, AWaitEndsWhenTheBulkLaneBringsThePage) {
  Serve();
  Fault(1, 5);
  source_.AwaitUrgent(1);
  clock_.Advance(10);
  EXPECT_TRUE(Bulk({PageIndex(6), PageCount(8)}).ok());  // not this one
  EXPECT_EQ(vm_->FaultLatency().count(), 0u);
  clock_.Advance(10);
  uffd_.BeforeNext(Call::kCopy, [&] { clock_.Advance(3); });
  EXPECT_TRUE(Bulk({PageIndex(4), PageCount(2)}).ok());
  EXPECT_FALSE(uffd_.IsWaiting(1));
  clock_.Advance(500);
  EXPECT_EQ(Stalled(), 23u);
  EXPECT_EQ(Stages(), (std::vector<uint64_t>{0, 0, 20, 3}));
  EXPECT_EQ(vm_->counters().outstanding_faults, 1u);
  EXPECT_TRUE(Urgent(5).ok());  // says nothing new
  EXPECT_EQ(Only(vm_->FaultLatency()), 23u);
  EXPECT_EQ(Stalled(), 23u);
  EXPECT_EQ(Threads(), (std::vector<FaultingThread>{{1, 1, 23, 23}}));
  EXPECT_EQ(vm_->counters().outstanding_faults, 0u);
}

TEST_F(VmTimesTest, AWaitEndsWhenTheBulkLaneSaysZeros) {
  Serve();
  Fault(1, 5);
  source_.AwaitUrgent(1);
  clock_.Advance(10);
  EXPECT_TRUE(Bulk({PageIndex(4), PageCount(2)}, {4, 5}).ok());
  clock_.Advance(500);
  EXPECT_EQ(Stalled(), 10u);
  Until([&] { return !uffd_.IsWaiting(1); });
  EXPECT_EQ(vm_->counters().local_faults, 1u);
}

TEST_F(VmTimesTest, ASourceThatComesBackFindsWhatTheBulkLaneBrought) {
  Serve();
  Fault(1, 5);
  Fault(2, 7);
  clock_.Advance(10);
  EXPECT_TRUE(Bulk({PageIndex(5), PageCount(1)}).ok());
  vm_->OnSourceLost();
  clock_.Advance(100);
  EXPECT_TRUE(vm_->OnSourceBack(&source_).ok());
  EXPECT_EQ(Only(vm_->FaultLatency()), 10u);
  clock_.Advance(1);
  EXPECT_TRUE(Urgent(7).ok());
  EXPECT_EQ(Stalled(), 111u);
  EXPECT_EQ(Threads(),
            (std::vector<FaultingThread>{{1, 1, 10, 10}, {2, 1, 111, 111}}));
}

TEST_F(VmTimesTest, AWaitEndsWhenThePageIsGivenUp) {
  Serve(UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EVENT_REMOVE);
  Fault(1, 5);
  source_.AwaitUrgent(1);
  clock_.Advance(10);
  uffd_.GiveUp(kBase + BytesIn(PageCount(5)), BytesIn(PageCount(1)));
  Until([&] { return vm_->counters().removals == 1; });
  Until([&] { return Threads()[0].wait_ns == 10 && !uffd_.IsChanging(); });
  Until([&] {
    const uint64_t before = Stalled();
    clock_.Advance(100);
    return Stalled() == before;
  });
  EXPECT_EQ(vm_->FaultLatency().count(), 0u);
}

TEST_F(VmTimesTest, NobodyWaitsForWhatIsPoisoned) {
  Serve();
  Fault(1, 5);
  source_.AwaitUrgent(1);
  clock_.Advance(10);
  std::atomic<bool> give_up{false};
  EXPECT_TRUE(vm_->PoisonMissing(give_up).ok());
  clock_.Advance(500);
  EXPECT_EQ(Stalled(), 10u);
  // A message that is read only now: its thread has been woken all the same.
  uffd_msg late = {};
  late.event = UFFD_EVENT_PAGEFAULT;
  late.arg.pagefault.address = (kBase + BytesIn(PageCount(9))).value();
  late.arg.pagefault.feat.ptid = 2;
  uffd_.Inject(late);
  Until([&] { return vm_->counters().outstanding_faults == 2; });
  source_.AwaitUrgent(2);
  clock_.Advance(500);
  EXPECT_EQ(Stalled(), 10u);
  EXPECT_EQ(vm_->FaultLatency().count(), 0u);
}

TEST_F(VmTimesTest, ItIsCountedUntilServingEnds) {
  Serve();
  Fault(1, 5);
  clock_.Advance(10);
  vm_->Abort();
  clock_.Advance(500);
  EXPECT_EQ(Stalled(), 10u);
  EXPECT_EQ(Threads(), (std::vector<FaultingThread>{{1, 1, 10, 10}}));
}

// The kernel says which of its threads wait.
TEST(KernelTimesTest, ThreadsAreTold) {
  std::string reason;
  const std::unique_ptr<KernelGuest> guest = KernelGuest::Create(
      {{MemoryKind::kMemfd, PageCount(16)}}, UFFD_FEATURE_THREAD_ID, &reason);
  if (guest == nullptr) GTEST_SKIP() << reason;
  const std::unique_ptr<DestinationVm> vm = *DestinationVm::Create(
      guest->layout(), guest->regions(), guest->TakeOps(), Clock::Monotonic());
  const PageBitmap stale = *PageBitmap::Create(PageCount(16));
  ASSERT_TRUE(vm->DiscardStale(stale.view()).ok());
  FakePageSource source;
  ASSERT_TRUE(vm->StartServing(&source, 0, [](const absl::Status&) {}).ok());
  std::set<uint32_t> ids;
  std::vector<std::thread> vcpus;
  std::vector<std::atomic<uint32_t>> id_of(3);
  for (int i = 0; i < 3; ++i) {
    vcpus.emplace_back([&, i] {
      id_of[i].store(static_cast<uint32_t>(::gettid()));
      EXPECT_TRUE(HasPattern(guest->at(PageIndex(7)), PageIndex(7)));
    });
  }
  Until([&] { return vm->counters().faults == 3; });
  Until([&] { return vm->FaultStages().threads.threads.size() == 3; });
  EXPECT_TRUE(
      vm->OnUrgentPages(Answer(std::vector<PageIndex>{PageIndex(7)}, {}).runs())
          .ok());
  for (std::thread& vcpu : vcpus) vcpu.join();
  for (const std::atomic<uint32_t>& id : id_of) ids.insert(id.load());
  const FaultTimesSnapshot times = vm->FaultStages();
  EXPECT_EQ(times.threads.others, FaultingThread());
  uint64_t longest = 0;
  for (const FaultingThread& thread : times.threads.threads) {
    EXPECT_EQ(ids.erase(thread.id), 1u) << thread.id;
    EXPECT_EQ(thread.faults, 1u);
    EXPECT_GT(thread.wait_ns, 0u);
    longest = std::max(longest, thread.wait_max_ns);
  }
  EXPECT_TRUE(ids.empty());
  EXPECT_EQ(times.stalled_ns, longest);
  EXPECT_EQ(times.stalled_ns, vm->FaultLatency().sum_ns());
  vm->Abort();
}

}  // namespace
}  // namespace postcopy
