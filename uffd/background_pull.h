// Fetches the pages that nobody has touched, and notices the end.
#ifndef UFFD_BACKGROUND_PULL_H_
#define UFFD_BACKGROUND_PULL_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "uffd/bulk_share.h"
#include "uffd/destination_ram.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"
#include "uffd/pull_order.h"
#include "uffd/token_bucket.h"

namespace postcopy {

// Bulk requests in flight. Of full ones (kMaxBulkPages) there are
// kFullBulkOutstanding: one each is read at the source, on the wire, and
// installed, and one makes up for who comes late; with two, as it was, the
// three waited for each other (docs/performance.md). Of larger ones, for pages
// of 2 MiB, there are kLargeBulkOutstanding. Missing pages that lie scattered
// make small requests, of which so few would leave the wire idle for most of
// each round trip: so there are more of them, as long as all but one of them
// together are no more pages than all but one of the full ones.
inline constexpr size_t kLargeBulkOutstanding = 2;
inline constexpr size_t kFullBulkOutstanding = 4;
inline constexpr size_t kMaxBulkOutstanding = 16;

// True if beside `in_flight` another request may be sent.
bool RoomForBulk(absl::Span<const PageRun> in_flight);

// Longest uninterrupted sleep while the limit is exhausted: how late a change
// of the limit, or Stop, may be noticed.
inline constexpr int64_t kMaxLimitSleepNanos = 10 * kNanosPerMilli;

// One thread, which keeps as many requests with the source as RoomForBulk
// allows while enabled, the source is there, the limit allows and it is its
// turn among the VMs of `share`. It ends by itself when no page is missing or
// Fail was called, and then calls `on_end`. Thread-safe.
class BackgroundPull {
 public:
  // The pointers outlive the object. The limit is as in SetLimit. `share`
  // nullptr: nobody else is to be thought of.
  BackgroundPull(const DestinationRam* ram, PageState* state, PullOrder* order,
                 Clock* clock, uint64_t bytes_per_second,
                 std::function<void(absl::Status)> on_end,
                 BulkShare* share = nullptr);
  // Stop().
  ~BackgroundPull();

  // Starts the thread, with nothing to ask for before Enable. Call once.
  // RESOURCE_EXHAUSTED if there is none.
  absl::Status Start();
  void Enable();
  // Ends the thread and waits for it. `on_end` is not called afterwards.
  // Idempotent. Not from `on_end`.
  void Stop();

  // Asks `source` from now on, nullptr: nobody. What was in flight is
  // forgotten, so it is asked for again. When this returns, no request to the
  // former source is running.
  void SetSource(PageSource* source);

  // 0: no limit.
  void SetLimit(uint64_t bytes_per_second);

  // An answer beginning with `first` has been installed, of which
  // `zero_bytes` did not travel: they are not held against the limit. Frees
  // the request it answers, if there is one.
  void OnAnswer(PageIndex first, ByteCount zero_bytes);

  // missing() has become 0: the thread should look.
  void OnComplete();
  // Serving has failed. The first error is passed to on_end: by the thread, or
  // by this call if the thread has ended with OK. Not after Stop has returned.
  void Fail(absl::Status error);

  uint64_t requests() const {
    return requests_.load(std::memory_order_relaxed);
  }
  uint64_t failures() const {
    return failures_.load(std::memory_order_relaxed);
  }

 private:
  void Run();
  // Waits until there is a slot for a request (true), or nothing more to do.
  bool AwaitSlot();
  bool HasRoom() const;  // REQUIRES: mutex_
  // Waits for its turn in the share. Null if something has changed first.
  std::optional<BulkShare::Permit> AwaitTurn();
  bool Ended() const;  // REQUIRES: mutex_
  // Sends one request if the order has one and the limit allows it.
  void AskOnce(const BulkShare::Permit& permit);
  // Takes a run out of the order and into in_flight_, with its permit. Sets
  // `wait_ns` if the limit says no.
  std::optional<PageRun> Claim(const BulkShare::Permit& permit,
                               int64_t* wait_ns);
  void Refused(PageRun run);
  // REQUIRE mutex_. The thread looks at everything again, wherever it waits.
  void WakeThread();
  // What is in flight at `index`, or all of it, is so no more.
  void Forget(size_t index);
  void ForgetAll();

  void GiveBack(const BulkShare::Permit& permit);

  const DestinationRam& ram_;
  const PageCount largest_request_;
  PageState& state_;
  PullOrder& order_;
  Clock& clock_;
  const std::function<void(absl::Status)> on_end_;
  BulkShare* const share_;  // its lock is taken after all of these
  BulkShare::Member member_;
  std::atomic<uint64_t> requests_{0};
  std::atomic<uint64_t> failures_{0};
  std::thread thread_;

  // Held during RequestBulk, so that SetSource can wait for it. Locked before
  // mutex_.
  std::mutex source_mutex_;
  PageSource* source_ = nullptr;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool enabled_ = false;
  bool stopping_ = false;
  // The source took the last request; false until SetSource after a refusal.
  bool source_works_ = false;
  // The order had nothing that is not in flight.
  bool exhausted_ = false;
  bool reported_ = false;  // on_end has been called, or is about to
  absl::Status error_;
  TokenBucket bucket_;
  std::vector<PageRun> in_flight_;
  std::vector<BulkShare::Permit> permits_;  // of in_flight_, one each
};

}  // namespace postcopy

#endif  // UFFD_BACKGROUND_PULL_H_
