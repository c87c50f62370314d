#include "dirtytrack/shared_log_source.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dirtytrack/page_set.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/slot_table.h"
#include "gtest/gtest.h"

namespace postcopy {

// Lets a test stand still inside a section.
class DirtyLogWriterPeer {
 public:
  static void Enter(DirtyLogWriter& writer) { writer.Enter(); }
  static void Leave(DirtyLogWriter& writer) { writer.Leave(); }
};

namespace {

using absl::StatusCode;
using Set = std::set<uint64_t>;

constexpr SlotId kLow{0, 0};
constexpr SlotId kHigh{0, 1};
constexpr SlotId kSmm{1, 0};
constexpr PageCount kPages{200};

RamLayout Layout() {
  return *RamLayout::Create({{"ram", RamOffset(0), BytesIn(kPages)}});
}

Slot MakeSlot(SlotId id, uint64_t first_page, uint64_t pages) {
  return {id, OffsetOf(PageIndex(first_page)).value(),
          OffsetOf(PageIndex(first_page)), BytesIn(PageCount(pages))};
}

// All RAM in two slots, and the middle of it again in a third.
std::vector<Slot> Slots() {
  return {MakeSlot(kHigh, 70, 130), MakeSlot(kLow, 0, 70),
          MakeSlot(kSmm, 50, 50)};
}

class SharedLogSourceTest : public testing::Test {
 protected:
  SharedLogSourceTest() {
    DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(Slots()), &clock_);
    vmm_ = std::make_unique<DirtyLogWriter>(*log.NewWriter());
    absl::StatusOr<std::unique_ptr<SharedLogSource>> source =
        SharedLogSource::Create(Layout(), Slots(), std::move(log), [this] {
          ++syncs_;
          return sync_result_;
        });
    EXPECT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    into_ = *PageBitmap::Create(kPages);
    EXPECT_TRUE(source_->Start().ok());
  }

  // What one Collect reports.
  Set Collected() {
    into_.Reset();
    const absl::StatusOr<PageCount> set = source_->Collect(into_.view());
    EXPECT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(*set, into_.view().Count());
    return PagesOf(into_.view());
  }

  SimulatedClock clock_;
  int syncs_ = 0;
  absl::Status sync_result_;
  std::unique_ptr<DirtyLogWriter> vmm_;
  std::unique_ptr<SharedLogSource> source_;
  PageBitmap into_;
};

TEST_F(SharedLogSourceTest, ReportsPagesOfTheVm) {
  vmm_->Mark(kLow, PageIndex(69));
  vmm_->Mark(kHigh, PageIndex(0));
  vmm_->Mark(kHigh, PageIndex(129));
  vmm_->Mark(kSmm, PageIndex(1));
  EXPECT_EQ(Collected(), (Set{51, 69, 70, 199}));
  EXPECT_EQ(syncs_, 1);
  EXPECT_EQ(Collected(), Set());
}

TEST_F(SharedLogSourceTest, CountsAPageThatTwoSlotsShowOnce) {
  vmm_->Mark(kLow, PageIndex(60));
  vmm_->Mark(kSmm, PageIndex(10));
  EXPECT_EQ(*source_->Collect(into_.view()), PageCount(1));
  vmm_->Mark(kLow, PageIndex(60));
  EXPECT_EQ(*source_->Collect(into_.view()), PageCount(0));
}

TEST_F(SharedLogSourceTest, SyncComesBeforeTheSwitch) {
  DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(Slots()));
  DirtyLogWriter harvester = *log.NewWriter();
  auto source =
      *SharedLogSource::Create(Layout(), Slots(), std::move(log), [&harvester] {
        harvester.Mark(kLow, PageIndex(5));
        return absl::OkStatus();
      });
  ASSERT_TRUE(source->Start().ok());
  EXPECT_EQ(*source->Collect(into_.view()), PageCount(1));
  EXPECT_TRUE(into_.view().Test(PageIndex(5)));
}

TEST_F(SharedLogSourceTest, FailedSyncLosesNothing) {
  vmm_->Mark(kLow, PageIndex(5));
  sync_result_ = absl::UnavailableError("the VMM is busy");
  EXPECT_EQ(source_->Collect(into_.view()).status(), sync_result_);
  EXPECT_FALSE(into_.view().Any());
  sync_result_ = absl::OkStatus();
  EXPECT_EQ(Collected(), Set{5});
}

