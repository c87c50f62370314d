// The calls of the RFC: exported bitmaps, the copying call and its mixture with
// switches, starting and stopping, bitmaps of the caller.

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/simulated_clock.h"
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
using Peer = DirtyLogWriterPeer;
using Set = std::set<uint64_t>;

constexpr SlotId kRam{0, 0};
constexpr SlotId kSmm{1, 0};
constexpr SlotId kNone{2, 0};
constexpr uint64_t kPages = 130;
constexpr size_t kWords = 3;

Set PagesOf(absl::Span<const uint64_t> words) {
  Set pages;
  for (size_t page = 0; page < words.size() * 64; ++page) {
    if (words[page / 64] >> (page % 64) & 1) pages.insert(page);
  }
  return pages;
}

class RfcTest : public testing::Test {
 protected:
  RfcTest()
      : log_(*DirtyLogSet::Create(
            {{{kRam, PageCount(kPages)}, {kSmm, PageCount(64)}}}, &clock_)),
        writer_(*log_.NewWriter()) {}

  void Mark(std::initializer_list<uint64_t> pages) {
    for (uint64_t page : pages) {
      ASSERT_TRUE(writer_.Mark(kRam, PageIndex(page)));
    }
  }
  Set Get() {
    std::vector<uint64_t> words(kWords, 0xdead);
    const absl::Status status = log_.GetDirtyLog(kRam, absl::MakeSpan(words));
    EXPECT_TRUE(status.ok()) << status;
    return PagesOf(words);
  }
  SwitchResult Switch() { return *log_.Switch(kRam); }

  SimulatedClock clock_;
  DirtyLogSet log_;
  DirtyLogWriter writer_;
};

TEST_F(RfcTest, GenerationHasCallersBitmaps) {
  EXPECT_EQ(kDirtyLogGeneration, 2);
}

// Another process that maps the exported bitmap sees the bits, without a copy.
TEST_F(RfcTest, ExportedBitmapsAreTheOnesThatAreMarked) {
  Mark({3, 129});
  const UserDirtyLog log = *log_.GetUserDirtyLog(kRam);
  const SharedMapping mapping = *SharedMapping::Map(
      log.fd, ByteCount(log.offsets[log.active]), ByteCount(kPageSize),
      SharedMapping::Access::kReadOnly);
  const auto* words = reinterpret_cast<const uint64_t*>(mapping.data());
  EXPECT_EQ(PagesOf({words, kWords}), (Set{3, 129}));
  EXPECT_TRUE(log.bitmaps[log.active].Test(PageIndex(3)));
  EXPECT_FALSE(log.bitmaps[log.active ^ 1].Any());

  // Remembering which is active is the caller's: the same one until kSwitched.
  EXPECT_EQ(Switch(), SwitchResult::kSwitched);
  EXPECT_EQ(log_.GetUserDirtyLog(kRam)->active, log.active ^ 1);
  EXPECT_EQ(Switch(), SwitchResult::kClean);
  EXPECT_EQ(log_.GetUserDirtyLog(kRam)->active, log.active ^ 1);
}

TEST_F(RfcTest, GetCopiesAndTakes) {
  EXPECT_EQ(Get(), Set());
  Mark({0, 63, 64, 129});
  EXPECT_EQ(Get(), (Set{0, 63, 64, 129}));
  EXPECT_EQ(Get(), Set());
  EXPECT_EQ(Switch(), SwitchResult::kClean);
}

// In whatever order the two are mixed, each mark is told once.
TEST_F(RfcTest, GetTakesWhatASwitchHasLeft) {
  Mark({1});
  EXPECT_EQ(Switch(), SwitchResult::kSwitched);
  Mark({2});
  EXPECT_EQ(Get(), (Set{1, 2}));
  Mark({3});
  EXPECT_EQ(Get(), Set{3});
  EXPECT_FALSE(log_.Retired(kRam)->Any());
  Mark({4});
  EXPECT_EQ(Switch(), SwitchResult::kSwitched);
  EXPECT_TRUE(log_.Retired(kRam)->TestAndClear(PageIndex(4)));
  EXPECT_EQ(Get(), Set());
}

