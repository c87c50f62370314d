// The pages of a snapshot on another host, against sessions that say what the
// test wants; no network, no kernel.
#include "uffd/remote_snapshot.h"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "gtest/gtest.h"
#include "uffd/kernel_guest.h"
#include "uffd/page_source.h"
#include "uffd/pending_faults.h"
#include "uffd/snapshot_pages.h"
#include "uffd/source_connection.h"

namespace postcopy {
namespace {

constexpr uint64_t kLarge = kLargePageBytes.value() / kPageSize;

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// What a session sends: runs, and the bytes behind them.
struct Message {
  std::vector<ReceivedRun> runs;
  std::deque<std::vector<uint8_t>> bytes;
  uint64_t damaged = 0;
  // Instead of pages: something else.
  bool other = false;

  Message() = default;
  // The runs point into `bytes`, which a move leaves where they are.
  Message(Message&&) = default;
  Message& operator=(Message&&) = default;

  Message&& Data(PageRun run) {
    bytes.push_back(PatternOf(run));
    runs.push_back({run, bytes.back()});
    return std::move(*this);
  }
  Message&& Zeros(PageRun run) {
    runs.push_back({run, {}});
    return std::move(*this);
  }
  Message&& Short(PageRun run) {
    bytes.push_back(std::vector<uint8_t>(kPageSize + 1));
    runs.push_back({run, bytes.back()});
    return std::move(*this);
  }
};

// What both ends of a session share. Thread-safe.
class Session {
 public:
  struct Lane {
    std::deque<Message> to_say;
    Message said;
  };

  void SayUrgent(Message message) { Say(&urgent_, std::move(message)); }
  void SayBulk(Message message) { Say(&bulk_, std::move(message)); }
  void End(absl::Status status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (end_.ok()) end_ = std::move(status);
    changed_.notify_all();
  }
  // Blocks until that many pages have been asked for.
  std::vector<PageIndex> AwaitUrgent(size_t pages) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return asked_urgent_.size() >= pages; });
    return asked_urgent_;
  }
  std::vector<PageRun> AwaitBulk(size_t runs) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return asked_bulk_.size() >= runs; });
    return asked_bulk_;
  }
  size_t largest_request() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return largest_request_;
  }

  // The connection's side.
  absl::Status TakeUrgent(absl::Span<const PageIndex> pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!end_.ok()) return end_;
    largest_request_ = std::max(largest_request_, pages.size());
    asked_urgent_.insert(asked_urgent_.end(), pages.begin(), pages.end());
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::Status TakeBulk(PageRun run) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!end_.ok()) return end_;
    asked_bulk_.push_back(run);
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::StatusOr<const Message*> Receive(bool urgent) {
    Lane& lane = urgent ? urgent_ : bulk_;
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !end_.ok() || !lane.to_say.empty(); });
    if (lane.to_say.empty()) return end_;
    lane.said = std::move(lane.to_say.front());
    lane.to_say.pop_front();
    return &lane.said;
  }

 private:
  void Say(Lane* lane, Message message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lane->to_say.push_back(std::move(message));
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status end_;
  Lane urgent_;
  Lane bulk_;
  std::vector<PageIndex> asked_urgent_;
  std::vector<PageRun> asked_bulk_;
  size_t largest_request_ = 0;
};

class ScriptedConnection final : public SourceConnection {
 public:
  explicit ScriptedConnection(std::shared_ptr<Session> session)
      : session_(std::move(session)) {}

  uint64_t session_id() const override { return 1; }
  bool committed() const override { return true; }
  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override {
    return session_->TakeUrgent(pages);
  }
  absl::Status RequestBulk(PageRun run) override {
    return session_->TakeBulk(run);
  }
  absl::StatusOr<BulkEvent> ReceiveBulk() override {
    const auto message = session_->Receive(/*urgent=*/false);
    if (!message.ok()) return message.status();
    if ((*message)->other) return RoundEnded{1};
    return PagesArrived{(*message)->runs, (*message)->damaged};
  }
  absl::StatusOr<absl::Span<const ReceivedRun>> ReceiveUrgent() override {
    const auto message = session_->Receive(/*urgent=*/true);
    if (!message.ok()) return message.status();
    return absl::MakeConstSpan((*message)->runs);
  }
  absl::Status SendRoundAck(uint32_t, uint64_t) override { return Never(); }
  absl::Status SendReady(PageCount) override { return Never(); }
  absl::Status SendResumed(int64_t) override { return Never(); }
  absl::Status Complete() override { return Never(); }
  void Abort() override { session_->End(absl::CancelledError("aborted")); }

