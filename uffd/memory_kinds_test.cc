// Every kind of memory that a VM may have, on the kernel's userfaultfd, with a
// VMM (this process) that gives memory up, unmaps and moves it meanwhile.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

constexpr uint64_t kEvents = UFFD_FEATURE_EVENT_REMOVE |
                             UFFD_FEATURE_EVENT_UNMAP |
                             UFFD_FEATURE_EVENT_REMAP;

bool IsZeros(const uint8_t* bytes, ByteCount length) {
  return std::all_of(bytes, bytes + length.value(),
                     [](uint8_t byte) { return byte == 0; });
}

class MemoryKindsTest : public testing::TestWithParam<MemoryKind> {
 protected:
  ~MemoryKindsTest() override {
    source_.Stop();
    vm_.reset();
  }

  // `units` pages of each region, huge ones where it is made of them.
  void Begin(const std::vector<MemoryKind>& kinds, uint64_t units,
             uint64_t features, bool serve = true) {
    std::vector<GuestRegion> regions;
    for (const MemoryKind kind : kinds) {
      const bool huge = IsHuge(kind);
      regions.push_back({kind, PageCount(units * (huge ? 512 : 1))});
    }
    std::string reason;
    guest_ = KernelGuest::Create(regions, features, &reason);
    if (guest_ == nullptr) GTEST_SKIP() << reason;
    auto vm = DestinationVm::Create(guest_->layout(), guest_->regions(),
                                    guest_->TakeOps(), Clock::Monotonic());
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    PageSource* source = &idle_;
    if (serve) {
      source_.Serve(vm_.get());
      source = &source_;
    }
    const PageBitmap stale = *PageBitmap::Create(guest_->layout().pages());
    ASSERT_TRUE(vm_->DiscardStale(stale.view()).ok());
    ASSERT_TRUE(vm_->StartServing(source, 0,
                                  [this](absl::Status status) {
                                    end_.set_value(std::move(status));
                                  })
                    .ok());
  }

  PageRun Unit(uint64_t index) const {
    PageRun unit = vm_->ram().UnitOf(PageIndex(0));
    for (uint64_t i = 0; i < index; ++i) unit = vm_->ram().UnitOf(unit.end());
    return unit;
  }
  bool HasContent(PageRun unit) const {
    for (PageIndex page = unit.first; page < unit.end(); page += PageCount(1)) {
      if (!HasPattern(guest_->at(page), page)) return false;
    }
    return true;
  }
  bool IsZero(PageRun unit) const {
    return IsZeros(guest_->at(unit.first), BytesIn(unit.count));
  }
  void AwaitEnd() {
    const absl::Status end = end_.get_future().get();
    EXPECT_TRUE(end.ok()) << end;
    EXPECT_TRUE(source_.status().ok()) << source_.status();
  }

  std::unique_ptr<KernelGuest> guest_;
  std::unique_ptr<DestinationVm> vm_;
  FakePageSource idle_;
  ServingPageSource source_{1, {}};
  std::promise<absl::Status> end_;
};

TEST_P(MemoryKindsTest, BringsEveryPage) {
  Begin({GetParam()}, 8, 0);
  if (vm_ == nullptr) return;
  for (const uint64_t i : {5, 2}) EXPECT_TRUE(HasContent(Unit(i))) << i;
  EXPECT_TRUE(vm_->StartBackground().ok());
  AwaitEnd();
  EXPECT_TRUE(vm_->Finish().ok());
  for (uint64_t i = 0; i < 8; ++i) EXPECT_TRUE(HasContent(Unit(i))) << i;
}

TEST_P(MemoryKindsTest, ZerosCostNothingUntilTouched) {
  Begin({GetParam()}, 4, 0, /*serve=*/false);
  if (vm_ == nullptr) return;
  const ReceivedRun zeros{{PageIndex(0), guest_->layout().pages()}, {}};
  EXPECT_TRUE(vm_->OnBulkPages({zeros}).ok());
  EXPECT_TRUE(IsZero(Unit(3)));
  // Counted behind the ioctl that lets this thread go on.
  while (vm_->counters().local_faults == 0) std::this_thread::yield();
  EXPECT_TRUE(idle_.urgent().empty());
}