TEST_F(SharedLogSourceTest, ACollectAfterAStuckOneReportsEverything) {
  vmm_->Mark(kLow, PageIndex(5));
  DirtyLogWriterPeer::Enter(*vmm_);
  EXPECT_EQ(source_->Collect(into_.view()).status().code(),
            StatusCode::kUnavailable);
  EXPECT_EQ(source_->Collect(into_.view()).status().code(),
            StatusCode::kUnavailable);
  DirtyLogWriterPeer::Leave(*vmm_);
  // Marked after the bitmaps were exchanged, and still not late.
  vmm_->Mark(kLow, PageIndex(6));
  EXPECT_EQ(Collected(), (Set{5, 6}));
}

TEST_F(SharedLogSourceTest, ANewReaderReportsWhatTheLastOneLeft) {
  DirtyLogSet old = *DirtyLogSet::Create(LogSlotsOf(Slots()));
  DirtyLogWriter vmm = *old.NewWriter();
  vmm.Mark(kLow, PageIndex(1));
  ASSERT_TRUE(old.SwitchAll().ok());  // and then it dies
  vmm.Mark(kLow, PageIndex(2));
  auto source = *SharedLogSource::Create(
      Layout(), Slots(),
      *DirtyLogSet::Open(UniqueFd(::dup(old.fd())), LogSlotsOf(Slots())),
      [] { return absl::OkStatus(); });
  ASSERT_TRUE(source->Start().ok());
  EXPECT_EQ(*source->Collect(into_.view()), PageCount(2));
  EXPECT_EQ(PagesOf(into_.view()), (Set{1, 2}));
}

TEST_F(SharedLogSourceTest, RestoredPagesComeAgain) {
  const Set pages = {0, 1, 49, 50, 69, 70, 71, 99, 100, 199};
  const PageBitmap unsent = *PageBitmap::Create(kPages);
  for (uint64_t page : pages) unsent.view().TestAndSet(PageIndex(page));
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  EXPECT_EQ(PagesOf(unsent.view()), pages);
  vmm_->Mark(kLow, PageIndex(3));
  Set expected = pages;
  expected.insert(3);
  EXPECT_EQ(Collected(), expected);
  EXPECT_EQ(Collected(), Set());
}

TEST_F(SharedLogSourceTest, RestoresAllOfRam) {
  const PageBitmap unsent = *PageBitmap::Create(kPages);
  unsent.view().SetRun({PageIndex(0), kPages});
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  EXPECT_EQ(Collected().size(), kPages.value());
}

TEST_F(SharedLogSourceTest, NeedsStart) {
  EXPECT_EQ(source_->Start().message(), "dirty tracking is already started");
  ASSERT_TRUE(source_->Stop().ok());
  ASSERT_TRUE(source_->Stop().ok());
  vmm_->Mark(kLow, PageIndex(5));
  for (const absl::Status& status : {source_->Collect(into_.view()).status(),
                                     source_->Restore(into_.view())}) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(status.message(), "dirty tracking is not started");
  }
  ASSERT_TRUE(source_->Start().ok());
  EXPECT_EQ(Collected(), Set{5});
}

TEST_F(SharedLogSourceTest, BitmapsCoverAllOfRam) {
  const PageBitmap small = *PageBitmap::Create(kPages - PageCount(1));
  for (const absl::Status& status : {source_->Collect(small.view()).status(),
                                     source_->Restore(small.view())}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              "a bitmap of 199 pages is too small for a VM of 200 pages");
  }
  const PageBitmap large = *PageBitmap::Create(kPages + PageCount(1));
  EXPECT_TRUE(source_->Collect(large.view()).ok());
  EXPECT_TRUE(source_->Restore(large.view()).ok());
}

// Creates a source for `slots` with a log for `log_slots`.
absl::Status Refusal(std::vector<Slot> slots,
                     const std::vector<Slot>& log_slots) {
  DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(log_slots));
  const absl::Status status =
      SharedLogSource::Create(Layout(), std::move(slots), std::move(log), [] {
        return absl::OkStatus();
      }).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  return status;
}