 private:
  static absl::Status Never() {
    ADD_FAILURE() << "a snapshot has no such message";
    return absl::InternalError("never");
  }

  const std::shared_ptr<Session> session_;
};

// What the dialer answers, in order. Thread-safe.
class Script {
 public:
  struct Answer {
    absl::Status status;
    std::shared_ptr<Session> session;
    ByteCount size;
    uint64_t content_id = 1;
  };

  void Add(Answer answer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    answers_.push_back(std::move(answer));
    changed_.notify_all();
  }
  absl::StatusOr<OpenedSnapshot> Open() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return cancelled_ || !answers_.empty(); });
    if (cancelled_) return absl::CancelledError("cancelled");
    const Answer answer = std::move(answers_.front());
    answers_.pop_front();
    if (!answer.status.ok()) return answer.status;
    return OpenedSnapshot{std::make_unique<ScriptedConnection>(answer.session),
                          answer.size, answer.content_id};
  }
  void Cancel() {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool cancelled_ = false;
  std::deque<Answer> answers_;
};

class ScriptedDialer final : public SnapshotDialer {
 public:
  explicit ScriptedDialer(std::shared_ptr<Script> script)
      : script_(std::move(script)) {}
  absl::StatusOr<OpenedSnapshot> Open() override { return script_->Open(); }
  void Cancel() override { script_->Cancel(); }
  std::string name() const override { return "the snapshot"; }

 private:
  const std::shared_ptr<Script> script_;
};

// Three regions: two of small pages that share pages 10 and 11 of the file, and
// one of two large pages.
class RemoteSnapshotTest : public testing::Test {
 protected:
  static constexpr uint64_t kLargeAt = 16;  // in the VM
  static constexpr uint64_t kLargeInFile = 100;
  static constexpr ByteCount kSize{(kLargeInFile + 2 * kLarge) * kPageSize};

  ~RemoteSnapshotTest() override {
    if (snapshot_ != nullptr) snapshot_->Stop();
  }

  static std::vector<SnapshotExtent> Extents() {
    return {{.pages = Pages(0, 8), .file_offset = 4 * kPageSize},
            {.pages = Pages(8, 8), .file_offset = 10 * kPageSize},
            {.pages = Pages(kLargeAt, 2 * kLarge),
             .file_offset = kLargeInFile * kPageSize,
             .page_size = kLargePageBytes}};
  }
  // The next session that is opened.
  std::shared_ptr<Session> NewSession(uint64_t content_id = 1,
                                      ByteCount size = kSize) {
    auto session = std::make_shared<Session>();
    script_->Add({.session = session, .size = size, .content_id = content_id});
    return session;
  }
  absl::Status Create(std::vector<SnapshotExtent> extents = Extents()) {
    auto created = RemoteSnapshot::Create(
        std::make_unique<ScriptedDialer>(script_), std::move(extents), Sink(),
        {.retry_nanos_first = 1, .retry_nanos_last = 1});
    if (!created.ok()) return created.status();
    snapshot_ = *std::move(created);
    return absl::OkStatus();
  }
  SnapshotSink Sink() {
    return {
        .on_urgent =
            [this](absl::Span<const ReceivedRun> runs) {
              return Note(runs, &urgent_);
            },
        .on_bulk =
            [this](absl::Span<const ReceivedRun> runs) {
              return Note(runs, &bulk_);
            },
        .on_failure = [this](absl::Status status) { Tell(status, &failed_); },
        .on_lost = [this] { Count(&lost_); },
        .on_back = [this] { Count(&back_); },
        .on_trouble =
            [this](const absl::Status& status) { Tell(status, &trouble_); },
        .on_error =
            [this](const absl::Status& status) { Tell(status, &errors_); }};
  }

