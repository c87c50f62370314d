// A guest that runs is moved back and forth: 16 times 20 MiB, in every kind of
// memory, on the kernel's userfaultfd. Its threads take locks that lie in the
// pages and count there and outside: a page that is lost, old, torn or of
// another place shows at the next look, and a thread that is not woken hangs
// the test.
//
// Each move: some pages are copied while the guest writes them (where there is
// a file for that), the guest is stopped, what it wrote since is stale, it runs
// on in the new memory; what it touches is fetched, the rest is pulled; and all
// the while somebody answers again what has been answered already, with the
// bytes of before.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <shared_mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{5120};  // 20 MiB
constexpr int kThreads = 4;

// 16, or POSTCOPY_BOUNCES.
int Bounces() {
  const char* const given = std::getenv("POSTCOPY_BOUNCES");
  return given == nullptr ? 16 : std::max(1, std::atoi(given));
}

// The first bytes of each page; the rest says whose it is.
struct Lock {
  std::atomic<uint32_t> taken;
  uint32_t unused;
  uint64_t count;
  uint64_t page;
};

// The guest's programs. Memory is exchanged while they stand still.
class Lockers {
 public:
  explicit Lockers(KernelGuest* guest)
      : guest_(guest), counts_(kPages.value()) {
    for (uint64_t page = 0; page < kPages.value(); ++page) {
      const std::vector<uint8_t> content = PatternOf(PageIndex(page));
      uint8_t* const bytes = guest->at(PageIndex(page));
      std::memcpy(bytes, content.data(), content.size());
      new (bytes) Lock{.taken = 0, .unused = 0, .count = 0, .page = page};
    }
    for (int i = 0; i < kThreads; ++i) {
      threads_.emplace_back([this, i] { Run(static_cast<uint64_t>(i)); });
    }
  }

  ~Lockers() {
    stopping_.store(true);
    for (std::thread& thread : threads_) thread.join();
  }

  // Stops them until Resume.
  void Pause() {
    turnstile_.lock();
    running_.lock();
  }
  // They go on in `guest`.
  void Resume(KernelGuest* guest) {
    guest_ = guest;
    running_.unlock();
    turnstile_.unlock();
  }

  // Pages written since the last call. REQUIRES: paused, or nobody minds to be
  // told again of one that is being written.
  std::vector<PageIndex> TakeDirty() {
    std::vector<PageIndex> dirty;
    for (uint64_t page = 0; page < kPages.value(); ++page) {
      if (dirty_[page].exchange(false)) dirty.push_back(PageIndex(page));
    }
    return dirty;
  }

  uint64_t steps() const { return steps_.load(); }
  bool failed() const { return failed_.load(); }
  // REQUIRES: paused.
  void CheckAll() {
    for (uint64_t page = 0; page < kPages.value(); ++page) Check(page);
  }

 private:
  void Run(uint64_t seed) {
    std::mt19937_64 random(seed);
    while (!stopping_.load()) {
      // A few steps at a time: who wants to stop them need not wait long.
      std::unique_lock<std::mutex> turn(turnstile_);
      const std::shared_lock<std::shared_mutex> lock(running_);
      turn.unlock();
      for (int i = 0; i < 16 && !failed_.load(); ++i) {
        Step(random() % kPages.value());
      }
    }
  }

  void Step(uint64_t page) {
    Lock* const lock = LockOf(page);
    while (lock->taken.exchange(1, std::memory_order_acquire) != 0) {
      std::this_thread::yield();
    }
    dirty_[page].store(true);
    Check(page);
    ++lock->count;
    ++counts_[page];
    lock->taken.store(0, std::memory_order_release);
    steps_.fetch_add(1, std::memory_order_relaxed);
  }

  void Check(uint64_t page) {
    const Lock* const lock = LockOf(page);
    const std::vector<uint8_t> content = PatternOf(PageIndex(page));
    const auto* const bytes = reinterpret_cast<const uint8_t*>(lock);
    const bool right =
        lock->count == counts_[page] && lock->page == page &&
        std::memcmp(bytes + sizeof(Lock), content.data() + sizeof(Lock),
                    kPageSize - sizeof(Lock)) == 0;
    if (right || failed_.exchange(true)) return;
    ADD_FAILURE() << "page " << page << " says " << lock->page << " and "
                  << lock->count << " of " << counts_[page];
  }

  Lock* LockOf(uint64_t page) const {
    return reinterpret_cast<Lock*>(guest_->at(PageIndex(page)));
  }

  std::mutex turnstile_;  // so that who pauses them does not wait for ever
  std::shared_mutex running_;
  KernelGuest* guest_;
  std::vector<uint64_t> counts_;  // each guarded by its page's lock
  std::array<std::atomic<bool>, kPages.value()> dirty_{};
  std::atomic<uint64_t> steps_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};
  std::vector<std::thread> threads_;
};

class BounceStressTest : public testing::TestWithParam<MemoryKind> {
 protected:
  // New memory, whose pages have never been touched.
  std::unique_ptr<KernelGuest> NewGuest(std::string* reason) const {
    return KernelGuest::Create({GuestRegion{GetParam(), kPages}}, 0, reason);
  }
};