TEST_P(MemoryKindsTest, ThreadsThatWaitAreGivenZeros) {
  Begin({GetParam()}, 4, 0, /*serve=*/false);
  if (vm_ == nullptr) return;
  std::thread guest([&] { EXPECT_TRUE(IsZero(Unit(1))); });
  idle_.AwaitUrgent(1);
  EXPECT_TRUE(vm_->OnUrgentPages({ReceivedRun{Unit(1), {}}}).ok());
  guest.join();
}

TEST_P(MemoryKindsTest, SixtyFourThreadsOnePageOneRequest) {
  Begin({GetParam()}, 4, 0, /*serve=*/false);
  if (vm_ == nullptr) return;
  const PageRun unit = Unit(2);
  std::vector<std::thread> guests;
  for (int i = 0; i < 64; ++i) {
    guests.emplace_back([&] { EXPECT_TRUE(HasContent(unit)); });
  }
  while (vm_->counters().duplicate_faults < 63) std::this_thread::yield();
  const std::vector<uint8_t> bytes = PatternOf(unit);
  EXPECT_TRUE(vm_->OnUrgentPages({ReceivedRun{unit, bytes}}).ok());
  for (std::thread& guest : guests) guest.join();
  EXPECT_EQ(idle_.urgent().size(), 1u);
  EXPECT_EQ(vm_->counters().outstanding_faults, 0u);
}

TEST_P(MemoryKindsTest, WhatCannotComeIsPoisoned) {
  Begin({GetParam()}, 4, 0, /*serve=*/false);
  if (vm_ == nullptr) return;
  const std::vector<uint8_t> bytes = PatternOf(Unit(1));
  EXPECT_TRUE(vm_->OnBulkPages({ReceivedRun{Unit(1), bytes}}).ok());
  std::thread guest(
      [&] { EXPECT_FALSE(KernelCanRead(guest_->at(Unit(2).first))); });
  idle_.AwaitUrgent(1);
  std::atomic<bool> give_up{true};
  EXPECT_TRUE(absl::IsCancelled(vm_->PoisonMissing(give_up)));
  give_up.store(false);
  const absl::Status poisoned = vm_->PoisonMissing(give_up);
  EXPECT_TRUE(poisoned.ok()) << poisoned;
  guest.join();
  EXPECT_FALSE(KernelCanRead(guest_->at(Unit(0).first)));
  EXPECT_TRUE(HasContent(Unit(1)));
  // Poison needs no userfaultfd to stay.
  vm_->Abort(/*release=*/true);
  EXPECT_FALSE(KernelCanRead(guest_->at(Unit(0).first)));
  EXPECT_FALSE(KernelCanRead(guest_->at(Unit(3).first)));
  EXPECT_TRUE(HasContent(Unit(1)));
}

// A balloon takes pages that never came, and such that had.
TEST_P(MemoryKindsTest, WhatIsGivenUpIsZeros) {
  Begin({GetParam()}, 8, kEvents);
  if (vm_ == nullptr) return;
  EXPECT_TRUE(HasContent(Unit(3)));
  guest_->GiveUp({Unit(2).first, Unit(2).count + Unit(3).count});
  EXPECT_TRUE(IsZero(Unit(3)));
  EXPECT_TRUE(IsZero(Unit(2)));
  EXPECT_TRUE(vm_->StartBackground().ok());
  AwaitEnd();
  EXPECT_TRUE(IsZero(Unit(2)));
  EXPECT_TRUE(HasContent(Unit(4)));
  const DestinationCounters counters = vm_->counters();
  EXPECT_EQ(counters.removals, 1u);
  EXPECT_EQ(counters.given_up, Unit(2).count);
  EXPECT_EQ(counters.total,
            counters.faulted + counters.background + counters.given_up);
  EXPECT_TRUE(vm_->Finish().ok());
}

// Its answer is on the way when the page is given up.
TEST_P(MemoryKindsTest, AnAnswerThatComesTooLateIsDropped) {
  Begin({GetParam()}, 4, kEvents, /*serve=*/false);
  if (vm_ == nullptr) return;
  std::thread guest([&] { EXPECT_TRUE(IsZero(Unit(1))); });
  idle_.AwaitUrgent(1);
  guest_->GiveUp(Unit(1));
  const std::vector<uint8_t> bytes = PatternOf(Unit(1));
  EXPECT_TRUE(vm_->OnUrgentPages({ReceivedRun{Unit(1), bytes}}).ok());
  guest.join();
  EXPECT_TRUE(IsZero(Unit(1)));
  EXPECT_EQ(vm_->counters().outstanding_faults, 0u);
}