  // A run that was delivered, and the page of the file that it begins with; no
  // page if it is zeros.
  struct Got {
    PageRun pages;
    std::optional<uint64_t> file_page;
    friend bool operator==(const Got&, const Got&) = default;
  };
  friend std::ostream& operator<<(std::ostream& out, const Got& got) {
    return out << got.pages << " of " << got.file_page.value_or(0);
  }
  absl::Status Note(absl::Span<const ReceivedRun> runs, std::vector<Got>* to) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const ReceivedRun& run : runs) {
      std::optional<uint64_t> found;
      for (uint64_t page = 0; page < kSize.value() / kPageSize; ++page) {
        if (run.data.empty()) break;
        if (HasPattern(run.data.data(), PageIndex(page))) found = page;
      }
      for (uint64_t i = 0; found.has_value() && i < run.pages.count.value();
           ++i) {
        EXPECT_TRUE(
            HasPattern(run.data.data() + i * kPageSize, PageIndex(*found + i)));
      }
      to->push_back({run.pages, found});
    }
    changed_.notify_all();
    return refusal_;
  }
  void Tell(const absl::Status& status, std::vector<absl::Status>* to) {
    const std::lock_guard<std::mutex> lock(mutex_);
    to->push_back(status);
    changed_.notify_all();
  }
  void Count(int* counter) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++*counter;
    changed_.notify_all();
  }
  template <typename Condition>
  void Await(Condition condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, condition);
  }
  // A session in which this ends it.
  void ExpectEnds(Message message, bool urgent, bool asked = true) {
    const int before = lost_;
    const auto session = NewSession();
    if (snapshot_ == nullptr) {
      ASSERT_TRUE(Create().ok());
    } else {
      Await([&] { return back_ == before; });
    }
    if (asked) {
      ASSERT_TRUE(snapshot_->RequestBulk(Pages(0, 2)).ok());
    }
    if (urgent) {
      session->SayUrgent(std::move(message));
    } else {
      session->SayBulk(std::move(message));
    }
    Await([&] { return lost_ == before + 1; });
    EXPECT_TRUE(urgent_.empty());
    EXPECT_TRUE(bulk_.empty());
  }

  const std::shared_ptr<Script> script_ = std::make_shared<Script>();
  std::unique_ptr<SnapshotPages> snapshot_;
  std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status refusal_;
  std::vector<Got> urgent_;
  std::vector<Got> bulk_;
  std::vector<absl::Status> failed_;
  std::vector<absl::Status> trouble_;
  std::vector<absl::Status> errors_;
  int lost_ = 0;
  int back_ = 0;
};

TEST_F(RemoteSnapshotTest, PagesAreAskedForWhereTheFileHasThem) {
  const auto session = NewSession();
  ASSERT_TRUE(Create().ok());
  ASSERT_TRUE(snapshot_->RequestUrgent({PageIndex(3), PageIndex(15)}).ok());
  EXPECT_EQ(session->AwaitUrgent(2),
            (std::vector<PageIndex>{PageIndex(7), PageIndex(17)}));
  session->SayUrgent(Message().Zeros(Pages(17, 1)).Data(Pages(7, 1)));
  Await([this] { return urgent_.size() == 2; });
  EXPECT_EQ(urgent_,
            (std::vector<Got>{{Pages(15, 1), std::nullopt}, {Pages(3, 1), 7}}));
  ASSERT_TRUE(snapshot_->RequestBulk(Pages(8, 8)).ok());
  EXPECT_EQ(session->AwaitBulk(1), (std::vector<PageRun>{Pages(10, 8)}));
  session->SayBulk(Message().Data(Pages(10, 3)).Zeros(Pages(13, 5)));
  Await([this] { return bulk_.size() == 2; });
  EXPECT_EQ(bulk_, (std::vector<Got>{{Pages(8, 3), 10},
                                     {Pages(11, 5), std::nullopt}}));
}

