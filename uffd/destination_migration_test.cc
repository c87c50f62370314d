// The destination's half of a migration against a source, a network, a VMM and
// a kernel that do what the test says.
#include "uffd/destination_migration.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dirtytrack/memfd.h"
#include "dirtytrack/migration_phase.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/policy_pull_order.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Phase = DestinationPhase;
using Touch = SimulatedUffd::Touch;

constexpr PageCount kPages{130};
constexpr PageRun kAll{PageIndex(0), kPages};
constexpr HostAddress kBase{0x900000000};
// For what must happen; a test that reaches it has failed.
constexpr std::chrono::seconds kPatience(60);
constexpr int64_t kHour = 3600 * kNanosPerSecond;

const std::set<uint64_t>& Stale() {
  static const auto* const pages =
      new std::set<uint64_t>{3, 64, 65, 66, 67, 68, 69, 129};
  return *pages;
}

uint32_t CrcOf(const std::string& text) {
  return Crc32c({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::string Text(const absl::Status& status) {
  return std::string(status.message());
}

// One session at the source's end. Thread-safe.
class Session {
 public:
  explicit Session(bool committed) : committed_(committed) {}

  bool committed() const { return committed_; }
  // Of a source that never had this guest, though it has committed another of
  // its name. Before it is offered.
  void BelongToAnother() { id_ = 2; }
  uint64_t id() const { return id_; }

  // What the source says on the bulk lane, in order.
  void Say(std::function<BulkEvent()> event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    said_.push_back(std::move(event));
    changed_.notify_all();
  }
  void SayPages(PageRun run, uint64_t damaged = 0) {
    auto answer = std::make_shared<Answer>(run, std::set<uint64_t>());
    Say([answer, damaged] { return PagesArrived{answer->runs(), damaged}; });
  }
  void SayDamage(uint64_t runs) {
    Say([runs] { return PagesArrived{{}, runs}; });
  }
  // Of `runs` that came compressed, beside one that was whole or not.
  void SayUndecodable(uint64_t runs, bool one_whole = false) {
    Say([runs, one_whole] { return PagesArrived{{}, runs, runs, one_whole}; });
  }
  void SayRoundEnd(uint32_t round) {
    Say([round] { return RoundEnded{round}; });
  }
  void SayStale(const std::set<uint64_t>& pages) {
    auto words = std::make_shared<std::vector<uint64_t>>(
        PageBitmapView::WordCount(kPages));
    for (const uint64_t page : pages) {
      (*words)[page / 64] |= uint64_t{1} << (page % 64);
    }
    Say([words] {
      return StalePiece{PageIndex(0),
                        {reinterpret_cast<const uint8_t*>(words->data()),
                         words->size() * sizeof(uint64_t)}};
    });
  }
  void SayState(const std::string& state) {
    Say([state] { return DeviceStatePiece{{state.data(), state.size()}}; });
  }
  void SaySwitchOver(uint64_t stale, const std::string& state) {
    Say([stale, bytes = state.size(), crc = CrcOf(state)] {
      return SwitchOverComplete{PageCount(stale), bytes, crc};
    });
  }
  void SayCommit() {
    Say([] { return Committed{}; });
  }

  void SayDirtied(const std::vector<PageRun>& runs) {
    Say([runs] { return PagesDirtied{runs}; });
  }

  // Answers on the urgent lane.
  void AnswerUrgent(const std::vector<PageIndex>& pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    urgent_said_.push_back(
        std::make_shared<Answer>(pages, std::set<uint64_t>()));
    changed_.notify_all();
  }
  // Answers whatever is asked, from now on and before.
  void Serve() {
    const std::lock_guard<std::mutex> lock(mutex_);
    serving_ = true;
    for (const auto& pages : urgent_) AnswerUrgentLocked(pages);
    for (const PageRun run : bulk_) AnswerBulkLocked(run);
    changed_.notify_all();
  }
  // The connection ends with `status`, behind what has been said.
  void Break(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    EndLocked(status);
  }
  void BreakUrgent(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    urgent_end_ = status;
    changed_.notify_all();
  }

  // What the destination has done.
  void AwaitEnd() {
    Await([this] { return !end_.ok(); });
  }
  // It listens, having taken all that was said.
  void AwaitListening() {
    Await([this] { return listening_ && said_.empty(); });
  }
  void AwaitAcks(size_t count) {
    Await([&] { return acks_.size() >= count; });
  }
  void AwaitReady() {
    Await([this] { return !ready_.empty(); });
  }
  void AwaitResumed() {
    Await([this] { return resumed_ > 0; });
  }
  void AwaitUrgent(const std::set<uint64_t>& pages) {
    Await([&] { return AskedUrgentLocked() == pages; });
  }
  void AwaitBulk(size_t count) {
    Await([&] { return bulk_.size() >= count; });
  }
  std::vector<std::pair<uint32_t, uint64_t>> acks() { return Get(acks_); }
  std::vector<PageCount> ready() { return Get(ready_); }
  int resumed() { return Get(resumed_); }
  std::vector<PageRun> bulk() { return Get(bulk_); }
  std::set<uint64_t> urgent() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return AskedUrgentLocked();
  }

  // The destination's end; as SourceConnection.
  absl::StatusOr<BulkEvent> ReceiveBulk() {
    std::unique_lock<std::mutex> lock(mutex_);
    listening_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !said_.empty() || !end_.ok(); });
    if (said_.empty()) return end_;
    listening_ = false;
    now_ = std::move(said_.front());
    said_.pop_front();
    return now_();
  }
  absl::StatusOr<absl::Span<const ReceivedRun>> ReceiveUrgent() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] {
      return !urgent_said_.empty() || !end_.ok() || !urgent_end_.ok();
    });
    if (!urgent_said_.empty()) {
      urgent_now_ = std::move(urgent_said_.front());
      urgent_said_.pop_front();
      return urgent_now_->runs();
    }
    return urgent_end_.ok() ? end_ : urgent_end_;
  }
  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!end_.ok()) return end_;
    urgent_.emplace_back(pages.begin(), pages.end());
    if (serving_) AnswerUrgentLocked(urgent_.back());
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::Status RequestBulk(PageRun run) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!end_.ok()) return end_;
    bulk_.push_back(run);
    if (serving_) AnswerBulkLocked(run);
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::Status SendRoundAck(uint32_t round, uint64_t damaged) {
    return Note([&] { acks_.emplace_back(round, damaged); });
  }
  absl::Status SendReady(PageCount discarded) {
    return Note([&] { ready_.push_back(discarded); });
  }
  absl::Status SendResumed() {
    return Note([&] { ++resumed_; });
  }
  void EndRequests() {
    if (deaf_.load()) return;
    Break(absl::UnavailableError("all was asked for"));
  }
  // The source does not see that requests have ended.
  void GoDeaf() { deaf_.store(true); }
  void Abort() {
    const std::lock_guard<std::mutex> lock(mutex_);
    said_.clear();
    urgent_said_.clear();
    EndLocked(absl::CancelledError("aborted"));
  }

 private:
  template <typename Done>
  void Await(Done done) {
    std::unique_lock<std::mutex> lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kPatience, done));
  }
  template <typename T>
  T Get(const T& value) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return value;
  }
  template <typename Action>
  absl::Status Note(Action action) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!end_.ok()) return end_;
    action();
    changed_.notify_all();
    return absl::OkStatus();
  }
  void EndLocked(const absl::Status& status) {
    if (end_.ok()) end_ = status;
    changed_.notify_all();
  }
  void AnswerUrgentLocked(const std::vector<PageIndex>& pages) {
    urgent_said_.push_back(
        std::make_shared<Answer>(pages, std::set<uint64_t>()));
  }
  void AnswerBulkLocked(PageRun run) {
    auto answer = std::make_shared<Answer>(run, std::set<uint64_t>());
    said_.push_back([answer] { return PagesArrived{answer->runs(), 0}; });
  }
  std::set<uint64_t> AskedUrgentLocked() const {
    std::set<uint64_t> asked;
    for (const auto& pages : urgent_) {
      for (const PageIndex page : pages) asked.insert(page.value());
    }
    return asked;
  }

  const bool committed_;
  std::atomic<uint64_t> id_{1};
  std::atomic<bool> deaf_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool serving_ = false;
  bool listening_ = false;
  absl::Status end_;
  absl::Status urgent_end_;
  std::deque<std::function<BulkEvent()>> said_;
  std::function<BulkEvent()> now_;
  std::deque<std::shared_ptr<Answer>> urgent_said_;
  std::shared_ptr<Answer> urgent_now_;
  std::vector<std::pair<uint32_t, uint64_t>> acks_;
  std::vector<PageCount> ready_;
  int resumed_ = 0;
  std::vector<std::vector<PageIndex>> urgent_;
  std::vector<PageRun> bulk_;
};

// Where sessions come from. Nobody listens unless the test says so.
// Thread-safe.
class Network {
 public:
  // One of the next dials gets this; in the order of the calls.
  std::shared_ptr<Session> Accept(bool committed = false,
                                  bool of_another = false) {
    auto session = std::make_shared<Session>(committed);
    if (of_another) session->BelongToAnother();
    const std::lock_guard<std::mutex> lock(mutex_);
    answers_.push_back({absl::OkStatus(), session});
    return session;
  }
  void Refuse(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    answers_.push_back({status, nullptr});
  }
  // Whether dials are not answered, but end when they are told to.
  void SetSilent(bool silent) {
    const std::lock_guard<std::mutex> lock(mutex_);
    silent_ = silent;
  }
  // What the next CompleteSession calls return; OK after that.
  void AnswerComplete(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    complete_answers_.push_back(status);
  }

