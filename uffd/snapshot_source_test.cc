#include "uffd/snapshot_source.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "uffd/background_pull.h"
#include "uffd/kernel_guest.h"
#include "uffd/pending_faults.h"

namespace postcopy {
namespace {

constexpr PageCount kLargePage = PagesIn(kLargePageBytes);

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// A file of three extents at odd places, in which some pages are data, some
// zeros that were written, some holes. What lies between the extents is 0xff.
class Snapshot {
 public:
  enum class Content { kData, kZeros, kHole };

  Snapshot() {
    path_ = testing::TempDir() + "/snapshot.XXXXXX";
    fd_.Reset(::mkstemp(path_.data()));
    EXPECT_TRUE(fd_.valid());
    uint64_t offset = kPageSize;
    PageIndex begin;
    for (const auto& [count, gap, page_size] :
         {std::tuple{uint64_t{300}, uint64_t{0}, kSmallPageBytes},
          {6 * kLargePage.value(), 777, kLargePageBytes},
          {200, 1, kSmallPageBytes},
          {100, 4096 - 778, kSmallPageBytes}}) {
      offset += gap;
      extents_.push_back({{begin, PageCount(count)}, offset, page_size});
      offset += BytesIn(PageCount(count)).value();
      begin += PageCount(count);
    }
    EXPECT_EQ(::ftruncate(fd_.get(), static_cast<off_t>(offset)), 0);
    for (const SnapshotExtent& extent : extents_) Fill(extent);
  }
  ~Snapshot() { ::unlink(path_.c_str()); }

  const std::string& path() const { return path_; }
  const std::vector<SnapshotExtent>& extents() const { return extents_; }
  const SnapshotExtent& ExtentOf(PageIndex page) const {
    return *std::find_if(extents_.begin(), extents_.end(),
                         [&](const auto& e) { return e.pages.Contains(page); });
  }
  PageCount pages() const { return extents_.back().pages.end() - PageIndex(0); }

  // What is asked for when `page` is touched, as a whole.
  PageRun UnitOf(PageIndex page) const {
    const SnapshotExtent& extent = ExtentOf(page);
    const uint64_t size = PagesIn(extent.page_size).value();
    const uint64_t index = (page - extent.pages.first).value() / size;
    return {extent.pages.first + PageCount(index * size), PageCount(size)};
  }
  uint64_t OffsetOf(PageIndex page) const {
    const SnapshotExtent& extent = ExtentOf(page);
    return extent.file_offset + BytesIn(page - extent.pages.first).value();
  }

  static Content ContentOf(PageRun unit) {
    const uint64_t n = unit.first.value() / unit.count.value() / 2;
    if (n % 3 == 0) return Content::kData;
    return n % 3 == 1 ? Content::kZeros : Content::kHole;
  }

  // So that whatever is written from now on is at another time.
  void SetLongAgo() const {
    const timespec times[] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  }
  // Writes one byte, which keeps its length.
  void Rewrite() const {
    const UniqueFd fd(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(::pwrite(fd.get(), "x", 1, 0), 1);
  }
  void Truncate(uint64_t size) const {
    ASSERT_EQ(::truncate(path_.c_str(), static_cast<off_t>(size)), 0);
  }

 private:
  void Fill(const SnapshotExtent& extent) {
    const uint64_t step = PagesIn(extent.page_size).value();
    for (uint64_t i = 0; i < extent.pages.count.value(); i += step) {
      const PageRun unit = {extent.pages.first + PageCount(i), PageCount(step)};
      std::vector<uint8_t> bytes = PatternOf(unit);
      if (ContentOf(unit) == Content::kHole) continue;
      if (ContentOf(unit) == Content::kZeros) bytes.assign(bytes.size(), 0);
      ASSERT_EQ(::pwrite(fd_.get(), bytes.data(), bytes.size(),
                         static_cast<off_t>(OffsetOf(unit.first))),
                static_cast<ssize_t>(bytes.size()));
    }
  }

  std::string path_;
  UniqueFd fd_;
  std::vector<SnapshotExtent> extents_;
};

// Checks and counts what it gets. Thread-safe.
class Receiver {
 public:
  explicit Receiver(const Snapshot* snapshot) : snapshot_(*snapshot) {}

  SnapshotSource::Sink sink() {
    return {.on_urgent = [this](auto runs) { return Take(runs, true); },
            .on_bulk = [this](auto runs) { return Take(runs, false); },
            .on_failure = [this](absl::Status s) { OnFailure(std::move(s)); }};
  }