TEST_F(RemoteSnapshotTest, RegionsThatShareAPartOfTheFileBothGetIt) {
  const auto session = NewSession();
  ASSERT_TRUE(Create().ok());
  session->SayUrgent(Message().Data(Pages(9, 3)));
  Await([this] { return urgent_.size() == 2; });
  EXPECT_EQ(urgent_, (std::vector<Got>{{Pages(5, 3), 9}, {Pages(8, 2), 10}}));
}

// The wire takes 64 pages at a time; the guest sees 512 or none.
TEST_F(RemoteSnapshotTest, ALargePageComesInPiecesAndIsDeliveredWhole) {
  const auto session = NewSession();
  ASSERT_TRUE(Create().ok());
  ASSERT_TRUE(snapshot_->RequestUrgent({PageIndex(kLargeAt + kLarge)}).ok());
  const std::vector<PageIndex> asked = session->AwaitUrgent(kLarge);
  ASSERT_EQ(asked.size(), kLarge);
  EXPECT_EQ(asked[0], PageIndex(kLargeInFile + kLarge));
  EXPECT_EQ(asked[kLarge - 1], PageIndex(kLargeInFile + 2 * kLarge - 1));
  EXPECT_EQ(session->largest_request(), kMaxUrgentPages);
  // In any order, with holes, one of them twice.
  for (uint64_t piece = 8; piece-- > 0;) {
    Message message;
    const uint64_t at = kLargeInFile + kLarge + piece * 64;
    message.Data(Pages(at, 63));
    if (piece == 5) message.Data(Pages(at, 1));
    message.Data(Pages(at + 63, 1));
    session->SayUrgent(std::move(message));
  }
  Await([this] { return !urgent_.empty(); });
  EXPECT_EQ(urgent_, (std::vector<Got>{{Pages(kLargeAt + kLarge, kLarge),
                                        kLargeInFile + kLarge}}));
  ASSERT_TRUE(snapshot_->RequestUrgent({PageIndex(kLargeAt)}).ok());
  session->AwaitUrgent(2 * kLarge);
  for (uint64_t piece = 0; piece < 8; ++piece) {
    session->SayUrgent(Message().Zeros(Pages(kLargeInFile + piece * 64, 64)));
  }
  Await([this] { return urgent_.size() == 2; });
  EXPECT_EQ(urgent_[1], (Got{Pages(kLargeAt, kLarge), std::nullopt}));
}

TEST_F(RemoteSnapshotTest, ALimitOfLargePagesAtATime) {
  const auto session = NewSession(1, ByteCount(kSize.value() * 2000));
  ASSERT_TRUE(Create({{.pages = Pages(0, 2000 * kLarge),
                       .file_offset = 0,
                       .page_size = kLargePageBytes}})
                  .ok());
  for (uint64_t i = 0; i < kUrgentLargePages + kMaxOutstandingFaults; ++i) {
    ASSERT_TRUE(snapshot_->RequestUrgent({PageIndex(i * kLarge)}).ok()) << i;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      snapshot_->RequestUrgent({PageIndex(1999 * kLarge)})));
  EXPECT_EQ(session->AwaitUrgent(0).size(), kUrgentLargePages * kLarge);
  for (uint64_t piece = 0; piece < 8; ++piece) {
    session->SayUrgent(Message().Zeros(Pages(piece * 64, 64)));
  }
  EXPECT_EQ(session->AwaitUrgent((kUrgentLargePages + 1) * kLarge).back(),
            PageIndex((kUrgentLargePages + 1) * kLarge - 1));
}

TEST_F(RemoteSnapshotTest, ABulkRequestOfALargePage) {
  const auto session = NewSession();
  ASSERT_TRUE(Create().ok());
  ASSERT_TRUE(snapshot_->RequestBulk(Pages(kLargeAt, kLarge)).ok());
  ASSERT_TRUE(snapshot_->RequestBulk(Pages(0, 8)).ok());
  const std::vector<PageRun> asked = session->AwaitBulk(9);
  EXPECT_EQ(asked[7], Pages(kLargeInFile + 448, 64));
  EXPECT_EQ(asked[8], Pages(4, 8));
  for (uint64_t piece = 0; piece < 8; ++piece) {
    session->SayBulk(Message()
                         .Data(Pages(kLargeInFile + piece * 64, 40))
                         .Data(Pages(kLargeInFile + piece * 64 + 40, 24)));
  }
  session->SayBulk(Message().Zeros(Pages(4, 8)));
  Await([this] { return bulk_.size() == 2; });
  EXPECT_EQ(bulk_, (std::vector<Got>{{Pages(kLargeAt, kLarge), kLargeInFile},
                                     {Pages(0, 8), std::nullopt}}));
}

