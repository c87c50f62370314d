#include "dirtytrack/kvm_ring_source.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dirtytrack/kvm_test_guest.h"
#include "dirtytrack/page_set.h"
#include "dirtytrack/proof_rounds.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;
using Set = std::set<uint64_t>;

const int kRounds = ProofRounds();
// 1024 entries; more than PML wants, fewer than the guest has pages.
constexpr ByteCount kRingBytes{16384};

PageRun Pages(uint64_t first, uint64_t end) {
  return {PageIndex(first), PageCount(end - first)};
}

class KvmRingSourceTest : public testing::Test {
 protected:
  void SetUp() override { MakeGuest({.ring_bytes = kRingBytes}); }

  void MakeGuest(KvmTestGuest::Options options) {
    source_.reset();
    absl::StatusOr<std::unique_ptr<KvmTestGuest>> guest =
        KvmTestGuest::Create(options);
    if (absl::IsUnimplemented(guest.status())) {
      GTEST_SKIP() << guest.status();
    }
    ASSERT_TRUE(guest.ok()) << guest.status();
    guest_ = *std::move(guest);
    ring_bytes_ = options.ring_bytes;
    auto source = KvmRingSource::Create(guest_->layout(), Options());
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    guest_->set_on_ring_full(
        [this](size_t vcpu) { return source_->OnRingFull(vcpu); });
    into_ = *PageBitmap::Create(guest_->pages());
  }

  void TearDown() override {
    // The guest's threads call the source.
    if (guest_ == nullptr) return;
    EXPECT_TRUE(guest_->Pause().ok());
  }

  KvmRingSource::Options Options() {
    return {.vm = guest_->vm(),
            .slots = guest_->slots(),
            .vcpus = guest_->vcpus(),
            .ring_bytes = ring_bytes_,
            .kick = [this] {
              if (!kick_result_.ok()) return kick_result_;
              if (++kicks_ % kick_one_in_ != 0) return absl::OkStatus();
              return guest_->Kick();
            }};
  }

  // What one Collect reports.
  Set Collected() {
    into_.Reset();
    const absl::StatusOr<PageCount> set = source_->Collect(into_.view());
    EXPECT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(*set, into_.view().Count());
    return PagesOf(into_.view());
  }

  void Write(uint64_t view, uint64_t count = 1) {
    const absl::Status s = guest_->Write(view, ++value_, count);
    EXPECT_TRUE(s.ok()) << s;
  }

  // Most kicks left out: they cost a switch of threads for each vCPU, and what
  // a vCPU has not put into its ring is told later.
  void Prove() {
    kick_one_in_ = 16;
    ASSERT_TRUE(source_->Start().ok());
    // The first round begins with rings that were full, on every machine.
    Write(0, guest_->pages().value());
    EXPECT_GT(source_->ring_fulls(), 0u);
    const absl::StatusOr<Proof> proof =
        ProveAllIsTold(*guest_, *source_, kRounds);
    ASSERT_TRUE(proof.ok()) << proof.status();
    EXPECT_EQ(kicks_, proof->collects);
    std::cout << kRounds << " rounds, " << proof->copied_pages
              << " pages copied, " << proof->writes << " writes, "
              << source_->ring_fulls() << " rings full\n";
  }

  std::unique_ptr<KvmTestGuest> guest_;
  ByteCount ring_bytes_;
  uint64_t kicks_ = 0;
  uint64_t kick_one_in_ = 1;
  absl::Status kick_result_;
  std::unique_ptr<KvmRingSource> source_;
  PageBitmap into_;
  uint64_t value_ = 0;
};

// The proof: whatever two vCPUs write meanwhile, a copy made of nothing but
// what was reported is the guest's RAM.
TEST_F(KvmRingSourceTest, TellsAllThatARunningGuestWrites) { Prove(); }

// The same with the smallest ring that there is, which is full all the time.
TEST_F(KvmRingSourceTest, TellsAllWithTheSmallestRing) {
  ByteCount bytes{kPageSize};
  // Where the processor logs pages itself, KVM wants more than a page.
  while (KvmTestGuest::Create({.ring_bytes = bytes}).status().code() ==
         StatusCode::kInvalidArgument) {
    bytes += bytes;
    ASSERT_LE(bytes, kRingBytes);
  }
  MakeGuest({.window_pages = 512, .writes_per_move = 64, .ring_bytes = bytes});
  Prove();
}

