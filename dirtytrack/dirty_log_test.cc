#include "dirtytrack/dirty_log.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/page_set.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"

namespace postcopy {

// Lets a test stand still inside a section.
class DirtyLogWriterPeer {
 public:
  static void Enter(DirtyLogWriter& writer) { writer.Enter(); }
  static void Leave(DirtyLogWriter& writer) { writer.Leave(); }
  // What Mark does between the two.
  static void MarkInside(DirtyLogWriter& writer, SlotId slot, uint64_t page) {
    writer.MarkOne(*writer.Find(slot), PageIndex(page));
  }
};

namespace {

using absl::StatusCode;
using dirty_log_layout::Header;
using dirty_log_layout::kSlotsOffset;
using dirty_log_layout::kWritersOffset;
using dirty_log_layout::SlotRecord;
using dirty_log_layout::WriterRecord;
using Peer = DirtyLogWriterPeer;

constexpr SlotId kLow{0, 0};
constexpr SlotId kHigh{0, 1};
constexpr SlotId kSmm{1, 0};
constexpr SlotId kNone{2, 0};

std::vector<DirtyLogSlot> ThreeSlots() {
  return {
      {kHigh, PageCount(1000)}, {kSmm, PageCount(64)}, {kLow, PageCount(70)}};
}

DirtyLogSet MakeLog(const std::vector<DirtyLogSlot>& slots,
                    Clock* clock = Clock::Monotonic()) {
  absl::StatusOr<DirtyLogSet> log = DirtyLogSet::Create(slots, clock);
  EXPECT_TRUE(log.ok()) << log.status();
  return *std::move(log);
}

DirtyLogWriter MakeWriter(const DirtyLogSet& log) {
  absl::StatusOr<DirtyLogWriter> writer = log.NewWriter();
  EXPECT_TRUE(writer.ok()) << writer.status();
  return *std::move(writer);
}

std::set<uint64_t> Retired(const DirtyLogSet& log, SlotId slot) {
  absl::StatusOr<PageBitmapView> retired = log.Retired(slot);
  EXPECT_TRUE(retired.ok()) << retired.status();
  return retired.ok() ? PagesOf(*retired) : std::set<uint64_t>();
}

// Drains `slot` into a bitmap of its own.
std::set<uint64_t> Drained(DirtyLogSet& log, SlotId slot) {
  const PageBitmap into = *PageBitmap::Create(PageCount(1000));
  absl::StatusOr<PageCount> moved = log.Drain(slot, into.view(), PageIndex(0));
  EXPECT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(*moved, into.view().Count());
  return PagesOf(into.view());
}

#define EXPECT_SWITCH(expression, result)                  \
  do {                                                     \
    const absl::StatusOr<SwitchResult> got = (expression); \
    ASSERT_TRUE(got.ok()) << got.status();                 \
    EXPECT_EQ(*got, SwitchResult::result);                 \
  } while (false)

using Set = std::set<uint64_t>;

// ------------------------------------------------------------ one at a time

TEST(DirtyLogTest, SlotsAscendById) {
  const DirtyLogSet log = MakeLog(ThreeSlots());
  ASSERT_EQ(log.slots().size(), 3u);
  EXPECT_EQ(log.slots()[0], (DirtyLogSlot{kLow, PageCount(70)}));
  EXPECT_EQ(log.slots()[1], (DirtyLogSlot{kHigh, PageCount(1000)}));
  EXPECT_EQ(log.slots()[2], (DirtyLogSlot{kSmm, PageCount(64)}));
}

TEST(DirtyLogTest, NewLogIsClean) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  EXPECT_SWITCH(log.Switch(kLow), kClean);
  EXPECT_SWITCH(log.SwitchAll(), kClean);
  EXPECT_EQ(Retired(log, kLow), Set());
  EXPECT_EQ(Drained(log, kHigh), Set());
}

TEST(DirtyLogTest, SwitchRetiresWhatWasMarked) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  EXPECT_TRUE(writer.Mark(kLow, PageIndex(0)));
  EXPECT_TRUE(writer.Mark(kLow, PageIndex(69)));
  EXPECT_TRUE(writer.Mark(kLow, PageIndex(69)));
  EXPECT_EQ(Retired(log, kLow), Set());
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(Retired(log, kLow), (Set{0, 69}));

