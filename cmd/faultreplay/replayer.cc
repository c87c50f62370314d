#include "cmd/faultreplay/replayer.h"

#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <latch>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/faultreplay/page_pattern.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

// How often residency is looked at; less often where a look takes more than a
// hundredth of that.
constexpr int64_t kLookNanos = 20 * kNanosPerMilli;
constexpr int64_t kLookShare = 100;
// How often it is asked whether all pages have come.
constexpr int64_t kAwaitNanos = kNanosPerMilli;

int64_t Now() { return Clock::Monotonic()->NowNanos(); }

// Counts what a thread sees; joined when all are done.
struct Tally {
  uint64_t touches = 0;
  uint64_t first_touches = 0;
  uint64_t avoided = 0;
  uint64_t checked = 0;
  uint64_t wrong = 0;
  uint64_t first_wrong = UINT64_MAX;
  uint64_t never_came = 0;
  std::vector<Wait> waits;
  int64_t end_ns = 0;

  void Check(PageIndex page, const uint8_t* bytes) {
    ++checked;
    if (HoldsPage(page, bytes)) return;
    ++wrong;
    first_wrong = std::min(first_wrong, page.value());
  }
};

class Replay {
 public:
  Replay(const TouchPlan& plan, const ReplayOptions& options, Backend* backend)
      : plan_(plan),
        options_(options),
        backend_(*backend),
        seen_(plan.pages.value()) {}

  absl::StatusOr<RunResult> Run();

 private:
  // Calls work(thread index, tally) on that many threads, and on_tick() now and
  // then until they are done.
  template <typename Work, typename OnTick>
  absl::Status RunThreads(size_t count, std::vector<Tally>* tallies, Work work,
                          OnTick on_tick);
  void TouchAll(uint32_t thread, Tally* tally);
  void TouchFirst(uint32_t thread, const Touch& touch, Tally* tally);
  void CheckAll(Tally* tally);
  void Look();
  void CollectTouches(const std::vector<Tally>& tallies);
  void CountUnused();
  // Until all have come by themselves: CheckAll would ask for what is missing.
  absl::Status AwaitWhole();

  const TouchPlan& plan_;
  const ReplayOptions& options_;
  Backend& backend_;
  // Somebody has seen that the page is here.
  std::vector<std::atomic<bool>> seen_;
  std::atomic<bool> given_up_{false};
  int64_t begin_ns_ = 0;
  int64_t next_look_ns_ = 0;
  RunResult result_;
};

void Bind(const std::vector<int>& cpus, size_t thread) {
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpus[thread % cpus.size()]), &set);
  ::pthread_setaffinity_np(::pthread_self(), sizeof(set), &set);
}

template <typename Work, typename OnTick>
absl::Status Replay::RunThreads(size_t count, std::vector<Tally>* tallies,
                                Work work, OnTick on_tick) {
  tallies->resize(count);
  std::latch ready(static_cast<std::ptrdiff_t>(count) + 1);
  std::mutex mutex;
  std::condition_variable changed;
  size_t running = count;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      Bind(options_.cpus, i);
      // Think times are not stretched by the usual 50 us.
      ::prctl(PR_SET_TIMERSLACK, 1);
      ready.arrive_and_wait();
      work(static_cast<uint32_t>(i), &(*tallies)[i]);
      const std::lock_guard lock(mutex);
      if (--running == 0) changed.notify_all();
    });
  }
  begin_ns_ = Now();
  ready.arrive_and_wait();
  const int64_t end_ns = begin_ns_ + absl::ToInt64Nanoseconds(options_.timeout);
  std::unique_lock lock(mutex);
  while (running > 0 && Now() < end_ns) {
    changed.wait_for(lock, std::chrono::nanoseconds(kLookNanos),
                     [&] { return running == 0; });
    lock.unlock();
    on_tick();
    lock.lock();
  }
  const bool late = running > 0;
  lock.unlock();
  if (late) {
    given_up_.store(true);
    backend_.GiveUp();
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t never_came = 0;
  for (const Tally& tally : *tallies) never_came += tally.never_came;
  if (!late && never_came == 0) return absl::OkStatus();
  const std::string what =
      absl::StrCat(never_came, " touches waited for pages that never came");
  if (!late) return absl::UnavailableError(what);
  return absl::DeadlineExceededError(absl::StrCat(
      "not done after ", absl::FormatDuration(options_.timeout), ": ", what));
}

void Replay::TouchAll(uint32_t thread, Tally* tally) {
  for (const Touch& touch : plan_.threads[thread]) {
    if (given_up_.load(std::memory_order_relaxed)) break;
    if (touch.think_ns > 0) {
      Clock::Monotonic()->SleepFor(static_cast<int64_t>(touch.think_ns));
    }
    ++tally->touches;
    if (seen_[touch.page.value()].load(std::memory_order_relaxed)) {
      backend_.Touch(thread, touch.page, touch.write);
    } else {
      TouchFirst(thread, touch, tally);
    }
  }
  tally->end_ns = Now();
}