TEST(SharedLogSourceCreateTest, SlotsShowAllOfRam) {
  const auto message = [](const std::vector<Slot>& slots) {
    return std::string(Refusal(slots, slots).message());
  };
  EXPECT_EQ(message({MakeSlot(kLow, 1, 199)}),
            "no slot shows the page at RAM offset 0x0, so writes to it cannot "
            "be tracked; describe the slots of all of the VM's RAM of 800KiB");
  EXPECT_EQ(message({MakeSlot(kLow, 0, 70), MakeSlot(kHigh, 71, 129)}),
            "no slot shows the page at RAM offset 0x46000, so writes to it "
            "cannot be tracked; describe the slots of all of the VM's RAM of "
            "800KiB");
  EXPECT_EQ(message({MakeSlot(kLow, 0, 199)}),
            "no slot shows the page at RAM offset 0xc7000, so writes to it "
            "cannot be tracked; describe the slots of all of the VM's RAM of "
            "800KiB");
}

TEST(SharedLogSourceCreateTest, SlotsFitTheLayout) {
  EXPECT_EQ(Refusal({MakeSlot(kLow, 0, 201)}, Slots()).message(),
            "slot 0:0 shows 804KiB at RAM offset 0x0, more than the VM's RAM "
            "of 800KiB");
}

TEST(SharedLogSourceCreateTest, LogIsForTheseSlots) {
  EXPECT_EQ(Refusal({MakeSlot(kLow, 0, 200)}, Slots()).message(),
            "the VM has 1 slots and its dirty log 3; make the log for the "
            "VM's slots");
  EXPECT_EQ(
      Refusal({MakeSlot(kLow, 0, 200)}, {MakeSlot(kLow, 0, 199)}).message(),
      "the dirty log has slot 0:0 with 199 pages where the VM has slot 0:0 "
      "with 200 pages");
  EXPECT_EQ(
      Refusal({MakeSlot(kLow, 0, 200)}, {MakeSlot(kSmm, 0, 200)}).message(),
      "the dirty log has slot 1:0 with 200 pages where the VM has slot 0:0 "
      "with 200 pages");
}

// A reader before this one may have stopped some.
TEST(SharedLogSourceCreateTest, StartsSlotsThatAreStopped) {
  DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(Slots()));
  DirtyLogWriter writer = *log.NewWriter();
  ASSERT_TRUE(log.StopLogging(kHigh).ok());
  const auto source = *SharedLogSource::Create(
      Layout(), Slots(), std::move(log), [] { return absl::OkStatus(); });
  ASSERT_TRUE(source->Start().ok());
  writer.Mark(kHigh, PageIndex(0));
  const PageBitmap into = *PageBitmap::Create(kPages);
  EXPECT_EQ(*source->Collect(into.view()), PageCount(1));
}

// --- Slots that change.

class ReplaceTest : public SharedLogSourceTest {
 protected:
  // The VM has `slots` from here on, and a writer of their log.
  DirtyLogWriter Replace(const std::vector<Slot>& slots) {
    DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(slots), &clock_);
    DirtyLogWriter writer = *log.NewWriter();
    const absl::Status status = source_->Replace(slots, std::move(log));
    EXPECT_TRUE(status.ok()) << status;
    return writer;
  }
};

TEST_F(ReplaceTest, MarksInBothLogsCountUntilTheOldOnesWriterLeaves) {
  vmm_->Mark(kLow, PageIndex(1));
  // The high slot is elsewhere in guest-physical memory, the same RAM.
  std::vector<Slot> slots = Slots();
  slots[0].guest_physical_address += uint64_t{1} << 30;
  DirtyLogWriter now = Replace(slots);
  EXPECT_TRUE(vmm_->superseded());
  vmm_->Mark(kLow, PageIndex(2));
  now.Mark(kLow, PageIndex(3));
  const Set first = Collected();
  EXPECT_EQ(first.size(), 3u + 130u) << "all of the slot that moved, once";
  EXPECT_TRUE(first.contains(1) && first.contains(2) && first.contains(3));
  EXPECT_EQ(source_->log_count(), 2u);

  vmm_->Mark(kHigh, PageIndex(0));  // it has not noticed yet
  now.Mark(kHigh, PageIndex(1));
  EXPECT_EQ(Collected(), (Set{70, 71}));
  vmm_->Mark(kSmm, PageIndex(0));
  vmm_.reset();
  EXPECT_EQ(Collected(), Set{50});
  EXPECT_EQ(source_->log_count(), 1u);
  now.Mark(kLow, PageIndex(4));
  EXPECT_EQ(Collected(), Set{4});
}

TEST_F(ReplaceTest, SlotsThatStayAreNotReportedAgain) {
  DirtyLogWriter now = Replace(Slots());
  EXPECT_EQ(Collected(), Set());
}

