// A whole DestinationVm, its threads included, against a simulated kernel and a
// network that misbehaves as a seed says. POSTCOPY_SEED=N repeats its draws,
// not how threads are scheduled; fault_simulation_test repeats everything.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dirtytrack/clock.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/fault_times.h"
#include "uffd/kernel_guest.h"
#include "uffd/latency_histogram.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;
using Touch = SimulatedUffd::Touch;

constexpr uint64_t kFirstPages = 100;
constexpr uint64_t kPages = 300;
constexpr int kVcpus = 8;
constexpr HostAddress kFirst{0x900000000};
constexpr HostAddress kSecond{0x100000000};

// One life of a VM: the random draws say what happens next.
class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed) {
    for (uint64_t page = 0; page < kPages; ++page) {
      if (Draw(4) == 0) zeros_.insert(page);
    }
    const ByteCount first = BytesIn(PageCount(kFirstPages));
    const ByteCount second = BytesIn(PageCount(kPages - kFirstPages));
    uffd_.Map(kFirst, first, fd_.get(), 0);
    uffd_.Map(kSecond, second, fd_.get(), first.value());
    uffd_.SetFeatures(UFFD_FEATURE_THREAD_ID);
    vm_ = *DestinationVm::Create(
        LayoutOf({PageCount(kFirstPages), PageCount(kPages - kFirstPages)}),
        {{kFirst, fd_.get(), 0}, {kSecond, fd_.get(), first.value()}},
        Share(&uffd_), &clock_);
  }

  void Precopy() {
    const uint64_t rounds = Draw(40);
    for (uint64_t i = 0; i < rounds; ++i) {
      const uint64_t first = Draw(kPages);
      const uint64_t count = 1 + Draw(std::min<uint64_t>(kPages - first, 30));
      const PageRun run = {PageIndex(first), PageCount(count)};
      if (Draw(3) == 0) {  // an older version, sent again or stale later
        Store({run, std::vector<uint8_t>(BytesIn(run.count).value(), 0xee)});
        for (uint64_t j = 0; j < count; ++j) old_.insert(first + j);
      } else {
        EXPECT_TRUE(vm_->StorePrecopied(Answer(run, zeros_).runs()).ok());
        for (uint64_t j = 0; j < count; ++j) old_.erase(first + j);
      }
    }
    const PageBitmap stale = *PageBitmap::Create(PageCount(kPages));
    for (const uint64_t page : old_) stale.view().TestAndSet(PageIndex(page));
    for (uint64_t i = Draw(50); i > 0; --i) {
      stale.view().TestAndSet(PageIndex(Draw(kPages)));
    }
    EXPECT_TRUE(vm_->DiscardStale(stale.view()).ok());
  }

  // The guest runs, answers come, the connection breaks, until all is here.
  void Postcopy() {
    source_ = std::make_unique<FakePageSource>();
    ASSERT_TRUE(vm_->StartServing(source_.get(), 0,
                                  [this](absl::Status status) {
                                    end_ = std::move(status);
                                    ended_.store(true);
                                  })
                    .ok());
    if (Draw(4) != 0) {
      ASSERT_TRUE(vm_->StartBackground().ok());
    }
    while (!ended_.load()) {
      Step();
      // Two threads run inside; let them now and then.
      if (Draw(8) == 0) std::this_thread::yield();
    }
    EXPECT_TRUE(end_.ok()) << end_;
    // Also who is between a page and its fault is through in the end.
    while (SomebodySeemsToWait()) std::this_thread::yield();
    EXPECT_TRUE(vm_->Finish().ok());
    CheckEnd();
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  HostAddress at(uint64_t page) const {
    return page < kFirstPages
               ? kFirst + BytesIn(PageCount(page))
               : kSecond + BytesIn(PageCount(page - kFirstPages));
  }

  struct Bytes {
    PageRun run;
    std::vector<uint8_t> data;
  };
  void Store(const Bytes& bytes) {
    EXPECT_TRUE(vm_->StorePrecopied({{bytes.run, bytes.data}}).ok());
  }

  void Step() {
    switch (Draw(10)) {
      case 0:
      case 1:
      case 2:
        return TouchSome();
      case 3:
      case 4:
      case 5:
        return AnswerUrgent();
      case 6:
      case 7:
        return AnswerBulk();
      case 8:
        return Disturb();
      default:
        if (Draw(20) == 0) Reconnect();
    }
  }

  void TouchSome() {
    const int vcpu = static_cast<int>(Draw(kVcpus));
    if (uffd_.IsWaiting(vcpu)) return;
    const uint64_t page = Draw(kPages);
    const Touch touch = uffd_.TouchPage(vcpu, at(page));
    EXPECT_TRUE(touch == Touch::kPresent || touch == Touch::kWaiting) << page;
    if (touch == Touch::kPresent) CheckPage(page);
  }

  // Any request, also one that was answered before: the network repeats none,
  // but a lost connection's answer may come late.
  void AnswerUrgent() {
    const auto requests = source_->urgent();
    if (requests.empty()) return;
    const size_t newest = std::min<size_t>(requests.size(), 1 + Draw(8));
    const std::vector<PageIndex>& pages = requests[requests.size() - newest];
    EXPECT_TRUE(Settled(vm_->OnUrgentPages(Answer(pages, zeros_).runs())));
  }

  void AnswerBulk() {
    const std::vector<PageRun> requests = source_->bulk();
    if (requests.empty()) return;
    PageRun run = requests[requests.size() -
                           std::min<size_t>(requests.size(), 1 + Draw(3))];
    if (Draw(5) == 0) run.count = PageCount(1 + Draw(run.count.value()));
    EXPECT_TRUE(Settled(vm_->OnBulkPages(Answer(run, zeros_).runs())));
  }

  // OK, or a failure injected below; or all had come and serving ended.
  bool Settled(const absl::Status& status) const {
    return status.ok() || absl::IsUnavailable(status);
  }

  void Disturb() {
    switch (Draw(4)) {
      case 0:
        return uffd_.FailNext(Call::kCopy, EAGAIN,
                              1 + static_cast<int>(Draw(3)));
      case 1:
        return uffd_.FailNext(Call::kZeroPage, EAGAIN,
                              1 + static_cast<int>(Draw(3)));
      case 2:
        return uffd_.StopNextAfter(PageCount(1 + Draw(5)));
      default:
        clock_.Advance(static_cast<int64_t>(Draw(1'000'000)));
    }
  }

  void Reconnect() {
    vm_->OnSourceLost();
    if (Draw(2) == 0) TouchSome();
    retired_.push_back(std::move(source_));
    source_ = std::make_unique<FakePageSource>();
    EXPECT_TRUE(vm_->OnSourceBack(source_.get()).ok());
    if (Draw(2) == 0) {
      EXPECT_TRUE(vm_->StartBackground().ok());
    }
  }

  void CheckPage(uint64_t page) {
    std::vector<uint8_t> bytes(kPageSize);
    ASSERT_EQ(::pread(fd_.get(), bytes.data(), kPageSize,
                      static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(kPageSize));
    EXPECT_EQ(bytes, zeros_.contains(page) ? std::vector<uint8_t>(kPageSize)
                                           : PatternOf(PageIndex(page)))
        << "page " << page;
  }

  bool SomebodySeemsToWait() {
    const uint64_t stalled_ns = vm_->FaultStages().stalled_ns;
    clock_.Advance(kNanosPerSecond);
    return vm_->FaultStages().stalled_ns != stalled_ns;
  }

  void CheckTimes() {
    const FaultTimesSnapshot times = vm_->FaultStages();
    const LatencySnapshot latency = vm_->FaultLatency();
    uint64_t sum_ns = 0;
    for (const LatencySnapshot& stage : times.stages) {
      EXPECT_EQ(stage.count(), latency.count());
      sum_ns += stage.sum_ns();
    }
    EXPECT_EQ(sum_ns - times.stage(FaultStage::kReading).sum_ns(),
              latency.sum_ns());
    EXPECT_LE(times.stalled_ns, latency.sum_ns());
    EXPECT_GE(times.stalled_ns, latency.max_ns());
  }

  void CheckEnd() {
    CheckTimes();
    EXPECT_EQ(uffd_.waiting(), 0u);
    for (uint64_t page = 0; page < kPages; ++page) CheckPage(page);
    const DestinationCounters now = vm_->counters();
    EXPECT_EQ(now.missing, PageCount(0));
    EXPECT_EQ(now.lost_pages, 0u);
    EXPECT_EQ(now.unmapped_pages, 0u);
    EXPECT_EQ(now.foreign_faults, 0u);
    EXPECT_EQ(now.zero, PageCount(zeros_.size()));
    EXPECT_EQ(now.total + now.discarded,
              now.precopied + now.faulted + now.background);
  }

  std::mt19937_64 random_;
  std::set<uint64_t> zeros_;
  std::set<uint64_t> old_;  // precopied pages with old content
  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(PageCount(kPages)), 0);
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  std::unique_ptr<FakePageSource> source_;
  std::vector<std::unique_ptr<FakePageSource>> retired_;
  absl::Status end_;
  std::atomic<bool> ended_{false};
  std::unique_ptr<DestinationVm> vm_;
};

TEST(DestinationVmSimulationTest, HoldsUnderRandomInterleavings) {
  const char* const given = std::getenv("POSTCOPY_SEED");
  const uint64_t first =
      given != nullptr ? std::stoull(given) : std::random_device()();
  const uint64_t count = given != nullptr ? 1 : 20;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    SCOPED_TRACE(testing::Message() << "POSTCOPY_SEED=" << seed);
    Simulation simulation(seed);
    simulation.Precopy();
    simulation.Postcopy();
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace postcopy