  // Marks from here on are not seen until the next switch.
  EXPECT_TRUE(writer.Mark(kLow, PageIndex(5)));
  EXPECT_EQ(Retired(log, kLow), (Set{0, 69}));
  EXPECT_EQ(Drained(log, kLow), (Set{0, 69}));
  EXPECT_EQ(Drained(log, kLow), Set());
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(log, kLow), Set{5});
  EXPECT_SWITCH(log.Switch(kLow), kClean);
}

TEST(DirtyLogTest, SlotsSwitchAlone) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  writer.Mark(kLow, PageIndex(1));
  writer.Mark(kSmm, PageIndex(2));
  EXPECT_SWITCH(log.Switch(kHigh), kClean);
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(Retired(log, kSmm), Set());
  EXPECT_SWITCH(log.SwitchAll(), kSwitched);
  EXPECT_EQ(Retired(log, kSmm), Set{2});
  EXPECT_EQ(Retired(log, kLow), Set{1});
}

TEST(DirtyLogTest, CleanSwitchLeavesTheRetiredBitmapReadable) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  writer.Mark(kLow, PageIndex(1));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_SWITCH(log.Switch(kLow), kClean);
  EXPECT_EQ(Retired(log, kLow), Set{1});
}

TEST(DirtyLogTest, UnreadBitsShowAgainAfterTheSwitchAfterNext) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  writer.MarkRun(kLow, {PageIndex(10), PageCount(3)});
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  // The reader takes one page by hand and then gives up.
  EXPECT_TRUE(log.Retired(kLow)->TestAndClear(PageIndex(11)));
  writer.Mark(kLow, PageIndex(20));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(log, kLow), Set{20});
  writer.Mark(kLow, PageIndex(10));
  writer.Mark(kLow, PageIndex(30));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(log, kLow), (Set{10, 12, 30}));
  EXPECT_SWITCH(log.Switch(kLow), kClean);
}

TEST(DirtyLogTest, UnreadBitsAloneMakeTheLogDirty) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  writer.Mark(kLow, PageIndex(1));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  writer.Mark(kLow, PageIndex(2));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(log, kLow), Set{2});
  // Nothing was marked since, but page 1 is in the active bitmap.
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(log, kLow), Set{1});
  EXPECT_SWITCH(log.Switch(kLow), kClean);
}

TEST(DirtyLogTest, DrainGoesToAnyOffsetAndCountsWhatIsNew) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  const PageBitmap into = *PageBitmap::Create(PageCount(170));
  into.view().TestAndSet(PageIndex(101));
  writer.MarkRun(kLow, {PageIndex(0), PageCount(70)});
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(*log.Drain(kLow, into.view(), PageIndex(100)), PageCount(69));
  EXPECT_EQ(into.view().NextSetRun(PageIndex(0)),
            (PageRun{PageIndex(100), PageCount(70)}));
}

TEST(DirtyLogTest, DrainNeedsRoom) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  const PageBitmap into = *PageBitmap::Create(PageCount(170));
  writer.Mark(kLow, PageIndex(69));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  for (uint64_t at : {uint64_t{101}, uint64_t{171}, UINT64_MAX}) {
    const absl::Status status =
        log.Drain(kLow, into.view(), PageIndex(at)).status();
    EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
    EXPECT_EQ(status.message(),
              absl::StrCat("slot 0:0 with 70 pages at page 0x", absl::Hex(at),
                           " does not fit in a bitmap of 170 pages"));
  }
  EXPECT_EQ(*log.Drain(kLow, into.view(), PageIndex(100)), PageCount(1));
}

TEST(DirtyLogTest, UnknownSlot) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  const PageBitmap into = *PageBitmap::Create(PageCount(1000));
  for (const absl::Status& status :
       {log.Switch(kNone).status(), log.Retired(kNone).status(),
        log.Drain(kNone, into.view(), PageIndex(0)).status()}) {
    EXPECT_EQ(status.code(), StatusCode::kNotFound);
    EXPECT_EQ(status.message(), "there is no dirty log for slot 2:0");
  }
}

TEST(DirtyLogTest, ResultsPrint) {
  EXPECT_EQ(testing::PrintToString(SwitchResult::kSwitched), "kSwitched");
  EXPECT_EQ(testing::PrintToString(SwitchResult::kClean), "kClean");
}