TEST_F(ReplaceTest, AddedRemovedAndResizedSlotsAreReportedOnce) {
  // Without the alias; the high slot ends ten pages earlier.
  DirtyLogWriter now =
      Replace({MakeSlot(kLow, 0, 70), MakeSlot(kHigh, 70, 120)});
  Set expected;
  for (uint64_t page = 50; page < 200; ++page) expected.insert(page);
  EXPECT_EQ(Collected(), expected);
  EXPECT_EQ(Collected(), Set());
}

// What is not shown cannot be marked, and is not forgotten.
TEST_F(ReplaceTest, PagesThatNoSlotShowsCanBeRestored) {
  DirtyLogWriter now =
      Replace({MakeSlot(kLow, 10, 60), MakeSlot(kHigh, 80, 110)});
  Collected();
  const Set pages = {0, 9, 10, 69, 70, 79, 80, 189, 190, 199};
  const PageBitmap unsent = *PageBitmap::Create(kPages);
  for (uint64_t page : pages) unsent.view().TestAndSet(PageIndex(page));
  ASSERT_TRUE(source_->Restore(unsent.view()).ok());
  EXPECT_EQ(Collected(), pages);
}

TEST_F(ReplaceTest, AsManyOldLogsAsTheLimitAndNotOneMore) {
  std::vector<DirtyLogWriter> writers;
  for (size_t i = 0; i < kMaxSupersededLogs; ++i) {
    writers.push_back(Replace(Slots()));
  }
  EXPECT_EQ(source_->log_count(), kMaxSupersededLogs + 1);
  const absl::Status status = source_->Replace(
      Slots(), *DirtyLogSet::Create(LogSlotsOf(Slots()), &clock_));
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_FALSE(writers.back().superseded()) << "nothing has changed";
  vmm_.reset();
  Collected();
  writers.push_back(Replace(Slots()));
}

TEST_F(ReplaceTest, RefusesWhatDoesNotFit) {
  EXPECT_EQ(source_
                ->Replace({MakeSlot(kLow, 0, 201)},
                          *DirtyLogSet::Create({{{kLow, PageCount(201)}}}))
                .code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(source_->Replace(Slots(), *DirtyLogSet::Create({{{kLow, kPages}}}))
                .code(),
            StatusCode::kInvalidArgument);
  EXPECT_FALSE(vmm_->superseded());
}

// --- A writer that is killed.

// Runs `act` when it is first slept on: a switch waits for a writer.
class ActingClock final : public Clock {
 public:
  explicit ActingClock(std::function<void()> act) : act_(std::move(act)) {}
  int64_t NowNanos() override { return 0; }
  void SleepFor(int64_t) override {
    if (act_) std::exchange(act_, nullptr)();
  }

 private:
  std::function<void()> act_;
};

// In its section, while the last Collect of a migration waits for it: that
// Collect has to tell, there is no other.
TEST_F(SharedLogSourceTest, ADeathDuringACollectIsToldByThatCollect) {
  pid_t child = -1;
  ActingClock clock([&] {
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  });
  DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(Slots()), &clock);
  const int fd = log.fd();
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto own = DirtyLogSet::Open(UniqueFd(::dup(fd)), LogSlotsOf(Slots()));
    if (!own.ok()) ::_exit(1);
    DirtyLogWriter writer = *own->NewWriter();
    writer.Mark(kLow, PageIndex(1));
    DirtyLogWriterPeer::Enter(writer);
    if (::write(ready[1], "", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  auto source = *SharedLogSource::Create(Layout(), Slots(), std::move(log),
                                         [] { return absl::OkStatus(); });
  ASSERT_TRUE(source->Start().ok());
  EXPECT_EQ(*source->Collect(into_.view()), kPages);
}

TEST_F(SharedLogSourceTest, AfterAWritersDeathEveryPageIsReportedOnce) {
  DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(Slots()));
  const int fd = log.fd();
  auto source = *SharedLogSource::Create(Layout(), Slots(), std::move(log),
                                         [] { return absl::OkStatus(); });
  ASSERT_TRUE(source->Start().ok());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto own = DirtyLogSet::Open(UniqueFd(::dup(fd)), LogSlotsOf(Slots()));
    if (!own.ok()) ::_exit(1);
    DirtyLogWriter writer = *own->NewWriter();
    DirtyLogWriterPeer::Enter(writer);
    // It writes a page, and dies before it has marked it.
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(*source->Collect(into_.view()), kPages);
  into_.Reset();
  EXPECT_EQ(*source->Collect(into_.view()), PageCount(0));
}

}  // namespace
}  // namespace postcopy