TEST_F(RfcTest, GetThatFailsTakesNothing) {
  DirtyLogWriter stuck = *log_.NewWriter();
  Mark({1});
  EXPECT_EQ(Switch(), SwitchResult::kSwitched);
  Mark({2});
  Peer::Enter(stuck);
  std::vector<uint64_t> words(kWords);
  EXPECT_EQ(log_.GetDirtyLog(kRam, absl::MakeSpan(words)).code(),
            StatusCode::kUnavailable);
  // And again, while the switch is pending.
  EXPECT_EQ(log_.GetDirtyLog(kRam, absl::MakeSpan(words)).code(),
            StatusCode::kUnavailable);
  Peer::Leave(stuck);
  EXPECT_EQ(Get(), (Set{1, 2}));
}

TEST_F(RfcTest, ErrorsAreThoseOfTheRfc) {
  std::vector<uint64_t> words(kWords);
  const auto get = [&](SlotId slot) {
    return log_.GetDirtyLog(slot, absl::MakeSpan(words));
  };
  EXPECT_EQ(get(kNone).code(), StatusCode::kNotFound);
  EXPECT_EQ(log_.GetUserDirtyLog(kNone).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(log_.Switch(kNone).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(log_.StartLogging(kNone).code(), StatusCode::kNotFound);
  EXPECT_EQ(log_.StopLogging(kNone).code(), StatusCode::kNotFound);
  ASSERT_TRUE(log_.StopLogging(kRam).ok());
  constexpr auto kNotLogging = StatusCode::kFailedPrecondition;
  EXPECT_EQ(get(kRam).code(), kNotLogging);
  EXPECT_EQ(log_.GetUserDirtyLog(kRam).status().code(), kNotLogging);
  EXPECT_EQ(log_.Retired(kRam).status().code(), kNotLogging);
  const absl::Status status = log_.Switch(kRam).status();
  EXPECT_EQ(status.message(),
            "writes to slot 0:0 are not being logged; start logging first");
  words.resize(kWords + 1);
  ASSERT_TRUE(log_.StartLogging(kRam).ok());
  EXPECT_EQ(get(kRam).message(),
            "a dirty log of 130 pages takes 3 words, not 4");
}

TEST_F(RfcTest, StoppedSlotsAreNotMarkedAndStartClean) {
  Mark({1});
  EXPECT_EQ(Switch(), SwitchResult::kSwitched);
  Mark({2});
  ASSERT_TRUE(log_.StopLogging(kRam).ok());
  ASSERT_TRUE(log_.StopLogging(kRam).ok());
  Mark({3});  // nothing wrong, and nothing marked
  EXPECT_EQ(*log_.SwitchAll(), SwitchResult::kClean);
  ASSERT_TRUE(log_.StartLogging(kRam).ok());
  ASSERT_TRUE(log_.StartLogging(kRam).ok());
  EXPECT_EQ(Get(), Set());
  Mark({4});
  EXPECT_EQ(Get(), Set{4});
}

TEST_F(RfcTest, OneStoppedSlotLeavesTheOthersLogging) {
  ASSERT_TRUE(log_.StopLogging(kRam).ok());
  ASSERT_TRUE(writer_.Mark(kSmm, PageIndex(5)));
  EXPECT_EQ(*log_.SwitchAll(), SwitchResult::kSwitched);
  EXPECT_TRUE(log_.Retired(kSmm)->Test(PageIndex(5)));
}

TEST_F(RfcTest, AStopThatCannotEmptyTheLogEndsAtTheNextCall) {
  DirtyLogWriter stuck = *log_.NewWriter();
  Mark({1});
  Peer::Enter(stuck);
  EXPECT_EQ(log_.StopLogging(kRam).code(), StatusCode::kUnavailable);
  Mark({2});
  EXPECT_EQ(log_.StartLogging(kRam).code(), StatusCode::kUnavailable);
  Peer::Leave(stuck);
  ASSERT_TRUE(log_.StartLogging(kRam).ok());
  EXPECT_EQ(Get(), Set());
}

// A reader that takes over finds stopped slots stopped.
TEST_F(RfcTest, TheNextReaderKnowsWhatIsLogging) {
  ASSERT_TRUE(log_.StopLogging(kRam).ok());
  DirtyLogSet next =
      *DirtyLogSet::Open(UniqueFd(::dup(log_.fd())), log_.slots(), &clock_);
  EXPECT_EQ(next.Switch(kRam).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(*next.Switch(kSmm), SwitchResult::kClean);
  ASSERT_TRUE(next.StartLogging(kRam).ok());
  Mark({7});
  EXPECT_EQ(*next.Switch(kRam), SwitchResult::kSwitched);
}

// ------------------------------------------------- bitmaps of the caller

using Bitmap = std::array<std::atomic<uint64_t>, kWords>;

TEST(CallerBitmapsTest, AreMarkedAndSwitched) {
  Bitmap bitmaps[2] = {};
  DirtyLogSet log = *DirtyLogSet::CreateOver(
      {{{kRam, PageCount(kPages)}, {kSmm, PageCount(64)}}},
      {{{kRam, {bitmaps[0].data(), bitmaps[1].data()}}}});
  DirtyLogWriter writer = *log.NewWriter();
  ASSERT_TRUE(writer.Mark(kRam, PageIndex(65)));
  ASSERT_TRUE(writer.Mark(kSmm, PageIndex(1)));
  EXPECT_EQ(bitmaps[0][1].load(), 2u);
  EXPECT_EQ(*log.SwitchAll(), SwitchResult::kSwitched);
  ASSERT_TRUE(writer.Mark(kRam, PageIndex(0)));
  EXPECT_EQ(bitmaps[1][0].load(), 1u);
  EXPECT_TRUE(log.Retired(kRam)->Test(PageIndex(65)));
  EXPECT_TRUE(log.Retired(kSmm)->Test(PageIndex(1)));
  EXPECT_EQ(log.GetUserDirtyLog(kRam)->offsets[0],
            dirty_log_layout::kInCallersMemory);
  EXPECT_LT(log.GetUserDirtyLog(kSmm)->offsets[0], uint64_t{1} << 20);

  const absl::Status opened =
      DirtyLogSet::Open(UniqueFd(::dup(log.fd())), log.slots()).status();
  EXPECT_EQ(opened.code(), StatusCode::kFailedPrecondition);
}

// The log takes the space of the slots whose bitmaps are its own, so another
// process is refused by the size, or, where that fits, by the offsets.
TEST(CallerBitmapsTest, CannotBeSharedAndSayWhy) {
  Bitmap bitmaps[2] = {};
  const DirtyLogSet log = *DirtyLogSet::CreateOver(
      {{{kRam, PageCount(kPages)}}},
      {{{kRam, {bitmaps[0].data(), bitmaps[1].data()}}}});
  ASSERT_EQ(::ftruncate(log.fd(), 5 * kPageSize), -1) << "sealed";
  const absl::Status status =
      DirtyLogSet::Open(UniqueFd(::dup(log.fd())), log.slots()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "memfd of bytes")) << status;
}

TEST(CallerBitmapsTest, HaveToFitTheSlots) {
  Bitmap a = {};
  Bitmap b = {};
  const std::vector<DirtyLogSlot> slots = {{kRam, PageCount(kPages)}};
  const auto refusal = [&](const std::vector<CallerBitmaps>& bitmaps) {
    const absl::Status status =
        DirtyLogSet::CreateOver(slots, bitmaps).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal({{kNone, {a.data(), b.data()}}}),
            "bitmaps are given for slot 2:0, which is not among the slots of "
            "the dirty log");
  EXPECT_EQ(
      refusal({{kRam, {a.data(), b.data()}}, {kRam, {a.data(), b.data()}}}),
      "bitmaps are given twice for slot 0:0");
  const char* const kTwo =
      "the dirty log of slot 0:0 takes two bitmaps that are not one";
  EXPECT_EQ(refusal({{kRam, {a.data(), a.data()}}}), kTwo);
  EXPECT_EQ(refusal({{kRam, {nullptr, a.data()}}}), kTwo);
  EXPECT_EQ(refusal({{kRam, {a.data(), nullptr}}}), kTwo);
}

}  // namespace
}  // namespace postcopy