TEST_F(RemoteSnapshotTest, ALostSourceIsLookedForUntilItIsBack) {
  const auto first = NewSession();
  ASSERT_TRUE(Create().ok());
  ASSERT_TRUE(snapshot_->RequestUrgent({PageIndex(kLargeAt)}).ok());
  ASSERT_TRUE(snapshot_->RequestBulk(Pages(0, 8)).ok());
  first->SayUrgent(Message().Data(Pages(kLargeInFile, 64)));
  first->End(absl::UnavailableError("gone"));
  Await([this] { return lost_ == 1; });
  EXPECT_TRUE(absl::IsUnavailable(snapshot_->RequestUrgent({PageIndex(0)})));
  EXPECT_TRUE(absl::IsUnavailable(snapshot_->RequestBulk(Pages(0, 1))));
  for (int i = 0; i < 5; ++i) {
    script_->Add({.status = absl::UnavailableError("nobody there")});
  }
  script_->Add({.status = absl::NotFoundError("no such snapshot")});
  NewSession(/*content_id=*/2);
  NewSession(1, ByteCount(kSize.value() + 1));
  const auto second = NewSession();
  Await([this] { return back_ == 1; });
  // Each kind of reason once.
  ASSERT_EQ(trouble_.size(), 3u);
  EXPECT_TRUE(absl::IsUnavailable(trouble_[0]));
  EXPECT_TRUE(absl::IsNotFound(trouble_[1]));
  EXPECT_NE(trouble_[2].message().find("is another file than before"),
            std::string::npos);
  // What the first had brought of the page is void.
  ASSERT_TRUE(snapshot_->RequestUrgent({PageIndex(kLargeAt)}).ok());
  EXPECT_EQ(second->AwaitUrgent(kLarge).size(), kLarge);
  for (uint64_t piece = 0; piece < 8; ++piece) {
    second->SayUrgent(Message().Zeros(Pages(kLargeInFile + piece * 64, 64)));
  }
  Await([this] { return urgent_.size() == 1; });
  EXPECT_EQ(urgent_[0], (Got{Pages(kLargeAt, kLarge), std::nullopt}));
}

// A page that the source's disk does not give is asked for again and again, and
// not in silence.
TEST_F(RemoteSnapshotTest, WhatTheSourceCannotReadIsTold) {
  auto session = NewSession();
  ASSERT_TRUE(Create().ok());
  for (int i = 1; i <= 3; ++i) {
    const auto next = NewSession();
    session->SayUrgent(Message().Data(Pages(4, 1)));  // another page comes
    Await([&] { return urgent_.size() == static_cast<size_t>(i); });
    session->End(absl::InternalError("cannot read it: Input/output error"));
    Await([&] { return back_ == i; });
    session = next;
  }
  ASSERT_EQ(errors_.size(), 3u);
  EXPECT_EQ(errors_[0],
            absl::InternalError("cannot read it: Input/output error"));
  // Nor is the network's fault one of these.
  NewSession();
  session->End(absl::UnavailableError("gone"));
  Await([&] { return back_ == 4; });
  EXPECT_EQ(errors_.size(), 3u);
  EXPECT_TRUE(failed_.empty());
}