  // Called in every delivery, without a lock; what it returns is returned.
  void OnDelivery(std::function<absl::Status(bool urgent)> call) {
    const std::lock_guard<std::mutex> lock(mutex_);
    on_delivery_ = std::move(call);
  }

  // Blocks until `count` pages have come.
  void AwaitUrgent(uint64_t count) { Await(&urgent_pages_, count); }
  void AwaitBulk(uint64_t count) { Await(&bulk_pages_, count); }
  absl::Status AwaitFailure() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !failures_.empty(); });
    return failures_.front();
  }

  uint64_t pages() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return urgent_pages_ + bulk_pages_;
  }
  size_t failures() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return failures_.size();
  }
  // How often `page` came.
  int times(PageIndex page) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return times_[page];
  }
  // The deliveries of the bulk lane, as the pages and whether they are zeros.
  std::vector<std::vector<std::pair<PageRun, bool>>> bulk() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bulk_;
  }

 private:
  void Await(const uint64_t* pages, uint64_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return *pages >= count || !failures_.empty(); });
    EXPECT_EQ(*pages, count);
    EXPECT_TRUE(failures_.empty()) << failures_.front();
  }

  absl::Status Take(absl::Span<const ReceivedRun> runs, bool urgent) {
    std::function<absl::Status(bool)> call;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<std::pair<PageRun, bool>> taken;
      uint64_t units = 0;
      for (const ReceivedRun& run : runs) {
        units += TakeRun(run);
        taken.push_back({run.pages, run.data.empty()});
        (urgent ? urgent_pages_ : bulk_pages_) += run.pages.count.value();
      }
      EXPECT_GT(units, 0u);
      EXPECT_LE(units, kMaxUrgentPages);
      if (!urgent) bulk_.push_back(std::move(taken));
      call = on_delivery_;
    }
    changed_.notify_all();
    return call == nullptr ? absl::OkStatus() : call(urgent);
  }

  uint64_t TakeRun(const ReceivedRun& run) {
    uint64_t units = 0;
    if (!run.data.empty()) {
      EXPECT_EQ(run.data.size(), BytesIn(run.pages.count).value());
    }
    for (PageIndex at = run.pages.first; at < run.pages.end(); ++units) {
      const PageRun unit = snapshot_.UnitOf(at);
      EXPECT_EQ(unit.first, at);
      EXPECT_LE(unit.end(), run.pages.end());
      CheckUnit(unit, run);
      ++times_[at];
      at = unit.end();
    }
    return units;
  }

  void CheckUnit(PageRun unit, const ReceivedRun& run) const {
    const bool data = Snapshot::ContentOf(unit) == Snapshot::Content::kData;
    ASSERT_EQ(run.data.empty(), !data) << ToString(unit);
    for (uint64_t i = 0; data && i < unit.count.value(); ++i) {
      const PageIndex page = unit.first + PageCount(i);
      ASSERT_TRUE(HasPattern(
          run.data.data() + BytesIn(page - run.pages.first).value(), page))
          << ToString(page);
    }
  }

  void OnFailure(absl::Status status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    failures_.push_back(std::move(status));
    changed_.notify_all();
  }

  const Snapshot& snapshot_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<absl::Status(bool)> on_delivery_;
  uint64_t urgent_pages_ = 0;
  uint64_t bulk_pages_ = 0;
  std::map<PageIndex, int> times_;
  std::vector<std::vector<std::pair<PageRun, bool>>> bulk_;
  std::vector<absl::Status> failures_;
};

// A ring that does what the test says with each read, and when. Thread-safe.
class ScriptedRing final : public ReadRing {
 public:
  // What a read does, and returns as its result.
  using Script =
      std::function<int32_t(int fd, uint64_t offset, absl::Span<uint8_t> into)>;

  static int32_t PlainRead(int fd, uint64_t offset, absl::Span<uint8_t> into) {
    const ssize_t n =
        ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    return n < 0 ? -errno : static_cast<int32_t>(n);
  }

