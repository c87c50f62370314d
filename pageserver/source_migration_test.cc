#include "pageserver/source_migration.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/migration_phase.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/run_compression.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/simulated_dirty_source.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr int64_t kHour = 3600 * kNanosPerSecond;
constexpr char kDeviceState[] = "what the devices remember";

// What the test knows of the dirty source, which dies when it is not needed.
struct DirtyState {
  explicit DirtyState(PageCount pages) : simulated(pages) {}

  SimulatedDirtySource simulated;
  // What was handed back.
  std::set<uint64_t> restored;
  std::atomic<bool> released{false};
};

class RecordingSource final : public DirtySource {
 public:
  explicit RecordingSource(std::shared_ptr<DirtyState> state)
      : state_(std::move(state)) {}
  ~RecordingSource() override { state_->released = true; }

  absl::Status Start() override { return state_->simulated.Start(); }
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override {
    return state_->simulated.Collect(into);
  }
  absl::Status Clear(PageBitmapView pages, PageRun run) override {
    return state_->simulated.Clear(pages, run);
  }
  absl::Status Restore(PageBitmapView unsent) override {
    for (uint64_t page = 0; page < unsent.pages().value(); ++page) {
      if (unsent.Test(PageIndex(page))) state_->restored.insert(page);
    }
    return state_->simulated.Restore(unsent);
  }
  absl::Status Stop() override { return state_->simulated.Stop(); }

 private:
  const std::shared_ptr<DirtyState> state_;
};

// What the source has asked of the VMM.
struct FakeVmm {
  std::atomic<int> pauses{0};
  std::atomic<int> resumes{0};
  std::atomic<bool> running{true};
  std::atomic<int> ended_well{0};
  std::atomic<int> ended_badly{0};
  std::function<void()> on_pause;
  std::function<void()> on_save;
  absl::Status pause_status;
  absl::Status save_status;
  absl::Status resume_status;

  SourceGuest AsGuest() {
    return {.pause =
                [this] {
                  ++pauses;
                  running = false;
                  if (on_pause) on_pause();
                  return pause_status;
                },
            .save_device_state = [this]() -> absl::StatusOr<std::string> {
              if (on_save) on_save();
              if (!save_status.ok()) return save_status;
              return std::string(kDeviceState);
            },
            .resume =
                [this] {
                  ++resumes;
                  running = resume_status.ok();
                  return resume_status;
                },
            .ended =
                [this](bool completed) {
                  ++(completed ? ended_well : ended_badly);
                }};
  }
};

// The calls of a BulkLane.
enum class Call {
  kPages,
  kRoundEnd,
  kStale,
  kEarlyDiscard,
  kSwitchOver,
  kCommit,
  kRecentlyDirtied,
  kReceive
};

enum class Fault {
  kNone,
  // The stream breaks; what was on its way is lost.
  kLost,
  // The stream breaks behind the call, which has done its work.
  kArrived,
  // The call blocks until the stream is aborted.
  kSilent,
};

std::ostream& operator<<(std::ostream& out, Fault fault) {
  constexpr const char* kNames[] = {"none", "lost", "arrived", "silent"};
  return out << kNames[static_cast<int>(fault)];
}

struct Config {
  MigrationPolicy policy = MigrationPolicy::kPrecopyThenPostcopy;
  // The switch-over is requested when this round is acknowledged.
  uint32_t rounds = 2;
  int64_t reconnect_nanos = 0;
  bool request_switch_over = true;
  SessionWishes wishes;
  bool compress = false;
  bool by_itself = false;
  int64_t deadline_nanos_per_gib = 0;
  // Asked before each call, with its number from 0.
  std::function<Fault(Call call, int number)> fault;
};

class Harness;

// A stream to the destination of a Harness.
class FakeLane final : public BulkLane {
 public:
  explicit FakeLane(Harness* harness) : harness_(harness) {}

  absl::Status SendPages(PageBatch& batch) override;
  absl::Status SendRoundEnd(uint32_t round) override;
  absl::Status SendStale(PageBitmapView stale) override;
  absl::Status SendEarlyDiscard(uint32_t round) override;
  absl::Status SendSwitchOver(PageCount stale,
                              absl::string_view device_state) override;
  absl::Status SendCommit() override;
  absl::Status SendRecentlyDirtied(absl::Span<const PageRun> runs) override;
  absl::StatusOr<BulkMessage> Receive() override;

  void Abort() override {
    std::lock_guard lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }

  // ServeBulk has returned `status`.
  void Return(absl::Status status) {
    std::lock_guard lock(mutex_);
    returned_ = std::move(status);
    changed_.notify_all();
  }
  // Blocks until the stream has broken or fallen silent, or ServeBulk has
  // returned.
  void AwaitEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(
        lock, [this] { return broken_ || silent_ || returned_.has_value(); });
  }
  absl::Status AwaitReturn() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return returned_.has_value(); });
    return *returned_;
  }
  bool silent() {
    std::lock_guard lock(mutex_);
    return silent_;
  }
  bool AwaitAbort(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, time, [this] { return aborted_; });
  }

 private:
  absl::Status Do(Call call, const std::function<void()>& action);
  void Break() {
    std::lock_guard lock(mutex_);
    broken_ = true;
    changed_.notify_all();
  }

  Harness* const harness_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool broken_ = false;
  bool silent_ = false;
  bool aborted_ = false;
  std::optional<absl::Status> returned_;
};

// A migration, its guest, and a destination that follows the protocol over as
// many sessions as it takes. What the lane calls runs on the driver's thread;
// members are read by the test when that is known to wait or to have ended.
class Harness {
 public:
  static constexpr uint64_t kPages = 256;
  static constexpr uint64_t kDataPages = 200;

  explicit Harness(Config config)
      : config_(std::move(config)), guest_({150, 106}) {
    for (uint64_t page = 0; page < kDataPages; ++page) SetPage(page);
    SourceOptions options;
    options.policy = config_.policy;
    options.compress = config_.compress;
    options.switch_by_itself = config_.by_itself;
    options.deadline_nanos_per_gib = config_.deadline_nanos_per_gib;
    options.reconnect_nanos = config_.reconnect_nanos;
    // The clock stands still, so a round follows only when the destination
    // moves it (or a switch-over is requested): calls come in a fixed order.
    options.round_nanos_min = kHour;
    absl::StatusOr<std::unique_ptr<SourceMigration>> migration =
        SourceMigration::Create(guest_.OpenMemory(),
                                std::make_unique<RecordingSource>(dirty_),
                                vmm_.AsGuest(), options, &clock_);
    EXPECT_TRUE(migration.ok()) << migration.status();
    migration_ = *std::move(migration);
  }

  ~Harness() { Join(); }

  SourceMigration& migration() { return *migration_; }
  // Of all pages that a lane was given.
  ByteCount on_wire() const { return on_wire_; }
  ByteCount page_bytes() const { return page_bytes_; }
  SourceSnapshot snapshot() const { return migration_->Snapshot(); }
  SourcePhase phase() const { return snapshot().phase; }
  FakeVmm& vmm() { return vmm_; }
  DirtyState& dirty() { return *dirty_; }
  TestGuest& guest() { return guest_; }
  SimulatedClock& clock() { return clock_; }

  // The driver's side, by FakeLane.
  Fault Decide(Call call) {
    const int number = calls_++;
    GuestWrites(call);
    const Fault fault =
        config_.fault ? config_.fault(call, number) : Fault::kNone;
    if (fault != Fault::kNone) {
      faulted_ = true;
      fault_phase_ = phase();
    }
    return fault;
  }
  void Lose() { in_flight_.clear(); }
  void HangUp() { outbox_.clear(); }
  void Arrive() {
    for (const auto& [page, value] : in_flight_) stored_[page] = value;
    in_flight_.clear();
  }
  void OnPages(const PageBatch& batch);
  void OnRoundEnd(uint32_t round);
  void OnStale(PageBitmapView stale);
  void OnEarlyDiscard(uint32_t round);
  void OnSwitchOver(PageCount stale, absl::string_view device_state);
  void OnCommit();
  void OnRecentlyDirtied(absl::Span<const PageRun> runs);
  absl::StatusOr<BulkMessage> Next();

  // Opens the session of the next epoch and serves it on a thread.
  absl::StatusOr<FakeLane*> Serve() {
    absl::StatusOr<SessionKey> key =
        migration_->OpenSession(++epoch_, guest_.layout(), config_.wishes);
    if (!key.ok()) return key.status();
    return ServeKey(*key);
  }
  FakeLane* ServeKey(SessionKey key) {
    key_ = key;
    FakeLane* lane =
        lanes_.emplace_back(std::make_unique<FakeLane>(this)).get();
    threads_.emplace_back(
        [this, key, lane] { lane->Return(migration_->ServeBulk(key, lane)); });
    return lane;
  }

  // Runs up to `sessions_max` sessions, a new one whenever one breaks, until
  // the migration has ended.
  void Run(int sessions_max = 1) {
    for (int i = 0; i < sessions_max && !finished_; ++i) {
      absl::StatusOr<FakeLane*> lane = Serve();
      if (!lane.ok()) {
        EXPECT_EQ(lane.status().code(), StatusCode::kAborted) << lane.status();
        break;
      }
      (*lane)->AwaitEnd();
      if ((*lane)->silent() && fault_phase_ == SourcePhase::kSwitching) {
        AdvanceUntilAborted(*lane);
      }
    }
    Join();
  }

