// Precopy into every kind of memory that takes it, on the kernel's userfaultfd:
// what was stored, stored again, or became stale, is what the guest finds.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "dirtytrack/page_bitmap.h"
#include "gtest/gtest.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

constexpr uint64_t kEvents = UFFD_FEATURE_EVENT_REMOVE |
                             UFFD_FEATURE_EVENT_UNMAP |
                             UFFD_FEATURE_EVENT_REMAP;

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

class PrecopiedMemoryTest : public testing::TestWithParam<MemoryKind> {
 protected:
  ~PrecopiedMemoryTest() override {
    source_.Stop();
    vm_.reset();
  }

  uint64_t UnitPages() const { return IsHuge(GetParam()) ? 512 : 1; }
  // Enough to be interesting, and few huge pages.
  uint64_t AllPages() const { return IsHuge(GetParam()) ? 6 * 512 : 2048; }

  void Begin(uint64_t features = 0) {
    std::string reason;
    guest_ = KernelGuest::Create(
        {GuestRegion{GetParam(), PageCount(AllPages())}}, features, &reason);
    if (guest_ == nullptr) GTEST_SKIP() << reason;
    // What the VMM has touched before it attached goes; of private memory it
    // must see to that itself.
    if (HasFile(GetParam())) *guest_->at(PageIndex(3)) = 77;
    auto vm = DestinationVm::Create(guest_->layout(), guest_->regions(),
                                    guest_->TakeOps(), Clock::Monotonic());
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    stale_ = *PageBitmap::Create(PageCount(AllPages()));
  }
  void Store(PageRun run) {
    const std::vector<uint8_t> bytes = PatternOf(run);
    const absl::Status status = vm_->StorePrecopied({ReceivedRun{run, bytes}});
    ASSERT_TRUE(status.ok()) << status;
  }
  // As the page had been earlier.
  void StoreOld(PageRun run) {
    const std::vector<uint8_t> bytes(BytesIn(run.count).value(), 0xa5);
    const absl::Status status = vm_->StorePrecopied({ReceivedRun{run, bytes}});
    ASSERT_TRUE(status.ok()) << status;
  }
  void StoreZeros(PageRun run) {
    const absl::Status status = vm_->StorePrecopied({ReceivedRun{run, {}}});
    ASSERT_TRUE(status.ok()) << status;
  }
  void Discard(PageRun run) {
    stale_.view().SetRun(run);
    ASSERT_TRUE(vm_->DiscardStale(stale_.view()).ok());
  }
  void Serve(PageSource* source) {
    if (source == &source_) source_.Serve(vm_.get());
    const absl::Status started = vm_->StartServing(
        source, 0,
        [this](absl::Status status) { end_.set_value(std::move(status)); });
    ASSERT_TRUE(started.ok()) << started;
  }
  void ServeDiscarded(PageSource* source) {
    ASSERT_TRUE(vm_->DiscardStale(stale_.view()).ok());
    Serve(source);
  }
  void ExpectEnd() {
    EXPECT_TRUE(vm_->StartBackground().ok());
    const absl::Status end = end_.get_future().get();
    EXPECT_TRUE(end.ok()) << end;
    const absl::Status finished = vm_->Finish();
    EXPECT_TRUE(finished.ok()) << finished;
  }
  bool HasContent(uint64_t page) const {
    return HasPattern(guest_->at(PageIndex(page)), PageIndex(page));
  }
  bool IsZero(uint64_t page) const {
    const uint8_t* const bytes = guest_->at(PageIndex(page));
    return std::all_of(bytes, bytes + kPageSize,
                       [](uint8_t byte) { return byte == 0; });
  }
  PageRun UnitOf(uint64_t page) const {
    return vm_->ram().UnitOf(PageIndex(page));
  }

  std::unique_ptr<KernelGuest> guest_;
  std::unique_ptr<DestinationVm> vm_;
  PageBitmap stale_;
  FakePageSource idle_;
  ServingPageSource source_{1, {}};
  std::promise<absl::Status> end_;
};

TEST_P(PrecopiedMemoryTest, WhatWasStoredIsThere) {
  Begin();
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages()));
  ServeDiscarded(&idle_);
  for (uint64_t page = 0; page < AllPages(); ++page) {
    ASSERT_TRUE(HasContent(page)) << page;
  }
  ExpectEnd();
  for (uint64_t page = 0; page < AllPages(); ++page) {
    ASSERT_TRUE(HasContent(page)) << page;
  }
  EXPECT_TRUE(idle_.urgent().empty());
}

