#include "uffd/huge_page_connection.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "uffd/kernel_guest.h"
#include "uffd/pending_faults.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// Remembers what it is asked for, and answers what the test has put there.
class FakeConnection final : public SourceConnection {
 public:
  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override {
    urgent.emplace_back(pages.begin(), pages.end());
    return fails ? absl::UnavailableError("lost") : absl::OkStatus();
  }
  absl::Status RequestBulk(PageRun run) override {
    bulk.push_back(run);
    return fails ? absl::UnavailableError("lost") : absl::OkStatus();
  }
  absl::StatusOr<BulkEvent> ReceiveBulk() override {
    if (bulk_events.empty()) return absl::UnavailableError("no more");
    BulkEvent event = std::move(bulk_events.front());
    bulk_events.pop_front();
    return event;
  }
  absl::StatusOr<absl::Span<const ReceivedRun>> ReceiveUrgent() override {
    if (answers.empty()) return absl::UnavailableError("no more");
    now = std::move(answers.front());
    answers.pop_front();
    return absl::MakeConstSpan(now);
  }
  uint64_t session_id() const override { return 4711; }
  bool committed() const override { return true; }
  absl::Status SendRoundAck(uint32_t round, uint64_t damaged) override {
    said = round + damaged;
    return absl::OkStatus();
  }
  absl::Status SendReady(PageCount discarded) override {
    said = discarded.value();
    return absl::OkStatus();
  }
  absl::Status SendResumed(int64_t nanos) override {
    said = static_cast<uint64_t>(nanos);
    return absl::OkStatus();
  }
  void EndRequests() override { said = 1001; }
  void Abort() override { said = 1002; }
  absl::Status Complete() override {
    said = 1003;
    return absl::OkStatus();
  }

  std::vector<std::vector<PageIndex>> urgent;
  std::vector<PageRun> bulk;
  std::deque<BulkEvent> bulk_events;
  std::deque<std::vector<ReceivedRun>> answers;
  std::vector<ReceivedRun> now;
  uint64_t said = 0;
  bool fails = false;
};

// Four small pages, five huge ones, two small ones.
class HugePageConnectionTest : public testing::Test {
 protected:
  static PageRun Huge(uint64_t i) { return Pages(4 + i * 512, 512); }

  HugePageConnectionTest() {
    auto fake = std::make_unique<FakeConnection>();
    fake_ = fake.get();
    connection_ = std::make_unique<HugePageConnection>(std::move(fake), &ram_);
  }

  // Of 64 pages each, or of what is left.
  static std::vector<PageRun> PiecesOf(PageRun run) {
    std::vector<PageRun> pieces;
    while (!run.count.empty()) {
      const PageRun piece{run.first, std::min(run.count, kMaxBulkPages)};
      pieces.push_back(piece);
      run = {piece.end(), run.count - piece.count};
    }
    return pieces;
  }
  ReceivedRun WithData(PageRun run) {
    kept_.push_back(PatternOf(run));
    return {run, kept_.back()};
  }
  void AnswerUrgent(PageRun run) {
    for (const PageRun piece : PiecesOf(run)) {
      fake_->answers.push_back({WithData(piece)});
    }
  }
  void AnswerBulk(std::vector<ReceivedRun> runs, bool decompressed = false) {
    bulk_.push_back(std::move(runs));
    fake_->bulk_events.push_back(
        PagesArrived{.runs = bulk_.back(), .decompressed = decompressed});
  }
  static void ExpectPattern(const ReceivedRun& run) {
    const std::vector<uint8_t> expected = PatternOf(run.pages);
    ASSERT_EQ(run.data.size(), expected.size());
    EXPECT_TRUE(std::equal(run.data.begin(), run.data.end(), expected.begin()));
  }

  const DestinationRam ram_ = *DestinationRam::Create(
      LayoutOf({GuestRegion{MemoryKind::kAnonymous, PageCount(4)},
                GuestRegion{MemoryKind::kHugetlb, PageCount(5 * 512)},
                GuestRegion{MemoryKind::kAnonymous, PageCount(2)}}),
      {{.host_address = HostAddress(uint64_t{1} << 32)},
       {.host_address = HostAddress(uint64_t{2} << 32)},
       {.host_address = HostAddress(uint64_t{3} << 32)}});
  FakeConnection* fake_;
  std::unique_ptr<HugePageConnection> connection_;
  std::deque<std::vector<uint8_t>> kept_;
  std::deque<std::vector<ReceivedRun>> bulk_;
};

TEST_F(HugePageConnectionTest, PassesOnWhatIsNoPage) {
  EXPECT_EQ(connection_->session_id(), 4711u);
  EXPECT_TRUE(connection_->committed());
  EXPECT_TRUE(connection_->SendRoundAck(3, 4).ok());
  EXPECT_EQ(fake_->said, 7u);
  EXPECT_TRUE(connection_->SendReady(PageCount(5)).ok());
  EXPECT_EQ(fake_->said, 5u);
  EXPECT_TRUE(connection_->SendResumed(6).ok());
  EXPECT_EQ(fake_->said, 6u);
  connection_->EndRequests();
  EXPECT_EQ(fake_->said, 1001u);
  connection_->Abort();
  EXPECT_EQ(fake_->said, 1002u);
  EXPECT_TRUE(connection_->Complete().ok());
  EXPECT_EQ(fake_->said, 1003u);
}