// Without events nobody is told, and nobody asks for the page again.
TEST_P(MemoryKindsTest, WhatIsGivenUpUnseenIsZerosInPrivateMemory) {
  if (HasFile(GetParam())) {
    GTEST_SKIP() << "in a file it may be a loss: ALostPageIsPoisonedNotZeroed";
  }
  Begin({GetParam()}, 4, 0);
  if (vm_ == nullptr) return;
  EXPECT_TRUE(HasContent(Unit(1)));
  guest_->GiveUp(Unit(1));
  EXPECT_TRUE(IsZero(Unit(1)));
}

TEST_P(MemoryKindsTest, NobodyMissesWhatIsUnmapped) {
  Begin({GetParam()}, 4, kEvents);
  if (vm_ == nullptr) return;
  const PageRun unit = Unit(1);
  const size_t length = BytesIn(unit.count).value();
  guest_->Leave(unit);
  ASSERT_EQ(::munmap(guest_->at(unit.first), length), 0);
  EXPECT_TRUE(vm_->StartBackground().ok());
  AwaitEnd();
  EXPECT_EQ(vm_->counters().unmaps, 1u);
  EXPECT_EQ(vm_->counters().given_up, unit.count);
  EXPECT_TRUE(vm_->Finish().ok());
  EXPECT_TRUE(HasContent(Unit(2)));
}

TEST_P(MemoryKindsTest, ARegionUnmappedWholeDoesNotFailTheEnd) {
  Begin({GetParam(), MemoryKind::kAnonymous}, 4, kEvents);
  if (vm_ == nullptr) return;
  const Region& first = guest_->layout().regions()[0];
  guest_->Leave({PageIndex(0), PagesIn(first.length)});
  ASSERT_EQ(::munmap(guest_->at(PageIndex(0)), first.length.value()), 0);
  EXPECT_TRUE(vm_->StartBackground().ok());
  AwaitEnd();
  EXPECT_TRUE(vm_->Finish().ok()) << vm_->Finish();
}

TEST_P(MemoryKindsTest, MovedMemoryIsServedWhereItIs) {
  if (IsHuge(GetParam())) {
    GTEST_SKIP() << "mremap(2) of private huge pages costs the host one of its "
                    "reserved huge pages for good (seen with Linux 6.18)";
  }
  Begin({GetParam()}, 8, kEvents);
  if (vm_ == nullptr) return;
  const PageRun from = Unit(4);
  const size_t length = BytesIn(from.count).value();
  void* const reserved =
      ::mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(reserved, MAP_FAILED);
  guest_->Leave(from);
  void* const moved = ::mremap(guest_->at(from.first), length, length,
                               MREMAP_MAYMOVE | MREMAP_FIXED, reserved);
  ASSERT_EQ(moved, reserved) << errno;
  const auto* const bytes = static_cast<const uint8_t*>(moved);
  EXPECT_TRUE(HasPattern(bytes, from.first));
  EXPECT_TRUE(vm_->StartBackground().ok());
  AwaitEnd();
  EXPECT_EQ(vm_->counters().remaps, 1u);
  EXPECT_TRUE(HasContent(Unit(3)));
  EXPECT_TRUE(HasContent(Unit(5)));
  EXPECT_TRUE(vm_->Finish().ok());
  source_.Stop();
  vm_.reset();  // before its memory goes
  ::munmap(reserved, length);
}

// Zeros that nobody had touched are still holes when the serving ends.
TEST_P(MemoryKindsTest, NobodyWaitsInMovedMemoryAfterTheEnd) {
  if (IsHuge(GetParam())) {
    GTEST_SKIP() << "see MovedMemoryIsServedWhereItIs";
  }
  Begin({GetParam()}, 4, kEvents, /*serve=*/false);
  if (vm_ == nullptr) return;
  const PageRun from = Unit(1);
  const size_t length = BytesIn(from.count).value();
  void* const reserved =
      ::mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(reserved, MAP_FAILED);
  guest_->Leave(from);
  ASSERT_EQ(::mremap(guest_->at(from.first), length, length,
                     MREMAP_MAYMOVE | MREMAP_FIXED, reserved),
            reserved);
  const ReceivedRun zeros{{PageIndex(0), guest_->layout().pages()}, {}};
  EXPECT_TRUE(vm_->OnBulkPages({zeros}).ok());
  EXPECT_TRUE(vm_->Finish().ok());
  EXPECT_TRUE(
      IsZeros(static_cast<const uint8_t*>(reserved), BytesIn(from.count)));
  ::munmap(reserved, length);
}