  // Serves one session until the destination waits for its first message
  // after the commit.
  FakeLane* RunToPostcopy() {
    config_.fault = [this](Call call, int) {
      return migration_->committed() && call == Call::kReceive ? Fault::kSilent
                                                               : Fault::kNone;
    };
    return RunToSilence();
  }
  // Serves one session until the fault, which must be kSilent.
  FakeLane* RunToSilence() {
    absl::StatusOr<FakeLane*> lane = Serve();
    EXPECT_TRUE(lane.ok()) << lane.status();
    (*lane)->AwaitEnd();
    EXPECT_TRUE((*lane)->silent());
    return *lane;
  }
  void set_fault(std::function<Fault(Call, int)> fault) {
    config_.fault = std::move(fault);
  }
  // What the destination says instead of the next thing due.
  void Say(BulkMessage message) { said_ = message; }

  void AdvanceUntilAborted(FakeLane* lane) {
    do {
      clock_.Advance(kNanosPerSecond);
    } while (!lane->AwaitAbort(std::chrono::milliseconds(1)));
  }

  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    if (switcher_.joinable()) switcher_.join();
  }

  SessionKey key() const { return key_; }
  FakeLane* lane() const { return lanes_.back().get(); }
  bool faulted() const { return faulted_; }
  SourcePhase fault_phase() const { return fault_phase_; }
  bool finished() const { return finished_; }
  const std::set<uint64_t>& stale() const { return stale_; }
  const std::vector<PageRun>& dirtied() const { return dirtied_; }
  absl::Status switch_status() const { return switch_status_; }
  void DamageRound(uint32_t round) { damaged_round_ = round; }
  // That one and all that follow.
  void DamageFrom(uint32_t round) {
    damaged_round_ = round;
    damage_goes_on_ = true;
  }
  // A write that the dirty source reports, by whoever.
  void Write(uint64_t page) {
    SetPage(page);
    dirty_->simulated.Mark(PageIndex(page));
    not_collected_.insert(page);
  }

  // The pages that the destination has not, or has in an old version.
  std::set<uint64_t> Lacking() const {
    std::set<uint64_t> lacking;
    for (uint64_t page = 0; page < kPages; ++page) {
      const auto stored = stored_.find(page);
      if (stored == stored_.end() || stored->second != current_[page]) {
        lacking.insert(page);
      }
    }
    return lacking;
  }

  void ExpectCompleted() {
    EXPECT_TRUE(finished_);
    EXPECT_EQ(phase(), SourcePhase::kCompleted) << snapshot().message;
    EXPECT_EQ(Lacking(), std::set<uint64_t>());
    EXPECT_EQ(device_state_, kDeviceState);
    EXPECT_EQ(vmm_.pauses, 1);
    EXPECT_EQ(vmm_.resumes, 0);
    EXPECT_EQ(vmm_.ended_well, 1);
    EXPECT_EQ(vmm_.ended_badly, 0);
    EXPECT_TRUE(switch_status_.ok()) << switch_status_;
    EXPECT_TRUE(dirty_->released) << "tracking outlives its purpose";
  }

  // The guest goes on at the source as if nothing had been.
  void ExpectUndone(SourcePhase phase) {
    EXPECT_EQ(this->phase(), phase) << snapshot().message;
    EXPECT_FALSE(migration_->committed());
    EXPECT_TRUE(vmm_.running);
    EXPECT_EQ(vmm_.resumes, vmm_.pauses);
    EXPECT_EQ(vmm_.ended_well, 0);
    EXPECT_EQ(vmm_.ended_badly, 1);
    EXPECT_FALSE(dirty_->simulated.started());
    EXPECT_TRUE(dirty_->released) << "tracking outlives its purpose";
    if (!tracked_) return;
    for (uint64_t page : Lacking()) {
      EXPECT_TRUE(dirty_->restored.contains(page) ||
                  not_collected_.contains(page))
          << "page " << page << " is forgotten";
    }
  }

 private:
  void SetPage(uint64_t page) {
    guest_.Write(page, ++version_);
    current_[page] = version_;
  }
  // The guest runs between the calls, here and there.
  void GuestWrites(Call call) {
    if (!vmm_.running) return;
    tracked_ = dirty_->simulated.started();
    if (dirty_->simulated.Pending().empty()) not_collected_.clear();
    if (call == Call::kRoundEnd) {
      Write(static_cast<uint64_t>(calls_) * 37 % kPages);
    }
  }

  Config config_;
  TestGuest guest_;
  ByteCount on_wire_;
  ByteCount page_bytes_;
  SimulatedClock clock_;
  FakeVmm vmm_;
  const std::shared_ptr<DirtyState> dirty_ =
      std::make_shared<DirtyState>(PageCount(kPages));
  std::unique_ptr<SourceMigration> migration_;
  uint64_t epoch_ = 0;
  SessionKey key_;
  std::vector<std::unique_ptr<FakeLane>> lanes_;
  std::vector<std::thread> threads_;
  std::thread switcher_;
  absl::Status switch_status_;

  // What the guest has written.
  std::vector<uint64_t> current_ = std::vector<uint64_t>(kPages, 0);
  uint64_t version_ = 0;
  std::set<uint64_t> not_collected_;
  bool tracked_ = false;

  // The destination.
  int calls_ = 0;
  bool faulted_ = false;
  SourcePhase fault_phase_ = SourcePhase::kPreparing;
  std::map<uint64_t, uint64_t> in_flight_;
  std::map<uint64_t, uint64_t> stored_;
  std::set<uint64_t> stale_;
  std::set<uint64_t> missing_;
  std::vector<PageRun> dirtied_;
  std::string device_state_;
  std::deque<BulkMessage> outbox_;
  std::optional<BulkMessage> said_;
  std::optional<uint32_t> damaged_round_;
  bool damage_goes_on_ = false;
  std::atomic<bool> finished_{false};
};

absl::Status FakeLane::Do(Call call, const std::function<void()>& action) {
  {
    std::lock_guard lock(mutex_);
    if (broken_) return absl::UnavailableError("broken before");
    if (aborted_) return absl::CancelledError("aborted");
  }
  const Fault fault = harness_->Decide(call);
  if (fault == Fault::kLost || fault == Fault::kSilent) {
    harness_->Lose();
    harness_->HangUp();
  }
  if (fault == Fault::kSilent) {
    std::unique_lock lock(mutex_);
    silent_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return aborted_; });
    return absl::CancelledError("aborted");
  }
  if (fault == Fault::kLost) {
    Break();
    return absl::UnavailableError("injected");
  }
  action();
  if (fault == Fault::kArrived) {
    harness_->Arrive();
    harness_->HangUp();
    Break();
    return absl::UnavailableError("injected");
  }
  return absl::OkStatus();
}

absl::Status FakeLane::SendPages(PageBatch& batch) {
  return Do(Call::kPages, [&] { harness_->OnPages(batch); });
}
absl::Status FakeLane::SendRoundEnd(uint32_t round) {
  return Do(Call::kRoundEnd, [&] { harness_->OnRoundEnd(round); });
}
absl::Status FakeLane::SendStale(PageBitmapView stale) {
  return Do(Call::kStale, [&] { harness_->OnStale(stale); });
}
absl::Status FakeLane::SendEarlyDiscard(uint32_t round) {
  return Do(Call::kEarlyDiscard, [&] { harness_->OnEarlyDiscard(round); });
}
absl::Status FakeLane::SendSwitchOver(PageCount stale,
                                      absl::string_view device_state) {
  return Do(Call::kSwitchOver,
            [&] { harness_->OnSwitchOver(stale, device_state); });
}
absl::Status FakeLane::SendCommit() {
  return Do(Call::kCommit, [&] { harness_->OnCommit(); });
}
absl::Status FakeLane::SendRecentlyDirtied(absl::Span<const PageRun> runs) {
  return Do(Call::kRecentlyDirtied, [&] { harness_->OnRecentlyDirtied(runs); });
}
absl::StatusOr<BulkMessage> FakeLane::Receive() {
  absl::StatusOr<BulkMessage> message = absl::UnknownError("");
  absl::Status status = Do(Call::kReceive, [&] { message = harness_->Next(); });
  if (!status.ok()) return status;
  return message;
}

void Harness::OnPages(const PageBatch& batch) {
  RunDecompressor decompressor;
  for (PageBatch::Run run : batch.runs()) {
    on_wire_ += ByteCount(run.data.size());
    if (run.compressed) {
      EXPECT_TRUE(config_.wishes.compressed_runs) << "not asked for";
      const auto content = decompressor.Decompress(
          {reinterpret_cast<const uint8_t*>(run.data.data()), run.data.size()},
          run.pages.count.value());
      ASSERT_TRUE(content.ok()) << content.status();
      run.data.assign(content->begin(), content->end());
    }
    page_bytes_ += ByteCount(run.data.size());
    EXPECT_EQ(run.crc32c,
              RunChecksum(run.pages,
                          {reinterpret_cast<const uint8_t*>(run.data.data()),
                           run.data.size()}));
    for (uint64_t i = 0; i < run.pages.count.value(); ++i) {
      const std::string bytes = PageInRun(run.data, i);
      uint64_t value = 0;
      std::memcpy(&value, bytes.data(), sizeof(value));
      EXPECT_TRUE(bytes == PageOfValue(value));
      const uint64_t page = run.pages.first.value() + i;
      if (!migration_->committed()) {
        in_flight_[page] = value;
      } else {
        stored_[page] = value;
        EXPECT_EQ(missing_.erase(page), 1u) << page << " was not asked for";
      }
    }
  }
  // The guest writes to a page that has just been read.
  if (vmm_.running) Write(batch.runs()[0].pages.first.value());
}