// ----------------------------------------------------------------- writers

TEST(DirtyLogWriterTest, MarksNothingOutsideTheSlots) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  EXPECT_FALSE(writer.Mark(kNone, PageIndex(0)));
  EXPECT_FALSE(writer.Mark(kLow, PageIndex(70)));
  EXPECT_FALSE(writer.Mark(kLow, PageIndex(UINT64_MAX)));
  EXPECT_FALSE(writer.MarkRun(kNone, {PageIndex(0), PageCount(1)}));
  EXPECT_FALSE(writer.MarkRun(kLow, {PageIndex(69), PageCount(2)}));
  EXPECT_FALSE(writer.MarkRun(kLow, {PageIndex(71), PageCount(0)}));
  EXPECT_FALSE(writer.MarkRun(kLow, {PageIndex(1), PageCount(UINT64_MAX)}));
  const std::vector<uint64_t> words(3, ~uint64_t{0});
  EXPECT_FALSE(writer.MergeWords(kNone, 0, words));
  EXPECT_FALSE(writer.MergeWords(kLow, 0, words));
  EXPECT_FALSE(writer.MergeWords(kLow, 3, {}));
  EXPECT_FALSE(writer.MergeWords(kLow, SIZE_MAX, words));
  EXPECT_SWITCH(log.SwitchAll(), kClean);
}

TEST(DirtyLogWriterTest, MarkingNothingDirtiesNothing) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  EXPECT_TRUE(writer.MarkRun(kLow, {PageIndex(70), PageCount(0)}));
  EXPECT_TRUE(writer.MergeWords(kLow, 2, {}));
  const std::vector<uint64_t> zeros(2, 0);
  EXPECT_TRUE(writer.MergeWords(kLow, 0, zeros));
  EXPECT_SWITCH(log.SwitchAll(), kClean);
}

TEST(DirtyLogWriterTest, RunsAndWords) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  DirtyLogWriter writer = MakeWriter(log);
  EXPECT_TRUE(writer.MarkRun(kHigh, {PageIndex(62), PageCount(4)}));
  const std::vector<uint64_t> words = {0b101, ~uint64_t{0}};
  EXPECT_TRUE(writer.MergeWords(kLow, 0, words));
  EXPECT_SWITCH(log.SwitchAll(), kSwitched);
  EXPECT_EQ(Drained(log, kHigh), (Set{62, 63, 64, 65}));
  // Bits beyond page 69 are ignored.
  EXPECT_EQ(Drained(log, kLow), (Set{0, 2, 64, 65, 66, 67, 68, 69}));
}

TEST(DirtyLogWriterTest, RunsAndWordsOfManySections) {
  constexpr uint64_t kPages = 300'000;  // five sections
  DirtyLogSet log = MakeLog({{kLow, PageCount(kPages)}});
  DirtyLogWriter writer = MakeWriter(log);
  EXPECT_TRUE(writer.MarkRun(kLow, {PageIndex(7), PageCount(kPages - 7)}));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(log.Retired(kLow)->NextSetRun(PageIndex(0)),
            (PageRun{PageIndex(7), PageCount(kPages - 7)}));
  const std::vector<uint64_t> words(kPages / 64 - 1, 1);
  EXPECT_TRUE(writer.MergeWords(kLow, 1, words));
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(log.Retired(kLow)->Count(), PageCount(words.size()));
}

TEST(DirtyLogWriterTest, AsManyAsThereAreRecords) {
  DirtyLogSet log = MakeLog(ThreeSlots());
  std::vector<DirtyLogWriter> writers;
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    writers.push_back(MakeWriter(log));
    EXPECT_TRUE(writers.back().Mark(kHigh, PageIndex(i)));
  }
  const absl::Status status = log.NewWriter().status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "all 64 writers of the dirty log are taken; let fewer threads "
            "mark pages");
  EXPECT_SWITCH(log.SwitchAll(), kSwitched);
  EXPECT_EQ(Drained(log, kHigh).size(), kMaxDirtyLogWriters);

  // A writer that ends leaves room for one; one that was moved does not.
  writers.pop_back();
  writers[0] = std::move(writers[1]);
  EXPECT_TRUE(log.NewWriter().ok());
  std::vector<DirtyLogWriter> more;
  more.push_back(MakeWriter(log));
  more.push_back(MakeWriter(log));
  EXPECT_FALSE(log.NewWriter().ok());
}