TEST_F(HugePageConnectionTest, AsksForAHugePageInPieces) {
  ASSERT_TRUE(
      connection_->RequestUrgent({PageIndex(2), Huge(1).first, PageIndex(2565)})
          .ok());
  ASSERT_EQ(fake_->urgent.size(), 9u);
  EXPECT_EQ(fake_->urgent[0],
            (std::vector<PageIndex>{PageIndex(2), PageIndex(2565)}));
  for (size_t i = 1; i < 9; ++i) {
    ASSERT_EQ(fake_->urgent[i].size(), 64u);
    EXPECT_EQ(fake_->urgent[i][0], Huge(1).first + PageCount((i - 1) * 64));
  }
}

TEST_F(HugePageConnectionTest, HandsOnAHugePageWhenAllOfItIsThere) {
  ASSERT_TRUE(connection_->RequestUrgent({Huge(0).first}).ok());
  AnswerUrgent(Huge(0));
  // Pieces may come in any order, and small pages beside them.
  std::reverse(fake_->answers.begin(), fake_->answers.end());
  fake_->answers[3].push_back(WithData(Pages(1, 2)));
  auto runs = connection_->ReceiveUrgent();
  ASSERT_TRUE(runs.ok()) << runs.status();
  ASSERT_EQ(runs->size(), 1u);
  EXPECT_EQ((*runs)[0].pages, Pages(1, 2));
  ExpectPattern((*runs)[0]);
  runs = connection_->ReceiveUrgent();
  ASSERT_TRUE(runs.ok()) << runs.status();
  ASSERT_EQ(runs->size(), 1u);
  EXPECT_EQ((*runs)[0].pages, Huge(0));
  ExpectPattern((*runs)[0]);
}

TEST_F(HugePageConnectionTest, ZerosStayZeros) {
  ASSERT_TRUE(connection_->RequestUrgent({Huge(0).first, Huge(1).first}).ok());
  for (const PageRun piece : PiecesOf(Huge(0))) {
    fake_->answers.push_back({{piece, {}}});
  }
  for (const PageRun piece : PiecesOf(Huge(1))) {
    fake_->answers.push_back({{piece, {}}});
  }
  const std::vector<uint8_t> bytes(kPageSize, 9);
  fake_->answers.back()[0].pages.count -= PageCount(1);
  fake_->answers.back().push_back(
      {{Huge(1).end() - PageCount(1), PageCount(1)}, bytes});
  auto runs = connection_->ReceiveUrgent();
  ASSERT_TRUE(runs.ok());
  EXPECT_TRUE((*runs)[0].data.empty());
  runs = connection_->ReceiveUrgent();
  ASSERT_TRUE(runs.ok());
  ASSERT_EQ((*runs)[0].data.size(), kHugePageSize.value());
  EXPECT_EQ((*runs)[0].data[0], 0);
  EXPECT_EQ((*runs)[0].data[kHugePageSize.value() - 1], 9);
}

// So that memory does not grow with the faults.
TEST_F(HugePageConnectionTest, OnlySomeHugePagesComeInAtATime) {
  std::vector<PageIndex> all;
  for (uint64_t i = 0; i < 5; ++i) all.push_back(Huge(i).first);
  ASSERT_TRUE(connection_->RequestUrgent(all).ok());
  EXPECT_EQ(fake_->urgent.size(), 8 * kUrgentHugePages);
  for (uint64_t i = 0; i < 5; ++i) {
    AnswerUrgent(Huge(i));
    const auto runs = connection_->ReceiveUrgent();
    ASSERT_TRUE(runs.ok()) << runs.status();
    EXPECT_EQ((*runs)[0].pages, Huge(i));
    ExpectPattern((*runs)[0]);
  }
  EXPECT_EQ(fake_->urgent.size(), 8 * 5u);
}

TEST_F(HugePageConnectionTest, ThereIsALimitToThoseThatWait) {
  const std::vector<PageIndex> page = {Huge(0).first};
  for (size_t i = 0; i < kMaxOutstandingFaults + kUrgentHugePages; ++i) {
    ASSERT_TRUE(connection_->RequestUrgent(page).ok()) << i;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(connection_->RequestUrgent(page)));
}

TEST_F(HugePageConnectionTest, RefusesWhatWasNotAskedFor) {
  ASSERT_TRUE(connection_->RequestUrgent({Huge(0).first}).ok());
  AnswerUrgent(Pages(Huge(1).first.value(), 3));
  EXPECT_TRUE(absl::IsInvalidArgument(connection_->ReceiveUrgent().status()));
}