void Harness::OnRoundEnd(uint32_t round) {
  if (damaged_round_ == round) {
    damaged_round_.reset();
    if (damage_goes_on_) damaged_round_ = round + 1;
    Lose();
    outbox_.push_back(RoundAck{round, 3});
    return;
  }
  Arrive();
  outbox_.push_back(RoundAck{round, 0});
}

void Harness::OnStale(PageBitmapView stale) {
  stale_.clear();
  for (uint64_t page = 0; page < kPages; ++page) {
    if (stale.Test(PageIndex(page))) stale_.insert(page);
  }
}

// What is discarded here must come again, or be in the last stale set.
void Harness::OnEarlyDiscard(uint32_t round) {
  EXPECT_TRUE(vmm_.running) << "a discard that the guest waits for";
  Arrive();
  for (uint64_t page : stale_) stored_.erase(page);
  stale_.clear();
  outbox_.push_back(RoundAck{round, 0});
}

void Harness::OnSwitchOver(PageCount stale, absl::string_view device_state) {
  EXPECT_FALSE(vmm_.running) << "the stale set of a running guest";
  Arrive();
  EXPECT_EQ(stale, PageCount(stale_.size()));
  device_state_ = std::string(device_state);
  const std::set<uint64_t> lacking = Lacking();
  for (uint64_t page : lacking) {
    EXPECT_TRUE(stale_.contains(page)) << page << " is old and not stale";
  }
  // After a break what may have arrived counts as stale.
  if (!faulted_) {
    EXPECT_EQ(stale_, lacking);
  }
  uint64_t discarded = 0;
  for (uint64_t page : stale_) discarded += stored_.erase(page);
  missing_ = stale_;
  outbox_.push_back(SwitchOverReady{PageCount(discarded)});
}

void Harness::OnRecentlyDirtied(absl::Span<const PageRun> runs) {
  EXPECT_TRUE(config_.wishes.recently_dirtied) << "not asked for";
  EXPECT_TRUE(migration_->committed());
  EXPECT_FALSE(runs.empty());
  EXPECT_LE(runs.size(), kDirtiedRunsPerMessageMax);
  dirtied_.insert(dirtied_.end(), runs.begin(), runs.end());
}

void Harness::OnCommit() { outbox_.push_back(GuestResumed{1000}); }

absl::StatusOr<BulkMessage> Harness::Next() {
  if (said_.has_value()) return *std::exchange(said_, std::nullopt);
  if (!outbox_.empty()) {
    const BulkMessage message = outbox_.front();
    outbox_.pop_front();
    const auto* ack = std::get_if<RoundAck>(&message);
    if (ack == nullptr || !vmm_.running) return message;
    if (ack->round < config_.rounds &&
        config_.policy != MigrationPolicy::kPostcopyOnly) {
      clock_.Advance(2 * kHour);
    } else if (config_.request_switch_over && !switcher_.joinable()) {
      switcher_ = std::thread(
          [this] { switch_status_ = migration_->RequestSwitchOver(); });
    }
    return message;
  }
  EXPECT_TRUE(migration_->committed()) << "nothing is due";
  if (missing_.empty()) {
    EXPECT_TRUE(migration_->Complete(key_).ok());
    finished_ = true;
    return absl::UnavailableError("the destination has closed the stream");
  }
  const uint64_t first = *missing_.begin();
  uint64_t end = first;
  while (missing_.contains(end) && end - first < kBatchPagesMax.value()) ++end;
  return FetchRange{{PageIndex(first), PageCount(end - first)}};
}

std::vector<MigrationPolicy> AllPolicies() {
  return {MigrationPolicy::kPrecopyThenPostcopy, MigrationPolicy::kPostcopyOnly,
          MigrationPolicy::kPrecopyOnly};
}

std::function<Fault(Call, int)> FaultAt(int n, Fault fault) {
  return [n, fault](Call, int number) {
    return number == n ? fault : Fault::kNone;
  };
}

std::function<Fault(Call, int)> SilentAt(Call at) {
  return [at](Call call, int) {
    return call == at ? Fault::kSilent : Fault::kNone;
  };
}

// Silent when the first round's pages are on their way.
Config SilentInPrecopy() { return {.fault = FaultAt(1, Fault::kSilent)}; }
// Silent when the guest is paused and the end of the switch-over is due.
Config SilentInSwitching() { return {.fault = SilentAt(Call::kSwitchOver)}; }

// --- Nothing goes wrong.

TEST(SourceMigrationTest, PrecopyThenPostcopy) {
  Harness h({.rounds = 3});
  EXPECT_EQ(h.phase(), SourcePhase::kPreparing);
  EXPECT_EQ(h.snapshot().message,
            "waiting for the destination to open a session");
  h.Run();
  h.ExpectCompleted();
  const SourceSnapshot s = h.snapshot();
  EXPECT_EQ(s.rounds, 3u);
  EXPECT_EQ(s.total, PageCount(Harness::kPages));
  EXPECT_EQ(s.stale, PageCount(h.stale().size()));
  EXPECT_GT(s.stale, PageCount(0));
  EXPECT_EQ(s.discarded, PageCount(0)) << "while the guest was stopped";
  EXPECT_EQ(s.background, s.stale);
  EXPECT_GE(s.precopied, s.total);
  EXPECT_EQ(s.recoveries, 0u);
  EXPECT_EQ(s.damaged_runs, 0u);
}

// The pages written while the guest was paused, then those of the last moments
// before that.
TEST(SourceMigrationTest, TellsWhatWasDirtiedLast) {
  Harness h({.wishes = {.recently_dirtied = true}});
  h.vmm().on_pause = [&h] {
    h.Write(240);
    h.Write(17);
  };
  int discards = 0;
  h.set_fault([&](Call call, int) {
    if (call == Call::kEarlyDiscard && ++discards == 1) h.Write(99);
    return Fault::kNone;
  });
  h.Run();
  h.ExpectCompleted();
  const auto run = [](uint64_t page) {
    return PageRun{PageIndex(page), PageCount(1)};
  };
  ASSERT_GE(h.dirtied().size(), 3u);
  EXPECT_EQ(h.dirtied()[0], run(17));
  EXPECT_EQ(h.dirtied()[1], run(240));
  EXPECT_EQ(h.dirtied()[2], run(99));
}

TEST(SourceMigrationTest, TellsOnlyADestinationThatWantsToKnow) {
  Harness h({});
  h.vmm().on_pause = [&h] { h.Write(240); };
  h.Run();
  h.ExpectCompleted();
  EXPECT_TRUE(h.dirtied().empty());
}

TEST(SourceMigrationTest, HasNothingToTellUnderTheOtherPolicies) {
  for (MigrationPolicy policy :
       {MigrationPolicy::kPostcopyOnly, MigrationPolicy::kPrecopyOnly}) {
    Harness h({.policy = policy, .wishes = {.recently_dirtied = true}});
    h.vmm().on_pause = [&h] { h.Write(240); };
    h.Run();
    h.ExpectCompleted();
    EXPECT_TRUE(h.dirtied().empty());
  }
}

// Pages are compressed if both sides want it so, and only then; every page is
// counted as what it is and as what it was on the wire.
TEST(SourceMigrationTest, CompressesIfBothSidesWantIt) {
  for (const MigrationPolicy policy :
       {MigrationPolicy::kPrecopyThenPostcopy, MigrationPolicy::kPostcopyOnly,
        MigrationPolicy::kPrecopyOnly}) {
    for (const bool asked : {false, true}) {
      for (const bool taken : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << static_cast<int>(policy) << asked << taken);
        Harness h({.policy = policy,
                   .wishes = {.compressed_runs = taken},
                   .compress = asked});
        h.Run();
        h.ExpectCompleted();
        EXPECT_EQ(h.snapshot().bulk_page_bytes, h.page_bytes());
        EXPECT_EQ(h.snapshot().bulk_sent_bytes, h.on_wire());
        EXPECT_GE(h.page_bytes(), BytesIn(PageCount(Harness::kDataPages)));
        if (asked && taken) {
          EXPECT_LT(h.on_wire(), h.page_bytes());
        } else {
          EXPECT_EQ(h.on_wire(), h.page_bytes());
        }
      }
    }
  }
}

// It is told in the first session that lives to hear it, and once.
TEST(SourceMigrationTest, TellsItOnceThoughTheStreamBreaks) {
  for (const Call at : {Call::kCommit, Call::kRecentlyDirtied}) {
    Harness h({.reconnect_nanos = 60 * kNanosPerSecond,
               .wishes = {.recently_dirtied = true}});
    h.vmm().on_pause = [&h] { h.Write(240); };
    bool broken = false;
    h.set_fault([&](Call call, int) {
      if (call != at || broken) return Fault::kNone;
      broken = true;
      return Fault::kLost;
    });
    h.Run(4);
    h.ExpectCompleted();
    EXPECT_TRUE(broken);
    EXPECT_EQ(h.dirtied().empty(), at == Call::kRecentlyDirtied);
  }
}

TEST(SourceMigrationTest, PostcopyOnly) {
  Harness h({.policy = MigrationPolicy::kPostcopyOnly});
  h.Run();
  h.ExpectCompleted();
  const SourceSnapshot s = h.snapshot();
  EXPECT_EQ(s.precopied, PageCount(0));
  EXPECT_EQ(s.stale, PageCount(Harness::kPages));
  EXPECT_EQ(s.discarded, PageCount(0));
  EXPECT_EQ(s.background, PageCount(Harness::kPages));
  EXPECT_FALSE(h.dirty().simulated.started()) << "tracking costs the guest";
}