TEST(DirtyLogWriterTest, OutlivesItsSet) {
  std::unique_ptr<DirtyLogWriter> writer;
  {
    const DirtyLogSet log = MakeLog(ThreeSlots());
    writer = std::make_unique<DirtyLogWriter>(MakeWriter(log));
  }
  EXPECT_TRUE(writer->Mark(kLow, PageIndex(1)));
}

// ------------------------------------------------------------ grace periods

class PendingSwitchTest : public testing::Test {
 protected:
  PendingSwitchTest()
      : log_(MakeLog(ThreeSlots(), &clock_)),
        writer_(MakeWriter(log_)),
        stuck_(MakeWriter(log_)) {}

  void ExpectStuck(const absl::Status& status) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_EQ(
        status.message(),
        absl::StrCat("the dirty log cannot be switched: writer 1 (process ",
                     ::getpid(),
                     " by its own count) has been marking pages for more than "
                     "1000 ms without a pause; no dirty page is lost; see "
                     "whether that process is stopped, then try again"));
  }

  SimulatedClock clock_;
  DirtyLogSet log_;
  DirtyLogWriter writer_;
  DirtyLogWriter stuck_;
};

TEST_F(PendingSwitchTest, WriterThatStaysMakesTheSwitchPending) {
  writer_.Mark(kLow, PageIndex(1));
  Peer::Enter(stuck_);
  ExpectStuck(log_.Switch(kLow).status());
  EXPECT_GE(clock_.NowNanos(), kGracePeriodMaxNanos);
  EXPECT_LT(clock_.NowNanos(), kGracePeriodMaxNanos + kNanosPerMilli);

  const PageBitmap into = *PageBitmap::Create(PageCount(1000));
  for (const absl::Status& status :
       {log_.Retired(kLow).status(),
        log_.Drain(kLow, into.view(), PageIndex(0)).status()}) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(status.message(),
              "the retired dirty log of slot 0:0 may still be written to; "
              "complete the switch first");
  }
  // Other slots are not affected.
  EXPECT_EQ(Retired(log_, kHigh), Set());
  EXPECT_SWITCH(log_.Switch(kHigh), kClean);
}

TEST_F(PendingSwitchTest, NextSwitchFinishesTheWait) {
  // An exchange that happens again is invisible every second time.
  for (int stuck_switches : {1, 2, 3}) {
    writer_.Mark(kLow, PageIndex(1));
    Peer::Enter(stuck_);
    Peer::MarkInside(stuck_, kLow, 2);
    ExpectStuck(log_.Switch(kLow).status());
    // The bitmaps have been exchanged: this is for the switch after.
    writer_.Mark(kLow, PageIndex(3));
    for (int i = 1; i < stuck_switches; ++i) {
      ExpectStuck(log_.Switch(kLow).status());
    }
    Peer::Leave(stuck_);
    EXPECT_SWITCH(log_.Switch(kLow), kSwitched);
    EXPECT_EQ(Drained(log_, kLow), (Set{1, 2}));
    EXPECT_SWITCH(log_.Switch(kLow), kSwitched);
    EXPECT_EQ(Drained(log_, kLow), Set{3});
    EXPECT_SWITCH(log_.Switch(kLow), kClean);
  }
}

TEST_F(PendingSwitchTest, SwitchAllFinishesPendingSlotsAndFlipsTheOthers) {
  writer_.Mark(kLow, PageIndex(1));
  Peer::Enter(stuck_);
  ExpectStuck(log_.SwitchAll().status());
  writer_.Mark(kLow, PageIndex(2));
  writer_.Mark(kHigh, PageIndex(3));
  ExpectStuck(log_.SwitchAll().status());
  EXPECT_EQ(log_.Retired(kHigh).status().code(),
            StatusCode::kFailedPrecondition);
  Peer::Leave(stuck_);
  EXPECT_SWITCH(log_.SwitchAll(), kSwitched);
  EXPECT_EQ(Drained(log_, kLow), Set{1});
  EXPECT_EQ(Drained(log_, kHigh), Set{3});
}

