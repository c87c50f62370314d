#include "dirtytrack/kvm_log_source.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dirtytrack/dirty_source.h"
#include "dirtytrack/kvm_test_guest.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_set.h"
#include "dirtytrack/proof_rounds.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;
using Set = std::set<uint64_t>;

const int kRounds = ProofRounds();

PageRun Pages(uint64_t first, uint64_t end) {
  return {PageIndex(first), PageCount(end - first)};
}

// Another source, of which a test changes what it wants.
class ForwardingSource : public DirtySource {
 public:
  explicit ForwardingSource(DirtySource& source) : source_(source) {}
  absl::Status Start() override { return source_.Start(); }
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override {
    return source_.Collect(into);
  }
  absl::Status Clear(PageBitmapView pages, PageRun run) override {
    return source_.Clear(pages, run);
  }
  absl::Status Restore(PageBitmapView unsent) override {
    return source_.Restore(unsent);
  }
  absl::Status Stop() override { return source_.Stop(); }

 protected:
  DirtySource& source_;
};

class KvmLogSourceTest : public testing::TestWithParam<KvmLogMode> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<KvmTestGuest>> guest =
        KvmTestGuest::Create({});
    if (absl::IsUnimplemented(guest.status())) {
      GTEST_SKIP() << guest.status();
    }
    ASSERT_TRUE(guest.ok()) << guest.status();
    guest_ = *std::move(guest);
    const int manual = ioctl(guest_->vm(), KVM_CHECK_EXTENSION,
                             KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    const int wanted = GetParam() == KvmLogMode::kGetDirtyLog     ? 0
                       : GetParam() == KvmLogMode::kManualProtect ? 1
                                                                  : 3;
    if ((manual & wanted) != wanted) {
      GTEST_SKIP() << "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is " << manual;
    }
    source_ = Create();
    into_ = *PageBitmap::Create(guest_->pages());
  }

  std::unique_ptr<KvmLogSource> Create() {
    return *KvmLogSource::Create(
        guest_->layout(),
        {.vm = guest_->vm(), .slots = guest_->slots(), .mode = GetParam()});
  }

  bool manual() const { return GetParam() != KvmLogMode::kGetDirtyLog; }

  // Starts, and takes what is dirty from the beginning.
  void StartClean() {
    ASSERT_TRUE(source_->Start().ok());
    Collected();
    Clear(Pages(0, guest_->pages().value()));
  }

  // What one Collect reports.
  Set Collected() {
    into_.Reset();
    const absl::StatusOr<PageCount> set = source_->Collect(into_.view());
    EXPECT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(*set, into_.view().Count());
    return PagesOf(into_.view());
  }

  // Clears what the last Collect reported in `run`.
  void Clear(PageRun run) {
    const absl::Status s = source_->Clear(into_.view(), run);
    EXPECT_TRUE(s.ok()) << s;
  }

  void Write(uint64_t view, uint64_t count = 1) {
    const absl::Status s = guest_->Write(view, ++value_, count);
    EXPECT_TRUE(s.ok()) << s;
  }

  std::unique_ptr<KvmTestGuest> guest_;
  std::unique_ptr<KvmLogSource> source_;
  PageBitmap into_;
  uint64_t value_ = 0;
};

INSTANTIATE_TEST_SUITE_P(
    Modes, KvmLogSourceTest,
    testing::Values(KvmLogMode::kGetDirtyLog, KvmLogMode::kManualProtect,
                    KvmLogMode::kManualInitiallySet),
    [](const testing::TestParamInfo<KvmLogMode>& info) -> std::string {
      switch (info.param) {
        case KvmLogMode::kGetDirtyLog:
          return "GetDirtyLog";
        case KvmLogMode::kManualProtect:
          return "ManualProtect";
        case KvmLogMode::kManualInitiallySet:
          return "ManualInitiallySet";
      }
      return "";
    });

// The proof: whatever two vCPUs write meanwhile, a copy made of nothing but
// what was reported is the guest's RAM.
TEST_P(KvmLogSourceTest, TellsAllThatARunningGuestWrites) {
  ASSERT_TRUE(source_->Start().ok());
  const absl::StatusOr<Proof> proof =
      ProveAllIsTold(*guest_, *source_, kRounds);
  ASSERT_TRUE(proof.ok()) << proof.status();
  std::cout << kRounds << " rounds, " << proof->copied_pages
            << " pages copied, " << proof->writes << " writes\n";
}