// Its message comes when nobody reads any more.
TEST_P(MemoryKindsTest, TheEndLeavesNoBalloonAsleep) {
  for (int round = 0; round < 20; ++round) {
    end_ = std::promise<absl::Status>();
    vm_.reset();
    Begin({GetParam()}, 4, kEvents, /*serve=*/false);
    if (vm_ == nullptr) return;
    const ReceivedRun zeros{{PageIndex(0), guest_->layout().pages()}, {}};
    EXPECT_TRUE(vm_->OnBulkPages({zeros}).ok());
    std::atomic<bool> begun{false};
    std::thread balloon([&] {
      for (int i = 0; i < 200; ++i) {
        guest_->GiveUp(Unit(i % 4));
        begun.store(true);
      }
    });
    while (!begun.load()) std::this_thread::yield();
    EXPECT_TRUE(vm_->Finish().ok());
    balloon.join();
  }
}

// Threads read and give up pages of their own while the rest is fetched: what a
// thread has given up is zeros to it from then on, whoever installs what.
TEST_P(MemoryKindsTest, NothingGivenUpComesBack) {
  constexpr uint64_t kThreads = 4;
  const bool huge = IsHuge(GetParam());
  const uint64_t units = huge ? 16 : 2048;
  Begin({GetParam()}, units, kEvents);
  if (vm_ == nullptr) return;
  std::vector<PageRun> all;
  for (uint64_t i = 0; i < units; ++i) {
    all.push_back(all.empty() ? vm_->ram().UnitOf(PageIndex(0))
                              : vm_->ram().UnitOf(all.back().end()));
  }
  ASSERT_TRUE(vm_->StartBackground().ok());
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937_64 random(thread);
      std::set<uint64_t> gone;
      for (uint64_t step = 0; step < 2 * units; ++step) {
        const uint64_t mine = random() % (units / kThreads) * kThreads + thread;
        const PageRun unit = all[mine];
        if (random() % 3 == 0) {
          guest_->GiveUp(unit);
          gone.insert(mine);
        }
        const bool right = gone.contains(mine)
                               ? IsZero(unit)
                               : HasPattern(guest_->at(unit.first), unit.first);
        EXPECT_TRUE(right) << "page " << mine << " step " << step;
        if (!right) return;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  AwaitEnd();
  EXPECT_TRUE(vm_->Finish().ok());
}

// Both lanes bring every page while threads read it, write to it, and look
// whether anybody has put the old bytes back.
TEST_P(MemoryKindsTest, NoAnswerOverwritesWhatTheGuestWrote) {
  constexpr uint64_t kThreads = 2;
  const uint64_t units = IsHuge(GetParam()) ? 8 : 4096;
  Begin({GetParam()}, units, 0, /*serve=*/false);
  if (vm_ == nullptr) return;
  std::vector<PageRun> all = {vm_->ram().UnitOf(PageIndex(0))};
  while (all.size() < units) all.push_back(vm_->ram().UnitOf(all.back().end()));
  std::atomic<bool> brought{false};
  const auto first_word = [this](const PageRun& unit) {
    return reinterpret_cast<volatile uint64_t*>(guest_->at(unit.first));
  };
  std::vector<std::thread> guests;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    guests.emplace_back([&, thread] {
      for (uint64_t i = thread; i < units; i += kThreads) {
        EXPECT_TRUE(HasPattern(guest_->at(all[i].first), all[i].first)) << i;
        *first_word(all[i]) = i;
      }
      while (!brought.load()) std::this_thread::yield();
      for (uint64_t i = thread; i < units; i += kThreads) {
        EXPECT_EQ(*first_word(all[i]), i);
      }
    });
  }
  std::thread urgent([&] {
    for (const PageRun unit : all) {
      const std::vector<uint8_t> bytes = PatternOf(unit);
      EXPECT_TRUE(vm_->OnUrgentPages({ReceivedRun{unit, bytes}}).ok());
    }
  });
  for (const PageRun unit : all) {
    const std::vector<uint8_t> bytes = PatternOf(unit);
    EXPECT_TRUE(vm_->OnBulkPages({ReceivedRun{unit, bytes}}).ok());
  }
  urgent.join();
  brought.store(true);
  for (std::thread& guest : guests) guest.join();
  EXPECT_TRUE(vm_->Finish().ok());
}