TEST_F(PendingSwitchTest, SettleExchangesNothing) {
  EXPECT_TRUE(log_.Settle().ok());
  writer_.Mark(kLow, PageIndex(1));
  Peer::Enter(stuck_);
  EXPECT_TRUE(log_.Settle().ok());  // nothing is pending
  ExpectStuck(log_.Switch(kLow).status());
  writer_.Mark(kLow, PageIndex(2));
  ExpectStuck(log_.Settle());
  Peer::Leave(stuck_);
  EXPECT_TRUE(log_.Settle().ok());
  EXPECT_EQ(Drained(log_, kLow), Set{1});
  EXPECT_SWITCH(log_.Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(log_, kLow), Set{2});
}

TEST_F(PendingSwitchTest, CleanSwitchWaitsForNobody) {
  Peer::Enter(stuck_);
  EXPECT_SWITCH(log_.Switch(kLow), kClean);
  EXPECT_SWITCH(log_.SwitchAll(), kClean);
  EXPECT_EQ(clock_.NowNanos(), 0);
}

TEST_F(PendingSwitchTest, WriterThatEnteredAfterTheSwitchMarksTheOtherBitmap) {
  writer_.Mark(kLow, PageIndex(1));
  EXPECT_SWITCH(log_.Switch(kLow), kSwitched);
  Peer::Enter(stuck_);
  Peer::MarkInside(stuck_, kLow, 2);
  EXPECT_EQ(Retired(log_, kLow), Set{1});
}

// Leaves the writer's section when the switch has slept a few times.
class LeavingClock final : public Clock {
 public:
  explicit LeavingClock(std::function<void()> leave)
      : leave_(std::move(leave)) {}
  int64_t NowNanos() override { return now_nanos_; }
  void SleepFor(int64_t nanos) override {
    now_nanos_ += nanos;
    if (++sleeps_ == 5) leave_();
  }
  int sleeps() const { return sleeps_; }

 private:
  const std::function<void()> leave_;
  int64_t now_nanos_ = 0;
  int sleeps_ = 0;
};

TEST(GracePeriodTest, SwitchReturnsOnceTheWriterHasLeft) {
  std::unique_ptr<DirtyLogWriter> writer;
  LeavingClock clock([&] {
    Peer::MarkInside(*writer, kLow, 2);
    Peer::Leave(*writer);
  });
  DirtyLogSet log = MakeLog(ThreeSlots(), &clock);
  writer = std::make_unique<DirtyLogWriter>(MakeWriter(log));
  writer->Mark(kLow, PageIndex(1));
  Peer::Enter(*writer);
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  EXPECT_EQ(clock.sleeps(), 5);
  // Page 2 was marked after the exchange, by a section that began before it or
  // by its own look at `active`: it may be on either side, but is on one.
  Set pages = Drained(log, kLow);
  EXPECT_SWITCH(log.Switch(kLow), kSwitched);
  pages.merge(Drained(log, kLow));
  EXPECT_EQ(pages, (Set{1, 2}));
}

// -------------------------------------------------- the memory of a stranger

class OpenTest : public testing::Test {
 protected:
  OpenTest() : made_(MakeLog(ThreeSlots())) {
    memory_ =
        *SharedMapping::Map(made_.fd(), ByteCount(0), *FileSize(made_.fd()),
                            SharedMapping::Access::kReadWrite);
  }

  UniqueFd Fd() const {
    return UniqueFd(::fcntl(made_.fd(), F_DUPFD_CLOEXEC, 0));
  }
  absl::StatusOr<DirtyLogSet> Open(
      const std::vector<DirtyLogSlot>& expected = ThreeSlots()) {
    return DirtyLogSet::Open(Fd(), expected, &clock_);
  }
  void ExpectRefused(absl::string_view message) {
    const absl::Status status = Open().status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_TRUE(absl::StrContains(status.message(), message)) << status;
  }

  Header* header() { return reinterpret_cast<Header*>(memory_.data()); }
  WriterRecord* writer(size_t i) {
    return reinterpret_cast<WriterRecord*>(memory_.data() + kWritersOffset) + i;
  }
  SlotRecord* slot(size_t i) {
    return reinterpret_cast<SlotRecord*>(memory_.data() + kSlotsOffset) + i;
  }