  void SetScript(Script script) {
    const std::lock_guard<std::mutex> lock(mutex_);
    script_ = std::move(script);
  }
  // From now on reads wait for Release.
  void Hold() {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = true;
  }
  void Release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  // The Wait after the results that are there fails.
  void Break() {
    const std::lock_guard<std::mutex> lock(mutex_);
    broken_ = true;
    changed_.notify_all();
  }
  // Blocks until exactly `count` reads are under way, and all that was asked
  // for before has been looked at.
  void AwaitUnderWay(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return reads_.size() == count && waiting_; });
  }
  uint64_t reads() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return total_;
  }

  void Read(uint32_t tag, int fd, uint64_t offset,
            absl::Span<uint8_t> into) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    reads_.push_back({tag, fd, offset, into});
    ++total_;
  }

  absl::StatusOr<size_t> Wait(absl::Span<Result> results) override {
    std::unique_lock<std::mutex> lock(mutex_);
    waiting_ = !woken_;
    changed_.notify_all();
    changed_.wait(
        lock, [&] { return woken_ || broken_ || (!held_ && !reads_.empty()); });
    waiting_ = false;
    woken_ = false;
    size_t count = 0;
    for (; !held_ && !reads_.empty() && count < results.size(); ++count) {
      const Request read = reads_.front();
      reads_.pop_front();
      results[count] = {read.tag, script_(read.fd, read.offset, read.into)};
    }
    if (count == 0 && broken_) return absl::InternalError("a broken ring");
    return count;
  }

  void Wake() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    woken_ = true;
    changed_.notify_all();
  }

 private:
  struct Request {
    uint32_t tag;
    int fd;
    uint64_t offset;
    absl::Span<uint8_t> into;
  };

  std::mutex mutex_;
  std::condition_variable changed_;
  Script script_ = PlainRead;
  bool held_ = false;
  bool broken_ = false;
  bool woken_ = false;
  bool waiting_ = false;
  std::deque<Request> reads_;
  uint64_t total_ = 0;
};

class SnapshotSourceTest : public testing::Test {
 protected:
  // False where there is no io_uring, with the reason in reason_.
  bool Start(SnapshotAccess access = SnapshotAccess::kBuffered) {
    reason_ = std::string(CreateIoUring(1).status().message());
    if (!reason_.empty()) return false;
    Make({.access = access});
    return true;
  }

  void StartScripted(SnapshotAccess access = SnapshotAccess::kBuffered) {
    std::vector<ScriptedRing**> rings = {&urgent_ring_, &bulk_ring_};
    Make({.access = access, .make_ring = [&](uint32_t) {
            auto ring = std::make_unique<ScriptedRing>();
            *rings.front() = ring.get();
            rings.erase(rings.begin());
            return ring;
          }});
  }

  void Make(const SnapshotSource::Options& options) {
    absl::StatusOr<std::unique_ptr<SnapshotSource>> source =
        SnapshotSource::Create(snapshot_.path(), snapshot_.extents(),
                               receiver_.sink(), options);
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
  }

  absl::Status Create(std::vector<SnapshotExtent> extents,
                      const SnapshotSource::Options& options = {}) {
    return SnapshotSource::Create(snapshot_.path(), std::move(extents),
                                  receiver_.sink(), options)
        .status();
  }

  absl::Status Ask(uint64_t page) {
    const PageIndex pages[] = {PageIndex(page)};
    return source_->RequestUrgent(pages);
  }
  absl::Status AskBulk(uint64_t first, uint64_t count) {
    return source_->RequestBulk(Pages(first, count));
  }

  const Snapshot snapshot_;
  Receiver receiver_{&snapshot_};
  ScriptedRing* urgent_ring_ = nullptr;
  ScriptedRing* bulk_ring_ = nullptr;
  std::unique_ptr<SnapshotSource> source_;
  std::string reason_;
};

// Where the extents begin.
constexpr uint64_t kLarge = 300;
constexpr uint64_t kOdd = kLarge + 6 * 512;

// Small pages that are data in the first extent: 0, 1, 6, 7, 12, 13, ...
constexpr uint64_t DataPage(uint64_t n) { return n / 2 * 6 + n % 2; }

TEST_F(SnapshotSourceTest, TheTestsKnowTheirSnapshot) {
  using Content = Snapshot::Content;
  EXPECT_EQ(snapshot_.extents()[1].pages.first, PageIndex(kLarge));
  EXPECT_EQ(snapshot_.extents()[2].pages.first, PageIndex(kOdd));
  EXPECT_EQ(Snapshot::ContentOf(Pages(DataPage(5), 1)), Content::kData);
  EXPECT_EQ(Snapshot::ContentOf(Pages(2, 1)), Content::kZeros);
  EXPECT_EQ(Snapshot::ContentOf(Pages(5, 1)), Content::kHole);
  EXPECT_EQ(snapshot_.extents()[3].file_offset % kPageSize, 0u);
  EXPECT_NE(snapshot_.extents()[2].file_offset % kPageSize, 0u);
}

// --- Content ---------------------------------------------------------------

class SnapshotContentTest : public SnapshotSourceTest,
                            public testing::WithParamInterface<SnapshotAccess> {
};