// That the proof can fail: one page of those reported is not copied.
TEST_F(KvmRingSourceTest, AShadowWithoutOneReportedPageDiffers) {
  ASSERT_TRUE(source_->Start().ok());
  ShadowRam shadow(*guest_, *source_);
  guest_->Resume();
  for (int round = 0; round < 100; ++round) {
    ASSERT_TRUE(shadow.Round(512).ok());
  }
  ASSERT_TRUE(guest_->Pause().ok());
  Write(77);
  ASSERT_TRUE(shadow.Collect().ok());
  ASSERT_TRUE(shadow.reported().TestAndClear(PageIndex(77)));
  shadow.Copy(shadow.all());
  EXPECT_EQ(shadow.Differences(), 1u);
  ASSERT_TRUE(shadow.Round(512).ok());
  EXPECT_EQ(shadow.Differences(), 1u);
}

// A write after Collect is a new entry: copied before it, the page is told
// again.
TEST_F(KvmRingSourceTest, TellsOfAPageAgainWhenItIsWrittenAgain) {
  ASSERT_TRUE(source_->Start().ok());
  for (int i = 0; i < 3; ++i) {
    Write(100);
    Write(100);
    EXPECT_EQ(Collected(), Set{100});
    // Clear takes nothing from KVM.
    ASSERT_TRUE(source_->Clear(into_.view(), Pages(0, 2048)).ok());
    EXPECT_EQ(Collected(), Set());
  }
  Write(100);
  into_.view().TestAndSet(PageIndex(100));
  ASSERT_TRUE(source_->Clear(into_.view(), Pages(0, 2048)).ok());
  EXPECT_EQ(Collected(), Set{100});
}

TEST_F(KvmRingSourceTest, ReportsTheSamePageOfTwoSlotsOnce) {
  ASSERT_TRUE(source_->Start().ok());
  Write(600);
  Write(guest_->SecondViewOf(PageIndex(600)));
  Write(guest_->SecondViewOf(PageIndex(601)));
  Write(guest_->pages().value() - 1);
  EXPECT_EQ(Collected(), (Set{600, 601, guest_->pages().value() - 1}));
  EXPECT_EQ(Collected(), Set());
}

// More pages than the ring has entries: the vCPU stops for it, and runs on.
TEST_F(KvmRingSourceTest, FullRingsAreKeptForCollect) {
  ASSERT_TRUE(source_->Start().ok());
  Write(0, guest_->pages().value());
  EXPECT_GT(source_->ring_fulls(), 0u);
  EXPECT_EQ(Collected().size(), guest_->pages().value());
  EXPECT_EQ(Collected(), Set());
}

// A page that a full ring named is protected again when it may be read: Clear
// forgets it, and a write after that is told.
TEST_F(KvmRingSourceTest, ClearForgetsWhatWasHarvested) {
  ASSERT_TRUE(source_->Start().ok());
  Write(40);
  Write(41);
  ASSERT_TRUE(source_->OnRingFull(0).ok());
  into_.view().TestAndSet(PageIndex(40));
  ASSERT_TRUE(source_->Clear(into_.view(), Pages(0, 100)).ok());
  Write(42);
  EXPECT_EQ(Collected(), (Set{41, 42}));
  Write(40);
  EXPECT_EQ(Collected(), Set{40});
}

TEST_F(KvmRingSourceTest, RestoredPagesAreReportedOnce) {
  ASSERT_TRUE(source_->Start().ok());
  PageBitmap unsent = *PageBitmap::Create(guest_->pages() + PageCount(9));
  unsent.view().SetRun(Pages(60, 70));
  unsent.view().SetRun(Pages(2048, 2057));  // no RAM
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  EXPECT_EQ(Collected().size(), 10u);
  EXPECT_EQ(Collected(), Set());
}

TEST_F(KvmRingSourceTest, StopsAndStartsAgain) {
  ASSERT_TRUE(source_->Start().ok());
  Write(1);
  ASSERT_TRUE(source_->OnRingFull(0).ok());
  Write(2);
  ASSERT_TRUE(source_->Stop().ok());
  ASSERT_TRUE(source_->Stop().ok());
  Write(0, guest_->pages().value());  // nothing is logged: no ring is full
  EXPECT_EQ(source_->ring_fulls(), 1u);
  ASSERT_TRUE(source_->OnRingFull(0).ok());
  ASSERT_TRUE(source_->Start().ok());
  Write(9);
  EXPECT_EQ(Collected(), Set{9});
}