  SimulatedClock clock_;
  DirtyLogSet made_;
  SharedMapping memory_;
};

TEST_F(OpenTest, SharesTheLogInAnyOrderOfSlots) {
  std::vector<DirtyLogSlot> slots = ThreeSlots();
  std::reverse(slots.begin(), slots.end());
  absl::StatusOr<DirtyLogSet> log = Open(slots);
  ASSERT_TRUE(log.ok()) << log.status();
  DirtyLogWriter writer = MakeWriter(made_);
  writer.Mark(kHigh, PageIndex(999));
  EXPECT_SWITCH(log->SwitchAll(), kSwitched);
  EXPECT_EQ(Drained(*log, kHigh), Set{999});
}

TEST_F(OpenTest, ANewReaderFirstWaitsForWritersOfTheOneBefore) {
  DirtyLogWriter writer = MakeWriter(made_);
  DirtyLogWriter stuck = MakeWriter(made_);
  writer.Mark(kLow, PageIndex(1));
  EXPECT_SWITCH(made_.Switch(kLow), kSwitched);  // then this reader dies
  Peer::Enter(stuck);

  absl::StatusOr<DirtyLogSet> log = Open();
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_EQ(log->Retired(kLow).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(log->Settle().code(), StatusCode::kUnavailable);
  EXPECT_EQ(log->Switch(kLow).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(log->SwitchAll().status().code(), StatusCode::kUnavailable);
  Peer::Leave(stuck);
  EXPECT_TRUE(log->Settle().ok());
  EXPECT_EQ(Drained(*log, kLow), Set{1});
}

TEST_F(OpenTest, FirstSwitchOfANewReaderExchanges) {
  DirtyLogWriter writer = MakeWriter(made_);
  writer.Mark(kLow, PageIndex(1));
  absl::StatusOr<DirtyLogSet> log = Open();
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_SWITCH(log->Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(*log, kLow), Set{1});
}

TEST_F(OpenTest, RefusesAWrongHeader) {
  const Header good = *header();
  const struct {
    void (*damage)(Header*);
    const char* message;
  } kCases[] = {
      {[](Header* h) { h->magic ^= 1; },
       "the memory passed as dirty log is not one: it does not begin with "
       "\"DIRTYLOG\""},
      {[](Header* h) { h->version = 1; },
       "the memory passed as dirty log has version 1, expected 2; who made it "
       "has to use the same layout and slots"},
      {[](Header* h) { h->writer_count = 65; }, "writer count 65, expected 64"},
      {[](Header* h) { h->slot_count = 4; }, "slot count 4, expected 3"},
      {[](Header* h) { h->reserved = 1; }, "reserved field 1, expected 0"},
      {[](Header* h) { h->writers_offset = 8192; },
       "writers offset 8192, expected 4096"},
      {[](Header* h) { h->slots_offset = UINT64_MAX; },
       "slots offset 18446744073709551615, expected 8192"},
      {[](Header* h) { h->total_bytes += 1; },
       "total size 36865, expected 36864"},
  };
  for (const auto& c : kCases) {
    c.damage(header());
    ExpectRefused(c.message);
    *header() = good;
  }
  EXPECT_TRUE(Open().ok());
}

TEST_F(OpenTest, RefusesAWrongSlotRecord) {
  slot(1)->slot = 7;
  ExpectRefused(
      "the memory passed as dirty log holds slot 0:7 where slot 0:1 is "
      "expected; who made it has to use the same slots");
  slot(1)->slot = 1;
  slot(2)->address_space = 3;
  ExpectRefused("holds slot 3:0 where slot 1:0 is expected");
  slot(2)->address_space = 1;
  slot(0)->pages = UINT64_MAX;
  ExpectRefused(
      "for slot 0:0 a page count of 18446744073709551615, expected 70");
  slot(0)->pages = 70;
  slot(0)->bitmap_offset[0] = 0;
  ExpectRefused("for slot 0:0 bitmap 0 at offset 0, expected 12288");
  slot(0)->bitmap_offset[0] = 12288;
  slot(0)->bitmap_offset[1] += 8;
  ExpectRefused("for slot 0:0 bitmap 1 at offset 16392, expected 16384");
}

TEST_F(OpenTest, RefusesOtherSlots) {
  // One more takes more memory.
  std::vector<DirtyLogSlot> slots = ThreeSlots();
  slots.push_back({kNone, PageCount(1)});
  EXPECT_TRUE(
      absl::StrContains(Open(slots).status().message(),
                        "has a memfd of bytes: 36864, expected 45056;"));
  slots = ThreeSlots();
  slots[0].pages = PageCount(999);
  EXPECT_TRUE(
      absl::StrContains(Open(slots).status().message(),
                        "for slot 0:1 a page count of 1000, expected 999"));
}

TEST_F(OpenTest, RefusesAMemfdThatCanShrink) {
  const UniqueFd fd = *CreateMemfd("loose", *FileSize(made_.fd()), 0);
  const absl::Status status =
      DirtyLogSet::Open(UniqueFd(::dup(fd.get())), ThreeSlots()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(
      status.message(), "the memfd of the dirty log lacks F_SEAL_SHRINK"))
      << status;
}

TEST_F(OpenTest, RefusesATruncatedMemfd) {
  const UniqueFd fd =
      *CreateMemfd("short", ByteCount(kPageSize), F_SEAL_SHRINK);
  const absl::Status status =
      DirtyLogSet::Open(UniqueFd(::dup(fd.get())), ThreeSlots()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(),
                                "has a memfd of bytes: 4096, expected 36864"))
      << status;
}

TEST_F(OpenTest, RefusesWhatIsNotAMemfd) {
  UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(DirtyLogSet::Open(std::move(fd), ThreeSlots()).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(DirtyLogSet::Open(UniqueFd(), ThreeSlots()).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(OpenTest, RefusesHugePages) {
  const int raw =
      ::memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
  if (raw < 0) GTEST_SKIP() << "no huge pages here";
  UniqueFd fd(raw);
  // Of any size: its file system is what is looked at.
  ASSERT_EQ(::fcntl(raw, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  const absl::Status status =
      DirtyLogSet::Open(std::move(fd), ThreeSlots()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "the memfd of the dirty log is in huge pages; create it without "
            "MFD_HUGETLB");
}

TEST_F(OpenTest, RefusesMemoryItMayNotWrite) {
  ASSERT_EQ(::fcntl(made_.fd(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
  EXPECT_EQ(Open().status().code(), StatusCode::kPermissionDenied);
}

TEST_F(OpenTest, WhatTheMemorySaysLaterMovesNothing) {
  absl::StatusOr<DirtyLogSet> log = Open();
  ASSERT_TRUE(log.ok()) << log.status();
  ASSERT_TRUE(log->Settle().ok());
  DirtyLogWriter honest = MakeWriter(made_);
  honest.Mark(kLow, PageIndex(1));
  const PageBitmapView before = *log->Retired(kLow);

  std::memset(memory_.data(), 0xFF, sizeof(Header));
  slot(0)->pages = UINT64_MAX;
  slot(0)->bitmap_offset[0] = UINT64_MAX;
  slot(0)->bitmap_offset[1] = UINT64_MAX;
  slot(0)->active = UINT32_MAX;
  slot(0)->dirty[1] = UINT32_MAX;
  EXPECT_EQ(log->Retired(kLow)->words(), before.words());
  EXPECT_EQ(log->Retired(kLow)->pages(), PageCount(70));
  EXPECT_SWITCH(log->Switch(kLow), kSwitched);
  EXPECT_EQ(Drained(*log, kLow), Set{1});
  EXPECT_EQ(slot(0)->active, 1u);

  // Bits beyond the slot's end are not pages.
  log->Retired(kLow)->words()[1] = ~uint64_t{0};
  slot(0)->dirty[0] = 1;
  EXPECT_EQ(Drained(*log, kLow), (Set{64, 65, 66, 67, 68, 69}));
}

TEST_F(OpenTest, AHostileWriterCanStopSwitchesAndNoMore) {
  absl::StatusOr<DirtyLogSet> log = Open();
  ASSERT_TRUE(log.ok()) << log.status();
  DirtyLogWriter honest = MakeWriter(*log);
  honest.Mark(kLow, PageIndex(1));
  writer(63)->sequence = 1;
  writer(63)->owner_pid = 4711;
  const absl::Status status = log->SwitchAll().status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(
      absl::StrContains(status.message(), "writer 63 (process 4711 by its"));
  writer(63)->sequence = UINT64_MAX - 1;
  EXPECT_SWITCH(log->SwitchAll(), kSwitched);
  EXPECT_EQ(Drained(*log, kLow), Set{1});
}

TEST_F(OpenTest, ARecordLeftOddIsUsableAgain) {
  writer(0)->sequence = 7;
  DirtyLogWriter first = MakeWriter(made_);
  EXPECT_EQ(writer(0)->sequence, 8u);
  first.Mark(kLow, PageIndex(1));
  EXPECT_EQ(writer(0)->sequence, 10u);
  EXPECT_SWITCH(made_.Switch(kLow), kSwitched);
}

// Random damage to everything but the bitmaps, before and after Open: it may
// be refused, it may be believed, nothing else.
TEST_F(OpenTest, SurvivesRandomDamage) {
  const size_t size = kSlotsOffset + 3 * sizeof(SlotRecord);
  const std::vector<uint8_t> good(memory_.data(), memory_.data() + size);
  const PageBitmap into = *PageBitmap::Create(PageCount(1000));
  std::mt19937_64 random(1);
  const auto damage = [&] {
    uint64_t at = random() % size;
    // Mostly where something is.
    if (random() % 4) {
      at = random() % 2 ? random() % 48 : size - 1 - random() % 192;
    }
    memory_.data()[at] ^= 1 << random() % 8;
  };
  int opened = 0;
  for (int i = 0; i < 3000; ++i) {
    std::memcpy(memory_.data(), good.data(), size);
    if (random() % 2) damage();
    absl::StatusOr<DirtyLogSet> log = Open();
    if (!log.ok()) {
      EXPECT_EQ(log.status().code(), StatusCode::kFailedPrecondition);
      continue;
    }
    ++opened;
    absl::StatusOr<DirtyLogWriter> writer = log->NewWriter();
    for (int step = 0; step < 5; ++step) {
      damage();
      if (writer.ok()) writer->Mark(kHigh, PageIndex(random() % 1000));
      log->SwitchAll().IgnoreError();
      log->Drain(kHigh, into.view(), PageIndex(0)).IgnoreError();
    }
  }
  EXPECT_GT(opened, 1000);
}

// ------------------------------------------------------------------- limits

TEST(DirtyLogLimitsTest, NumberOfSlots) {
  std::vector<DirtyLogSlot> slots;
  const auto refused = [&] {
    const absl::Status status = DirtyLogSet::Create(slots).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refused(), "a dirty log has 1 to 512 slots, not 0");
  for (uint16_t i = 0; i < kMaxSlots; ++i) {
    slots.push_back({{0, i}, PageCount(1)});
  }
  DirtyLogSet log = MakeLog(slots);
  DirtyLogWriter writer = MakeWriter(log);
  for (const DirtyLogSlot& slot : slots) writer.Mark(slot.id, PageIndex(0));
  EXPECT_SWITCH(log.SwitchAll(), kSwitched);
  for (const DirtyLogSlot& slot : slots) {
    EXPECT_EQ(Drained(log, slot.id), Set{0});
  }
  slots.push_back({{0, kMaxSlots}, PageCount(1)});
  EXPECT_EQ(refused(), "a dirty log has 1 to 512 slots, not 513");
}

TEST(DirtyLogLimitsTest, SizeOfASlot) {
  const PageCount max = PagesIn(kMaxRamBytes);
  EXPECT_TRUE(DirtyLogSet::Create({{{kLow, max}}}).ok());
  for (PageCount pages :
       {PageCount(0), max + PageCount(1), PageCount(UINT64_MAX)}) {
    const absl::Status status = DirtyLogSet::Create({{{kLow, pages}}}).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              absl::StrCat("slot 0:0 has ", ToString(pages),
                           "; a dirty log covers 1 to 4294967296"));
  }
}

TEST(DirtyLogLimitsTest, SlotsAreUnique) {
  const absl::Status status = DirtyLogSet::Create({{{kHigh, PageCount(1)},
                                                    {kLow, PageCount(2)},
                                                    {kHigh, PageCount(3)}}})
                                  .status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "slot 0:1 is listed twice");
}

}  // namespace
}  // namespace postcopy
