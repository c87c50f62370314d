// How many bulk requests all VMs of a process have in flight together, and
// whose turn it is.
#ifndef UFFD_BULK_SHARE_H_
#define UFFD_BULK_SHARE_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "dirtytrack/clock.h"

namespace postcopy {

// Bulk requests in flight over all VMs. One VM has kFullBulkOutstanding of full
// size, so that four VMs go at full speed, or kMaxBulkOutstanding small ones;
// and a faulted page has at most 16 x 256 KiB of bulk before it where they
// share a wire: 3.4 ms of 10 Gbit/s.
inline constexpr size_t kDefaultBulkRequests = 16;
// With fewer nothing is on the wire while the next is read.
inline constexpr size_t kMinBulkRequests = 2;
inline constexpr size_t kMaxBulkRequests = 64;

// After this a request counts as in flight no more: its source hangs, or is so
// slow that it is not what fills the wire. Seven times what
// kDefaultBulkRequests take on 1 Gbit/s.
inline constexpr int64_t kBulkPermitNanos = 250 * kNanosPerMilli;

// INVALID_ARGUMENT unless kMinBulkRequests <= requests <= kMaxBulkRequests.
absl::Status CheckBulkRequests(size_t requests);

// Hands out permits for bulk requests: to who asks while there are some, else
// in the order in which they began to wait. Who wants a second one waits anew,
// so nobody waits behind more than one request of each other VM. A permit ends
// by Release, or by itself after kBulkPermitNanos. No call allocates; each is
// O(1) (ends of permits are counted with who took them). Thread-safe.
class BulkShare {
  struct Slot {
    uint64_t number = 0;  // of the permit it is taken by; 0: free
    int64_t expires_ns = 0;
  };

 public:
  // A right to have one request in flight. A value: it may be dropped, and then
  // expires.
  class Permit {
   public:
    // None.
    Permit() = default;

   private:
    friend class BulkShare;
    std::list<Slot>::iterator slot_;
    uint64_t number_ = 0;
  };

  // Who asks for permits: a VM. May be destroyed while it has permits, but not
  // while it is in Acquire.
  class Member {
   public:
    Member() = default;
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;

   private:
    friend class BulkShare;
    // Guarded by the share's mutex_.
    std::condition_variable changed_;
    std::list<Member*> place_{this};  // its element moves to the queue
    const std::list<Member*>::iterator at_ = place_.begin();
    bool waiting_ = false;
    bool interrupted_ = false;
    std::optional<Permit> granted_;
  };

  // REQUIRES: CheckBulkRequests(requests).ok(). `clock` outlives the object.
  BulkShare(size_t requests, Clock* clock);
  BulkShare(const BulkShare&) = delete;
  BulkShare& operator=(const BulkShare&) = delete;

  // Waits until it is `member`'s turn. Null after Interrupt. By one thread at a
  // time for each member.
  std::optional<Permit> Acquire(Member* member);

  // Ends `member`'s Acquire if it is waiting, which takes it out of the queue;
  // else its next one, unless that is granted at once: the caller has something
  // else to look at first. Any thread.
  void Interrupt(Member* member);

  // Gives a permit back. Nothing happens if it is none, or has been given back
  // or expired. Ends also those that have expired. Any thread.
  void Release(const Permit& permit);

  // True if more than half of the permits are free: then who has
  // kFullBulkOutstanding already may ask for more. Any thread.
  bool HasPlenty() const;

  // Permits that have not ended, and members that wait.
  size_t in_flight() const;
  size_t waiting() const;
  // Permits handed out so far, calls of Acquire that had to wait for one, and
  // permits that ended by themselves.
  uint64_t granted() const;
  uint64_t waited() const;
  uint64_t expired() const;
  // How many there can be at a time.
  size_t requests() const { return requests_; }

 private:
  // All REQUIRE mutex_.
  Permit Take(int64_t now_ns);
  void Free(std::list<Slot>::iterator slot);
  // Ends what has expired, then grants what is free.
  void Turn(int64_t now_ns);
  void Leave(Member* member);

  Clock& clock_;

  const size_t requests_;

  mutable std::mutex mutex_;
  std::list<Slot> free_;
  std::list<Slot> taken_;  // in the order of expiry
  // Empty where free_ is not.
  std::list<Member*> queue_;
  uint64_t last_number_ = 0;
  uint64_t waited_ = 0;
  uint64_t expired_ = 0;
};

}  // namespace postcopy

#endif  // UFFD_BULK_SHARE_H_