  // Everything said here so far has been answered, and `more` dials.
  void AwaitDials(size_t more) {
    std::unique_lock<std::mutex> lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kPatience,
                                  [this] { return answers_.empty(); }));
    const size_t seen = epochs_.size();
    ASSERT_TRUE(changed_.wait_for(
        lock, kPatience, [&] { return epochs_.size() >= seen + more; }));
  }
  // At least `total` dials, answered or not.
  void AwaitDialled(size_t total) {
    std::unique_lock<std::mutex> lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kPatience,
                                  [&] { return epochs_.size() >= total; }));
  }
  std::vector<uint64_t> epochs() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return epochs_;
  }
  // The epochs that said that every page is here.
  std::vector<uint64_t> completed() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return completed_;
  }

  // How often compression was forgone.
  int forgone() const { return forgone_.load(); }
  void Forgo() { ++forgone_; }

  // Called on each dial, before it is answered. Set before the first.
  std::function<void()> on_dial = [] {};

  // The answer to a dial: an error, or a session.
  struct Reply {
    absl::Status status;
    std::shared_ptr<Session> session;
  };
  Reply Open(uint64_t epoch, const std::stop_token& stop) {
    on_dial();
    std::unique_lock<std::mutex> lock(mutex_);
    epochs_.push_back(epoch);
    changed_.notify_all();
    if (silent_) {
      changed_.wait(lock, stop, [] { return false; });
      return {absl::CancelledError("told to stop"), nullptr};
    }
    if (answers_.empty()) {
      return {absl::UnavailableError("nobody listens"), nullptr};
    }
    Reply answer = answers_.front();
    answers_.pop_front();
    return answer;
  }
  absl::Status Complete(uint64_t epoch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    completed_.push_back(epoch);
    if (complete_answers_.empty()) return absl::OkStatus();
    absl::Status answer = complete_answers_.front();
    complete_answers_.pop_front();
    return answer;
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool silent_ = false;  // guarded by mutex_
  std::deque<Reply> answers_;
  std::deque<absl::Status> complete_answers_;
  std::vector<uint64_t> epochs_;
  std::atomic<int> forgone_{0};
  std::vector<uint64_t> completed_;
};

class FakeConnection final : public SourceConnection {
 public:
  FakeConnection(Network* network, uint64_t epoch,
                 std::shared_ptr<Session> session)
      : network_(*network), epoch_(epoch), session_(std::move(session)) {}

  uint64_t session_id() const override { return session_->id(); }
  bool committed() const override { return session_->committed(); }
  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override {
    return session_->RequestUrgent(pages);
  }
  absl::Status RequestBulk(PageRun run) override {
    return session_->RequestBulk(run);
  }
  absl::StatusOr<BulkEvent> ReceiveBulk() override {
    return session_->ReceiveBulk();
  }
  absl::StatusOr<absl::Span<const ReceivedRun>> ReceiveUrgent() override {
    return session_->ReceiveUrgent();
  }
  absl::Status SendRoundAck(uint32_t round, uint64_t damaged_runs) override {
    return session_->SendRoundAck(round, damaged_runs);
  }
  absl::Status SendReady(PageCount discarded) override {
    return session_->SendReady(discarded);
  }
  absl::Status SendResumed(int64_t /*vmm_nanos*/) override {
    return session_->SendResumed();
  }
  void EndRequests() override { session_->EndRequests(); }
  void Abort() override { session_->Abort(); }
  absl::Status Complete() override { return network_.Complete(epoch_); }

 private:
  Network& network_;
  const uint64_t epoch_;
  const std::shared_ptr<Session> session_;
};

class FakeDialer final : public SourceDialer {
 public:
  explicit FakeDialer(Network* network) : network_(*network) {}

  absl::StatusOr<std::unique_ptr<SourceConnection>> Open(
      uint64_t epoch, std::stop_token stop) override {
    Network::Reply reply = network_.Open(epoch, std::move(stop));
    if (!reply.status.ok()) return reply.status;
    return std::make_unique<FakeConnection>(&network_, epoch,
                                            std::move(reply.session));
  }
  void ForgoCompression() override { network_.Forgo(); }

 private:
  Network& network_;
};

// The VMM: notes what it is told. Thread-safe.
class FakeVmm {
 public:
  // What loading and resuming do; set before the start.
  std::function<absl::Status()> load = [] { return absl::OkStatus(); };
  std::function<absl::Status()> resume = [] { return absl::OkStatus(); };

  DestinationGuest callbacks() {
    return {.load_device_state =
                [this](absl::string_view state) {
                  Note("load " + std::string(state.data(), state.size()));
                  return load();
                },
            .resume =
                [this] {
                  Note("resume");
                  return resume();
                },
            .ended =
                [this](bool completed) {
                  Note(completed ? "completed" : "not completed");
                }};
  }

  std::vector<std::string> told() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return told_;
  }
  void AwaitTold(const std::string& what) {
    std::unique_lock<std::mutex> lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kPatience, [&] {
      return std::find(told_.begin(), told_.end(), what) != told_.end();
    })) << what;
  }

 private:
  void Note(std::string what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    told_.push_back(std::move(what));
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> told_;
};

// One destination, from its VM to its source.
// Lets a test act between two steps of another thread that asks for the time.
class HookedClock final : public Clock {
 public:
  explicit HookedClock(Clock* clock) : clock_(*clock) {}

  // `act` runs once, on the next thread other than this that asks.
  void OnceElsewhere(std::function<void()> act) {
    const std::lock_guard<std::mutex> lock(mutex_);
    act_ = std::move(act);
    here_ = std::this_thread::get_id();
  }
  int64_t NowNanos() override {
    std::function<void()> act;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (std::this_thread::get_id() != here_) act = std::exchange(act_, {});
    }
    if (act) act();
    return clock_.NowNanos();
  }
  void SleepFor(int64_t nanos) override { clock_.SleepFor(nanos); }

 private:
  Clock& clock_;
  std::mutex mutex_;
  std::function<void()> act_;  // guarded by mutex_
  std::thread::id here_;       // guarded by mutex_
};

class World {
 public:
  World() {
    uffd_.Map(kBase, BytesIn(kPages), fd_.get(), 0);
    options.retry_nanos_first = kNanosPerMilli;
    options.retry_nanos_last = 2 * kNanosPerMilli;
  }
  ~World() {
    vmm_gone_.store(true);
    migration.reset();
  }

  void Start() {
    absl::StatusOr<std::unique_ptr<DestinationVm>> vm = DestinationVm::Create(
        LayoutOf({kPages}), {{kBase, fd_.get(), 0}}, Share(&uffd_), &clock);
    ASSERT_TRUE(vm.ok()) << vm.status();
    migration = std::make_unique<DestinationMigration>(
        *std::move(vm), std::make_unique<FakeDialer>(&network), vmm.callbacks(),
        options, &migration_clock);
    ASSERT_TRUE(migration->Start().ok());
  }

  // The way of a migration without incident, in steps.
  std::shared_ptr<Session> StartWithSession() {
    session = network.Accept();
    Start();
    return session;
  }
  void Precopy() {
    session->SayPages(kAll);
    session->SayRoundEnd(1);
    session->AwaitAcks(1);
  }
  void SwitchOver(const std::set<uint64_t>& stale = Stale()) {
    session->SayStale(stale);
    session->SayState("sta");
    session->SayState("te");
    session->SaySwitchOver(stale.size(), "state");
  }
  void GetReady() {
    Precopy();
    SwitchOver();
    session->AwaitReady();
  }
  void GetResumed() {
    GetReady();
    session->SayCommit();
    session->AwaitResumed();
  }

  void AwaitPhase(Phase phase) {
    AwaitSnapshot(
        [&](const DestinationSnapshot& now) { return now.phase == phase; });
  }
  void AwaitMessage(const std::string& text) {
    AwaitSnapshot([&](const DestinationSnapshot& now) {
      return now.message.find(text) != std::string::npos;
    });
  }
  template <typename Wanted>
  void AwaitSnapshot(Wanted wanted) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (true) {
      const uint64_t version = migration->version();
      const DestinationSnapshot now = migration->Snapshot();
      if (wanted(now)) return;
      ASSERT_LT(std::chrono::steady_clock::now(), until)
          << "phase " << static_cast<int>(now.phase) << ": " << now.message;
      migration->WaitForChange(version, 10 * kNanosPerMilli);
    }
  }

  // Completed, and every page as it was at the source.
  void ExpectCompleted() {
    AwaitPhase(Phase::kCompleted);
    migration->Stop();
    EXPECT_EQ(uffd_.waiting(), 0u);
    EXPECT_EQ(migration->Snapshot().pages.missing, PageCount(0));
    for (uint64_t page = 0; page < kPages.value(); ++page) {
      EXPECT_TRUE(HasContent(page)) << page;
    }
    EXPECT_THAT(vmm.told(), ElementsAre("load state", "resume", "completed"));
    EXPECT_EQ(uffd_.calls(SimulatedUffd::Call::kUnregister), 1);
  }
  // The guest goes on at the source: nothing here is kept.
  void ExpectCancelled(const std::string& message) {
    AwaitPhase(Phase::kCancelled);
    EXPECT_THAT(migration->Snapshot().message, HasSubstr(message));
    vmm.AwaitTold("not completed");
    migration->Stop();
    EXPECT_THAT(vmm.told(), ElementsAre("not completed"));
    EXPECT_EQ(uffd_.calls(SimulatedUffd::Call::kUnregister), 1);
  }

  bool HasContent(uint64_t page) {
    std::vector<uint8_t> bytes(kPageSize);
    EXPECT_EQ(::pread(fd_.get(), bytes.data(), kPageSize,
                      static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(kPageSize));
    return HasPattern(bytes.data(), PageIndex(page));
  }
  // True if a touch of a page that is not there waits.
  bool IsWatched(uint64_t page) {
    const int thread = next_thread_++;
    const Touch touch = TouchPage(thread, page);
    return touch == Touch::kWaiting;
  }
  Touch TouchPage(int thread, uint64_t page) {
    return uffd_.TouchPage(thread, kBase + BytesIn(PageCount(page)));
  }
  // As the VMM: touches `page` and goes on when it is there.
  absl::Status TouchAndWait(uint64_t page) {
    constexpr int kThread = 1000;
    TouchPage(kThread, page);
    while (uffd_.IsWaiting(kThread)) {
      if (vmm_gone_.load()) return absl::UnavailableError("the VMM is gone");
      std::this_thread::yield();
    }
    return absl::OkStatus();
  }
  // Ends the VMM: what it does, ends.
  void KillVmm() {
    vmm_gone_.store(true);
    migration->VmmGone();
  }
  void UnblockVmm() { vmm_gone_.store(true); }

  DestinationOptions options;
  SimulatedClock clock;
  HookedClock migration_clock{&clock};
  Network network;
  FakeVmm vmm;
  std::shared_ptr<Session> session;
  std::unique_ptr<DestinationMigration> migration;
  SimulatedUffd& uffd() { return uffd_; }

 private:
  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(kPages), 0);
  SimulatedUffd uffd_;
  std::atomic<bool> vmm_gone_{false};
  int next_thread_ = 5000;
};