// Nobody touches anything before all of it is let go.
TEST_P(PrecopiedMemoryTest, WhatWasStoredIsThereBehindTheEnd) {
  Begin();
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages()));
  ServeDiscarded(&idle_);
  ExpectEnd();
  for (uint64_t page = 0; page < AllPages(); ++page) {
    ASSERT_TRUE(HasContent(page)) << page;
  }
  EXPECT_EQ(vm_->counters().faults, 0u);
}

TEST_P(PrecopiedMemoryTest, TheLastContentCounts) {
  Begin();
  if (vm_ == nullptr) return;
  const uint64_t all = AllPages();
  StoreOld(Pages(0, all));
  StoreZeros(Pages(0, 10));
  Store(Pages(5, all - 5));
  StoreZeros(Pages(20, 3));
  StoreZeros(Pages(100, 50));
  Store(Pages(101, 1));
  ServeDiscarded(&idle_);
  for (uint64_t page = 0; page < all; ++page) {
    const bool zero = page < 5 || (page >= 20 && page < 23) ||
                      (page >= 100 && page < 150 && page != 101);
    ASSERT_TRUE(zero ? IsZero(page) : HasContent(page)) << page;
  }
  ExpectEnd();
}

// Zeros first, then content, then zeros: parts of a huge page.
TEST_P(PrecopiedMemoryTest, ZerosBesideContentStayZeros) {
  Begin();
  if (vm_ == nullptr) return;
  StoreZeros(Pages(0, AllPages()));
  Store(Pages(7, 1));
  StoreZeros(Pages(9, 1));
  ServeDiscarded(&idle_);
  for (const uint64_t page : {0, 6, 8, 9, 511, 512, 1024}) {
    EXPECT_TRUE(IsZero(page)) << page;
  }
  EXPECT_TRUE(HasContent(7));
  ExpectEnd();
  EXPECT_TRUE(IsZero(1500));
}

TEST_P(PrecopiedMemoryTest, StalePagesAreFetched) {
  Begin();
  if (vm_ == nullptr) return;
  StoreOld(Pages(0, AllPages()));
  Store(Pages(0, 600));
  Store(Pages(700, AllPages() - 700));
  Discard(Pages(600, 100));
  // Of a huge page all is missing if a part is.
  const PageRun first = UnitOf(600);
  const PageRun last = UnitOf(699);
  EXPECT_EQ(vm_->counters().missing, last.end() - first.first);
  Serve(&source_);
  for (const uint64_t page : {600, 650, 699}) {
    EXPECT_TRUE(HasContent(page)) << page;
  }
  ExpectEnd();
  for (uint64_t page = 0; page < AllPages(); ++page) {
    ASSERT_TRUE(HasContent(page)) << page;
  }
}

TEST_P(PrecopiedMemoryTest, WhatNeverCameIsFetched) {
  Begin();
  if (vm_ == nullptr) return;
  Store(Pages(10, 3));
  Store(Pages(513, 1));
  ServeDiscarded(&source_);
  EXPECT_EQ(vm_->counters().missing,
            PageCount(IsHuge(GetParam()) ? AllPages() : AllPages() - 4));
  for (const uint64_t page : {9, 11, 513, 514}) {
    EXPECT_TRUE(HasContent(page)) << page;
  }
  ExpectEnd();
}

// A switch-over that fails, and another round.
TEST_P(PrecopiedMemoryTest, WhatWasDiscardedMayComeAgain) {
  Begin();
  if (vm_ == nullptr) return;
  StoreOld(Pages(0, AllPages()));
  Discard(Pages(0, AllPages()));
  EXPECT_EQ(vm_->counters().missing, PageCount(AllPages()));
  StoreZeros(Pages(0, 512));
  Store(Pages(512, AllPages() - 512));
  stale_.Reset();
  ServeDiscarded(&idle_);
  EXPECT_TRUE(IsZero(3));
  EXPECT_TRUE(HasContent(512));
  ExpectEnd();
  EXPECT_TRUE(HasContent(AllPages() - 1));
}

TEST_P(PrecopiedMemoryTest, WhatIsGivenUpDoesNotComeBack) {
  Begin(kEvents);
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages()));
  ServeDiscarded(&idle_);
  for (const uint64_t page : {uint64_t{0}, uint64_t{1024}, AllPages() - 1}) {
    guest_->GiveUp(UnitOf(page));
    EXPECT_TRUE(IsZero(page)) << page;
  }
  ExpectEnd();
  EXPECT_TRUE(IsZero(1024));
  EXPECT_TRUE(HasContent(600));
}