TEST(SourceMigrationTest, PrecopyOnlyLeavesNothingStale) {
  Harness h({.policy = MigrationPolicy::kPrecopyOnly});
  h.Run();
  h.ExpectCompleted();
  EXPECT_EQ(h.stale(), std::set<uint64_t>());
  EXPECT_EQ(h.snapshot().stale, PageCount(0));
  EXPECT_EQ(h.snapshot().background, PageCount(0));
}

// A VMM may write RAM while it saves its device state: that page, too, is
// fetched again by the destination, or sent before it runs.
TEST(SourceMigrationTest, WhatIsWrittenWhileSavingArrives) {
  for (MigrationPolicy policy :
       {MigrationPolicy::kPrecopyThenPostcopy, MigrationPolicy::kPrecopyOnly}) {
    Harness h({.policy = policy});
    h.vmm().on_save = [&h] { h.Write(7); };
    h.Run();
    h.ExpectCompleted();
    EXPECT_EQ(h.stale().contains(7),
              policy == MigrationPolicy::kPrecopyThenPostcopy);
  }
}

// A link that damages everything must not keep the guest stopped for ever.
TEST(SourceMigrationTest, GivesUpIfTheRestNeverArrivesWhole) {
  Harness h({.policy = MigrationPolicy::kPrecopyOnly});
  h.DamageFrom(3);
  h.Run();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().resumes, 1);
  EXPECT_NE(h.snapshot().message.find("check the network"), std::string::npos);
}

// Everything since the last acknowledgement is sent again.
TEST(SourceMigrationTest, DamagedRunsAreSentAgain) {
  for (MigrationPolicy policy :
       {MigrationPolicy::kPrecopyThenPostcopy, MigrationPolicy::kPrecopyOnly}) {
    // In the last case the guest is paused: only precopy-only sends then.
    for (uint32_t round : {1, 2, 3}) {
      if (round == 3 && policy != MigrationPolicy::kPrecopyOnly) continue;
      Harness h({.policy = policy});
      h.DamageRound(round);
      h.Run();
      h.ExpectCompleted();
      EXPECT_EQ(h.snapshot().damaged_runs, 3u);
      if (policy == MigrationPolicy::kPrecopyOnly) {
        EXPECT_EQ(h.stale(), std::set<uint64_t>());
      }
    }
  }
}

// --- The stream breaks, at every call it may break at.

struct Outcome {
  SourcePhase fault_phase = SourcePhase::kPreparing;
  bool faulted = false;
};

// Runs a migration whose n-th call fails; checks what the promises say.
Outcome RunWithFault(MigrationPolicy policy, Fault fault, int n,
                     bool comes_back) {
  SCOPED_TRACE(testing::Message()
               << "policy " << static_cast<int>(policy) << ", call " << n << " "
               << fault << (comes_back ? ", comes back" : ""));
  Harness h({.policy = policy,
             .reconnect_nanos = comes_back ? 60 * kNanosPerSecond : 0,
             .wishes = {.recently_dirtied = true},
             .fault = FaultAt(n, fault)});
  h.Run(comes_back ? 4 : 1);
  const Outcome outcome = {h.fault_phase(), h.faulted()};
  if (!h.faulted()) {
    h.ExpectCompleted();
  } else if (outcome.fault_phase == SourcePhase::kCompleted) {
    ADD_FAILURE() << "a call after the end";
  } else if (outcome.fault_phase == SourcePhase::kSwitching ||
             (outcome.fault_phase == SourcePhase::kPrecopy && !comes_back)) {
    h.ExpectUndone(SourcePhase::kCancelled);
  } else if (comes_back) {
    h.ExpectCompleted();
    // The last call of all may break without need for another session.
    EXPECT_EQ(h.snapshot().recoveries, h.key().epoch - 1);
  } else if (!h.finished()) {
    EXPECT_EQ(h.phase(), SourcePhase::kPostcopy);
    EXPECT_EQ(h.snapshot().message,
              "the guest runs at the destination, which is not connected");
    EXPECT_EQ(h.vmm().resumes, 0) << "the guest runs twice";
    EXPECT_EQ(h.vmm().ended_badly, 0);
    // However late it comes, it is served.
    h.Run();
    h.ExpectCompleted();
  }
  return outcome;
}

// Returns the phases in which a call was broken.
std::set<SourcePhase> RunWithEveryFault(MigrationPolicy policy, Fault fault,
                                        bool comes_back) {
  std::set<SourcePhase> phases;
  for (int n = 0; !testing::Test::HasFailure(); ++n) {
    const Outcome outcome = RunWithFault(policy, fault, n, comes_back);
    if (!outcome.faulted) break;
    phases.insert(outcome.fault_phase);
  }
  return phases;
}

const std::set<SourcePhase>& PhasesWithCalls() {
  static const auto* const phases = new std::set<SourcePhase>{
      SourcePhase::kPrecopy, SourcePhase::kSwitching, SourcePhase::kPostcopy};
  return *phases;
}

TEST(SourceMigrationFaultTest, LaneBreaksAndNobodyComesBack) {
  for (MigrationPolicy policy : AllPolicies()) {
    for (Fault fault : {Fault::kLost, Fault::kArrived}) {
      EXPECT_EQ(RunWithEveryFault(policy, fault, /*comes_back=*/false),
                PhasesWithCalls());
    }
  }
}

TEST(SourceMigrationFaultTest, LaneBreaksAndTheDestinationComesBack) {
  for (MigrationPolicy policy : AllPolicies()) {
    for (Fault fault : {Fault::kLost, Fault::kArrived}) {
      EXPECT_EQ(RunWithEveryFault(policy, fault, /*comes_back=*/true),
                PhasesWithCalls());
    }
  }
}

// Silence is ended by the next session; during the switch-over, with the guest
// stopped, by the stall limit.
TEST(SourceMigrationFaultTest, LaneFallsSilent) {
  for (MigrationPolicy policy : AllPolicies()) {
    EXPECT_EQ(RunWithEveryFault(policy, Fault::kSilent, /*comes_back=*/true),
              PhasesWithCalls());
  }
}

TEST(SourceMigrationFaultTest, MessagesSayWhy) {
  {
    Harness h({.fault = FaultAt(0, Fault::kLost)});
    h.Run();
    EXPECT_EQ(h.snapshot().message,
              "the destination was lost during precopy and did not come back; "
              "the guest goes on at the source: injected");
  }
  {
    Harness h(SilentInSwitching());
    h.Run();
    EXPECT_EQ(h.snapshot().message,
              "given up; the guest goes on at the source: aborted");
    EXPECT_EQ(h.switch_status(), absl::AbortedError(h.snapshot().message));
  }
}

// With nothing to send before the switch-over, an empty round per interval
// tells that nobody is there.
TEST(SourceMigrationFaultTest, PostcopyOnlyNoticesADeadDestination) {
  Harness h({.policy = MigrationPolicy::kPostcopyOnly,
             .request_switch_over = false,
             .fault = FaultAt(0, Fault::kLost)});
  h.Run();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().pauses, 0);
}

TEST(SourceMigrationFaultTest, MessageIsRightAgainOnceTheDestinationIsBack) {
  Harness h({});
  FakeLane* first = h.RunToPostcopy();
  first->Abort();
  EXPECT_EQ(first->AwaitReturn(), absl::CancelledError("aborted"));
  EXPECT_EQ(h.snapshot().message,
            "the guest runs at the destination, which is not connected");
  FakeLane* second = h.RunToSilence();
  EXPECT_EQ(h.snapshot().message, "the guest runs at the destination");
  EXPECT_EQ(h.snapshot().recoveries, 1u);
  second->Abort();
}

// --- The VMM or the memory fails.

TEST(SourceMigrationFaultTest, PauseFails) {
  Harness h({});
  h.vmm().pause_status = absl::DeadlineExceededError("the VMM sleeps");
  h.Run();
  // Some vCPUs may have stopped, so it is resumed nonetheless.
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().pauses, 1);
  EXPECT_EQ(h.snapshot().message,
            "given up; the guest goes on at the source: the VMM sleeps");
}

TEST(SourceMigrationFaultTest, SaveDeviceStateFails) {
  Harness h({});
  h.vmm().save_status = absl::InternalError("a device refuses");
  h.Run();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().pauses, 1);
  EXPECT_EQ(h.snapshot().message,
            "given up; the guest goes on at the source: a device refuses");
}

TEST(SourceMigrationFaultTest, ResumeFails) {
  Harness h({});
  h.vmm().save_status = absl::InternalError("a device refuses");
  h.vmm().resume_status = absl::InternalError("no answer");
  h.Run();
  EXPECT_EQ(h.phase(), SourcePhase::kFailed);
  EXPECT_EQ(h.snapshot().message,
            "given up; the guest goes on at the source: a device refuses; the "
            "guest could not be resumed: no answer");
  EXPECT_EQ(h.vmm().ended_badly, 1);
  EXPECT_FALSE(h.dirty().simulated.started());
  EXPECT_EQ(h.migration().Cancel().code(), StatusCode::kFailedPrecondition);
}

TEST(SourceMigrationFaultTest, DirtyTrackingDoesNotStart) {
  Harness h({});
  h.dirty().simulated.FailNextStart(absl::InternalError("no log"));
  h.Run();
  EXPECT_EQ(h.phase(), SourcePhase::kCancelled);
  EXPECT_EQ(h.snapshot().message,
            "given up; the guest goes on at the source: no log");
  EXPECT_EQ(h.vmm().pauses, 0);
  EXPECT_EQ(h.vmm().ended_badly, 1);
}