class DestinationMigrationTest : public testing::Test {
 protected:
  World world_;
};

// --- The way without incident.

// Proves that rounds, switch-over, commit, background and end follow each
// other, and that each side is told once and in order.
TEST_F(DestinationMigrationTest, MovesAGuest) {
  const auto session = world_.StartWithSession();
  session->AwaitListening();
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kPrecopy);
  world_.Precopy();
  EXPECT_TRUE(world_.HasContent(3));
  world_.SwitchOver();
  session->AwaitReady();
  EXPECT_THAT(session->ready(), ElementsAre(PageCount(Stale().size())));
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kSwitching);
  EXPECT_EQ(world_.TouchPage(1, 64), Touch::kWaiting);
  EXPECT_THAT(world_.vmm.told(), IsEmpty());

  session->SayCommit();
  session->AwaitResumed();
  session->AwaitUrgent({64});
  EXPECT_THAT(world_.vmm.told(), ElementsAre("load state", "resume"));
  EXPECT_THAT(world_.network.completed(), IsEmpty());
  session->Serve();

  world_.ExpectCompleted();
  EXPECT_EQ(session->resumed(), 1);
  EXPECT_EQ(session->ready().size(), 1u);
  EXPECT_THAT(world_.network.completed(), ElementsAre(1));
  const DestinationSnapshot end = world_.migration->Snapshot();
  EXPECT_EQ(end.rounds, 1u);
  EXPECT_EQ(end.stale, PageCount(Stale().size()));
  EXPECT_EQ(end.recoveries, 0u);
  EXPECT_EQ(end.pages.precopied, kPages);
  EXPECT_EQ(end.pages.faulted + end.pages.background,
            PageCount(Stale().size()));
}

// Proves that an ack carries the damaged runs of its round and no other.
TEST_F(DestinationMigrationTest, AcknowledgesRoundsWithTheirDamage) {
  const auto session = world_.StartWithSession();
  session->SayDamage(2);
  session->SayPages({PageIndex(0), PageCount(4)}, /*damaged=*/1);
  session->SayRoundEnd(7);
  session->SayPages({PageIndex(4), PageCount(4)});
  session->SayRoundEnd(8);
  session->AwaitAcks(2);
  EXPECT_THAT(session->acks(),
              ElementsAre(std::pair<uint32_t, uint64_t>(7, 3),
                          std::pair<uint32_t, uint64_t>(8, 0)));
  EXPECT_EQ(world_.migration->Snapshot().damaged_runs, 3u);
  EXPECT_EQ(world_.migration->Snapshot().rounds, 8u);
  EXPECT_TRUE(world_.HasContent(5));
}

// A pair of hosts that cannot decode each other's frames goes on without.
TEST_F(DestinationMigrationTest, RunsThatNeverDecodeAreAskedForPlain) {
  const auto session = world_.StartWithSession();
  session->SayUndecodable(kDamagedCompressedRunsMax - 1);
  session->SayDamage(kDamagedCompressedRunsMax);  // of plain ones: the network
  session->SayUndecodable(1, /*one_whole=*/true);
  session->SayUndecodable(kDamagedCompressedRunsMax - 2);
  session->SayRoundEnd(1);
  session->AwaitAcks(1);
  EXPECT_EQ(world_.network.forgone(), 0);
  session->SayUndecodable(1);
  session->AwaitEnd();
  const auto again = world_.network.Accept(/*committed=*/false);
  EXPECT_EQ(world_.network.forgone(), 1);
  again->SayPages({PageIndex(0), PageCount(4)});
  again->SayRoundEnd(2);
  again->AwaitAcks(1);
  EXPECT_TRUE(world_.HasContent(3));
}

// Proves that with nothing stale the end still waits for the guest to run:
// the source is not told, nor the VMM, before it has resumed.
TEST_F(DestinationMigrationTest, EndsAfterTheGuestRunsThoughNothingIsMissing) {
  std::atomic<bool> go{false};
  world_.vmm.load = [&] {
    while (!go.load()) std::this_thread::yield();
    return absl::OkStatus();
  };
  const auto session = world_.StartWithSession();
  world_.Precopy();
  world_.SwitchOver({});
  session->AwaitReady();
  session->SayCommit();
  world_.vmm.AwaitTold("load state");
  // Long enough to go wrong in, if it can.
  for (int i = 0; i < 2000; ++i) std::this_thread::yield();
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kPostcopy);
  EXPECT_THAT(world_.network.completed(), IsEmpty());
  go.store(true);
  world_.ExpectCompleted();
  EXPECT_EQ(session->resumed(), 1);
}

// Proves that a source lost then, too, is brought back, and told.
// Its streams stay open, and nothing comes on them any more.
TEST_F(DestinationMigrationTest, CompletesThoughTheSourceDoesNotEndItsStreams) {
  world_.options.lanes_end_nanos = kNanosPerMilli;
  world_.StartWithSession()->GoDeaf();
  world_.GetResumed();
  world_.session->Serve();
  world_.ExpectCompleted();
}

TEST_F(DestinationMigrationTest, RecoversWhileLoadingThoughNothingIsMissing) {
  std::atomic<bool> go{false};
  world_.vmm.load = [&] {
    while (!go.load()) std::this_thread::yield();
    return absl::OkStatus();
  };
  const auto session = world_.StartWithSession();
  world_.Precopy();
  world_.SwitchOver({});
  session->AwaitReady();
  session->SayCommit();
  world_.vmm.AwaitTold("load state");
  session->Break(absl::UnavailableError("reset"));
  world_.network.AwaitDials(2);
  const auto again = world_.network.Accept(/*committed=*/true);
  again->AwaitListening();
  go.store(true);
  world_.ExpectCompleted();
  EXPECT_EQ(session->resumed(), 0);
  EXPECT_EQ(again->resumed(), 1);
}

// Proves that a guest that does not load is lost, also if no page is missing.
TEST_F(DestinationMigrationTest, FailsIfLoadingFailsThoughNothingIsMissing) {
  world_.vmm.load = [] {
    for (int i = 0; i < 2000; ++i) std::this_thread::yield();
    return absl::InternalError("wrong machine type");
  };
  const auto session = world_.StartWithSession();
  world_.Precopy();
  world_.SwitchOver({});
  session->AwaitReady();
  session->SayCommit();
  world_.AwaitPhase(Phase::kFailed);
  world_.migration->Stop();
  EXPECT_THAT(world_.vmm.told(), ElementsAre("load state"));
  EXPECT_THAT(world_.network.completed(), IsEmpty());
}

// --- The switch-over is checked.

struct BadSwitchOver {
  const char* name;
  std::set<uint64_t> stale;
  std::string state;
  SwitchOverComplete complete;
};

class BadSwitchOverTest : public testing::TestWithParam<BadSwitchOver> {};

// Proves that a switch-over that did not arrive as it was ends the session,
// that nobody is told ready, and that another session may mend it.
TEST_P(BadSwitchOverTest, IsNotReady) {
  World world;
  const auto session = world.StartWithSession();
  world.Precopy();
  session->SayStale(GetParam().stale);
  session->SayState(GetParam().state);
  session->Say([] { return GetParam().complete; });
  session->AwaitEnd();
  world.network.AwaitDials(1);
  EXPECT_THAT(session->ready(), IsEmpty());
  EXPECT_EQ(world.migration->Snapshot().phase, Phase::kSwitching);
  EXPECT_THAT(world.vmm.told(), IsEmpty());

  // What is left of it does not disturb the next.
  world.session = world.network.Accept();
  world.GetResumed();
  world.session->Serve();
  world.ExpectCompleted();
}