TEST_F(HugePageConnectionTest, RefusesAnswersOfAWrongSize) {
  const std::vector<uint8_t> bytes(kPageSize);
  for (const ReceivedRun& run :
       {ReceivedRun{Pages(4, 65), {}}, ReceivedRun{Pages(4, 2), bytes}}) {
    fake_->answers.push_back({run});
    EXPECT_TRUE(absl::IsInvalidArgument(connection_->ReceiveUrgent().status()));
  }
  fake_->answers.push_back({{Pages(2566, 1), {}}});
  EXPECT_TRUE(absl::IsOutOfRange(connection_->ReceiveUrgent().status()));
}

TEST_F(HugePageConnectionTest, AnEmptyAnswerIsPassedOn) {
  fake_->answers.push_back({});
  const auto runs = connection_->ReceiveUrgent();
  ASSERT_TRUE(runs.ok());
  EXPECT_TRUE(runs->empty());
}

TEST_F(HugePageConnectionTest, ALostSourceIsTold) {
  fake_->fails = true;
  EXPECT_TRUE(absl::IsUnavailable(connection_->RequestUrgent({Huge(0).first})));
  EXPECT_TRUE(absl::IsUnavailable(connection_->RequestUrgent({PageIndex(0)})));
  EXPECT_TRUE(absl::IsUnavailable(connection_->RequestBulk(Huge(0))));
  EXPECT_TRUE(absl::IsUnavailable(connection_->ReceiveBulk().status()));
  EXPECT_TRUE(absl::IsUnavailable(connection_->ReceiveUrgent().status()));
}

TEST_F(HugePageConnectionTest, PrecopiedPagesPassAsTheyCome) {
  AnswerBulk({WithData(Pages(2, 5)), {Pages(600, 1000), {}}});
  fake_->bulk_events.push_back(RoundEnded{7});
  auto event = connection_->ReceiveBulk();
  ASSERT_TRUE(event.ok());
  EXPECT_EQ(std::get<PagesArrived>(*event).runs.size(), 2u);
  event = connection_->ReceiveBulk();
  ASSERT_TRUE(event.ok());
  EXPECT_EQ(std::get<RoundEnded>(*event).round, 7u);
}

TEST_F(HugePageConnectionTest, BulkAnswersArePutTogether) {
  ASSERT_TRUE(connection_->RequestBulk(Pages(0, 4)).ok());
  ASSERT_TRUE(connection_->RequestBulk(Huge(2)).ok());
  ASSERT_TRUE(connection_->RequestBulk(Pages(2564, 2)).ok());
  ASSERT_EQ(fake_->bulk.size(), 10u);
  AnswerBulk({WithData(Pages(0, 4))});
  bool first = true;
  for (const PageRun piece : PiecesOf(Huge(2))) {
    AnswerBulk({WithData({piece.first, PageCount(10)}),
                WithData({piece.first + PageCount(10), PageCount(54)})},
               first);
    first = false;
  }
  AnswerBulk({{Pages(2564, 2), {}}});
  auto event = connection_->ReceiveBulk();
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(std::get<PagesArrived>(*event).runs[0].pages, Pages(0, 4));
  event = connection_->ReceiveBulk();
  ASSERT_TRUE(event.ok()) << event.status();
  const auto& pages = std::get<PagesArrived>(*event);
  ASSERT_EQ(pages.runs.size(), 1u);
  EXPECT_EQ(pages.runs[0].pages, Huge(2));
  ExpectPattern(pages.runs[0]);
  EXPECT_TRUE(pages.decompressed);
  event = connection_->ReceiveBulk();
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(std::get<PagesArrived>(*event).runs[0].pages, Pages(2564, 2));
}

TEST_F(HugePageConnectionTest, DamagedPiecesAreTold) {
  ASSERT_TRUE(connection_->RequestBulk(Huge(0)).ok());
  fake_->bulk_events.push_back(PagesArrived{.damaged_runs = 1});
  const auto event = connection_->ReceiveBulk();
  ASSERT_TRUE(event.ok());
  EXPECT_EQ(std::get<PagesArrived>(*event).damaged_runs, 1u);
}

TEST_F(HugePageConnectionTest, RefusesBulkThatIsNotDue) {
  const std::vector<uint8_t> bytes(kPageSize);
  const std::vector<std::vector<ReceivedRun>> wrong = {
      {{{Huge(0).first + PageCount(1), PageCount(1)}, {}}},  // not the first
      {{{Huge(0).first, PageCount(65)}, {}}},                // too many
      {{{Huge(0).first, PageCount(2)}, bytes}},              // too short
      {{{Huge(0).first, PageCount(63)}, {}}},                // too few
      {}};
  for (size_t i = 0; i < wrong.size(); ++i) {
    auto fake = std::make_unique<FakeConnection>();
    FakeConnection* const source = fake.get();
    HugePageConnection connection(std::move(fake), &ram_);
    ASSERT_TRUE(connection.RequestBulk(Huge(0)).ok());
    source->bulk_events.push_back(PagesArrived{.runs = wrong[i]});
    EXPECT_TRUE(absl::IsInvalidArgument(connection.ReceiveBulk().status()))
        << i;
  }
}

}  // namespace
}  // namespace postcopy