void Replay::TouchFirst(uint32_t thread, const Touch& touch, Tally* tally) {
  const bool here = backend_.IsHere(touch.page);
  const int64_t start_ns = Now();
  const uint8_t* const bytes = backend_.Touch(thread, touch.page, touch.write);
  const int64_t latency_ns = Now() - start_ns;
  if (bytes == nullptr || given_up_.load()) {
    ++tally->never_came;
    return;
  }
  ++tally->first_touches;
  if (here) {
    ++tally->avoided;
  } else {
    tally->waits.push_back({start_ns - begin_ns_, latency_ns});
  }
  seen_[touch.page.value()].store(true, std::memory_order_relaxed);
  tally->Check(touch.page, bytes);
}

void Replay::CheckAll(Tally* tally) {
  for (PageIndex page(0); page.value() < plan_.pages.value();
       page += PageCount(1)) {
    if (given_up_.load(std::memory_order_relaxed)) return;
    const uint8_t* const bytes = backend_.Touch(0, page, false);
    if (bytes == nullptr || given_up_.load()) {
      ++tally->never_came;
      return;
    }
    tally->Check(page, bytes);
  }
}

void Replay::Look() {
  const int64_t now = Now();
  if (now < next_look_ns_) return;
  const uint64_t pages = backend_.CountHere().value();
  result_.residency.push_back({now - begin_ns_, pages});
  next_look_ns_ = Now() + std::max(kLookNanos, (Now() - now) * kLookShare);
}

absl::Status Replay::AwaitWhole() {
  const int64_t end_ns = Now() + absl::ToInt64Nanoseconds(options_.timeout);
  while (!backend_.IsOver()) {
    if (Now() >= end_ns) {
      return absl::DeadlineExceededError(
          absl::StrCat("after ", absl::FormatDuration(options_.timeout), " ",
                       backend_.CountHere().value(), " of ",
                       plan_.pages.value(), " pages had come by themselves"));
    }
    Clock::Monotonic()->SleepFor(kAwaitNanos);
  }
  return absl::OkStatus();
}

void Replay::CollectTouches(const std::vector<Tally>& tallies) {
  int64_t end_ns = begin_ns_;
  for (const Tally& tally : tallies) {
    result_.touches += tally.touches;
    result_.first_touches += tally.first_touches;
    result_.avoided += tally.avoided;
    result_.wrong += tally.wrong;
    if (tally.wrong > 0 && (result_.wrong == tally.wrong ||
                            tally.first_wrong < result_.first_wrong)) {
      result_.first_wrong = tally.first_wrong;
    }
    result_.waits.insert(result_.waits.end(), tally.waits.begin(),
                         tally.waits.end());
    end_ns = std::max(end_ns, tally.end_ns);
  }
  std::sort(
      result_.waits.begin(), result_.waits.end(),
      [](const Wait& a, const Wait& b) { return a.start_ns < b.start_ns; });
  result_.duration_ns = end_ns - begin_ns_;
}

void Replay::CountUnused() {
  const uint64_t here = backend_.CountHere().value();
  result_.residency.push_back({result_.duration_ns, here});
  const uint64_t used = plan_.distinct.value();
  result_.unused = here > used ? here - used : 0;
}

absl::StatusOr<RunResult> Replay::Run() {
  result_.pages_total = plan_.pages.value();
  absl::Status status = backend_.Start();
  if (!status.ok()) return status;
  std::vector<Tally> tallies;
  status = RunThreads(
      plan_.threads.size(), &tallies,
      [this](uint32_t thread, Tally* tally) { TouchAll(thread, tally); },
      [this] { Look(); });
  CollectTouches(tallies);
  if (!status.ok()) return status;
  CountUnused();
  const int64_t first_ns = begin_ns_;
  // What it cost is asked behind what is measured.
  if (options_.await_whole) {
    status = AwaitWhole();
    if (!status.ok()) return status;
  }
  result_.whole_ns = Now() - first_ns;
  status = backend_.Report(&result_.backend);
  if (!status.ok()) return status;
  std::vector<Tally> last;
  status = RunThreads(
      1, &last, [this](uint32_t, Tally* tally) { CheckAll(tally); }, [] {});
  if (!options_.await_whole) result_.whole_ns = Now() - first_ns;
  result_.checked = last[0].checked;
  // The touches have counted some of them already.
  if (last[0].wrong > 0) {
    result_.wrong = last[0].wrong;
    result_.first_wrong = last[0].first_wrong;
  }
  if (!status.ok()) return status;
  status = backend_.Finish(&result_.backend);
  if (!status.ok()) return status;
  return std::move(result_);
}

}  // namespace

absl::StatusOr<RunResult> RunReplay(const TouchPlan& plan,
                                    const ReplayOptions& options,
                                    Backend* backend) {
  return Replay(plan, options, backend).Run();
}

absl::Status JudgeRun(const RunResult& result) {
  if (result.wrong > 0) {
    return absl::DataLossError(
        absl::StrCat(result.wrong,
                     " pages are wrong: lost, stale or in the wrong place; "
                     "the first is page ",
                     result.first_wrong));
  }
  if (result.checked == result.pages_total) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("only ", result.checked, " of ",
                                          result.pages_total,
                                          " pages were looked at"));
}

}  // namespace postcopy