INSTANTIATE_TEST_SUITE_P(
    All, BadSwitchOverTest,
    testing::Values(
        BadSwitchOver{"WrongCrc", {3}, "abc", {PageCount(1), 3, CrcOf("abd")}},
        BadSwitchOver{"TooShort", {3}, "abc", {PageCount(1), 4, CrcOf("abc")}},
        BadSwitchOver{
            "FewerStale", {3}, "abc", {PageCount(2), 3, CrcOf("abc")}},
        BadSwitchOver{
            "MoreStale", {3, 4}, "abc", {PageCount(1), 3, CrcOf("abc")}},
        BadSwitchOver{
            "ClaimsMoreThanTheLimit",
            {3},
            "abc",
            {PageCount(1), kReceivedDeviceStateBytesMax + 1, CrcOf("abc")}}),
    [](const auto& info) { return std::string(info.param.name); });

// Proves that device state of exactly the limit is taken.
TEST_F(DestinationMigrationTest, TakesDeviceStateUpToTheLimit) {
  const auto session = world_.StartWithSession();
  const std::string state(kReceivedDeviceStateBytesMax, 'x');
  session->SayStale({});
  session->Say([&] { return DeviceStatePiece{{state.data(), state.size()}}; });
  session->SaySwitchOver(0, state);
  session->AwaitReady();
}

// Proves that one byte more is refused, without being looked at.
TEST_F(DestinationMigrationTest, RefusesDeviceStateBeyondTheLimit) {
  const auto session = world_.StartWithSession();
  const char byte = 'x';
  session->SayState("x");
  session->Say(
      [&] { return DeviceStatePiece{{&byte, kReceivedDeviceStateBytesMax}}; });
  world_.ExpectCancelled("device state is larger than 67108864 bytes");
  EXPECT_THAT(session->ready(), IsEmpty());
}

// Proves that a stale piece beyond the last word is refused, and that bits
// behind the last page in the last word mean nothing.
TEST_F(DestinationMigrationTest, RefusesStalePagesOutsideTheLayout) {
  const auto session = world_.StartWithSession();
  const std::vector<uint8_t> word(8, 0xff);
  session->Say([&] { return StalePiece{PageIndex(128), word}; });
  session->AwaitListening();
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kPrecopy);
  session->Say([&] { return StalePiece{PageIndex(192), word}; });
  world_.ExpectCancelled("outside the layout");
}

TEST_F(DestinationMigrationTest, RefusesStalePiecesThatReachOut) {
  const auto session = world_.StartWithSession();
  const std::vector<uint8_t> words(16, 0);
  session->Say([&] { return StalePiece{PageIndex(128), words}; });
  world_.ExpectCancelled("outside the layout");
}

TEST_F(DestinationMigrationTest, RefusesStalePiecesFarOut) {
  const auto session = world_.StartWithSession();
  const std::vector<uint8_t> word(8, 0);
  session->Say([&] { return StalePiece{PageIndex(UINT64_MAX - 63), word}; });
  world_.ExpectCancelled("outside the layout");
}

// Proves that precopied pages outside the layout end the migration, before
// anything is stored.
TEST_F(DestinationMigrationTest, RefusesPagesOutsideTheLayout) {
  const auto session = world_.StartWithSession();
  session->SayPages({PageIndex(129), PageCount(2)});
  world_.ExpectCancelled("given up; the guest goes on at the source");
  EXPECT_EQ(world_.migration->Snapshot().pages.precopied, PageCount(0));
}

// --- Order is kept.

TEST_F(DestinationMigrationTest, RefusesACommitBeforeItIsReady) {
  const auto session = world_.StartWithSession();
  session->SayCommit();
  world_.ExpectCancelled("a commit out of turn");
}

// Proves that nobody is told that the guest goes on at a source which has
// given it away.
TEST_F(DestinationMigrationTest, RefusesACommittedSessionBeforeItIsReady) {
  const auto session = world_.network.Accept(/*committed=*/true);
  world_.Start();
  world_.AwaitPhase(Phase::kFailed);
  EXPECT_THAT(world_.migration->Snapshot().message,
              HasSubstr("a switch-over that never arrived here"));
}

// Proves that a violation between ready and commit ends the session and says
// so, but does not decide whose the guest is: the source does.
TEST_F(DestinationMigrationTest, RefusesPagesBetweenReadyAndCommit) {
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayPages(kAll);
  session->AwaitEnd();
  world_.AwaitMessage("nobody listens");
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kSwitching);
  const auto again = world_.network.Accept(/*committed=*/true);
  again->Serve();
  world_.ExpectCompleted();
}

TEST_F(DestinationMigrationTest, TellsOfPagesBetweenReadyAndCommit) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayPages(kAll);
  world_.AwaitMessage("looking for the source: the source does not follow");
  EXPECT_THAT(world_.migration->Snapshot().message,
              HasSubstr("pages before the commit"));
}

TEST_F(DestinationMigrationTest, RefusesPrecopyAfterReady) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayRoundEnd(2);
  world_.AwaitMessage("precopy after the switch-over");
  EXPECT_EQ(session->acks().size(), 1u);
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kSwitching);
}

// Proves that what the source says was written last is fetched first.
TEST_F(DestinationMigrationTest, FetchesFirstWhatWasDirtiedLast) {
  const uint64_t last = *Stale().rbegin();
  ASSERT_NE(last, *Stale().begin());
  std::promise<void> said;
  world_.vmm.load = [&] {
    said.get_future().wait();
    world_.session->AwaitListening();
    return absl::OkStatus();
  };
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayCommit();
  session->SayDirtied({{PageIndex(last), PageCount(1)}});
  session->SayDirtied({{PageIndex(0), kPages}});
  said.set_value();
  session->AwaitBulk(1);
  EXPECT_EQ(session->bulk().front().first, PageIndex(last));
  session->Serve();
  world_.ExpectCompleted();
}

TEST_F(DestinationMigrationTest, FetchesInTheOrderThatWasChosen) {
  world_.options.pull_order = PullOrderKind::kLinear;
  const auto session = world_.StartWithSession();
  world_.GetReady();
  // Not the first page that is missing.
  EXPECT_EQ(world_.TouchPage(1, 129), Touch::kWaiting);
  session->SayCommit();
  session->AwaitUrgent({129});
  session->AwaitBulk(1);
  EXPECT_EQ(session->bulk().front(), (PageRun{PageIndex(3), PageCount(1)}));
  session->Serve();
  world_.ExpectCompleted();
}

TEST_F(DestinationMigrationTest, RefusesStatisticsBeforeTheCommit) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayDirtied({{PageIndex(0), PageCount(1)}});
  world_.AwaitMessage("statistics before the commit");
}

// Proves that statistics of pages that are none end the session, not the guest.
TEST_F(DestinationMigrationTest, RefusesDirtiedPagesOutsideTheLayout) {
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  session->SayDirtied({{PageIndex(kPages.value()), PageCount(1)}});
  session->AwaitEnd();
  const auto again = world_.network.Accept(/*committed=*/true);
  again->Serve();
  world_.ExpectCompleted();
}

TEST_F(DestinationMigrationTest, RefusesASecondCommit) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  session->SayCommit();
  world_.AwaitPhase(Phase::kPaused);
  EXPECT_THAT(world_.migration->Snapshot().message,
              HasSubstr("a commit out of turn"));
  EXPECT_THAT(world_.vmm.told(), ElementsAre("load state", "resume"));
}

// Proves that damage after the commit is counted and not installed; the
// session ends, and the next brings the pages.
TEST_F(DestinationMigrationTest, AsksAgainForDamagedPagesAfterTheCommit) {
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  session->SayDamage(1);
  session->AwaitEnd();
  const auto again = world_.network.Accept(/*committed=*/true);
  again->Serve();
  world_.ExpectCompleted();
  EXPECT_EQ(world_.migration->Snapshot().damaged_runs, 1u);
  EXPECT_EQ(world_.migration->Snapshot().recoveries, 1u);
}

// Proves that an answer on the urgent lane before the commit is no way to
// install pages, and that the reason is told.
TEST_F(DestinationMigrationTest, RefusesUrgentPagesBeforeTheCommit) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  session->AnswerUrgent({PageIndex(3)});
  world_.ExpectCancelled("OnUrgentPages cannot be called");
}

// --- Loss.

// Proves that within the window it reconnects, each time with a higher epoch,
// and that the precopy goes on where the source lets it.
TEST_F(DestinationMigrationTest, ReconnectsBeforeReady) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  // Half a switch-over, which the next session must not inherit.
  session->SayStale({7});
  session->SayState("half");
  session->Break(absl::UnavailableError("reset"));
  session->AwaitEnd();
  world_.network.AwaitDials(2);
  world_.session = world_.network.Accept();
  world_.GetResumed();
  world_.session->Serve();
  world_.ExpectCompleted();
  const std::vector<uint64_t> epochs = world_.network.epochs();
  for (size_t i = 0; i < epochs.size(); ++i) EXPECT_EQ(epochs[i], i + 1);
  EXPECT_THAT(world_.network.completed(), ElementsAre(epochs.back()));
  EXPECT_EQ(world_.migration->Snapshot().recoveries, 0u);
}

// Proves that a source that never comes is waited for as long as the window,
// and no longer.
TEST_F(DestinationMigrationTest, GivesUpASourceThatNeverComes) {
  world_.Start();
  world_.clock.Advance(world_.options.reconnect_nanos);
  world_.network.AwaitDials(3);
  EXPECT_FALSE(HasEnded(world_.migration->Snapshot().phase));
  EXPECT_THAT(world_.migration->Snapshot().message,
              HasSubstr("looking for the source: nobody listens"));
  world_.clock.Advance(1);
  world_.ExpectCancelled("nobody listens");
}