TEST(SourceMigrationFaultTest, CollectFailsBetweenRounds) {
  Harness h({});
  h.set_fault([&h](Call call, int) {
    if (call == Call::kRoundEnd) {
      h.dirty().simulated.FailNextCollect(absl::UnavailableError("no sync"),
                                          PageCount(1));
    }
    return Fault::kNone;
  });
  h.Run();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().pauses, 0);
  EXPECT_EQ(h.snapshot().message,
            "given up; the guest goes on at the source: no sync");
}

TEST(SourceMigrationFaultTest, CollectFailsWithTheGuestPaused) {
  Harness h({});
  h.vmm().on_pause = [&h] {
    h.dirty().simulated.FailNextCollect(absl::UnavailableError("no sync"),
                                        PageCount(1));
  };
  h.Run();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().resumes, 1);
}

TEST(SourceMigrationFaultTest, DirtySourceDoesNotTakeThePagesBack) {
  Harness h({.fault = FaultAt(3, Fault::kLost)});
  h.dirty().simulated.FailNextRestore(absl::InternalError("log is gone"));
  h.Run();
  EXPECT_EQ(h.phase(), SourcePhase::kCancelled);
  EXPECT_TRUE(absl::StrContains(
      h.snapshot().message,
      "; dirty tracking was not stopped cleanly: log is gone"))
      << h.snapshot().message;
  EXPECT_FALSE(h.dirty().simulated.started());
}

TEST(SourceMigrationFaultTest, GuestMemoryIsTruncated) {
  Harness h({});
  h.guest().Truncate(ByteCount(100 * kPageSize));
  h.Run();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_TRUE(absl::StrContains(h.snapshot().message,
                                "the VMM must not truncate guest RAM"));
}

// --- Cancel.

constexpr char kCancelled[] =
    "cancelled by request; the guest goes on at the source";

TEST(SourceMigrationCancelTest, WhilePreparing) {
  Harness h({});
  EXPECT_TRUE(h.migration().Cancel().ok());
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.snapshot().message, kCancelled);
  // Twice is once.
  EXPECT_TRUE(h.migration().Cancel().ok());
  h.ExpectUndone(SourcePhase::kCancelled);
}

TEST(SourceMigrationCancelTest, WhileItsStreamBlocks) {
  for (const Config& config : {SilentInPrecopy(), SilentInSwitching()}) {
    Harness h(config);
    FakeLane* lane = h.RunToSilence();
    EXPECT_TRUE(h.migration().Cancel().ok());
    EXPECT_FALSE(lane->AwaitReturn().ok());
    h.Join();
    h.ExpectUndone(SourcePhase::kCancelled);
    EXPECT_EQ(h.snapshot().message, kCancelled);
    EXPECT_TRUE(h.migration().Cancel().ok());
    h.ExpectUndone(SourcePhase::kCancelled);
  }
}

TEST(SourceMigrationCancelTest, BetweenRounds) {
  // Nobody moves the clock, so round 2 does not come.
  Harness h({.rounds = 1, .request_switch_over = false});
  absl::StatusOr<FakeLane*> lane = h.Serve();
  ASSERT_TRUE(lane.ok());
  while (h.dirty().simulated.collects() < 1) std::this_thread::yield();
  EXPECT_TRUE(h.migration().Cancel().ok());
  (*lane)->AwaitReturn().IgnoreError();
  h.ExpectUndone(SourcePhase::kCancelled);
}

TEST(SourceMigrationCancelTest, WhileWaitingForTheDestinationToComeBack) {
  Harness h({.reconnect_nanos = 60 * kNanosPerSecond,
             .fault = FaultAt(2, Fault::kLost)});
  absl::StatusOr<FakeLane*> lane = h.Serve();
  ASSERT_TRUE(lane.ok());
  while (!absl::StrContains(h.snapshot().message, "waiting for it")) {
    h.migration().WaitForChange(h.migration().version(), kNanosPerMilli);
  }
  EXPECT_EQ(h.snapshot().message,
            "the destination is lost, waiting for it: injected");
  EXPECT_TRUE(h.migration().Cancel().ok());
  h.Join();
  h.ExpectUndone(SourcePhase::kCancelled);
}

// Whether it comes before, while or after the stream breaks, it comes through:
// the thread that asks and the one that drove the stream do not leave it to
// each other. The moment in question is short, so the delay is swept over it.
TEST(SourceMigrationCancelTest, RacesWithABreakingStream) {
  for (int i = 0; i < 400; ++i) {
    const bool vmm_gone = i % 4 != 0;
    Harness h({.reconnect_nanos = kHour});
    std::atomic<bool> breaks{false};
    h.set_fault([&breaks](Call, int number) {
      if (number != 2) return Fault::kNone;
      breaks = true;
      return Fault::kLost;
    });
    std::thread asker([&] {
      while (!breaks) {
      }
      for (std::atomic<int> spins{0}; spins < 4 * i;) ++spins;
      if (vmm_gone) {
        h.migration().VmmGone();
      } else {
        EXPECT_TRUE(h.migration().Cancel().ok());
      }
    });
    EXPECT_TRUE(h.Serve().ok());
    asker.join();
    h.Join();
    h.ExpectUndone(vmm_gone ? SourcePhase::kFailed : SourcePhase::kCancelled);
  }
}

// The destination says that it is ready at the moment of the request: there is
// one decision, and it is to cancel.
TEST(SourceMigrationCancelTest, BeatsAReadyThatHasArrived) {
  Harness h({});
  std::thread canceller;
  h.set_fault([&](Call call, int) {
    if (call == Call::kReceive && h.phase() == SourcePhase::kSwitching) {
      canceller =
          std::thread([&h] { EXPECT_TRUE(h.migration().Cancel().ok()); });
      while (!h.lane()->AwaitAbort(std::chrono::seconds(1))) {
      }
    }
    return Fault::kNone;
  });
  h.Run();
  canceller.join();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().resumes, 1);
}

TEST(SourceMigrationCancelTest, RefusedAfterTheCommit) {
  Harness h({});
  FakeLane* lane = h.RunToPostcopy();
  const absl::Status refused = absl::FailedPreconditionError(
      "the guest has been handed over to the destination: it cannot be taken "
      "back; let the migration complete");
  EXPECT_EQ(h.migration().Cancel(), refused);
  EXPECT_EQ(h.phase(), SourcePhase::kPostcopy);
  lane->Abort();
  h.Join();
  h.set_fault(nullptr);
  h.Run();
  h.ExpectCompleted();
  EXPECT_EQ(h.migration().Cancel(), refused);
}

// --- The VMM's connection ends.

constexpr char kVmmGone[] = "the VMM closed its connection";

TEST(SourceMigrationVmmGoneTest, WhilePreparing) {
  Harness h({});
  h.migration().VmmGone();
  h.ExpectUndone(SourcePhase::kFailed);
  EXPECT_EQ(h.snapshot().message, kVmmGone);
  h.migration().VmmGone();
  EXPECT_EQ(h.vmm().ended_badly, 1);
  EXPECT_EQ(h.migration().Cancel().message(),
            absl::StrCat("the migration has failed: ", kVmmGone));
}

TEST(SourceMigrationVmmGoneTest, WhileItsStreamBlocks) {
  for (const Config& config : {SilentInPrecopy(), SilentInSwitching()}) {
    Harness h(config);
    h.RunToSilence();
    h.migration().VmmGone();
    h.Join();
    h.ExpectUndone(SourcePhase::kFailed);
    EXPECT_EQ(h.snapshot().message, kVmmGone);
  }
}

// The destination has all it needs and says so: the guest is its own, and what
// breaks from here on does not bring it back.
TEST(SourceMigrationVmmGoneTest, AsTheDestinationBecomesReady) {
  Harness h({});
  h.set_fault([&h](Call call, int) {
    if (call == Call::kReceive && h.phase() == SourcePhase::kSwitching) {
      h.migration().VmmGone();
    }
    return Fault::kNone;
  });
  h.Run();
  EXPECT_EQ(h.phase(), SourcePhase::kPostcopy);
  EXPECT_EQ(h.vmm().resumes, 0);
  h.Run();
  h.ExpectCompleted();
}

// Its memory is held by its descriptor, which is all that is needed.
TEST(SourceMigrationVmmGoneTest, AfterTheCommitNothingChanges) {
  Harness h({});
  FakeLane* lane = h.RunToPostcopy();
  h.migration().VmmGone();
  EXPECT_EQ(h.phase(), SourcePhase::kPostcopy);
  lane->Abort();
  h.Join();
  h.set_fault(nullptr);
  h.Run();
  h.ExpectCompleted();
  h.migration().VmmGone();
  EXPECT_EQ(h.phase(), SourcePhase::kCompleted);
}

// --- RequestSwitchOver.

TEST(SourceMigrationSwitchOverTest, NeedsASession) {
  Harness h({});
  EXPECT_EQ(h.migration().RequestSwitchOver(),
            absl::FailedPreconditionError(
                "no destination has opened a session yet: create the migration "
                "there first"));
  EXPECT_EQ(h.phase(), SourcePhase::kPreparing);
}

TEST(SourceMigrationSwitchOverTest, TwiceIsOnce) {
  Harness h({});
  FakeLane* lane = h.RunToPostcopy();
  EXPECT_TRUE(h.migration().RequestSwitchOver().ok());
  lane->Abort();
  h.Join();
  h.set_fault(nullptr);
  h.Run();
  h.ExpectCompleted();
  EXPECT_TRUE(h.migration().RequestSwitchOver().ok());
}

TEST(SourceMigrationSwitchOverTest, AfterTheEndItSaysWhy) {
  Harness h({});
  ASSERT_TRUE(h.migration().Cancel().ok());
  EXPECT_EQ(h.migration().RequestSwitchOver(), absl::AbortedError(kCancelled));
}