// KVM goes on in a ring where it was, and does not say where: a source made
// later finds out, at every place of the ring.
TEST_F(KvmRingSourceTest, ReadsRingsThatWereReadBefore) {
  const uint64_t pages = guest_->pages().value();
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(source_->Start().ok());
    const uint64_t count = i % 8 == 7 ? pages : 31;
    Write(0, count);
    EXPECT_EQ(Collected().size(), count);
    Write(100);
    EXPECT_EQ(Collected(), Set{100});
    Write(200);  // left in the ring
    source_ = *KvmRingSource::Create(guest_->layout(), Options());
  }
}

// New kernels end a reset halfway when a signal comes, and forget some of the
// pages. Only the source meets signals here: so many keep a vCPU from getting
// anywhere.
TEST_F(KvmRingSourceTest, SignalsLoseNothing) {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  ASSERT_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  const auto set_signals = [](int microseconds) {
    const itimerval timer{.it_interval = {0, microseconds},
                          .it_value = {0, microseconds}};
    EXPECT_EQ(setitimer(ITIMER_REAL, &timer, nullptr), 0);
  };
  guest_->set_on_ring_full([&](size_t vcpu) {
    set_signals(200);
    absl::Status s = source_->OnRingFull(vcpu);
    set_signals(0);
    return s;
  });
  ASSERT_TRUE(source_->Start().ok());
  const uint64_t pages = guest_->pages().value();
  for (int i = 0; i < 30; ++i) {
    Write(0, pages);
    set_signals(200);
    EXPECT_EQ(Collected().size(), pages);
    EXPECT_EQ(Collected().size(), 0u);
    set_signals(0);
  }
}

// KVM does not protect pages for a ring when manual protection is on and all
// pages count as dirty: Start turns it off.
TEST_F(KvmRingSourceTest, TurnsInitiallySetOff) {
  kvm_enable_cap enable = {};
  enable.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  enable.args[0] =
      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
  if (ioctl(guest_->vm(), KVM_ENABLE_CAP, &enable) != 0) {
    GTEST_SKIP() << "no KVM_DIRTY_LOG_INITIALLY_SET";
  }
  Write(50);  // so that the page is writable already
  ASSERT_TRUE(source_->Start().ok());
  Write(50);
  EXPECT_EQ(Collected(), Set{50});
}

TEST_F(KvmRingSourceTest, AKickThatFailsLosesNothing) {
  ASSERT_TRUE(source_->Start().ok());
  Write(50);
  kick_result_ = absl::UnavailableError("a vCPU does not come");
  EXPECT_EQ(source_->Collect(into_.view()).status(), kick_result_);
  EXPECT_EQ(into_.view().Count(), PageCount(0));
  kick_result_ = absl::OkStatus();
  EXPECT_EQ(Collected(), Set{50});
}

// Whatever stands in the ring: an error, never a write beyond the bitmap, and
// an end to trust until tracking starts anew.
TEST_F(KvmRingSourceTest, BelievesNoEntryThatNamesNoPage) {
  const PageRun high = guest_->slots()[1].slot.pages();
  const struct {
    uint32_t slot;
    uint64_t page;
  } bad[] = {{1, high.count.value()},
             {1, UINT64_MAX},
             {0, uint64_t{1} << 60},
             {7, 0},
             {1 << 16, 0},
             {UINT32_MAX, 0}};
  void* memory =
      mmap(nullptr, ring_bytes_.value(), PROT_READ | PROT_WRITE, MAP_SHARED,
           guest_->vcpus()[0], KVM_DIRTY_LOG_PAGE_OFFSET * kPageSize);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const entries = static_cast<kvm_dirty_gfn*>(memory);
  for (const auto& entry : bad) {
    ASSERT_TRUE(source_->Start().ok());
    ASSERT_EQ(Collected(), Set());
    Write(10);
    Write(11);
    // The dirty one before the other that the guest has just written.
    size_t i = 0;
    while ((entries[i].flags & KVM_DIRTY_GFN_F_DIRTY) == 0) ++i;
    entries[i].slot = entry.slot;
    entries[i].offset = entry.page;
    into_.Reset();
    const absl::Status status = source_->Collect(into_.view()).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    EXPECT_EQ(into_.view().Count(), PageCount(0));
    EXPECT_EQ(source_->Collect(into_.view()).status(), status);
    EXPECT_EQ(source_->OnRingFull(0), status);
    ASSERT_TRUE(source_->Stop().ok());
  }
  ASSERT_TRUE(source_->Start().ok());
  Write(10);
  EXPECT_EQ(Collected(), Set{10});
  munmap(memory, ring_bytes_.value());
}