INSTANTIATE_TEST_SUITE_P(Kinds, MemoryKindsTest,
                         testing::Values(MemoryKind::kMemfd, MemoryKind::kMinor,
                                         MemoryKind::kAnonymous,
                                         MemoryKind::kHugetlb,
                                         MemoryKind::kStaged,
                                         MemoryKind::kHugetlbStaged,
                                         MemoryKind::kHugetlbFile),
                         [](const auto& kind) { return NameOf(kind.param); });

// Memory whose precopied pages are shown to the guest when it comes.
class MinorMemoryTest : public MemoryKindsTest {
 protected:
  // Pages [0, stored) come before the guest, and of these `stale` once more.
  void Precopy(uint64_t pages, uint64_t stored, PageRun stale,
               PageSource* source, uint64_t features = 0) {
    std::string reason;
    guest_ = KernelGuest::Create(
        {GuestRegion{MemoryKind::kMinor, PageCount(pages)}}, features, &reason);
    if (guest_ == nullptr) GTEST_SKIP() << reason;
    // A VMM that has touched pages before it attached: one that comes, one that
    // is stale and one that does not come.
    for (const PageIndex page :
         {PageIndex(0), stale.first, PageIndex(pages - 1)}) {
      *guest_->at(page) = 1;
    }
    vm_ = *DestinationVm::Create(guest_->layout(), guest_->regions(),
                                 guest_->TakeOps(), Clock::Monotonic());
    if (source == &source_) source_.Serve(vm_.get());
    const PageRun run{PageIndex(0), PageCount(stored)};
    std::vector<uint8_t> bytes = PatternOf(run);
    std::fill_n(
        bytes.begin() + static_cast<ptrdiff_t>(OffsetOf(stale.first).value()),
        BytesIn(stale.count).value(), uint8_t{0xee});
    ASSERT_TRUE(vm_->StorePrecopied({ReceivedRun{run, bytes}}).ok());
    const PageBitmap set = *PageBitmap::Create(guest_->layout().pages());
    set.view().SetRun(stale);
    EXPECT_EQ(*vm_->DiscardStale(set.view()), stale.count);
    EXPECT_TRUE(guest_->HasData(stale.first));
    ASSERT_TRUE(vm_->StartServing(source, 0,
                                  [this](absl::Status status) {
                                    end_.set_value(std::move(status));
                                  })
                    .ok());
  }
};

TEST_F(MinorMemoryTest, StalePagesAreFetchedAndNothingIsPunched) {
  const PageRun stale{PageIndex(10), PageCount(5)};
  Precopy(64, 40, stale, &idle_);
  if (vm_ == nullptr) return;
  for (uint64_t i = 0; i < 40; ++i) {
    if (stale.Contains(PageIndex(i))) continue;
    EXPECT_TRUE(HasContent({PageIndex(i), PageCount(1)})) << i;
  }
  std::thread guest([&] { EXPECT_TRUE(HasContent(stale)); });
  for (uint64_t i = 0; i < 5; ++i) {
    idle_.AwaitUrgent(i + 1);
    const PageRun page{stale.first + PageCount(i), PageCount(1)};
    const std::vector<uint8_t> bytes = PatternOf(page);
    EXPECT_TRUE(vm_->OnUrgentPages({ReceivedRun{page, bytes}}).ok());
  }
  guest.join();
  // What is stale becomes zeros as well.
  const ReceivedRun zeros{{PageIndex(40), PageCount(24)}, {}};
  EXPECT_TRUE(vm_->OnBulkPages({zeros}).ok());
  EXPECT_TRUE(IsZero({PageIndex(40), PageCount(24)}));
  EXPECT_TRUE(vm_->Finish().ok());
}

TEST_F(MinorMemoryTest, StalePagesMayTurnOutToBeZeros) {
  const PageRun stale{PageIndex(10), PageCount(20)};
  Precopy(40, 40, stale, &idle_);
  if (vm_ == nullptr) return;
  EXPECT_TRUE(vm_->OnBulkPages({ReceivedRun{stale, {}}}).ok());
  EXPECT_TRUE(IsZero(stale));
  EXPECT_TRUE(HasContent({PageIndex(30), PageCount(10)}));
  EXPECT_TRUE(vm_->Finish().ok());
}