TEST_P(SnapshotContentTest, EveryPageByTheUrgentLane) {
  if (!Start(GetParam())) GTEST_SKIP() << reason_;
  uint64_t asked = 0;
  for (PageIndex at; at - PageIndex(0) < snapshot_.pages();) {
    const PageRun unit = snapshot_.UnitOf(at);
    ASSERT_TRUE(Ask(at.value()).ok());
    asked += unit.count.value();
    receiver_.AwaitUrgent(asked);
    at = unit.end();
  }
}

// The next bulk request from `at` on, of at most `most` small pages.
PageRun BulkRun(const Snapshot& snapshot, PageIndex at, uint64_t most) {
  const PageRun unit = snapshot.UnitOf(at);
  if (unit.count > PageCount(1)) return unit;
  const PageCount left = snapshot.ExtentOf(at).pages.end() - at;
  return {at, std::min(left, PageCount(most))};
}

TEST_P(SnapshotContentTest, EveryPageByTheBulkLane) {
  if (!Start(GetParam())) GTEST_SKIP() << reason_;
  uint64_t asked = 0;
  for (PageIndex at; at - PageIndex(0) < snapshot_.pages();) {
    const PageRun run = BulkRun(snapshot_, at, 64);
    ASSERT_TRUE(source_->RequestBulk(run).ok());
    asked += run.count.value();
    receiver_.AwaitBulk(asked);
    at = run.end();
  }
}

// Asks for random batches of pages, eight of them on top of one another.
void AskAtRandom(const Snapshot& snapshot, SnapshotSource* source,
                 Receiver* receiver, uint64_t seed, int rounds) {
  std::mt19937_64 random(seed);
  uint64_t asked = 0;
  for (int round = 0; round < rounds; ++round) {
    std::vector<PageIndex> batch;
    for (uint64_t i = random() % 64 + 1; i > 0; --i) {
      const PageRun unit =
          snapshot.UnitOf(PageIndex(random() % snapshot.pages().value()));
      if (std::count(batch.begin(), batch.end(), unit.first) > 0) continue;
      batch.push_back(unit.first);
      asked += unit.count.value();
    }
    ASSERT_TRUE(source->RequestUrgent(batch).ok());
    if (round % 8 == 7) receiver->AwaitUrgent(asked);
    if (::testing::Test::HasFailure()) return;
  }
  receiver->AwaitUrgent(asked);
}

void PullAtRandom(const Snapshot& snapshot, SnapshotSource* source,
                  Receiver* receiver, uint64_t seed, int rounds) {
  std::mt19937_64 random(seed);
  uint64_t asked = 0;
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < kMaxBulkOutstanding; ++i) {
      const PageIndex at =
          snapshot.UnitOf(PageIndex(random() % snapshot.pages().value())).first;
      const PageRun run = BulkRun(snapshot, at, random() % 64 + 1);
      ASSERT_TRUE(source->RequestBulk(run).ok());
      asked += run.count.value();
    }
    receiver->AwaitBulk(asked);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_P(SnapshotContentTest, BothLanesAtOnceAtRandom) {
  if (!Start(GetParam())) GTEST_SKIP() << reason_;
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::thread bulk([&] {
    PullAtRandom(snapshot_, source_.get(), &receiver_, seed + 1, 40);
  });
  AskAtRandom(snapshot_, source_.get(), &receiver_, seed, 40);
  bulk.join();
  source_->Stop();
  EXPECT_EQ(receiver_.failures(), 0u);
}