// A destination that falls silent before the guest is paused is given the time
// to come back, then given up.
TEST(SourceMigrationSwitchOverTest, IsNotHeldUpByASilentDestination) {
  Config config = SilentInPrecopy();
  config.reconnect_nanos = kNanosPerMilli;
  Harness h(std::move(config));
  FakeLane* lane = h.RunToSilence();
  absl::Status status;
  std::thread switcher([&] { status = h.migration().RequestSwitchOver(); });
  h.AdvanceUntilAborted(lane);
  switcher.join();
  h.Join();
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().pauses, 0);
  EXPECT_EQ(status, absl::AbortedError(h.snapshot().message));
}

// The time that the destination was away is no stall of the session that
// follows, in which the guest is paused at once.
TEST(SourceMigrationSwitchOverTest, TimeWithoutADestinationIsNoStall) {
  Harness h({.reconnect_nanos = 60 * kNanosPerSecond,
             .fault = FaultAt(2, Fault::kLost)});
  absl::StatusOr<FakeLane*> lane = h.Serve();
  ASSERT_TRUE(lane.ok());
  (*lane)->AwaitEnd();
  absl::Status status;
  std::thread switcher([&] { status = h.migration().RequestSwitchOver(); });
  // Gives it the time to have begun, without which this shows nothing.
  for (int second = 0; second < 20; ++second) {
    h.clock().Advance(kNanosPerSecond);
    h.migration().WaitForChange(h.migration().version(), 5 * kNanosPerMilli);
  }
  h.Run();
  switcher.join();
  EXPECT_TRUE(status.ok()) << status;
  h.ExpectCompleted();
}

// A round is cut short: what it has not sent is stale.
TEST(SourceMigrationSwitchOverTest, InterruptsARound) {
  Harness h({.reconnect_nanos = 1000 * kHour, .request_switch_over = false});
  std::thread switcher;
  absl::Status status;
  h.set_fault([&](Call call, int number) {
    if (call == Call::kPages && number == 1) {
      switcher =
          std::thread([&] { status = h.migration().RequestSwitchOver(); });
    }
    // Rounds go on until the request is seen.
    if (call == Call::kReceive && h.vmm().running) {
      h.clock().Advance(2 * kHour);
    }
    return Fault::kNone;
  });
  h.Run();
  switcher.join();
  EXPECT_TRUE(status.ok()) << status;
  h.ExpectCompleted();
}

// --- Sessions.

TEST(SourceMigrationSessionTest, LayoutMustMatch) {
  Harness h({});
  const absl::Status status =
      h.migration().OpenSession(1, TestGuest({150, 105}).layout()).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "the VM's RAM is laid out differently: the length of region 1 is "
            "424KiB at the source and 420KiB at the destination; configure "
            "both alike");
}

TEST(SourceMigrationSessionTest, EpochsOnlyGrow) {
  Harness h({});
  SourceMigration& m = h.migration();
  const RamLayout& layout = h.guest().layout();
  const auto refused = [&](uint64_t epoch, uint64_t taken) {
    EXPECT_EQ(m.OpenSession(epoch, layout).status(),
              absl::FailedPreconditionError(absl::StrCat(
                  "epoch ", epoch, " is not higher than ", taken,
                  ", which is taken: open the session with a higher one")));
  };
  refused(0, 0);
  EXPECT_EQ(m.OpenSession(1, layout)->epoch, 1u);
  EXPECT_EQ(m.OpenSession(5, layout)->epoch, 5u);
  EXPECT_EQ(m.OpenSession(5, layout)->id, m.session_id()) << "not idempotent";
  refused(4, 5);
  refused(0, 5);
  // Once a stream is attached the epoch is used up.
  h.set_fault(FaultAt(0, Fault::kSilent));
  FakeLane* lane = h.ServeKey({m.session_id(), 5});
  lane->AwaitEnd();
  refused(5, 5);
  ASSERT_TRUE(m.Cancel().ok());
  EXPECT_EQ(m.OpenSession(6, layout).status(),
            absl::AbortedError(
                absl::StrCat("the migration has ended: ", kCancelled)));
}

TEST(SourceMigrationSessionTest, BelongsToWhoeverOpenedItFirst) {
  Harness h({});
  SourceMigration& m = h.migration();
  const RamLayout& layout = h.guest().layout();
  EXPECT_TRUE(m.CheckPeer("anybody").ok());
  // What is refused binds nobody.
  EXPECT_FALSE(
      m.OpenSession(1, TestGuest({150, 105}).layout(), {}, "other").ok());
  ASSERT_TRUE(m.OpenSession(1, layout, {}, "first").ok());
  for (const char* peer : {"other", "", "first ", "firs"}) {
    EXPECT_EQ(m.CheckPeer(peer).code(), StatusCode::kPermissionDenied) << peer;
    EXPECT_EQ(m.OpenSession(9, layout, {}, peer).status().code(),
              StatusCode::kPermissionDenied)
        << peer;
    // Nor is it told how the RAM is laid out.
    EXPECT_EQ(m.OpenSession(9, TestGuest({150, 105}).layout(), {}, peer)
                  .status()
                  .code(),
              StatusCode::kPermissionDenied)
        << peer;
  }
  EXPECT_TRUE(m.CheckPeer("first").ok());
  EXPECT_EQ(m.OpenSession(2, layout, {}, "first")->epoch, 2u);
}

// A destination that is told "not committed" by a new session while its Ready
// on the old one has just arrived would wait for ever for a Commit that nobody
// reads: the guest would run nowhere.
TEST(SourceMigrationSessionTest, NewSessionBeatsAReadyOfTheOld) {
  Harness h({});
  bool opened = false;
  h.set_fault([&](Call call, int) {
    if (call == Call::kReceive && h.phase() == SourcePhase::kSwitching &&
        !opened) {
      opened = true;
      EXPECT_TRUE(h.migration().OpenSession(100, h.guest().layout()).ok());
      EXPECT_FALSE(h.migration().committed());
    }
    return Fault::kNone;
  });
  h.Run();
  EXPECT_TRUE(opened);
  h.ExpectUndone(SourcePhase::kCancelled);
  EXPECT_EQ(h.vmm().resumes, 1);
}

// Proves that it need not wait for the first to end, which it would in vain.
TEST(SourceMigrationSessionTest, NoSecondBulkStreamBesideTheFirst) {
  Harness h({});
  FakeLane* lane = h.RunToPostcopy();
  EXPECT_EQ(h.ServeKey(h.key())->AwaitReturn(),
            absl::FailedPreconditionError(
                "the session has a bulk stream already: open a new session"));
  lane->Abort();
}

TEST(SourceMigrationSessionTest, OneBulkStreamPerSession) {
  Harness h({.reconnect_nanos = 60 * kNanosPerSecond,
             .fault = FaultAt(0, Fault::kLost)});
  FakeLane* first = *h.Serve();
  first->AwaitEnd();
  EXPECT_EQ(h.ServeKey(h.key())->AwaitReturn(),
            absl::FailedPreconditionError(
                "the session has a bulk stream already: open a new session"));
  EXPECT_TRUE(h.migration().Cancel().ok());
}

TEST(SourceMigrationSessionTest, BulkStreamMustNameTheNewestSession) {
  Harness h({});
  ASSERT_TRUE(h.migration().OpenSession(2, h.guest().layout()).ok());
  const uint64_t id = h.migration().session_id();
  EXPECT_EQ(h.ServeKey({id, 1})->AwaitReturn(),
            absl::FailedPreconditionError(
                "epoch 1 is not the newest, which is 2: another session has "
                "taken over"));
  EXPECT_EQ(h.ServeKey({id + 1, 2})->AwaitReturn(),
            absl::NotFoundError("no such session: open one"));
  EXPECT_EQ(h.phase(), SourcePhase::kPreparing);
}

struct FakeUrgentStream final : UrgentStream {
  void Abort() override { ++aborts; }
  int aborts = 0;
};

TEST(SourceMigrationSessionTest, BulkStreamAfterTheEnd) {
  Harness h({});
  FakeUrgentStream stream;
  absl::StatusOr<SessionKey> key =
      h.migration().OpenSession(1, h.guest().layout());
  ASSERT_TRUE(h.migration().Cancel().ok());
  EXPECT_EQ(h.ServeKey(*key)->AwaitReturn().code(), StatusCode::kAborted);
  EXPECT_EQ(h.migration().AttachUrgent(*key, &stream).status().code(),
            StatusCode::kAborted);
}

// --- The urgent lane.

TEST(SourceMigrationUrgentTest, RefusedBeforeTheCommit) {
  Harness h(SilentInSwitching());
  FakeUrgentStream stream;
  h.RunToSilence();
  auto memory = h.migration().AttachUrgent(h.key(), &stream);
  ASSERT_TRUE(memory.ok()) << memory.status();
  PageBatch batch;
  EXPECT_EQ(h.migration().ReadUrgent(h.key(), **memory, {PageIndex(0)}, batch),
            absl::FailedPreconditionError(
                "the guest has not been handed over yet: its pages still "
                "change"));
  EXPECT_TRUE(h.migration().Cancel().ok());
}

TEST(SourceMigrationUrgentTest, ASessionHasSoManyStreamsAndNotOneMore) {
  Harness h({});
  SourceMigration& m = h.migration();
  const SessionKey key = *m.OpenSession(1, h.guest().layout());
  std::array<FakeUrgentStream, kUrgentStreamsMax> streams;
  for (FakeUrgentStream& stream : streams) {
    EXPECT_TRUE(m.AttachUrgent(key, &stream).ok());
  }
  FakeUrgentStream one_more;
  EXPECT_EQ(m.AttachUrgent(key, &one_more).status().code(),
            StatusCode::kResourceExhausted);
  m.DetachUrgent(&streams[0]);
  EXPECT_TRUE(m.AttachUrgent(key, &one_more).ok());
}