// MADV_DONTNEED leaves the file as it is, with the stale bytes in it.
TEST_F(MinorMemoryTest, AStalePageThatIsGivenUpIsZeros) {
  const PageRun stale{PageIndex(10), PageCount(2)};
  Precopy(40, 40, stale, &idle_, UFFD_FEATURE_EVENT_REMOVE);
  if (vm_ == nullptr) return;
  ASSERT_EQ(::madvise(guest_->at(stale.first), BytesIn(stale.count).value(),
                      MADV_DONTNEED),
            0);
  EXPECT_TRUE(IsZero(stale));
  EXPECT_TRUE(HasContent({PageIndex(12), PageCount(1)}));
  EXPECT_TRUE(idle_.urgent().empty());
  EXPECT_TRUE(vm_->Finish().ok());
}

// Fetched or not, a touch finds the fresh bytes, from many threads at once.
TEST_F(MinorMemoryTest, TheGuestSeesNoStaleByte) {
  constexpr uint64_t kPages = 2048;
  const PageRun stale{PageIndex(100), PageCount(1000)};
  Precopy(kPages, kPages, stale, &source_);
  if (vm_ == nullptr) return;
  std::vector<std::thread> guests;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    guests.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      for (int i = 0; i < 3000; ++i) {
        const PageIndex page(random() % kPages);
        EXPECT_TRUE(HasPattern(guest_->at(page), page)) << page;
      }
    });
  }
  EXPECT_TRUE(vm_->StartBackground().ok());
  for (std::thread& guest : guests) guest.join();
  AwaitEnd();
  EXPECT_TRUE(vm_->Finish().ok());
}

TEST_F(MinorMemoryTest, ALostPageIsPoisonedAndNeverZero) {
  Precopy(40, 40, {PageIndex(39), PageCount(1)}, &idle_);
  if (vm_ == nullptr) return;
  EXPECT_TRUE(HasContent({PageIndex(7), PageCount(1)}));
  guest_->Punch(PageIndex(7));
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(7))));
  // Counted behind the ioctl that lets this thread go on.
  while (vm_->counters().lost_pages == 0) std::this_thread::yield();
}

class ProtectedMemoryTest : public MemoryKindsTest {};

// A VMM that has its guest's writes told by the same userfaultfd.
TEST_P(ProtectedMemoryTest, WhatIsWriteProtectedCanBeWritten) {
  std::string reason;
  guest_ = KernelGuest::Create(
      {GuestRegion{GetParam(), PageCount(4)}},
      UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
      &reason);
  if (guest_ == nullptr) GTEST_SKIP() << reason;
  auto ops = guest_->TakeOps();
  const UniqueFd vmm(::fcntl(ops->poll_fd(), F_DUPFD_CLOEXEC, 0));
  vm_ = *DestinationVm::Create(guest_->layout(), guest_->regions(),
                               std::move(ops), Clock::Monotonic());
  source_.Serve(vm_.get());
  const PageBitmap stale = *PageBitmap::Create(guest_->layout().pages());
  ASSERT_TRUE(vm_->DiscardStale(stale.view()).ok());
  ASSERT_TRUE(vm_->StartServing(&source_, 0, [](const absl::Status&) {}).ok());
  EXPECT_TRUE(HasContent({PageIndex(1), PageCount(1)}));
  uffdio_writeprotect protect = {
      .range = {.start = guest_->address(PageIndex(1)).value(),
                .len = kPageSize},
      .mode = UFFDIO_WRITEPROTECT_MODE_WP};
  ASSERT_EQ(::ioctl(vmm.get(), UFFDIO_WRITEPROTECT, &protect), 0);
  *guest_->at(PageIndex(1)) = 7;  // waits
  EXPECT_EQ(*guest_->at(PageIndex(1)), 7);
  source_.Stop();
  vm_->Abort();
  EXPECT_EQ(vm_->counters().write_protect_faults, 1u);
}

INSTANTIATE_TEST_SUITE_P(Kinds, ProtectedMemoryTest,
                         testing::Values(MemoryKind::kMemfd, MemoryKind::kMinor,
                                         MemoryKind::kAnonymous),
                         [](const auto& kind) { return NameOf(kind.param); });