// Proves that the window begins when the source is lost.
TEST_F(DestinationMigrationTest, GivesUpASourceLostInPrecopy) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  world_.clock.Advance(kHour);
  session->Break(absl::UnavailableError("reset"));
  session->AwaitEnd();
  world_.network.AwaitDials(3);
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kPrecopy);
  world_.clock.Advance(world_.options.reconnect_nanos + 1);
  world_.ExpectCancelled("nobody listens");
}

// Proves that a source that has given up is not dialled again.
TEST_F(DestinationMigrationTest, BelievesASourceThatGaveUpInPrecopy) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  session->Break(absl::AbortedError("cancelled by request"));
  world_.ExpectCancelled("cancelled by request");
  EXPECT_EQ(world_.network.epochs().size(), 1u);
}

TEST_F(DestinationMigrationTest, BelievesASourceThatRefuses) {
  world_.network.Refuse(absl::FailedPreconditionError("layouts differ"));
  world_.Start();
  world_.ExpectCancelled("layouts differ");
}

// Proves that what ended the urgent lane is what the operator reads.
TEST_F(DestinationMigrationTest, TellsWhatEndedTheUrgentLane) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  session->BreakUrgent(absl::InvalidArgumentError("a run that is none"));
  world_.ExpectCancelled("a run that is none");
}

TEST_F(DestinationMigrationTest, TellsOfADamagedFaultedPage) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  session->BreakUrgent(absl::DataLossError("a checksum did not fit"));
  world_.AwaitPhase(Phase::kPaused);
  EXPECT_THAT(world_.migration->Snapshot().message,
              HasSubstr("a checksum did not fit"));
}

// Proves that after ready no time-out and no error found here decides: it goes
// on dialling past the window, and takes over when the source has committed.
TEST_F(DestinationMigrationTest, DialsOnAfterReadyUntilTheSourceSays) {
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->Break(absl::UnavailableError("reset"));
  session->AwaitEnd();
  world_.network.AwaitDials(1);
  world_.clock.Advance(100 * world_.options.reconnect_nanos);
  world_.network.AwaitDials(3);
  for (const absl::StatusCode code :
       {absl::StatusCode::kFailedPrecondition, absl::StatusCode::kInternal,
        absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnknown,
        absl::StatusCode::kDeadlineExceeded}) {
    world_.network.Refuse(absl::Status(code, "no verdict"));
  }
  world_.network.AwaitDials(1);
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kSwitching);
  EXPECT_THAT(world_.vmm.told(), IsEmpty());

  const auto again = world_.network.Accept(/*committed=*/true);
  again->AwaitResumed();
  again->Serve();
  world_.ExpectCompleted();
  EXPECT_EQ(session->resumed(), 0);
  EXPECT_EQ(again->resumed(), 1);
}

// Proves that a session between ready and verdict loses nothing of what a
// later one may hand over.
TEST_F(DestinationMigrationTest, KeepsDeviceStateWhileTheSourceIsUndecided) {
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->Break(absl::UnavailableError("reset"));
  const auto undecided = world_.network.Accept(/*committed=*/false);
  undecided->AwaitListening();
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kSwitching);
  undecided->Break(absl::UnavailableError("reset again"));
  const auto committed = world_.network.Accept(/*committed=*/true);
  committed->Serve();
  world_.ExpectCompleted();
}

class VerdictTest : public testing::TestWithParam<absl::StatusCode> {};

// Proves that the source's word, over either way, ends it after ready.
TEST_P(VerdictTest, CancelsAfterReady) {
  World world;
  const auto session = world.StartWithSession();
  world.GetReady();
  session->Break(absl::UnavailableError("reset"));
  world.network.Refuse(absl::Status(GetParam(), "it is over"));
  world.ExpectCancelled("the guest goes on at the source: it is over");
  // Cancelled is cancelled, whoever did it.
  EXPECT_TRUE(world.migration->Cancel().ok());
}

TEST_P(VerdictTest, CancelsAfterReadyOnTheLane) {
  World world;
  const auto session = world.StartWithSession();
  world.GetReady();
  session->Break(absl::Status(GetParam(), "it is over"));
  world.ExpectCancelled("the guest goes on at the source: it is over");
}

INSTANTIATE_TEST_SUITE_P(All, VerdictTest,
                         testing::Values(absl::StatusCode::kAborted,
                                         absl::StatusCode::kNotFound));

// Proves that after the commit the loss of the source pauses, that faults are
// collected meanwhile, and that the next session is asked for these and for
// missing pages only.
TEST_F(DestinationMigrationTest, RecoversAfterTheCommit) {
  std::vector<std::pair<Phase, std::string>> at_dial;
  std::mutex at_dial_mutex;
  world_.network.on_dial = [&] {
    const DestinationSnapshot now = world_.migration->Snapshot();
    const std::lock_guard<std::mutex> lock(at_dial_mutex);
    at_dial.emplace_back(now.phase, now.message);
  };
  world_.Start();
  const auto session = world_.session = world_.network.Accept();
  world_.GetResumed();
  session->AwaitBulk(2);
  const PageRun answered = session->bulk().front();
  session->SayPages(answered);
  session->AwaitListening();
  session->AwaitBulk(3);
  std::set<uint64_t> missing;
  for (const uint64_t page : Stale()) {
    if (!answered.Contains(PageIndex(page))) missing.insert(page);
  }
  ASSERT_GE(missing.size(), 2u);
  const uint64_t first = *missing.begin();
  const uint64_t last = *missing.rbegin();
  EXPECT_EQ(world_.TouchPage(1, first), Touch::kWaiting);
  session->AwaitUrgent({first});

  session->Break(absl::UnavailableError("reset"));
  session->AwaitEnd();
  world_.network.AwaitDials(2);
  EXPECT_EQ(world_.TouchPage(2, last), Touch::kWaiting);
  EXPECT_EQ(world_.TouchPage(3, last), Touch::kWaiting);
  // No window after the commit, and no verdict: it looks for ever.
  world_.clock.Advance(100 * world_.options.reconnect_nanos);
  world_.network.Refuse(absl::NotFoundError("restarting"));
  world_.network.Refuse(absl::AbortedError("restarting"));
  world_.network.AwaitDials(1);

  const auto again = world_.network.Accept(/*committed=*/true);
  again->AwaitUrgent({first, last});
  again->AwaitBulk(1);
  world_.AwaitPhase(Phase::kPostcopy);
  again->Serve();
  world_.ExpectCompleted();
  for (const PageRun run : again->bulk()) {
    for (uint64_t i = 0; i < run.count.value(); ++i) {
      EXPECT_TRUE(missing.contains(run.first.value() + i)) << run;
    }
  }
  EXPECT_EQ(world_.migration->Snapshot().recoveries, 1u);
  EXPECT_EQ(session->resumed() + again->resumed(), 1);
  const std::lock_guard<std::mutex> lock(at_dial_mutex);
  EXPECT_EQ(at_dial.back().first, Phase::kRecovering);
  EXPECT_THAT(at_dial.back().second,
              HasSubstr("threads that touch a missing page wait"));
}

// Proves that a source which did not hand the guest over, a namesake made
// later, gets no page into it, and that the right one may still come.
TEST_F(DestinationMigrationTest, TakesNoPagesOfAnotherSource) {
  world_.Start();
  const auto session = world_.session = world_.network.Accept();
  world_.GetResumed();
  session->Break(absl::UnavailableError("reset"));
  session->AwaitEnd();
  const auto impostor = world_.network.Accept(/*committed=*/false);
  impostor->AwaitEnd();
  const auto namesake =
      world_.network.Accept(/*committed=*/true, /*of_another=*/true);
  namesake->AwaitEnd();
  EXPECT_EQ(world_.migration->Snapshot().recoveries, 0u);
  const auto again = world_.network.Accept(/*committed=*/true);
  again->Serve();
  world_.ExpectCompleted();
}

// Proves that it says PAUSED between two tries, and can be ended there.
TEST_F(DestinationMigrationTest, IsPausedBetweenTries) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  world_.clock.Advance(5);
  session->Break(absl::UnavailableError("reset"));
  world_.AwaitPhase(Phase::kPaused);
  const DestinationSnapshot now = world_.migration->Snapshot();
  EXPECT_EQ(now.phase_since_ns, 5);
  EXPECT_THAT(now.message, HasSubstr("cannot be reached"));
  EXPECT_THAT(now.message, HasSubstr("reset"));
  EXPECT_TRUE(world_.IsWatched(3));
  world_.migration->Stop();
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kPaused);
}

// Proves that a source lost while the VMM loads device state, and so waits for
// a page, is brought back by a thread that does not wait.
TEST_F(DestinationMigrationTest, RecoversWhileDeviceStateIsLoaded) {
  world_.vmm.load = [this] { return world_.TouchAndWait(64); };
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayCommit();
  session->AwaitUrgent({64});
  session->Break(absl::UnavailableError("reset"));
  session->AwaitEnd();
  world_.network.AwaitDials(2);
  EXPECT_THAT(world_.vmm.told(), ElementsAre("load state"));
  const auto again = world_.network.Accept(/*committed=*/true);
  again->AwaitUrgent({64});
  again->Serve();
  world_.ExpectCompleted();
  EXPECT_EQ(session->resumed(), 0);
  EXPECT_EQ(again->resumed(), 1);
}

// --- Paused, recovered and abandoned by request.