std::vector<uint8_t> BytesOf(const KernelGuest& guest, PageRun run) {
  const uint8_t* const bytes = guest.at(run.first);
  return std::vector<uint8_t>(bytes, bytes + BytesIn(run.count).value());
}

// The bytes of one page while its lock is held, so that they are not torn, and
// as if it were not.
std::vector<uint8_t> LockedBytesOf(const KernelGuest& guest, PageIndex page) {
  auto* const lock = reinterpret_cast<Lock*>(guest.at(page));
  std::vector<uint8_t> bytes(kPageSize);
  while (lock->taken.exchange(1, std::memory_order_acquire) != 0) {
    std::this_thread::yield();
  }
  std::memcpy(bytes.data() + sizeof(lock->taken),
              guest.at(page) + sizeof(lock->taken),
              kPageSize - sizeof(lock->taken));
  lock->taken.store(0, std::memory_order_release);
  return bytes;
}

// Copies every second run of pages, or huge page, while the guest writes.
void Precopy(const KernelGuest& from, Lockers* lockers, DestinationVm* to) {
  const uint64_t run_pages =
      std::max<uint64_t>(64, to->ram().largest_unit().value());
  lockers->TakeDirty();
  for (uint64_t page = 0; page < kPages.value(); ++page) {
    if (page / run_pages % 2 != 0) continue;
    const PageRun run{PageIndex(page), PageCount(1)};
    const std::vector<uint8_t> bytes = LockedBytesOf(from, run.first);
    ASSERT_TRUE(to->StorePrecopied({ReceivedRun{run, bytes}}).ok());
  }
}

TEST_P(BounceStressTest, NothingIsLost) {
  std::string reason;
  std::unique_ptr<KernelGuest> from = NewGuest(&reason);
  if (from == nullptr) GTEST_SKIP() << reason;
  // Not served: ordinary memory until it is left.
  Lockers lockers(from.get());
  for (int bounce = 0; bounce < Bounces() && !lockers.failed(); ++bounce) {
    SCOPED_TRACE(testing::Message() << "bounce " << bounce);
    std::unique_ptr<KernelGuest> to = NewGuest(&reason);
    if (to == nullptr) GTEST_SKIP() << reason;
    auto vm = *DestinationVm::Create(to->layout(), to->regions(), to->TakeOps(),
                                     Clock::Monotonic());
    const bool precopied = vm->ram().has_files();
    if (precopied) Precopy(*from, &lockers, vm.get());
    lockers.Pause();
    const PageBitmap stale = *PageBitmap::Create(kPages);
    for (const PageIndex page : lockers.TakeDirty()) {
      stale.view().SetRun({page, PageCount(1)});
    }
    ASSERT_TRUE(vm->DiscardStale(stale.view()).ok());
    ServingPageSource source(
        static_cast<uint64_t>(bounce), {},
        [&from](PageRun run) { return BytesOf(*from, run); });
    source.Serve(vm.get());
    std::promise<absl::Status> end;
    ASSERT_TRUE(vm->StartServing(&source, 0, [&end](absl::Status status) {
                    end.set_value(std::move(status));
                  }).ok());
    lockers.Resume(to.get());
    std::atomic<bool> ended{false};
    std::thread repeater([&] {
      std::mt19937_64 random(static_cast<uint64_t>(bounce));
      while (!ended.load()) {
        const PageRun unit =
            vm->ram().UnitOf(PageIndex(random() % kPages.value()));
        const std::vector<uint8_t> bytes = BytesOf(*from, unit);
        const ReceivedRun run{unit, bytes};
        const absl::Status taken = random() % 2 == 0 ? vm->OnUrgentPages({run})
                                                     : vm->OnBulkPages({run});
        EXPECT_TRUE(taken.ok()) << taken;
      }
    });
    const uint64_t before = lockers.steps();
    while (lockers.steps() < before + 2000 && !lockers.failed()) {
      std::this_thread::yield();
    }
    EXPECT_TRUE(vm->StartBackground().ok());
    const absl::Status ending = end.get_future().get();
    EXPECT_TRUE(ending.ok()) << ending;
    ended.store(true);
    repeater.join();
    source.Stop();
    EXPECT_TRUE(source.status().ok()) << source.status();
    EXPECT_TRUE(vm->Finish().ok());
    const DestinationCounters counters = vm->counters();
    EXPECT_EQ(counters.total, counters.precopied - counters.discarded +
                                  counters.faulted + counters.background);
    EXPECT_EQ(counters.lost_pages, 0u);
    lockers.Pause();
    lockers.CheckAll();
    lockers.Resume(to.get());
    vm.reset();
    from = std::move(to);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, BounceStressTest,
                         testing::Values(MemoryKind::kMemfd, MemoryKind::kMinor,
                                         MemoryKind::kAnonymous,
                                         MemoryKind::kHugetlb,
                                         MemoryKind::kStaged,
                                         MemoryKind::kHugetlbStaged,
                                         MemoryKind::kHugetlbFile),
                         [](const auto& kind) { return NameOf(kind.param); });

}  // namespace
}  // namespace postcopy