class MixedMemoryTest : public MemoryKindsTest {};

TEST_P(MixedMemoryTest, OneVmMayHaveAll) {
  Begin({MemoryKind::kAnonymous, GetParam(), MemoryKind::kMemfd}, 5, kEvents);
  if (vm_ == nullptr) return;
  for (const uint64_t i : {0, 5, 10, 14}) {
    EXPECT_TRUE(HasContent(Unit(i))) << i;
  }
  EXPECT_TRUE(vm_->StartBackground().ok());
  AwaitEnd();
  for (uint64_t i = 0; i < 15; ++i) EXPECT_TRUE(HasContent(Unit(i))) << i;
  EXPECT_TRUE(vm_->Finish().ok());
}

TEST_P(MixedMemoryTest, PrivateMemoryTakesNoPrecopy) {
  std::string reason;
  const bool huge = GetParam() == MemoryKind::kHugetlb;
  guest_ = KernelGuest::Create(
      {GuestRegion{GetParam(), PageCount(huge ? 512 : 1)}}, 0, &reason);
  if (guest_ == nullptr) GTEST_SKIP() << reason;
  auto vm = *DestinationVm::Create(guest_->layout(), guest_->regions(),
                                   guest_->TakeOps(), Clock::Monotonic());
  const ReceivedRun run{{PageIndex(0), guest_->layout().pages()}, {}};
  const absl::Status stored = vm->StorePrecopied({run});
  EXPECT_TRUE(absl::IsFailedPrecondition(stored)) << stored;
}

TEST_P(MixedMemoryTest, PartsOfHugePagesAreRefused) {
  if (GetParam() != MemoryKind::kHugetlb) GTEST_SKIP() << "no huge pages";
  Begin({GetParam()}, 2, 0, /*serve=*/false);
  if (vm_ == nullptr) return;
  for (const PageRun run : {PageRun{PageIndex(0), PageCount(511)},
                            PageRun{PageIndex(1), PageCount(512)},
                            PageRun{PageIndex(0), PageCount(513)}}) {
    const absl::Status taken = vm_->OnBulkPages({ReceivedRun{run, {}}});
    EXPECT_TRUE(absl::IsInvalidArgument(taken)) << taken;
  }
  EXPECT_EQ(vm_->counters().missing, PageCount(1024));
}

TEST_P(MixedMemoryTest, HugePagesMustBeCalledSo) {
  if (GetParam() != MemoryKind::kHugetlb) GTEST_SKIP() << "no huge pages";
  std::string reason;
  guest_ = KernelGuest::Create({GuestRegion{GetParam(), PageCount(512)}}, 0,
                               &reason);
  if (guest_ == nullptr) GTEST_SKIP() << reason;
  const auto vm =
      DestinationVm::Create(LayoutOf({PageCount(512)}), guest_->regions(),
                            guest_->TakeOps(), Clock::Monotonic());
  EXPECT_TRUE(absl::IsInvalidArgument(vm.status())) << vm.status();
}

TEST_P(MixedMemoryTest, SmallPagesMustNotBeCalledHuge) {
  if (GetParam() == MemoryKind::kHugetlb) GTEST_SKIP() << "they are huge";
  std::string reason;
  guest_ = KernelGuest::Create({GuestRegion{GetParam(), PageCount(1024)}}, 0,
                               &reason);
  if (guest_ == nullptr) GTEST_SKIP() << reason;
  // Some 2 MiB in it that are aligned.
  const uint64_t huge = kHugePageSize.value();
  const uint64_t address = guest_->address(PageIndex(0)).value();
  const auto vm = DestinationVm::Create(
      LayoutOf({GuestRegion{MemoryKind::kHugetlb, PageCount(512)}}),
      {{.host_address = HostAddress((address + huge - 1) / huge * huge)}},
      guest_->TakeOps(), Clock::Monotonic());
  EXPECT_TRUE(absl::IsInvalidArgument(vm.status())) << vm.status();
}

INSTANTIATE_TEST_SUITE_P(Kinds, MixedMemoryTest,
                         testing::Values(MemoryKind::kAnonymous,
                                         MemoryKind::kHugetlb),
                         [](const auto& kind) { return NameOf(kind.param); });

}  // namespace
}  // namespace postcopy