TEST_P(SnapshotContentTest, StopWithRequestsOutstanding) {
  if (!Start(GetParam())) GTEST_SKIP() << reason_;
  for (uint64_t i = 0; i < 6; ++i) ASSERT_TRUE(Ask(kLarge + i * 512).ok());
  for (uint64_t i = 0; i < 300; ++i) ASSERT_TRUE(Ask(i).ok());
  ASSERT_TRUE(AskBulk(0, 64).ok());
  ASSERT_TRUE(AskBulk(kLarge, 512).ok());
  source_->Stop();
  const uint64_t pages = receiver_.pages();
  EXPECT_EQ(Ask(0).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(AskBulk(0, 1).code(), absl::StatusCode::kUnavailable);
  source_->Stop();
  source_.reset();
  EXPECT_EQ(receiver_.pages(), pages);
  EXPECT_EQ(receiver_.failures(), 0u);
}

TEST_P(SnapshotContentTest, ATruncatedFileIsAFailureAndNoZeros) {
  if (!Start(GetParam())) GTEST_SKIP() << reason_;
  snapshot_.Truncate(kPageSize + DataPage(10) * kPageSize + 100);
  ASSERT_TRUE(Ask(DataPage(10)).ok());
  const absl::Status failure = receiver_.AwaitFailure();
  EXPECT_EQ(failure.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(failure.message().find(snapshot_.path()), std::string::npos);
  EXPECT_NE(failure.message().find(absl::StrCat("byte ", 31 * kPageSize + 100)),
            std::string::npos)
      << failure;
  EXPECT_EQ(Ask(0), failure);
  EXPECT_EQ(AskBulk(0, 1), failure);
  source_->Stop();
  EXPECT_EQ(receiver_.pages(), 0u);
  EXPECT_EQ(receiver_.failures(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Access, SnapshotContentTest,
                         testing::Values(SnapshotAccess::kBuffered,
                                         SnapshotAccess::kDirect),
                         [](const auto& info) {
                           return info.param == SnapshotAccess::kDirect
                                      ? "Direct"
                                      : "Buffered";
                         });

// --- Answers ---------------------------------------------------------------

TEST_F(SnapshotSourceTest, HolesAreAnsweredWithoutARead) {
  StartScripted();
  ASSERT_TRUE(Ask(4).ok());
  receiver_.AwaitUrgent(1);
  // If nothing was read, the disk knows of holes.
  if (urgent_ring_->reads() > 0) GTEST_SKIP() << "no holes on this disk";
  ASSERT_TRUE(AskBulk(4, 2).ok());
  receiver_.AwaitBulk(2);
  EXPECT_EQ(bulk_ring_->reads(), 0u);
}

TEST_F(SnapshotSourceTest, ABulkAnswerIsWholeAndItsRunsAreLong) {
  StartScripted();
  ASSERT_TRUE(AskBulk(1, 7).ok());
  receiver_.AwaitBulk(7);
  ASSERT_EQ(receiver_.bulk().size(), 1u);
  const std::vector<std::pair<PageRun, bool>> expected = {
      {Pages(1, 1), false}, {Pages(2, 4), true}, {Pages(6, 2), false}};
  EXPECT_EQ(receiver_.bulk()[0], expected);
}

TEST_F(SnapshotSourceTest, EachBulkRequestHasAnAnswerOfItsOwn) {
  StartScripted();
  bulk_ring_->Hold();
  ASSERT_TRUE(AskBulk(0, 2).ok());
  ASSERT_TRUE(AskBulk(2, 2).ok());
  bulk_ring_->AwaitUnderWay(2);
  bulk_ring_->Release();
  receiver_.AwaitBulk(4);
  EXPECT_EQ(receiver_.bulk().size(), 2u);
}

TEST_F(SnapshotSourceTest, AFaultDoesNotWaitForAnother) {
  StartScripted();
  urgent_ring_->SetScript(
      [](int fd, uint64_t offset, absl::Span<uint8_t> into) {
        // Page 1 goes on needing to be tried again while page 0 is answered.
        if (offset == 2 * kPageSize) return -EAGAIN;
        return ScriptedRing::PlainRead(fd, offset, into);
      });
  const PageIndex pages[] = {PageIndex(1), PageIndex(0)};
  receiver_.OnDelivery([this](bool) {
    urgent_ring_->SetScript(ScriptedRing::PlainRead);
    return absl::OkStatus();
  });
  ASSERT_TRUE(source_->RequestUrgent(pages).ok());
  receiver_.AwaitUrgent(2);
}

TEST_F(SnapshotSourceTest, AnAnswerHasRoomForRequestsItCauses) {
  StartScripted();
  urgent_ring_->Hold();
  absl::Status status;
  receiver_.OnDelivery([&](bool urgent) {
    // As many again as this answer had, as the fault loop might ask for.
    for (uint64_t i = 0; urgent && status.ok() && i < kMaxUrgentPages; ++i) {
      status = Ask(DataPage(i));
    }
    receiver_.OnDelivery(nullptr);
    return absl::OkStatus();
  });
  for (size_t i = 0; i < kMaxOutstandingFaults; ++i) {
    ASSERT_TRUE(Ask(DataPage(i % 100)).ok());
  }
  // So that the first answer is full.
  urgent_ring_->AwaitUnderWay(kUrgentSmallReads);
  urgent_ring_->Release();
  receiver_.AwaitUrgent(kMaxOutstandingFaults + kMaxUrgentPages);
  EXPECT_TRUE(status.ok()) << status;
}

// --- Limits ----------------------------------------------------------------

TEST_F(SnapshotSourceTest, TakesOutstandingFaultsUpToTheLimit) {
  StartScripted();
  urgent_ring_->Hold();
  std::vector<PageIndex> batch;
  for (uint64_t i = 0; i < kMaxUrgentPages; ++i) {
    batch.push_back(PageIndex(DataPage(i)));
  }
  for (size_t i = 0; i < kMaxOutstandingFaults / kMaxUrgentPages - 1; ++i) {
    ASSERT_TRUE(source_->RequestUrgent(batch).ok());
  }
  ASSERT_TRUE(Ask(0).ok());
  // 63 fit, 64 do not; then none of them is taken.
  EXPECT_EQ(source_->RequestUrgent(batch).code(),
            absl::StatusCode::kResourceExhausted);
  batch.pop_back();
  ASSERT_TRUE(source_->RequestUrgent(batch).ok());
  EXPECT_EQ(Ask(0).code(), absl::StatusCode::kResourceExhausted);
  urgent_ring_->AwaitUnderWay(kUrgentSmallReads);
  urgent_ring_->Release();
  receiver_.AwaitUrgent(kMaxOutstandingFaults);
  ASSERT_TRUE(Ask(0).ok());
  receiver_.AwaitUrgent(kMaxOutstandingFaults + 1);
}

TEST_F(SnapshotSourceTest, TakesBulkRequestsUpToTheLimit) {
  StartScripted();
  bulk_ring_->Hold();
  for (size_t i = 0; i < kMaxBulkOutstanding; ++i) {
    ASSERT_TRUE(AskBulk(0, 64).ok());
  }
  EXPECT_EQ(AskBulk(0, 64).code(), absl::StatusCode::kResourceExhausted);
  bulk_ring_->Release();
  receiver_.AwaitBulk(64 * kMaxBulkOutstanding);
  ASSERT_TRUE(AskBulk(0, 1).ok());
  receiver_.AwaitBulk(64 * kMaxBulkOutstanding + 1);
}

TEST_F(SnapshotSourceTest, LargeReadsWaitForABufferAndSmallOnesDoNot) {
  StartScripted();
  urgent_ring_->Hold();
  for (uint64_t i = 0; i < uint64_t{2} * kUrgentLargeReads; ++i) {
    ASSERT_TRUE(Ask(kLarge).ok());
  }
  urgent_ring_->AwaitUnderWay(kUrgentLargeReads);
  ASSERT_TRUE(Ask(0).ok());
  urgent_ring_->AwaitUnderWay(kUrgentLargeReads + 1);
  urgent_ring_->Release();
  receiver_.AwaitUrgent(uint64_t{2} * kUrgentLargeReads * 512 + 1);
}

TEST_F(SnapshotSourceTest, RefusesRequestsThatAreNone) {
  StartScripted();
  const uint64_t end = snapshot_.pages().value();
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kOutside = absl::StatusCode::kOutOfRange;
  EXPECT_EQ(source_->RequestUrgent({}).code(), kInvalid);
  const std::vector<PageIndex> many(kMaxUrgentPages + 1);
  EXPECT_EQ(source_->RequestUrgent(many).code(), kInvalid);
  EXPECT_EQ(Ask(end).code(), kOutside);
  EXPECT_EQ(Ask(UINT64_MAX).code(), kOutside);
  EXPECT_EQ(Ask(kLarge + 1).code(), kInvalid);
  EXPECT_TRUE(Ask(end - 1).ok());

  EXPECT_EQ(AskBulk(0, 0).code(), kInvalid);
  EXPECT_EQ(AskBulk(0, 65).code(), kInvalid);
  EXPECT_EQ(AskBulk(299, 2).code(), kInvalid);
  EXPECT_EQ(AskBulk(kLarge, 1).code(), kInvalid);
  EXPECT_EQ(AskBulk(kLarge, 511).code(), kInvalid);
  EXPECT_EQ(AskBulk(kLarge, 513).code(), kInvalid);
  EXPECT_EQ(AskBulk(kLarge + 1, 512).code(), kInvalid);
  EXPECT_EQ(AskBulk(end, 1).code(), kOutside);
  EXPECT_EQ(AskBulk(end - 1, 2).code(), kInvalid);
  EXPECT_EQ(AskBulk(end - 1, UINT64_MAX).code(), kInvalid);
  EXPECT_TRUE(AskBulk(end - 1, 1).ok());
  receiver_.AwaitUrgent(1);
  receiver_.AwaitBulk(1);
}

// --- What the kernel may say -----------------------------------------------

TEST_F(SnapshotSourceTest, ShortReadsAreContinued) {
  StartScripted();
  const auto shortened = [](int fd, uint64_t offset, absl::Span<uint8_t> into) {
    const size_t some = std::min<size_t>(into.size(), 1000 + offset % 7);
    return ScriptedRing::PlainRead(fd, offset, into.subspan(0, some));
  };
  urgent_ring_->SetScript(shortened);
  bulk_ring_->SetScript(shortened);
  ASSERT_TRUE(Ask(0).ok());
  ASSERT_TRUE(Ask(kOdd).ok());
  ASSERT_TRUE(Ask(kOdd + 5).ok());
  ASSERT_TRUE(AskBulk(0, 64).ok());
  receiver_.AwaitUrgent(3);
  receiver_.AwaitBulk(64);
}

TEST_F(SnapshotSourceTest, WhatDirectAccessRefusesIsReadThroughThePageCache) {
  StartScripted(SnapshotAccess::kDirect);
  int refused = 0;
  urgent_ring_->SetScript(
      [&](int fd, uint64_t offset, absl::Span<uint8_t> into) -> int32_t {
        if (::fcntl(fd, F_GETFL) & O_DIRECT) {
          ++refused;
          return -EINVAL;
        }
        return ScriptedRing::PlainRead(fd, offset, into);
      });
  // The second is at an odd place: not even tried.
  ASSERT_TRUE(Ask(0).ok());
  receiver_.AwaitUrgent(1);
  ASSERT_TRUE(Ask(kOdd).ok());
  receiver_.AwaitUrgent(2);
  source_->Stop();
  EXPECT_LE(refused, 1);
}

TEST_F(SnapshotSourceTest, TriesAgainUpToTheLimit) {
  for (const int error : {EAGAIN, EINTR}) {
    StartScripted();
    int left = kMaxReadRetries;
    urgent_ring_->SetScript([&](int fd, uint64_t offset,
                                absl::Span<uint8_t> into) -> int32_t {
      return left-- > 0 ? -error : ScriptedRing::PlainRead(fd, offset, into);
    });
    ASSERT_TRUE(Ask(0).ok());
    receiver_.AwaitUrgent(error == EAGAIN ? 1 : 2);
  }
  urgent_ring_->SetScript([](auto...) -> int32_t { return -EAGAIN; });
  ASSERT_TRUE(Ask(0).ok());
  EXPECT_EQ(receiver_.AwaitFailure().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(urgent_ring_->reads(), 2u * (kMaxReadRetries + 1));
}

TEST_F(SnapshotSourceTest, AReadErrorEndsTheSourceOnce) {
  StartScripted();
  urgent_ring_->Hold();
  bulk_ring_->Hold();
  const auto fails = [](auto...) -> int32_t { return -EIO; };
  urgent_ring_->SetScript(fails);
  bulk_ring_->SetScript(fails);
  for (uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(Ask(DataPage(i)).ok());
  ASSERT_TRUE(AskBulk(0, 64).ok());
  urgent_ring_->AwaitUnderWay(10);
  bulk_ring_->AwaitUnderWay(1);
  urgent_ring_->Release();
  bulk_ring_->Release();
  const absl::Status failure = receiver_.AwaitFailure();
  EXPECT_EQ(failure.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(failure.message().find("Input/output error"), std::string::npos);
  EXPECT_NE(failure.message().find(snapshot_.path()), std::string::npos);
  source_->Stop();
  EXPECT_EQ(receiver_.failures(), 1u);
  EXPECT_EQ(receiver_.pages(), 0u);
  EXPECT_EQ(Ask(0), failure);
  EXPECT_EQ(AskBulk(0, 1), failure);
}

// Pages of two files would be a VM that never was.
TEST_P(SnapshotContentTest, AFileRewrittenInPlaceIsAFailure) {
  snapshot_.SetLongAgo();
  if (!Start(GetParam())) GTEST_SKIP() << reason_;
  ASSERT_TRUE(Ask(DataPage(1)).ok());
  receiver_.AwaitUrgent(1);
  snapshot_.Rewrite();
  ASSERT_TRUE(Ask(DataPage(10)).ok());
  const absl::Status failure = receiver_.AwaitFailure();
  EXPECT_EQ(failure.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(failure.message().find(snapshot_.path() + " has been written to"),
            std::string::npos)
      << failure;
  source_->Stop();
  EXPECT_EQ(receiver_.pages(), 1u);
}

TEST_F(SnapshotSourceTest, ATruncatedHoleIsAFailure) {
  StartScripted();
  snapshot_.Truncate(kPageSize + 4 * kPageSize);
  ASSERT_TRUE(AskBulk(4, 1).ok());
  const absl::Status failure = receiver_.AwaitFailure();
  EXPECT_EQ(failure.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(failure.message().find("truncated"), std::string::npos);
  source_->Stop();
  EXPECT_EQ(receiver_.pages(), 0u);
}

TEST_F(SnapshotSourceTest, ABrokenRingIsAFailure) {
  StartScripted();
  bulk_ring_->Break();
  EXPECT_EQ(receiver_.AwaitFailure().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Ask(0).code(), absl::StatusCode::kInternal);
}

TEST_F(SnapshotSourceTest, WhatTheSinkReturnsEndsTheSource) {
  StartScripted();
  receiver_.OnDelivery([](bool) { return absl::AbortedError("no VMM"); });
  ASSERT_TRUE(AskBulk(0, 1).ok());
  EXPECT_EQ(receiver_.AwaitFailure(), absl::AbortedError("no VMM"));
  EXPECT_EQ(Ask(0), absl::AbortedError("no VMM"));
}

TEST_F(SnapshotSourceTest, StopWaitsForReadsAndDropsThem) {
  StartScripted();
  urgent_ring_->Hold();
  bulk_ring_->Hold();
  ASSERT_TRUE(Ask(0).ok());
  ASSERT_TRUE(AskBulk(0, 64).ok());
  urgent_ring_->AwaitUnderWay(1);
  bulk_ring_->AwaitUnderWay(1);
  std::thread stopper([this] { source_->Stop(); });
  std::thread other([this] { source_->Stop(); });
  while (AskBulk(0, 1).code() != absl::StatusCode::kUnavailable) {
    std::this_thread::yield();
  }
  urgent_ring_->Release();
  bulk_ring_->Release();
  stopper.join();
  other.join();
  EXPECT_EQ(receiver_.pages(), 0u);
  EXPECT_EQ(receiver_.failures(), 0u);
}

// --- Create ----------------------------------------------------------------

TEST_F(SnapshotSourceTest, CreateNeedsExtentsThatFit) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto bad = [&](SnapshotExtent extent) {
    return Create({extent}).code() == kInvalid;
  };
  EXPECT_EQ(Create({}).code(), kInvalid);
  EXPECT_TRUE(bad({Pages(1, 1), 0}));
  EXPECT_TRUE(bad({Pages(0, 0), 0}));
  EXPECT_TRUE(bad({Pages(0, 1), 0, ByteCount(8192)}));
  EXPECT_TRUE(bad({Pages(0, 511), 0, kLargePageBytes}));
  EXPECT_TRUE(bad({Pages(0, UINT64_MAX), 0}));
  EXPECT_TRUE(bad({Pages(0, INT64_MAX / kPageSize), 0}));
  EXPECT_TRUE(bad({Pages(0, 1), UINT64_MAX}));
  const SnapshotExtent& last = snapshot_.extents().back();
  const uint64_t end = last.file_offset + BytesIn(last.pages.count).value();
  EXPECT_TRUE(bad({Pages(0, 1), end - kPageSize + 1}));
  EXPECT_TRUE(bad({Pages(0, 2), end - kPageSize}));
  EXPECT_EQ(Create({{Pages(0, 1), 0}, {Pages(2, 1), 0}}).code(), kInvalid);
  EXPECT_EQ(Create({{Pages(0, 2), 0}, {Pages(1, 1), 0}}).code(), kInvalid);
  EXPECT_NE(
      Create({{Pages(0, 1), 0}, {Pages(2, 1), 0}}).message().find("extent 1"),
      std::string::npos);
}

TEST_F(SnapshotSourceTest, CreateTakesExtentsUpToTheLimit) {
  const SnapshotSource::Options scripted = {
      .make_ring = [](uint32_t) { return std::make_unique<ScriptedRing>(); }};
  std::vector<SnapshotExtent> extents;
  for (uint64_t i = 0; i < kMaxSnapshotExtents; ++i) {
    extents.push_back({Pages(i, 1), 5});
  }
  const absl::Status status = Create(extents, scripted);
  EXPECT_TRUE(status.ok()) << status;
  extents.push_back({Pages(kMaxSnapshotExtents, 1), 5});
  EXPECT_EQ(Create(extents, scripted).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SnapshotSourceTest, CreateReportsWhatItCannotOpen) {
  const absl::Status status =
      SnapshotSource::Create("/nonexistent", snapshot_.extents(),
                             receiver_.sink(), {})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find("/nonexistent"), std::string::npos);
}

TEST_F(SnapshotSourceTest, CreateReportsARingItCannotMake) {
  for (int working = 0; working < 2; ++working) {
    int left = working;
    const absl::Status status =
        Create(snapshot_.extents(),
               {.make_ring =
                    [&](uint32_t) -> absl::StatusOr<std::unique_ptr<ReadRing>> {
                 if (left-- == 0) return IoUringError(EPERM);
                 return std::make_unique<ScriptedRing>();
               }});
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace postcopy