TEST_F(KvmRingSourceTest, NeedsToBeStartedOnce) {
  const PageBitmapView bits = into_.view();
  EXPECT_EQ(source_->Collect(bits).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(kicks_, 0);
  EXPECT_EQ(source_->Clear(bits, Pages(0, 1)).code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(source_->Restore(bits).code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(source_->Stop().ok());
  EXPECT_TRUE(source_->Start().ok());
  EXPECT_EQ(source_->Start().code(), StatusCode::kFailedPrecondition);
}

TEST_F(KvmRingSourceTest, RefusesABitmapThatIsTooSmall) {
  ASSERT_TRUE(source_->Start().ok());
  PageBitmap small = *PageBitmap::Create(guest_->pages() - PageCount(1));
  for (const absl::Status& status : {source_->Collect(small.view()).status(),
                                     source_->Clear(small.view(), Pages(0, 1)),
                                     source_->Restore(small.view())}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  }
}

TEST_F(KvmRingSourceTest, StartThatFailsCanBeTriedAgain) {
  KvmRingSource::Options options = Options();
  options.slots[2].host = options.slots[2].host + ByteCount(kPageSize);
  auto source = *KvmRingSource::Create(guest_->layout(), options);
  const absl::Status status = source->Start();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(source->Collect(into_.view()).status().code(),
            StatusCode::kFailedPrecondition);
  source.reset();
  ASSERT_TRUE(source_->Start().ok());
  Write(10);
  EXPECT_EQ(Collected(), Set{10});
}

TEST_F(KvmRingSourceTest, RefusesRingsThatAreNone) {
  const auto expect_refused = [this](KvmRingSource::Options options) {
    const absl::Status status =
        KvmRingSource::Create(guest_->layout(), std::move(options)).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  };
  for (uint64_t bytes : {uint64_t{0}, kPageSize - 1, kPageSize + 1,
                         ring_bytes_.value() / 2, ring_bytes_.value() * 2}) {
    KvmRingSource::Options options = Options();
    options.ring_bytes = ByteCount(bytes);
    expect_refused(options);
  }
  KvmRingSource::Options options = Options();
  options.vcpus.clear();
  expect_refused(options);
  options = Options();
  options.vcpus[1] = guest_->vm();
  expect_refused(options);
  options = Options();
  options.slots.clear();
  expect_refused(options);
  // A guest without rings.
  auto plain = KvmTestGuest::Create({});
  ASSERT_TRUE(plain.ok()) << plain.status();
  options = Options();
  options.vcpus = (*plain)->vcpus();
  expect_refused(options);
}

TEST_F(KvmRingSourceTest, EnablesRingsOnceBeforeVcpus) {
  const UniqueFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  const UniqueFd vm(ioctl(kvm.get(), KVM_CREATE_VM, 0));
  ASSERT_TRUE(vm.valid());
  for (uint64_t bytes :
       {uint64_t{0}, uint64_t{2048}, uint64_t{12288}, uint64_t{1} << 40}) {
    const absl::Status status = EnableKvmDirtyRing(vm.get(), ByteCount(bytes));
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  }
  EXPECT_TRUE(EnableKvmDirtyRing(vm.get(), kRingBytes).ok());
  EXPECT_EQ(EnableKvmDirtyRing(vm.get(), kRingBytes).code(),
            StatusCode::kInvalidArgument);
  auto plain = KvmTestGuest::Create({});
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(EnableKvmDirtyRing((*plain)->vm(), kRingBytes).code(),
            StatusCode::kInvalidArgument);
  // The descriptor of a vCPU, and none.
  EXPECT_EQ(EnableKvmDirtyRing((*plain)->vcpus()[0], kRingBytes).code(),
            StatusCode::kFailedPrecondition);
  EXPECT_FALSE(EnableKvmDirtyRing(-1, kRingBytes).ok());
}

}  // namespace
}  // namespace postcopy