TEST_P(PrecopiedMemoryTest, UnmappedPagesDoNotHoldUpTheEnd) {
  Begin(kEvents);
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages()));
  ServeDiscarded(&idle_);
  const PageRun unit = UnitOf(1024);
  guest_->Leave(unit);
  ASSERT_EQ(::munmap(guest_->at(unit.first), BytesIn(unit.count).value()), 0);
  ExpectEnd();
  EXPECT_TRUE(HasContent(0));
}

// Nor where the VMM has not asked for messages of it.
TEST_P(PrecopiedMemoryTest, PagesUnmappedWithoutAWordDoNotHoldUpTheEnd) {
  Begin();
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages()));
  ASSERT_TRUE(vm_->DiscardStale(stale_.view()).ok());
  const PageRun unit = UnitOf(1024);
  guest_->Leave(unit);
  ASSERT_EQ(::munmap(guest_->at(unit.first), BytesIn(unit.count).value()), 0);
  Serve(&idle_);
  ExpectEnd();
  EXPECT_TRUE(HasContent(0));
}

// Threads read, write and give up pages while they are put in place.
TEST_P(PrecopiedMemoryTest, NothingIsOverwrittenOrComesBack) {
  constexpr uint64_t kThreads = 4;
  Begin(kEvents);
  if (vm_ == nullptr) return;
  StoreOld(Pages(0, AllPages()));
  Store(Pages(0, AllPages()));
  Discard(Pages(AllPages() / 2, AllPages() / 4));
  Serve(&source_);
  ASSERT_TRUE(vm_->StartBackground().ok());
  const uint64_t units = AllPages() / UnitPages();
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937_64 random(thread);
      std::map<uint64_t, uint64_t> written;  // 0: given up
      for (uint64_t step = 1; step < 2 * units + 100; ++step) {
        const uint64_t mine =
            random() % (units / kThreads + 1) * kThreads + thread;
        if (mine >= units) continue;
        const uint64_t page = mine * UnitPages();
        auto* const word =
            reinterpret_cast<volatile uint64_t*>(guest_->at(PageIndex(page)));
        const auto known = written.find(mine);
        const bool right =
            known == written.end() ? HasContent(page) : *word == known->second;
        EXPECT_TRUE(right) << "page " << page << " step " << step;
        if (!right) return;
        if (random() % 3 == 0) {
          guest_->GiveUp(UnitOf(page));
          written[mine] = 0;
        } else if (random() % 2 == 0) {
          *word = step;
          written[mine] = step;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const absl::Status end = end_.get_future().get();
  EXPECT_TRUE(end.ok()) << end;
  EXPECT_TRUE(vm_->Finish().ok());
}

// Random stores and discards against a model of each page.
TEST_P(PrecopiedMemoryTest, AnySequenceLeavesWhatCameLast) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    vm_.reset();
    end_ = std::promise<absl::Status>();
    Begin();
    if (vm_ == nullptr) return;
    std::mt19937_64 random(seed);
    enum class Page { kMissing, kOld, kNew, kZero };
    std::vector<Page> model(AllPages(), Page::kMissing);
    const auto some_run = [&] {
      const uint64_t first = random() % AllPages();
      const uint64_t most = random() % 3 == 0 ? 1500 : 20;
      return Pages(first, 1 + random() % std::min(most, AllPages() - first));
    };
    const auto set = [&](PageRun run, Page to) {
      for (uint64_t i = 0; i < run.count.value(); ++i) {
        model[run.first.value() + i] = to;
      }
    };
    // Of a huge page all is missing if a part is, at every discard.
    const auto drop_parts = [&] {
      for (uint64_t first = 0; first < AllPages(); first += UnitPages()) {
        const auto begin = model.begin() + static_cast<ptrdiff_t>(first);
        const auto end = begin + static_cast<ptrdiff_t>(UnitPages());
        if (std::find(begin, end, Page::kMissing) != end) {
          std::fill(begin, end, Page::kMissing);
        }
      }
    };
    const uint64_t steps = random() % 60;
    for (uint64_t step = 0; step < steps; ++step) {
      const PageRun run = some_run();
      switch (random() % 8) {
        case 0:
        case 1:
          StoreOld(run);
          set(run, Page::kOld);
          break;
        case 2:
        case 3:
          StoreZeros(run);
          set(run, Page::kZero);
          break;
        case 4:
          stale_.Reset();
          Discard(run);
          set(run, Page::kMissing);
          drop_parts();
          break;
        default:
          Store(run);
          set(run, Page::kNew);
      }
    }
    // What is old is stale. What is zeros, and fetched as a part of a huge page
    // all the same, has the source's content.
    stale_.Reset();
    for (uint64_t page = 0; page < AllPages(); ++page) {
      if (model[page] != Page::kOld) continue;
      stale_.view().SetRun(Pages(page, 1));
      model[page] = Page::kMissing;
    }
    ASSERT_TRUE(vm_->DiscardStale(stale_.view()).ok());
    drop_parts();
    EXPECT_EQ(vm_->counters().missing.value(),
              static_cast<uint64_t>(
                  std::count(model.begin(), model.end(), Page::kMissing)));
    ServingPageSource source{seed, {}};
    source.Serve(vm_.get());
    ASSERT_TRUE(vm_->StartServing(&source, 0,
                                  [this](absl::Status status) {
                                    end_.set_value(std::move(status));
                                  })
                    .ok());
    const auto check = [&](uint64_t page) {
      const bool zero = model[page] == Page::kZero;
      ASSERT_TRUE(zero ? IsZero(page) : HasContent(page))
          << page << " " << static_cast<int>(model[page]);
    };
    for (int i = 0; i < 20; ++i) check(random() % AllPages());
    ExpectEnd();
    for (uint64_t page = 0; page < AllPages(); ++page) check(page);
    source.Stop();
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, PrecopiedMemoryTest,
                         testing::Values(MemoryKind::kMemfd, MemoryKind::kMinor,
                                         MemoryKind::kStaged,
                                         MemoryKind::kHugetlbStaged,
                                         MemoryKind::kHugetlbFile),
                         [](const auto& kind) { return NameOf(kind.param); });

// --- Pages that wait.

class StagedMemoryTest : public PrecopiedMemoryTest {};

TEST_P(StagedMemoryTest, ATouchIsAnsweredHere) {
  Begin();
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages()));
  ServeDiscarded(&idle_);
  EXPECT_TRUE(HasContent(AllPages() - 1));
  ExpectEnd();
  EXPECT_FALSE(vm_->ram().AnyStaged());
  EXPECT_EQ(vm_->counters().missing, PageCount(0));
}