TEST_F(RemoteSnapshotTest, WhatIsNotDueEndsTheSessionAndReachesNobody) {
  ExpectEnds(Message().Data(Pages(0, 1)), /*urgent=*/true);    // no extent's
  ExpectEnds(Message().Zeros(Pages(4, 65)), /*urgent=*/true);  // too many
  ExpectEnds(Message().Short(Pages(4, 1)), /*urgent=*/true);
  ExpectEnds(Message().Zeros(Pages(4, 2)), /*urgent=*/false, /*asked=*/false);
  ExpectEnds(Message().Zeros(Pages(5, 2)), /*urgent=*/false);
  ExpectEnds(Message().Zeros(Pages(4, 3)), /*urgent=*/false);
  ExpectEnds(Message().Zeros(Pages(4, 1)), /*urgent=*/false);
  ExpectEnds(Message().Short(Pages(4, 2)), /*urgent=*/false);
  ExpectEnds(Message(), /*urgent=*/false);
  Message damaged = Message().Zeros(Pages(4, 2));
  damaged.damaged = 1;
  ExpectEnds(std::move(damaged), /*urgent=*/false);
  Message other;
  other.other = true;
  ExpectEnds(std::move(other), /*urgent=*/false);
  EXPECT_TRUE(failed_.empty());
}

TEST_F(RemoteSnapshotTest, ASnapshotThatIsLostIsAFailure) {
  const auto session = NewSession();
  ASSERT_TRUE(Create().ok());
  script_->Add({.status = absl::DataLossError("truncated")});
  session->End(absl::DataLossError("truncated"));
  Await([this] { return !failed_.empty(); });
  EXPECT_TRUE(absl::IsDataLoss(failed_[0]));
  EXPECT_TRUE(absl::IsUnavailable(snapshot_->RequestUrgent({PageIndex(0)})));
}

TEST_F(RemoteSnapshotTest, WhatTheSinkReturnsIsAFailure) {
  for (const bool urgent : {false, true}) {
    const auto session = NewSession();
    ASSERT_TRUE(Create().ok());
    refusal_ = absl::AbortedError("the VMM is gone");
    ASSERT_TRUE(snapshot_->RequestBulk(Pages(0, 8)).ok());
    if (urgent) {
      session->SayUrgent(Message().Zeros(Pages(4, 8)));
    } else {
      session->SayBulk(Message().Zeros(Pages(4, 8)));
    }
    Await([this] { return !failed_.empty(); });
    EXPECT_TRUE(absl::IsAborted(failed_[0]));
    failed_.clear();
  }
}

TEST_F(RemoteSnapshotTest, StopsWhileNobodyAnswers) {
  const auto session = NewSession();
  ASSERT_TRUE(Create().ok());
  session->End(absl::UnavailableError("gone"));
  Await([this] { return lost_ == 1; });
  snapshot_->Stop();
  snapshot_->Stop();
  EXPECT_TRUE(absl::IsUnavailable(snapshot_->RequestBulk(Pages(0, 1))));
  EXPECT_TRUE(failed_.empty());
  EXPECT_EQ(back_, 0);
}

TEST_F(RemoteSnapshotTest, RefusesWhatItCannotServe) {
  script_->Add({.status = absl::NotFoundError("no such snapshot")});
  EXPECT_TRUE(absl::IsNotFound(Create()));
  NewSession(1, ByteCount(kSize.value() - 1));
  const absl::Status small = Create();
  EXPECT_TRUE(absl::IsInvalidArgument(small)) << small;
  NewSession();
  const absl::Status crooked =
      Create({{.pages = Pages(0, 1), .file_offset = 1}});
  EXPECT_TRUE(absl::IsInvalidArgument(crooked)) << crooked;
  EXPECT_NE(crooked.message().find("no multiple of 4096"), std::string::npos);
}

TEST_F(RemoteSnapshotTest, RefusesRequestsThatAreNone) {
  NewSession();
  ASSERT_TRUE(Create().ok());
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot_->RequestUrgent({})));
  const std::vector<PageIndex> many(kMaxUrgentPages + 1, PageIndex(0));
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot_->RequestUrgent(many)));
  EXPECT_TRUE(absl::IsOutOfRange(
      snapshot_->RequestUrgent({PageIndex(kLargeAt + 2 * kLarge)})));
  EXPECT_TRUE(absl::IsInvalidArgument(
      snapshot_->RequestUrgent({PageIndex(kLargeAt + 1)})));
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot_->RequestBulk(Pages(7, 2))));
  EXPECT_TRUE(
      absl::IsInvalidArgument(snapshot_->RequestBulk(Pages(kLargeAt, 64))));
}

}  // namespace
}  // namespace postcopy