// Epoch after epoch would otherwise take a thread for each stream, to the last
// one the listener has.
TEST(SourceMigrationUrgentTest, ANewEpochEndsTheStreamsBefore) {
  Harness h({});
  SourceMigration& m = h.migration();
  const RamLayout& layout = h.guest().layout();
  std::array<FakeUrgentStream, kUrgentStreamsMax> before;
  const SessionKey first = *m.OpenSession(1, layout);
  for (FakeUrgentStream& stream : before) {
    ASSERT_TRUE(m.AttachUrgent(first, &stream).ok());
  }
  // A second answer to the same request ends nothing.
  ASSERT_TRUE(m.OpenSession(1, layout).ok());
  for (const FakeUrgentStream& stream : before) EXPECT_EQ(stream.aborts, 0);
  const SessionKey second = *m.OpenSession(2, layout);
  for (const FakeUrgentStream& stream : before) EXPECT_EQ(stream.aborts, 1);
  // They take no place, and give none.
  std::array<FakeUrgentStream, kUrgentStreamsMax> after;
  for (FakeUrgentStream& stream : after) {
    EXPECT_TRUE(m.AttachUrgent(second, &stream).ok());
  }
  for (FakeUrgentStream& stream : before) m.DetachUrgent(&stream);
  FakeUrgentStream one_more;
  EXPECT_FALSE(m.AttachUrgent(second, &one_more).ok());
  ASSERT_TRUE(m.OpenSession(3, layout).ok());
  for (const FakeUrgentStream& stream : before) EXPECT_EQ(stream.aborts, 1);
  for (const FakeUrgentStream& stream : after) EXPECT_EQ(stream.aborts, 1);
}

TEST(SourceMigrationUrgentTest, ReadsInTheOrderAsked) {
  Harness h({});
  FakeUrgentStream stream;
  FakeLane* lane = h.RunToPostcopy();
  auto memory = h.migration().AttachUrgent(h.key(), &stream);
  ASSERT_TRUE(memory.ok()) << memory.status();
  PageBatch batch;
  const std::vector<PageIndex> pages = {PageIndex(9), PageIndex(8),
                                        PageIndex(255), PageIndex(9)};
  ASSERT_TRUE(h.migration().ReadUrgent(h.key(), **memory, pages, batch).ok());
  ASSERT_EQ(batch.runs().size(), pages.size());
  for (size_t i = 0; i < pages.size(); ++i) {
    EXPECT_EQ(batch.runs()[i].pages, (PageRun{pages[i], PageCount(1)}));
    EXPECT_TRUE(PageInRun(batch.runs()[i].data, 0) ==
                h.guest().Page(pages[i].value()));
  }
  EXPECT_EQ(h.snapshot().faulted, PageCount(4));
  lane->Abort();
}