class PausedTest : public DestinationMigrationTest {
 protected:
  // The guest runs, with its stale pages missing and a thread that waits
  // for 64.
  void RunGuest(const std::set<uint64_t>& stale = Stale()) {
    world_.StartWithSession();
    world_.Precopy();
    world_.SwitchOver(stale);
    world_.session->AwaitReady();
    world_.session->SayCommit();
    world_.session->AwaitResumed();
    EXPECT_EQ(world_.TouchPage(kThread, 64), Touch::kWaiting);
    world_.session->AwaitUrgent({64});
  }
  void Pause() {
    const absl::Status status = world_.migration->Pause();
    ASSERT_TRUE(status.ok()) << status;
    world_.session->AwaitEnd();
    EXPECT_EQ(world_.migration->phase(), Phase::kPaused);
  }
  // What Touch says of a page once the end of the migration has been seen to.
  Touch TouchAfterEnd(uint64_t page) {
    world_.vmm.AwaitTold("not completed");
    world_.migration->Stop();
    return world_.TouchPage(kThread + 1, page);
  }

  static constexpr int kThread = 1;
};

// Proves that nobody is dialled until Recover, and that the thread that waits
// goes on waiting, and then gets its page.
TEST_F(PausedTest, DialsNoMoreUntilRecover) {
  RunGuest();
  const auto again = world_.network.Accept(/*committed=*/true);
  Pause();
  const DestinationSnapshot paused = world_.migration->Snapshot();
  EXPECT_TRUE(paused.pause_requested);
  EXPECT_THAT(paused.message, HasSubstr("paused by request"));
  EXPECT_TRUE(world_.migration->Pause().ok()) << "twice is once";
  // Long enough to go wrong in, if it can.
  for (int i = 0; i < 2000; ++i) std::this_thread::yield();
  EXPECT_THAT(world_.network.epochs(), ElementsAre(1));
  EXPECT_TRUE(world_.uffd().IsWaiting(kThread));

  EXPECT_TRUE(world_.migration->Recover(nullptr).ok());
  EXPECT_FALSE(world_.migration->Snapshot().pause_requested);
  again->AwaitUrgent({64});
  again->Serve();
  world_.ExpectCompleted();
  EXPECT_EQ(world_.migration->Snapshot().recoveries, 1u);
  std::vector<Phase> phases;
  for (const PhaseChange& change : world_.migration->Changes()) {
    phases.push_back(change.phase);
    EXPECT_EQ(change.number, phases.size());
  }
  EXPECT_THAT(phases,
              ElementsAre(Phase::kPreparing, Phase::kPrecopy, Phase::kSwitching,
                          Phase::kPostcopy, Phase::kPaused, Phase::kRecovering,
                          Phase::kPostcopy, Phase::kCompleted));
}

// Proves that a connection which Pause has ended is not taken for a source that
// is lost, though Recover comes before anybody looks at why it ended.
TEST_F(PausedTest, RecoverRightBehindPauseIsNoLoss) {
  RunGuest();
  const auto again = world_.network.Accept(/*committed=*/true);
  absl::Status recovered = absl::UnknownError("not called");
  // The driver asks for the time when the connection has been let go.
  world_.migration_clock.OnceElsewhere(
      [&] { recovered = world_.migration->Recover(nullptr); });
  EXPECT_TRUE(world_.migration->Pause().ok());
  again->Serve();
  world_.ExpectCompleted();
  EXPECT_TRUE(recovered.ok()) << recovered;
  std::vector<Phase> phases;
  for (const PhaseChange& change : world_.migration->Changes()) {
    phases.push_back(change.phase);
  }
  EXPECT_THAT(phases,
              ElementsAre(Phase::kPreparing, Phase::kPrecopy, Phase::kSwitching,
                          Phase::kPostcopy, Phase::kPaused, Phase::kRecovering,
                          Phase::kPostcopy, Phase::kCompleted));
}

// Proves that a source that has moved is found, and goes on to be.
TEST_F(PausedTest, RecoversFromAnotherAddress) {
  RunGuest();
  Pause();
  Network elsewhere;
  const auto first = elsewhere.Accept(/*committed=*/true);
  EXPECT_TRUE(
      world_.migration->Recover(std::make_unique<FakeDialer>(&elsewhere)).ok());
  first->AwaitUrgent({64});
  const auto second = elsewhere.Accept(/*committed=*/true);
  first->Break(absl::UnavailableError("reset"));
  second->Serve();
  world_.ExpectCompleted();
  EXPECT_THAT(elsewhere.epochs(), ElementsAre(2, 3));
  EXPECT_THAT(world_.network.epochs(), ElementsAre(1));
  EXPECT_THAT(elsewhere.completed(), ElementsAre(3));
}

// Proves that what was found out about the source holds wherever it is.
TEST_F(PausedTest, AnotherAddressIsAskedForPlainRunsToo) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  RunGuest();
  world_.session->SayUndecodable(kDamagedCompressedRunsMax);
  world_.AwaitPhase(Phase::kPaused);
  Network elsewhere;
  const auto again = elsewhere.Accept(/*committed=*/true);
  EXPECT_TRUE(
      world_.migration->Recover(std::make_unique<FakeDialer>(&elsewhere)).ok());
  again->AwaitUrgent({64});
  EXPECT_EQ(elsewhere.forgone(), 1);
  again->Serve();
  world_.ExpectCompleted();
}

// A source that takes connections and says nothing would otherwise be waited
// for by each of these.
TEST_F(PausedTest, ADialThatIsNotAnsweredHoldsUpNoRequest) {
  RunGuest();
  world_.network.SetSilent(true);
  world_.session->Break(absl::UnavailableError("reset"));
  world_.network.AwaitDialled(2);
  EXPECT_TRUE(world_.migration->Pause().ok());
  world_.AwaitPhase(Phase::kPaused);
  Network elsewhere;
  elsewhere.SetSilent(true);
  EXPECT_TRUE(
      world_.migration->Recover(std::make_unique<FakeDialer>(&elsewhere)).ok());
  elsewhere.AwaitDialled(1);
  EXPECT_TRUE(world_.migration->Pause().ok());
  EXPECT_TRUE(world_.migration->Abandon().ok());
  EXPECT_EQ(TouchAfterEnd(64), Touch::kPoisoned);
}

TEST_F(PausedTest, ADialThatIsNotAnsweredEndsWithTheVmmAndWithTheDaemon) {
  for (const bool vmm : {true, false}) {
    World world;
    world.StartWithSession();
    world.network.AwaitDialled(1);
    world.network.SetSilent(true);
    world.session->Break(absl::UnavailableError("reset"));
    world.network.AwaitDialled(2);
    if (vmm) {
      world.migration->VmmGone();
      world.vmm.AwaitTold("not completed");
    }
    world.migration->Stop();
  }
}

// Proves that Recover does not wait for the pause between two tries.
TEST_F(PausedTest, RecoverDialsALostSourceAtOnce) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  RunGuest();
  world_.session->Break(absl::UnavailableError("reset"));
  world_.AwaitPhase(Phase::kPaused);
  EXPECT_FALSE(world_.migration->Snapshot().pause_requested);
  const auto again = world_.network.Accept(/*committed=*/true);
  EXPECT_TRUE(world_.migration->Recover(nullptr).ok());
  again->Serve();
  world_.ExpectCompleted();
}

// A state that says that the guest is served while its threads wait would keep
// an operator from looking.
TEST_F(PausedTest, RecoverWhileADialIsOnItsWayDoesNotHideTheNextLoss) {
  std::promise<void> second;
  std::promise<void> third;
  std::atomic<int> dials{0};
  world_.network.on_dial = [&] {
    const int dial = ++dials;
    if (dial == 2) second.get_future().wait();
    if (dial == 3) third.get_future().wait();
  };
  RunGuest();
  const auto again = world_.network.Accept(/*committed=*/true);
  world_.session->Break(absl::UnavailableError("reset"));
  while (dials < 2) std::this_thread::yield();
  EXPECT_TRUE(world_.migration->Recover(nullptr).ok());
  second.set_value();
  world_.AwaitPhase(Phase::kPostcopy);
  const auto last = world_.network.Accept(/*committed=*/true);
  again->Break(absl::UnavailableError("reset"));
  while (dials < 3) std::this_thread::yield();
  EXPECT_EQ(world_.migration->phase(), Phase::kRecovering);
  third.set_value();
  last->Serve();
  world_.ExpectCompleted();
}

// Proves that a connection that is just being opened is not used.
TEST_F(PausedTest, PauseCatchesADialOnItsWay) {
  std::promise<void> answer;
  std::atomic<int> dials{0};
  world_.network.on_dial = [&] {
    if (++dials == 2) answer.get_future().wait();
  };
  RunGuest();
  const auto unused = world_.network.Accept(/*committed=*/true);
  world_.session->Break(absl::UnavailableError("reset"));
  world_.AwaitPhase(Phase::kRecovering);
  while (dials < 2) std::this_thread::yield();
  EXPECT_TRUE(world_.migration->Pause().ok());
  EXPECT_EQ(world_.migration->phase(), Phase::kPaused);
  answer.set_value();
  world_.network.AwaitDials(0);
  EXPECT_TRUE(world_.migration->Recover(nullptr).ok());
  const auto again = world_.network.Accept(/*committed=*/true);
  again->Serve();
  world_.ExpectCompleted();
  EXPECT_THAT(unused->urgent(), IsEmpty());
}

TEST_F(PausedTest, MayBeStopped) {
  RunGuest();
  Pause();
  world_.migration->Stop();
  EXPECT_EQ(world_.migration->phase(), Phase::kPaused);
  EXPECT_TRUE(world_.uffd().IsWaiting(kThread));
}