// Who gives up what is not his any more.
TEST_P(StagedMemoryTest, WhatIsGivenUpUnseenIsZeros) {
  Begin();
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages()));
  ServeDiscarded(&source_);
  const PageRun unit = UnitOf(512);
  EXPECT_TRUE(HasContent(512));
  guest_->GiveUp(unit);
  EXPECT_TRUE(IsZero(512));
  ExpectEnd();
  EXPECT_TRUE(IsZero(512));
}

// Poison is for what is missing; what waits is put in place before.
TEST_P(StagedMemoryTest, WhatWaitsIsNotPoisoned) {
  Begin();
  if (vm_ == nullptr) return;
  Store(Pages(0, AllPages() - UnitPages()));
  ServeDiscarded(&idle_);
  const std::atomic<bool> go_on{false};
  const absl::Status poisoned = vm_->PoisonMissing(go_on);
  if (absl::IsUnimplemented(poisoned)) GTEST_SKIP() << poisoned;
  ASSERT_TRUE(poisoned.ok()) << poisoned;
  EXPECT_FALSE(vm_->ram().AnyStaged());
  vm_->Abort(/*release=*/true);
  EXPECT_TRUE(HasContent(0));
  EXPECT_TRUE(HasContent(AllPages() - UnitPages() - 1));
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(AllPages() - 1))));
}

INSTANTIATE_TEST_SUITE_P(Kinds, StagedMemoryTest,
                         testing::Values(MemoryKind::kStaged,
                                         MemoryKind::kHugetlbStaged),
                         [](const auto& kind) { return NameOf(kind.param); });

// --- Huge pages.

uint64_t ReservedHugePagesOfHost() {
  std::ifstream info("/proc/meminfo");
  std::string word;
  uint64_t reserved = 0;
  while (info >> word) {
    if (word == "HugePages_Rsvd:") info >> reserved;
  }
  return reserved;
}

class HugeFileTest : public PrecopiedMemoryTest {};

// A page that was punched out can be had again, though others want it.
TEST_P(HugeFileTest, DiscardedPagesStayReserved) {
  Begin();
  if (vm_ == nullptr) return;
  // Others reserve some and give them back meanwhile.
  bool seen = false;
  for (int i = 0; i < 100 && !seen; ++i) {
    StoreOld(Pages(0, AllPages()));
    const uint64_t before = ReservedHugePagesOfHost();
    Discard(Pages(0, 1024));
    seen = ReservedHugePagesOfHost() == before + 2;
  }
  EXPECT_TRUE(seen);
}

INSTANTIATE_TEST_SUITE_P(Kinds, HugeFileTest,
                         testing::Values(MemoryKind::kHugetlbFile),
                         [](const auto& kind) { return NameOf(kind.param); });

}  // namespace
}  // namespace postcopy