TEST(SourceMigrationUrgentTest, Refusals) {
  Harness h({});
  FakeUrgentStream stream;
  FakeLane* lane = h.RunToPostcopy();
  auto memory = h.migration().AttachUrgent(h.key(), &stream);
  ASSERT_TRUE(memory.ok()) << memory.status();
  PageBatch batch;
  const auto read = [&](SessionKey key, const std::vector<PageIndex>& pages) {
    return h.migration().ReadUrgent(key, **memory, pages, batch);
  };
  const SessionKey key = h.key();
  const std::vector<PageIndex> max(kBatchPagesMax.value(), PageIndex(3));
  std::vector<PageIndex> too_many = max;
  too_many.push_back(PageIndex(3));
  EXPECT_TRUE(read(key, max).ok());
  EXPECT_EQ(read(key, too_many),
            absl::InvalidArgumentError("a request may name 64 pages, not 65"));
  EXPECT_TRUE(batch.empty());
  EXPECT_TRUE(read(key, {}).ok());
  EXPECT_TRUE(read(key, {PageIndex(255)}).ok());
  EXPECT_EQ(read(key, {PageIndex(256)}).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(read(key, {PageIndex(UINT64_MAX / kPageSize)}).code(),
            StatusCode::kOutOfRange);
  for (uint64_t epoch : {key.epoch - 1, key.epoch + 1}) {
    EXPECT_EQ(read({key.id, epoch}, {PageIndex(0)}).code(),
              StatusCode::kFailedPrecondition);
    EXPECT_EQ(
        h.migration().AttachUrgent({key.id, epoch}, &stream).status().code(),
        StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(read({key.id + 1, key.epoch}, {PageIndex(0)}).code(),
            StatusCode::kNotFound);
  EXPECT_EQ(h.migration()
                .AttachUrgent({key.id + 1, key.epoch}, &stream)
                .status()
                .code(),
            StatusCode::kNotFound);
  lane->Abort();
}

// The two lanes read at once, and the urgent one may still be reading when the
// migration completes.
TEST(SourceMigrationUrgentTest, RunsBesideTheBulkLane) {
  Harness h({.policy = MigrationPolicy::kPostcopyOnly});
  FakeUrgentStream stream;
  h.RunToPostcopy()->Abort();
  h.Join();
  h.set_fault(nullptr);
  absl::StatusOr<SessionKey> key =
      h.migration().OpenSession(2, h.guest().layout());
  ASSERT_TRUE(key.ok());
  auto memory = h.migration().AttachUrgent(*key, &stream);
  ASSERT_TRUE(memory.ok());
  std::thread urgent([&] {
    PageBatch batch;
    for (uint64_t i = 0; i < 2000; ++i) {
      const uint64_t page = i * 7 % Harness::kPages;
      ASSERT_TRUE(h.migration()
                      .ReadUrgent(*key, **memory, {PageIndex(page)}, batch)
                      .ok());
      ASSERT_TRUE(PageInRun(batch.runs()[0].data, 0) == h.guest().Page(page));
    }
  });
  h.ServeKey(*key);
  h.Join();
  urgent.join();
  h.ExpectCompleted();
  EXPECT_EQ(h.snapshot().faulted, PageCount(2000));
}

// --- Completion.

TEST(SourceMigrationCompleteTest, RefusedBeforeTheCommit) {
  Harness h(SilentInSwitching());
  h.RunToSilence();
  EXPECT_EQ(h.migration().Complete(h.key()),
            absl::FailedPreconditionError(
                "the guest has not been handed over yet: nothing is complete"));
  EXPECT_TRUE(h.migration().Cancel().ok());
}

TEST(SourceMigrationCompleteTest, TwiceIsOnce) {
  Harness h({});
  h.Run();
  EXPECT_TRUE(h.migration().Complete(h.key()).ok());
  EXPECT_EQ(h.vmm().ended_well, 1);
  EXPECT_EQ(h.migration().Complete({h.key().id, 7}).code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(h.migration().Complete({h.key().id + 1, 1}).code(),
            StatusCode::kNotFound);
}

// --- A destination that does not follow the protocol.

PageRun PagesAt(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// What ServeBulk returns if `message` comes instead of the first answer for
// which `when` is true.
absl::Status Misbehave(Harness& h, const BulkMessage& message,
                       const std::function<bool()>& when) {
  h.set_fault([&h, message, when, said = false](Call call, int) mutable {
    if (!said && call == Call::kReceive && when()) {
      h.Say(message);
      said = true;
    }
    return Fault::kNone;
  });
  absl::StatusOr<FakeLane*> lane = h.Serve();
  EXPECT_TRUE(lane.ok());
  absl::Status status = (*lane)->AwaitReturn();
  h.Join();
  return status;
}

TEST(SourceMigrationProtocolTest, SomethingElseThanRoundAck) {
  for (const BulkMessage& message :
       {BulkMessage(FetchRange{PagesAt(0, 1)}), BulkMessage(SwitchOverReady{}),
        BulkMessage(GuestResumed{})}) {
    Harness h({});
    EXPECT_EQ(Misbehave(h, message, [] { return true; }),
              absl::InvalidArgumentError(
                  "the destination sent something else where RoundAck was due: "
                  "it does not follow the protocol"));
    h.ExpectUndone(SourcePhase::kCancelled);
  }
}

TEST(SourceMigrationProtocolTest, AcknowledgesAnotherRound) {
  Harness h({});
  EXPECT_EQ(Misbehave(h, RoundAck{2, 0}, [] { return true; }).code(),
            StatusCode::kInvalidArgument);
  h.ExpectUndone(SourcePhase::kCancelled);
}

TEST(SourceMigrationProtocolTest, SomethingElseThanSwitchOverReady) {
  for (const BulkMessage& message :
       {BulkMessage(FetchRange{PagesAt(0, 1)}), BulkMessage(RoundAck{2, 0}),
        BulkMessage(GuestResumed{})}) {
    Harness h({});
    EXPECT_EQ(Misbehave(h, message,
                        [&h] { return h.phase() == SourcePhase::kSwitching; }),
              absl::InvalidArgumentError(
                  "the destination sent something else where SwitchOverReady "
                  "was due: it does not follow the protocol"));
    h.ExpectUndone(SourcePhase::kCancelled);
    EXPECT_EQ(h.vmm().resumes, 1);
  }
}

// After the commit the stream ends, and nothing else: another session goes on.
TEST(SourceMigrationProtocolTest, BadMessagesAfterTheCommit) {
  const struct {
    BulkMessage message;
    StatusCode code;
  } kCases[] = {
      {RoundAck{2, 0}, StatusCode::kInvalidArgument},
      {SwitchOverReady{}, StatusCode::kInvalidArgument},
      {FetchRange{PagesAt(0, 0)}, StatusCode::kOutOfRange},
      {FetchRange{PagesAt(256, 1)}, StatusCode::kOutOfRange},
      {FetchRange{PagesAt(255, 2)}, StatusCode::kOutOfRange},
      {FetchRange{PagesAt(1, UINT64_MAX)}, StatusCode::kOutOfRange},
      {FetchRange{PagesAt(0, kBatchPagesMax.value() + 1)},
       StatusCode::kInvalidArgument},
  };
  for (const auto& c : kCases) {
    Harness h({});
    EXPECT_EQ(
        Misbehave(h, c.message, [&h] { return h.migration().committed(); })
            .code(),
        c.code);
    EXPECT_EQ(h.phase(), SourcePhase::kPostcopy);
    EXPECT_EQ(h.vmm().resumes, 0);
    h.set_fault(nullptr);
    h.Run();
    h.ExpectCompleted();
  }
}

// At the limit a range is served. (One past it is refused above.)
TEST(SourceMigrationProtocolTest, TheLargestFetchRange) {
  Harness h({.policy = MigrationPolicy::kPostcopyOnly});
  h.Run();
  h.ExpectCompleted();
  EXPECT_EQ(h.snapshot().background, PageCount(Harness::kPages));
}

// --- What the downtime is made of.

TEST(SourceMigrationDowntimeTest, WhatTheVmmTakesIsNotAdded) {
  Harness h({});
  h.set_fault([&h](Call call, int) {
    // The network and the destination: 7 ms in all, once the guest is paused.
    if (call == Call::kSwitchOver) h.clock().Advance(3 * kNanosPerMilli);
    if (call == Call::kCommit) h.clock().Advance(4 * kNanosPerMilli);
    return Fault::kNone;
  });
  h.Run();
  h.ExpectCompleted();
  EXPECT_EQ(h.snapshot().downtime_nanos, 7 * kNanosPerMilli);
  // GuestResumed says 1 microsecond of the VMM's own.
  EXPECT_EQ(h.snapshot().added_downtime_nanos,
            7 * kNanosPerMilli - kNanosPerMicro);
}

TEST(SourceMigrationWatchTest, VersionGrowsWithEveryChangeOfPhase) {
  Harness h({});
  const uint64_t before = h.migration().version();
  // Nothing changes: returns when the time is over.
  h.migration().WaitForChange(before, 0);
  ASSERT_TRUE(h.migration().Cancel().ok());
  EXPECT_GT(h.migration().version(), before);
  // Changed already: returns at once, however long it may wait.
  h.migration().WaitForChange(before, kHour);
}

// --- Switching over by itself, and what is to be expected.

// Everybody who watches is told why, though nobody asked.
TEST(SourceMigrationByItselfTest, WhenThereIsNothingToWaitFor) {
  for (MigrationPolicy policy : AllPolicies()) {
    Harness h({.policy = policy,
               .rounds = 1,
               .request_switch_over = false,
               .by_itself = true});
    h.Run();
    h.ExpectCompleted();
    EXPECT_TRUE(h.snapshot().advice.recommended);
    EXPECT_EQ(h.migration().Changes()[2].phase, SourcePhase::kSwitching);
    EXPECT_EQ(h.migration().Changes()[2].message,
              absl::StrCat("by itself: ", h.snapshot().advice.reason));
  }
}

// The round takes two hours by the test's clock, and the deadline is one
// second.
TEST(SourceMigrationByItselfTest, WhenTheDeadlineHasPassed) {
  Harness h({.rounds = 3,
             .request_switch_over = false,
             .by_itself = true,
             .deadline_nanos_per_gib = kNanosPerSecond});
  h.Run();
  h.ExpectCompleted();
  EXPECT_EQ(h.snapshot().rounds, 1u);
  EXPECT_EQ(h.snapshot().advice.verdict, Verdict::kDeadline);
}

// It only recommends where it is not to decide.
TEST(SourceMigrationByItselfTest, NotUnlessItMay) {
  Harness h({.rounds = 3, .deadline_nanos_per_gib = kNanosPerSecond});
  h.Run();
  h.ExpectCompleted();
  EXPECT_EQ(h.snapshot().rounds, 3u);
  EXPECT_EQ(h.snapshot().advice.verdict, Verdict::kDeadline);
  EXPECT_EQ(h.migration().Changes()[2].message, "");
}

TEST(SourceMigrationByItselfTest, MayBeCancelledBefore) {
  Harness h({.request_switch_over = false,
             .by_itself = true,
             .fault = FaultAt(1, Fault::kSilent)});
  h.RunToSilence();
  EXPECT_TRUE(h.migration().Cancel().ok());
  h.Join();
  h.ExpectUndone(SourcePhase::kCancelled);
}

// A destination that falls silent with the guest stopped is left, as it is
// when somebody waits for the switch-over.
TEST(SourceMigrationByItselfTest, IsWatchedOver) {
  Harness h({.rounds = 1,
             .request_switch_over = false,
             .by_itself = true,
             .fault = SilentAt(Call::kSwitchOver)});
  h.Run();
  h.ExpectUndone(SourcePhase::kCancelled);
}

TEST(SourceMigrationDeadlineTest, CountsBegunGibibytes) {
  EXPECT_EQ(DeadlineNanos(PageCount(1), 5), 5);
  EXPECT_EQ(DeadlineNanos(PageCount(262144), 5), 5);
  EXPECT_EQ(DeadlineNanos(PageCount(262145), 5), 10);
  EXPECT_EQ(DeadlineNanos(PageCount(262145), 0), 0);
}

// The clock stands still but for two hours in each round.
TEST(SourceMigrationEstimateTest, IsTold) {
  Harness h({.rounds = 3});
  EXPECT_EQ(h.snapshot().estimate.unsent, BytesIn(PageCount(Harness::kPages)));
  EXPECT_EQ(h.snapshot().estimate.bandwidth_bytes_per_second, -1);
  h.Run();
  h.ExpectCompleted();
  const Estimate estimate = h.snapshot().estimate;
  EXPECT_GT(estimate.bandwidth_bytes_per_second, 0);
  EXPECT_GE(estimate.dirty_bytes_per_second, 0);
  EXPECT_GE(estimate.downtime_nanos, 0);
  EXPECT_GE(estimate.stall_nanos, 0);
}

// --- The table of phases.

// In `phase` every command that the table refuses is refused, with its code;
// and a limit is taken where it says so. Ended phases refuse what would move
// others on.
void ExpectTableHolds(Harness& h, SourcePhase phase) {
  SCOPED_TRACE(NameOf(phase));
  ASSERT_EQ(h.phase(), phase) << h.snapshot().message;
  const auto refusal = [phase](MigrationEvent command) {
    return Permit(MigrationRole::kSource, phase, command, "").code();
  };
  SourceMigration& migration = h.migration();
  for (const MigrationEvent command :
       {MigrationEvent::kPause, MigrationEvent::kRecover,
        MigrationEvent::kAbandon, MigrationEvent::kDelete}) {
    EXPECT_EQ(migration.Refuse(command).code(), refusal(command));
  }
  EXPECT_EQ(migration.SetBulkLimit(ByteCount(7 << 20)).code(),
            refusal(MigrationEvent::kSetLimits));
  if (refusal(MigrationEvent::kCancel) != StatusCode::kOk) {
    EXPECT_EQ(migration.Cancel().code(), refusal(MigrationEvent::kCancel));
  }
  if (refusal(MigrationEvent::kSwitchOver) != StatusCode::kOk) {
    EXPECT_EQ(migration.RequestSwitchOver().code(),
              refusal(MigrationEvent::kSwitchOver));
  }
  EXPECT_EQ(h.phase(), phase);
}

TEST(SourceMigrationTableTest, HoldsUntilCompleted) {
  Harness h({});
  ExpectTableHolds(h, SourcePhase::kPreparing);
  h.RunToPostcopy();
  ExpectTableHolds(h, SourcePhase::kPostcopy);
  EXPECT_EQ(h.snapshot().bulk_limit, ByteCount(7 << 20));
  h.set_fault(nullptr);
  h.Run();
  ExpectTableHolds(h, SourcePhase::kCompleted);
  EXPECT_EQ(h.snapshot().bulk_limit, ByteCount(7 << 20))
      << "kept over sessions";
  std::vector<SourcePhase> phases;
  for (const PhaseChange& change : h.migration().Changes()) {
    phases.push_back(change.phase);
    EXPECT_EQ(change.number, phases.size());
  }
  EXPECT_EQ(phases, (std::vector<SourcePhase>{
                        SourcePhase::kPreparing, SourcePhase::kPrecopy,
                        SourcePhase::kSwitching, SourcePhase::kPostcopy,
                        SourcePhase::kCompleted}));
}

TEST(SourceMigrationTableTest, HoldsInPrecopyAndWhenCancelled) {
  Harness h(SilentInPrecopy());
  h.RunToSilence();
  ExpectTableHolds(h, SourcePhase::kPrecopy);
  EXPECT_TRUE(h.migration().Cancel().ok());
  h.Join();
  ExpectTableHolds(h, SourcePhase::kCancelled);
  EXPECT_TRUE(h.migration().Cancel().ok());
}

TEST(SourceMigrationTableTest, HoldsInSwitchingAndWhenFailed) {
  Harness h(SilentInSwitching());
  h.RunToSilence();
  ExpectTableHolds(h, SourcePhase::kSwitching);
  h.migration().VmmGone();
  h.Join();
  ExpectTableHolds(h, SourcePhase::kFailed);
}

}  // namespace
}  // namespace postcopy