// That the proof can fail: a source that keeps one page in a hundred to itself.
// A page that the guest soon writes again hides it, so this goes on until one
// is seen: at the next comparison, mostly.
TEST_P(KvmLogSourceTest, TheProofSeesASourceThatDropsPages) {
  class Dropping final : public ForwardingSource {
   public:
    using ForwardingSource::ForwardingSource;
    absl::StatusOr<PageCount> Collect(PageBitmapView into) override {
      const PageCount before = into.Count();
      absl::StatusOr<PageCount> set = source_.Collect(into);
      if (!set.ok()) return set;
      PageIndex at;
      while (auto run = into.NextSetRun(at, PageCount(1))) {
        at = run->end();
        if (++reported_ % 100 != 0) continue;
        into.TestAndClear(run->first);
        // Or a source that looks would tell it the next time.
        PageBitmap one = *PageBitmap::Create(into.pages());
        one.view().TestAndSet(run->first);
        if (absl::Status s = source_.Clear(one.view(), *run); !s.ok()) return s;
      }
      return into.Count() - before;
    }

   private:
    uint64_t reported_ = 0;
  };
  ASSERT_TRUE(source_->Start().ok());
  Dropping dropping(*source_);
  const absl::StatusOr<Proof> proof = ProveAllIsTold(*guest_, dropping, 10'000);
  EXPECT_EQ(proof.status().code(), StatusCode::kDataLoss) << proof.status();
}

// Nor does it believe one that simply tells all pages each time.
TEST_P(KvmLogSourceTest, TheProofSeesASourceThatTellsAllPages) {
  class TellingAll final : public ForwardingSource {
   public:
    using ForwardingSource::ForwardingSource;
    absl::StatusOr<PageCount> Collect(PageBitmapView into) override {
      const PageCount before = into.Count();
      if (absl::Status s = source_.Collect(into).status(); !s.ok()) return s;
      into.SetRun({PageIndex(0), into.pages()});
      return into.Count() - before;
    }
  };
  ASSERT_TRUE(source_->Start().ok());
  TellingAll telling(*source_);
  const absl::StatusOr<Proof> proof = ProveAllIsTold(*guest_, telling, 200);
  EXPECT_EQ(proof.status().code(), StatusCode::kFailedPrecondition)
      << proof.status();
}

// And without chance: one page of those reported is not copied.
TEST_P(KvmLogSourceTest, AShadowWithoutOneReportedPageDiffers) {
  ASSERT_TRUE(source_->Start().ok());
  ShadowRam shadow(*guest_, *source_);
  guest_->Resume();
  for (int round = 0; round < 100; ++round) {
    ASSERT_TRUE(shadow.Round(512).ok());
  }
  ASSERT_TRUE(guest_->Pause().ok());
  Write(77);
  ASSERT_TRUE(shadow.Collect().ok());
  ASSERT_TRUE(shadow.Clear(shadow.all()).ok());
  ASSERT_TRUE(shadow.reported().TestAndClear(PageIndex(77)));
  shadow.Copy(shadow.all());
  EXPECT_EQ(shadow.Differences(), 1u);
  ASSERT_TRUE(shadow.Round(512).ok());
  EXPECT_EQ(shadow.Differences(), 1u);
}

// That the order of the contract matters: a write between copying and clearing
// is lost, one between clearing and copying is not.
TEST_P(KvmLogSourceTest, WhoCopiesBeforeClearingLosesAWrite) {
  if (!manual()) GTEST_SKIP() << "Clear has nothing to do in this mode";
  for (const bool right : {true, false}) {
    StartClean();
    ShadowRam shadow(*guest_, *source_);
    Write(0, guest_->pages().value());
    ASSERT_TRUE(shadow.Round(512).ok());
    ASSERT_EQ(shadow.Differences(), 0u);
    Write(1500);
    ASSERT_TRUE(shadow.Collect().ok());
    if (right) {
      ASSERT_TRUE(shadow.Clear(shadow.all()).ok());
    }
    const PageRun part = Pages(1500, 1501);
    PageBitmap kept = *PageBitmap::Create(guest_->pages());
    kept.view().MergeFrom(shadow.reported());
    shadow.Copy(part);
    Write(1500);
    if (!right) {
      ASSERT_TRUE(source_->Clear(kept.view(), shadow.all()).ok());
    }
    ASSERT_TRUE(shadow.Round(512).ok());
    EXPECT_EQ(shadow.Differences(), right ? 0u : 1u);
    ASSERT_TRUE(source_->Stop().ok());
  }
}

// What has made naive clearing wrong: a page written after Collect is dirty in
// KVM and not in the bitmap. Ones for all of a range take it, and nobody reads
// the page.
TEST_P(KvmLogSourceTest, ClearingWhatWasNotReportedLosesAWrite) {
  if (!manual()) GTEST_SKIP() << "Clear has nothing to do in this mode";
  for (const bool naive : {true, false}) {
    StartClean();
    ShadowRam shadow(*guest_, *source_);
    Write(0, guest_->pages().value());
    ASSERT_TRUE(shadow.Round(512).ok());
    ASSERT_EQ(shadow.Differences(), 0u);

    Write(130);
    ASSERT_TRUE(shadow.Collect().ok());
    EXPECT_EQ(PagesOf(shadow.reported()), Set{130});
    Write(131);  // the same word of the bitmap
    if (naive) {
      PageBitmap ones = *PageBitmap::Create(guest_->pages());
      ones.view().SetRun(shadow.all());
      ASSERT_TRUE(source_->Clear(ones.view(), Pages(128, 192)).ok());
    } else {
      ASSERT_TRUE(shadow.Clear(Pages(128, 192)).ok());
    }
    shadow.Copy(shadow.all());
    ASSERT_TRUE(shadow.Round(512).ok());
    EXPECT_EQ(shadow.Differences(), naive ? 1u : 0u);
    ASSERT_TRUE(source_->Stop().ok());
  }
}

TEST_P(KvmLogSourceTest, ReportsTheSamePageOfTwoSlotsOnce) {
  StartClean();
  EXPECT_EQ(Collected(), Set());
  const uint64_t page = 600;
  Write(guest_->SecondViewOf(PageIndex(page)));
  EXPECT_EQ(Collected(), Set{page});
  Write(page);
  EXPECT_EQ(Collected(), Set{page});
  // Cleared in both, or the next Collect would see it in the other.
  Clear(Pages(page, page + 1));
  EXPECT_EQ(Collected(), Set());
  Write(page);
  Write(guest_->SecondViewOf(PageIndex(page + 1)));
  EXPECT_EQ(Collected(), (Set{page, page + 1}));
}

TEST_P(KvmLogSourceTest, ManualModesReportUntilCleared) {
  StartClean();
  Write(5);
  EXPECT_EQ(Collected(), Set{5});
  EXPECT_EQ(Collected(), manual() ? Set{5} : Set());
}

// Runs that begin and end anywhere, in words of RAM that several words of
// several slots show: exactly these pages are cleared.
TEST_P(KvmLogSourceTest, ClearsExactlyTheRunAcrossSlots) {
  if (!manual()) GTEST_SKIP() << "Clear has nothing to do in this mode";
  StartClean();
  const uint64_t n = guest_->pages().value();
  const uint64_t border = guest_->slots()[1].slot.pages().first.value();
  Write(0, guest_->views());  // all pages, in all slots
  Set expected;
  for (uint64_t page = 0; page < n; ++page) expected.insert(page);
  ASSERT_EQ(Collected(), expected);
  std::vector<PageRun> runs = {Pages(0, 1),
                               Pages(63, 65),
                               Pages(500, 530),
                               Pages(n - 1, n),
                               Pages(n - 70, n - 3),
                               Pages(700, 700),
                               Pages(border - 1, border + 1),
                               Pages(border - 90, border)};
  std::mt19937_64 random(2);
  for (int i = 0; i < 100; ++i) {
    const uint64_t first = random() % n;
    runs.push_back(Pages(first, std::min(n, first + random() % 40)));
  }
  for (const PageRun& run : runs) {
    Clear(run);  // with the bits of the last Collect
    for (uint64_t i = 0; i < run.count.value(); ++i) {
      expected.erase(run.first.value() + i);
    }
    ASSERT_EQ(Collected(), expected) << run;
  }
  // Of a run only pages that are set.
  into_.Reset();
  for (uint64_t page = 0; page < n; page += 3) {
    into_.view().TestAndSet(PageIndex(page));
    expected.erase(page);
  }
  Clear(Pages(0, n));
  EXPECT_EQ(Collected(), expected);
}

TEST_P(KvmLogSourceTest, RestoredPagesAreReportedOnce) {
  StartClean();
  PageBitmap unsent = *PageBitmap::Create(guest_->pages());
  unsent.view().SetRun(Pages(60, 70));
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  EXPECT_EQ(unsent.view().Count(), PageCount(10));
  EXPECT_EQ(Collected().size(), 10u);
  EXPECT_EQ(Collected(), Set());
  // Who is about to read a page need not be told of it.
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  ASSERT_TRUE(source_->Clear(unsent.view(), Pages(0, 65)).ok());
  EXPECT_EQ(Collected(), (Set{65, 66, 67, 68, 69}));
}

TEST_P(KvmLogSourceTest, TakesBitmapsLargerThanRam) {
  ASSERT_TRUE(source_->Start().ok());
  const PageCount pages = guest_->pages() + PageCount(100);
  PageBitmap large = *PageBitmap::Create(pages);
  large.view().SetRun({PageIndex(0), pages});
  ASSERT_TRUE(source_->Clear(large.view(), Pages(0, 2048)).ok());
  ASSERT_TRUE(source_->Restore(large.view()).ok());
  PageBitmap into = *PageBitmap::Create(pages);
  EXPECT_EQ(*source_->Collect(into.view()), guest_->pages());
}

TEST_P(KvmLogSourceTest, InitiallySetMeansAllPages) {
  Write(3);
  ASSERT_TRUE(source_->Start().ok());
  EXPECT_EQ(Collected().size(), GetParam() == KvmLogMode::kManualInitiallySet
                                    ? guest_->pages().value()
                                    : 0u);
}

TEST_P(KvmLogSourceTest, StopsAndStartsAgain) {
  StartClean();
  Write(1);
  PageBitmap unsent = *PageBitmap::Create(guest_->pages());
  unsent.view().TestAndSet(PageIndex(2));
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  ASSERT_TRUE(source_->Stop().ok());
  ASSERT_TRUE(source_->Stop().ok());
  Write(4);
  StartClean();
  Write(9);
  EXPECT_EQ(Collected(), Set{9});
}

TEST_P(KvmLogSourceTest, NeedsToBeStartedOnce) {
  const PageBitmapView bits = into_.view();
  EXPECT_EQ(source_->Collect(bits).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(source_->Clear(bits, Pages(0, 1)).code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(source_->Restore(bits).code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(source_->Stop().ok());
  EXPECT_TRUE(source_->Start().ok());
  EXPECT_EQ(source_->Start().code(), StatusCode::kFailedPrecondition);
}

TEST_P(KvmLogSourceTest, RefusesABitmapThatIsTooSmall) {
  ASSERT_TRUE(source_->Start().ok());
  PageBitmap small = *PageBitmap::Create(guest_->pages() - PageCount(1));
  for (const absl::Status& status : {source_->Collect(small.view()).status(),
                                     source_->Clear(small.view(), Pages(0, 1)),
                                     source_->Restore(small.view())}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  }
}

TEST_P(KvmLogSourceTest, UndoesAStartThatFailsHalfway) {
  // KVM refuses to change the third slot so.
  std::vector<KvmSlot> slots = guest_->slots();
  slots[2].host = slots[2].host + ByteCount(kPageSize);
  auto source = *KvmLogSource::Create(
      guest_->layout(),
      {.vm = guest_->vm(), .slots = slots, .mode = GetParam()});
  const absl::Status status = source->Start();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(status.message().find("slot 0:2"), absl::string_view::npos);
  EXPECT_EQ(source->Collect(into_.view()).status().code(),
            StatusCode::kFailedPrecondition);
  // The first is not logged either.
  kvm_dirty_log log = {};
  log.dirty_bitmap = into_.view().words();
  EXPECT_EQ(ioctl(guest_->vm(), KVM_GET_DIRTY_LOG, &log), -1);
  EXPECT_EQ(errno, ENOENT);
}

// Logging must not turn a slot of ROM into one of RAM; KVM does not let it.
TEST_P(KvmLogSourceTest, KeepsOtherFlagsOfSlots) {
  KvmSlot rom = guest_->slots()[0];
  rom.slot.id.slot = 9;
  rom.slot.guest_physical_address = uint64_t{40} << 30;
  rom.flags = KVM_MEM_READONLY;
  const kvm_userspace_memory_region region{
      .slot = KvmSlotNumber(rom.slot.id),
      .flags = rom.flags,
      .guest_phys_addr = rom.slot.guest_physical_address,
      .memory_size = rom.slot.length.value(),
      .userspace_addr = rom.host.value()};
  if (ioctl(guest_->vm(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    GTEST_SKIP() << "no KVM_CAP_READONLY_MEM";
  }
  for (const uint32_t flags : {0u, uint32_t{KVM_MEM_READONLY}}) {
    std::vector<KvmSlot> slots = guest_->slots();
    slots.push_back(rom);
    slots.back().flags = flags;
    auto source = *KvmLogSource::Create(
        guest_->layout(),
        {.vm = guest_->vm(), .slots = slots, .mode = GetParam()});
    EXPECT_EQ(source->Start().code(), flags == rom.flags
                                          ? StatusCode::kOk
                                          : StatusCode::kInvalidArgument);
  }
}

TEST_P(KvmLogSourceTest, SaysSoWhenTheVmHasRings) {
  absl::StatusOr<std::unique_ptr<KvmTestGuest>> guest =
      KvmTestGuest::Create({.ring_bytes = ByteCount(16384)});
  if (absl::IsUnimplemented(guest.status())) GTEST_SKIP() << guest.status();
  ASSERT_TRUE(guest.ok()) << guest.status();
  auto source = *KvmLogSource::Create(
      (*guest)->layout(),
      {.vm = (*guest)->vm(), .slots = (*guest)->slots(), .mode = GetParam()});
  ASSERT_TRUE(source->Start().ok());
  const absl::Status status = source->Collect(into_.view()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
}

TEST_P(KvmLogSourceTest, LosesNothingWhenKvmDoesNotAnswer) {
  StartClean();
  Write(3);
  Write(1500);
  // Somebody else switches the second slot's log off.
  const KvmSlot& second = guest_->slots()[1];
  kvm_userspace_memory_region region{
      .slot = KvmSlotNumber(second.slot.id),
      .flags = 0,
      .guest_phys_addr = second.slot.guest_physical_address,
      .memory_size = second.slot.length.value(),
      .userspace_addr = second.host.value()};
  ASSERT_EQ(ioctl(guest_->vm(), KVM_SET_USER_MEMORY_REGION, &region), 0);
  into_.Reset();
  const absl::Status status = source_->Collect(into_.view()).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound) << status;
  EXPECT_TRUE(into_.view().Test(PageIndex(3)));
  if (manual()) {
    into_.view().TestAndSet(PageIndex(1500));
    EXPECT_EQ(source_->Clear(into_.view(), Pages(1500, 1501)).code(),
              StatusCode::kNotFound);
  }
  region.flags = KVM_MEM_LOG_DIRTY_PAGES;
  ASSERT_EQ(ioctl(guest_->vm(), KVM_SET_USER_MEMORY_REGION, &region), 0);
  // KVM's bitmap went with its log. What one step may have taken from it is
  // reported again; what manual protect only looked at is gone for good, and
  // the error has said so; initially-set reports all of a new log.
  EXPECT_EQ(Collected().contains(1500),
            GetParam() != KvmLogMode::kManualProtect);
}

TEST_P(KvmLogSourceTest, NeedsAVm) {
  const UniqueFd memfd = *CreateMemfd("not a VM", ByteCount(kPageSize), 0);
  auto source = *KvmLogSource::Create(
      guest_->layout(),
      {.vm = memfd.get(), .slots = guest_->slots(), .mode = GetParam()});
  const absl::Status status = source->Start();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(source->Start().code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(source->Stop().ok());
}

TEST_P(KvmLogSourceTest, RefusesSlotsThatDoNotFit) {
  const std::vector<KvmSlot> good = guest_->slots();
  std::vector<std::vector<KvmSlot>> bad(6, good);
  bad[0].clear();
  bad[1].erase(bad[1].begin());  // RAM that no slot shows
  bad[2][1].slot.id = bad[2][0].slot.id;
  bad[3][0].slot.length = guest_->layout().bytes() + ByteCount(kPageSize);
  bad[4][0].host = bad[4][0].host + ByteCount(8);
  bad[5][0].flags = KVM_MEM_LOG_DIRTY_PAGES;
  for (const std::vector<KvmSlot>& slots : bad) {
    const absl::Status status =
        KvmLogSource::Create(
            guest_->layout(),
            {.vm = guest_->vm(), .slots = slots, .mode = GetParam()})
            .status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  }
  const absl::Status closed =
      KvmLogSource::Create(guest_->layout(),
                           {.vm = -1, .slots = good, .mode = GetParam()})
          .status();
  EXPECT_EQ(closed.code(), StatusCode::kInvalidArgument) << closed;
}

TEST_P(KvmLogSourceTest, TracksASecondAddressSpace) {
  const int spaces =
      ioctl(guest_->vm(), KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE);
  // No vCPU of this guest enters SMM to write there; its log is read all the
  // same, and with initially set pages has something to say.
  std::vector<KvmSlot> slots = guest_->slots();
  KvmSlot smm = slots[0];
  smm.slot.id = {1, 0};
  slots.push_back(smm);
  auto source = *KvmLogSource::Create(
      guest_->layout(),
      {.vm = guest_->vm(), .slots = slots, .mode = GetParam()});
  if (spaces < 2) {
    EXPECT_EQ(source->Start().code(), StatusCode::kInvalidArgument);
    GTEST_SKIP() << "KVM_CAP_MULTI_ADDRESS_SPACE is " << spaces
                 << "; only the refusal was tested";
  }
  ASSERT_TRUE(source->Start().ok());
  ASSERT_TRUE(source->Collect(into_.view()).ok());
  ASSERT_TRUE(source->Clear(into_.view(), Pages(0, 2048)).ok());
  into_.Reset();
  EXPECT_EQ(*source->Collect(into_.view()), PageCount(0));
  Write(40);
  EXPECT_EQ(*source->Collect(into_.view()), PageCount(1));
}

// With 1 GiB the guest's first two slots are longer than one clear takes.
TEST(KvmLogSourceLargeTest, ClearsInParts) {
  constexpr uint64_t kPages = 4 * KvmLogSource::kClearPagesMax;
  absl::StatusOr<std::unique_ptr<KvmTestGuest>> guest =
      KvmTestGuest::Create({.vcpus = 1, .pages = kPages});
  if (absl::IsUnimplemented(guest.status())) GTEST_SKIP() << guest.status();
  ASSERT_TRUE(guest.ok()) << guest.status();
  auto source = *KvmLogSource::Create(
      (*guest)->layout(), {.vm = (*guest)->vm(), .slots = (*guest)->slots()});
  if (absl::Status s = source->Start(); absl::IsFailedPrecondition(s)) {
    GTEST_SKIP() << s;
  } else {
    ASSERT_TRUE(s.ok()) << s;
  }
  PageBitmap into = *PageBitmap::Create(PageCount(kPages));
  EXPECT_EQ(*source->Collect(into.view()), PageCount(kPages));
  // At the ends of the parts, and one in each direction.
  const Set kept = {0, 65'535, 65'536, 65'537, 131'072, kPages - 1};
  for (uint64_t page : kept) into.view().TestAndClear(PageIndex(page));
  ASSERT_TRUE(source->Clear(into.view(), Pages(0, kPages)).ok());
  into.Reset();
  ASSERT_TRUE(source->Collect(into.view()).ok());
  EXPECT_EQ(PagesOf(into.view()), kept);
}

}  // namespace
}  // namespace postcopy