TEST_F(PausedTest, TheVmmMayGo) {
  RunGuest();
  Pause();
  world_.KillVmm();
  world_.AwaitPhase(Phase::kFailed);
  EXPECT_EQ(world_.migration->Recover(nullptr).code(),
            absl::StatusCode::kFailedPrecondition);
}

// Proves that what is missing is poison from then on, also when nobody serves,
// and that pages that are here are as they were.
TEST_F(PausedTest, AbandonPoisonsWhatIsMissing) {
  RunGuest();
  Pause();
  const absl::Status status = world_.migration->Abandon();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(world_.migration->phase(), Phase::kFailed);
  EXPECT_THAT(world_.migration->Snapshot().message,
              HasSubstr("abandoned by request with 8 pages missing"));
  EXPECT_EQ(TouchAfterEnd(3), Touch::kPoisoned);
  EXPECT_EQ(world_.TouchPage(kThread + 2, 64), Touch::kPoisoned);
  EXPECT_TRUE(world_.HasContent(5));
  EXPECT_FALSE(world_.uffd().IsWaiting(kThread));
  EXPECT_EQ(world_.uffd().calls(SimulatedUffd::Call::kUnregister), 1);
  EXPECT_EQ(world_.migration->Abandon().code(),
            absl::StatusCode::kFailedPrecondition);
}

// Proves that a kernel that cannot poison leaves everything as it was.
TEST_F(PausedTest, AbandonThatFailsLeavesItPaused) {
  RunGuest();
  Pause();
  world_.uffd().FailNext(SimulatedUffd::Call::kPoison, EINVAL);
  EXPECT_FALSE(world_.migration->Abandon().ok());
  EXPECT_EQ(world_.migration->phase(), Phase::kPaused);
  EXPECT_TRUE(world_.uffd().IsWaiting(kThread));
  const auto again = world_.network.Accept(/*committed=*/true);
  EXPECT_TRUE(world_.migration->Recover(nullptr).ok());
  again->Serve();
  world_.ExpectCompleted();
}

// Proves that a source that is merely lost may be abandoned as well.
TEST_F(PausedTest, AbandonsALostSource) {
  world_.options.retry_nanos_first = kHour;
  world_.options.retry_nanos_last = kHour;
  RunGuest();
  world_.session->Break(absl::UnavailableError("reset"));
  world_.AwaitPhase(Phase::kPaused);
  EXPECT_TRUE(world_.migration->Abandon().ok());
  EXPECT_EQ(TouchAfterEnd(3), Touch::kPoisoned);
}

// Proves that in every phase what the table refuses is refused, with its code,
// and that nothing else is.
TEST_F(PausedTest, TheTableHoldsInEveryPhase) {
  const auto expect = [this](Phase phase) {
    SCOPED_TRACE(NameOf(phase));
    world_.AwaitPhase(phase);
    const auto refusal = [phase](MigrationEvent command) {
      return Permit(MigrationRole::kDestination, phase, command, "").code();
    };
    DestinationMigration& migration = *world_.migration;
    for (const MigrationEvent command :
         {MigrationEvent::kSwitchOver, MigrationEvent::kDelete}) {
      EXPECT_EQ(migration.Refuse(command).code(), refusal(command));
    }
    EXPECT_EQ(migration.SetBulkLimit(ByteCount(7 << 20)).code(),
              refusal(MigrationEvent::kSetLimits));
    // These would move it on where they are not refused.
    if (refusal(MigrationEvent::kPause) != absl::StatusCode::kOk) {
      EXPECT_EQ(migration.Pause().code(), refusal(MigrationEvent::kPause));
    }
    if (refusal(MigrationEvent::kRecover) != absl::StatusCode::kOk) {
      EXPECT_EQ(migration.Recover(nullptr).code(),
                refusal(MigrationEvent::kRecover));
    }
    if (refusal(MigrationEvent::kAbandon) != absl::StatusCode::kOk) {
      EXPECT_EQ(migration.Abandon().code(), refusal(MigrationEvent::kAbandon));
    }
    if (refusal(MigrationEvent::kCancel) != absl::StatusCode::kOk) {
      EXPECT_EQ(migration.Cancel().code(), refusal(MigrationEvent::kCancel));
    }
    EXPECT_EQ(migration.phase(), phase);
  };
  world_.Start();
  expect(Phase::kPreparing);
  world_.session = world_.network.Accept();
  world_.Precopy();
  expect(Phase::kPrecopy);
  world_.SwitchOver();
  world_.session->AwaitReady();
  expect(Phase::kSwitching);
  EXPECT_EQ(world_.migration->Cancel().code(),
            absl::StatusCode::kFailedPrecondition);
  world_.session->SayCommit();
  world_.session->AwaitResumed();
  expect(Phase::kPostcopy);
  Pause();
  expect(Phase::kPaused);
  const auto again = world_.network.Accept(/*committed=*/true);
  EXPECT_TRUE(world_.migration->Recover(nullptr).ok());
  again->Serve();
  expect(Phase::kCompleted);
  EXPECT_EQ(world_.migration->Snapshot().bulk_limit, ByteCount(7 << 20));
}

TEST_F(PausedTest, TheTableHoldsWhileRecovering) {
  std::promise<void> answer;
  std::atomic<int> dials{0};
  world_.network.on_dial = [&] {
    if (++dials == 2) answer.get_future().wait();
  };
  RunGuest();
  world_.session->Break(absl::UnavailableError("reset"));
  world_.AwaitPhase(Phase::kRecovering);
  EXPECT_EQ(world_.migration->Abandon().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(world_.migration->Cancel().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(world_.migration->SetBulkLimit(ByteCount(0)).ok());
  EXPECT_TRUE(world_.migration->Recover(nullptr).ok());
  EXPECT_EQ(world_.migration->phase(), Phase::kRecovering);
  answer.set_value();
  world_.network.Accept(/*committed=*/true)->Serve();
  world_.ExpectCompleted();
}

// Proves that a limit set before the commit, and one set after it, hold from
// then on and in the next session: 520 KiB with a burst of 512 take an eighth
// of a second at 64 KiB/s, if nothing was asked for before.
TEST_F(PausedTest, ALimitIsKept) {
  for (const bool before_commit : {true, false}) {
    World world;
    std::set<uint64_t> all;
    for (uint64_t page = 0; page < kPages.value(); ++page) all.insert(page);
    world.StartWithSession();
    world.Precopy();
    if (before_commit) {
      EXPECT_TRUE(world.migration->SetBulkLimit(ByteCount(64 << 10)).ok());
    }
    world.SwitchOver(all);
    world.session->AwaitReady();
    world.session->SayCommit();
    world.session->AwaitResumed();
    if (!before_commit) {
      EXPECT_TRUE(world.migration->SetBulkLimit(ByteCount(64 << 10)).ok());
    }
    EXPECT_TRUE(world.migration->Pause().ok());
    const int64_t began = world.clock.NowNanos();
    world.network.Accept(/*committed=*/true)->Serve();
    EXPECT_TRUE(world.migration->Recover(nullptr).ok());
    world.ExpectCompleted();
    EXPECT_GE(world.clock.NowNanos() - began, 100 * kNanosPerMilli);
  }
}

// Proves that a guest which was handed over is not lost to a host that is out
// of descriptors just then.
TEST(DestinationMigrationRoomTest, AGuestThatWasHandedOverWaitsForRoom) {
#if defined(__has_feature)
#if __has_feature(undefined_behavior_sanitizer)
  GTEST_SKIP() << "UndefinedBehaviorSanitizer needs descriptors of its own";
#endif
#endif
  World world;
  world.StartWithSession();
  world.GetReady();
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none = {.rlim_cur = 0, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  world.session->SayCommit();
  world.AwaitMessage("waits for room");
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  world.session->AwaitResumed();
  world.session->Serve();
  world.ExpectCompleted();
}

// --- The end.

// Proves that a source that cannot be reached at the end is told again.
TEST_F(DestinationMigrationTest, TellsAgainThatItIsComplete) {
  world_.network.AnswerComplete(absl::UnavailableError("reset"));
  world_.network.AnswerComplete(absl::UnavailableError("reset"));
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  world_.network.Refuse(absl::UnavailableError("nobody listens"));
  world_.network.Accept(/*committed=*/true);
  world_.network.Accept(/*committed=*/true);
  session->Serve();
  world_.ExpectCompleted();
  EXPECT_THAT(world_.network.completed(), ElementsAre(1, 3, 4));
}

// Proves that a source that knows nothing any more has nothing to forget.
TEST_F(DestinationMigrationTest, CompletesIfTheSourceHasForgotten) {
  world_.network.AnswerComplete(absl::NotFoundError("no such session"));
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  session->Serve();
  world_.ExpectCompleted();
  EXPECT_THAT(world_.network.completed(), ElementsAre(1));
}

// --- Cancel.

TEST_F(DestinationMigrationTest, CancelsBeforeASession) {
  world_.Start();
  world_.network.AwaitDials(1);
  EXPECT_TRUE(world_.migration->Cancel().ok());
  EXPECT_TRUE(world_.migration->Cancel().ok());
  world_.ExpectCancelled("cancelled by request");
}

TEST_F(DestinationMigrationTest, CancelsInPrecopy) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  EXPECT_TRUE(world_.migration->Cancel().ok());
  EXPECT_TRUE(world_.migration->Cancel().ok());
  world_.ExpectCancelled("cancelled by request");
  session->AwaitEnd();
}

// Proves that what is discarded early is gone before the switch-over, is
// acknowledged like a round, and that the last stale set stands for itself.
TEST_F(DestinationMigrationTest, DiscardsEarlyWhileTheGuestRuns) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  ASSERT_TRUE(world_.HasContent(3));
  session->SayStale({3});
  session->Say([] { return EarlyDiscard{1}; });
  session->AwaitListening();
  EXPECT_EQ(session->acks().size(), 2u);
  EXPECT_FALSE(world_.HasContent(3));
  EXPECT_TRUE(world_.HasContent(4));
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kPrecopy);
  EXPECT_EQ(world_.migration->Snapshot().pages.missing, PageCount(1));
  session->SayStale({3, 4});
  session->SayState("state");
  session->SaySwitchOver(2, "state");
  session->AwaitReady();
  EXPECT_THAT(session->ready(), ElementsAre(PageCount(1)));
  EXPECT_FALSE(world_.HasContent(4));
}

TEST_F(DestinationMigrationTest, CancelsBeforeReady) {
  const auto session = world_.StartWithSession();
  session->SayStale({3});
  session->SayState("state");
  world_.AwaitPhase(Phase::kSwitching);
  EXPECT_TRUE(world_.migration->Cancel().ok());
  world_.ExpectCancelled("cancelled by request");
  EXPECT_THAT(session->ready(), IsEmpty());
}

TEST_F(DestinationMigrationTest, RefusesToCancelAfterReady) {
  const auto session = world_.StartWithSession();
  world_.GetReady();
  const absl::Status status = world_.migration->Cancel();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("cancel there"));
  session->SayCommit();
  session->Serve();
  world_.ExpectCompleted();
}

TEST_F(DestinationMigrationTest, RefusesToCancelAfterTheCommit) {
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  const absl::Status status = world_.migration->Cancel();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("let the migration complete"));
  session->Serve();
  world_.ExpectCompleted();
  EXPECT_TRUE(absl::IsFailedPrecondition(world_.migration->Cancel()));
}

TEST_F(DestinationMigrationTest, RefusesToCancelWhatHasFailed) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  world_.KillVmm();
  world_.AwaitPhase(Phase::kFailed);
  const absl::Status status = world_.migration->Cancel();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("the VMM closed its connection"));
}

TEST_F(DestinationMigrationTest, DoesNotClaimToHaveCancelledWhatWasStopped) {
  const auto session = world_.StartWithSession();
  world_.Precopy();
  world_.migration->Stop();
  EXPECT_TRUE(absl::IsUnavailable(world_.migration->Cancel()));
}

// --- The VMM fails.

TEST_F(DestinationMigrationTest, FailsIfDeviceStateDoesNotLoad) {
  world_.vmm.load = [] { return absl::InternalError("wrong machine type"); };
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayCommit();
  world_.AwaitPhase(Phase::kFailed);
  EXPECT_EQ(world_.migration->Snapshot().message,
            "the guest was handed over but does not run: wrong machine type");
  world_.migration->Stop();
  EXPECT_THAT(world_.vmm.told(), ElementsAre("load state"));
  EXPECT_EQ(session->resumed(), 0);
  EXPECT_THAT(world_.network.completed(), IsEmpty());
  // No zeros in place of pages that are missing.
  EXPECT_TRUE(world_.IsWatched(3));
}

TEST_F(DestinationMigrationTest, FailsIfTheGuestDoesNotResume) {
  world_.vmm.resume = [] { return absl::InternalError("no vCPUs"); };
  const auto session = world_.StartWithSession();
  world_.GetReady();
  session->SayCommit();
  world_.AwaitPhase(Phase::kFailed);
  EXPECT_EQ(world_.migration->Snapshot().message,
            "the guest was handed over but does not run: no vCPUs");
  world_.migration->Stop();
  EXPECT_THAT(world_.vmm.told(), ElementsAre("load state", "resume"));
}

// Proves that a userfaultfd that no longer works ends the migration.
TEST_F(DestinationMigrationTest, FailsIfFaultsAreNoLongerServed) {
  const auto session = world_.StartWithSession();
  world_.GetResumed();
  uffd_msg message = {};
  message.event = 0x77;
  world_.uffd().Inject(message);
  world_.AwaitPhase(Phase::kFailed);
  EXPECT_THAT(world_.migration->Snapshot().message,
              HasSubstr("faults are no longer served"));
  world_.migration->Stop();
  EXPECT_THAT(world_.vmm.told(), ElementsAre("load state", "resume"));
}

// --- Ends from outside, at every step.

// Where a migration can be when something happens to it.
enum class Step {
  kDialing,
  kOpened,
  kRound,
  kAcked,
  kSwitching,
  kReady,
  kReadyAndLost,
  kLoading,
  kLoadingAndLost,
  kResumed,
  kPaused,
  kTellingComplete,
};

class StepTest : public testing::TestWithParam<Step> {
 protected:
  // Brings the migration there.
  void Go() {
    const Step step = GetParam();
    const bool blocks = step == Step::kLoading || step == Step::kLoadingAndLost;
    if (blocks) {
      world_.vmm.load = [this] { return world_.TouchAndWait(64); };
    }
    if (step == Step::kDialing) {
      world_.Start();
      return world_.network.AwaitDials(1);
    }
    const auto session = world_.StartWithSession();
    if (step == Step::kOpened) return;
    if (step == Step::kRound) return session->SayPages(kAll);
    if (step == Step::kAcked) return world_.Precopy();
    if (step == Step::kSwitching) return session->SayStale(Stale());
    world_.GetReady();
    if (step == Step::kReady) return;
    if (step == Step::kReadyAndLost) return Lose();
    session->SayCommit();
    if (blocks) {
      session->AwaitUrgent({64});
      if (step == Step::kLoadingAndLost) Lose();
      return;
    }
    session->AwaitResumed();
    if (step == Step::kResumed) return;
    if (step == Step::kPaused) return Lose();
    world_.network.AnswerComplete(absl::UnavailableError("reset"));
    session->Serve();
    world_.AwaitMessage("the source cannot be told");
  }

  bool committed() const { return GetParam() >= Step::kLoading; }

  World world_;

 private:
  void Lose() {
    world_.session->Break(absl::UnavailableError("reset"));
    world_.session->AwaitEnd();
    world_.network.AwaitDials(1);
  }
};

// Proves that Stop joins at every step, leaves the VM registered if the guest
// may be here, and is no failure.
TEST_P(StepTest, Stops) {
  Go();
  world_.UnblockVmm();
  world_.migration->Stop();
  world_.migration->Stop();
  // A VMM that gives up loading may be heard before Stop.
  if (GetParam() != Step::kLoading && GetParam() != Step::kLoadingAndLost) {
    EXPECT_NE(world_.migration->Snapshot().phase, Phase::kFailed);
  }
  EXPECT_NE(world_.migration->Snapshot().phase, Phase::kCancelled);
  EXPECT_THAT(world_.vmm.told(), testing::Not(Contains("not completed")));
}

// Proves that without its VMM the migration fails, threads end, and only a
// migration whose guest runs elsewhere says so.
TEST_P(StepTest, FailsWithoutTheVmm) {
  Go();
  world_.KillVmm();
  if (GetParam() == Step::kTellingComplete) {
    // Every page is here: nothing is left to fail.
    world_.AwaitPhase(Phase::kCompleted);
    return;
  }
  world_.AwaitPhase(Phase::kFailed);
  world_.migration->Stop();
  if (GetParam() != Step::kLoading && GetParam() != Step::kLoadingAndLost) {
    EXPECT_EQ(world_.migration->Snapshot().message,
              "the VMM closed its connection");
  }
  EXPECT_EQ(
      world_.vmm.told().empty() || world_.vmm.told().back() != "not completed",
      committed());
}

// Proves that destruction alone ends it too.
TEST_P(StepTest, IsDestroyed) {
  Go();
  world_.UnblockVmm();
  world_.migration.reset();
}

INSTANTIATE_TEST_SUITE_P(
    All, StepTest,
    testing::Values(Step::kDialing, Step::kOpened, Step::kRound, Step::kAcked,
                    Step::kSwitching, Step::kReady, Step::kReadyAndLost,
                    Step::kLoading, Step::kLoadingAndLost, Step::kResumed,
                    Step::kPaused, Step::kTellingComplete));

// --- What others may know.

TEST_F(DestinationMigrationTest, CountsChanges) {
  const auto session = world_.StartWithSession();
  world_.AwaitPhase(Phase::kPrecopy);
  const uint64_t before = world_.migration->version();
  // Nothing changes: the time-out ends it.
  world_.migration->WaitForChange(before, 1);
  EXPECT_EQ(world_.migration->version(), before);
  world_.clock.Advance(42);
  session->SayState("state");
  world_.migration->WaitForChange(before, kHour);
  EXPECT_EQ(world_.migration->version(), before + 1);
  EXPECT_EQ(world_.migration->Snapshot().phase, Phase::kSwitching);
  EXPECT_EQ(world_.migration->Snapshot().phase_since_ns, 42);
  // Not the newest: at once.
  world_.migration->WaitForChange(before, kHour);
}

TEST(DestinationPhaseTest, KnowsWhichPhasesAreLast) {
  for (const Phase phase :
       {Phase::kPreparing, Phase::kPrecopy, Phase::kSwitching, Phase::kPostcopy,
        Phase::kPaused, Phase::kRecovering}) {
    EXPECT_FALSE(HasEnded(phase));
  }
  for (const Phase phase :
       {Phase::kCompleted, Phase::kCancelled, Phase::kFailed}) {
    EXPECT_TRUE(HasEnded(phase));
  }
}

}  // namespace
}  // namespace postcopy
