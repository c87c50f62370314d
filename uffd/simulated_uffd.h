// UffdOps without a kernel, for tests that decide what happens when. Test-only.
#ifndef UFFD_SIMULATED_UFFD_H_
#define UFFD_SIMULATED_UFFD_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/install_strategy.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// A VMM whose memory is a shared mapping of a memfd, and its userfaultfd. The
// memfd is real, so a page is present exactly if its file has data there, as
// with shmem; threads that fault are numbers, and touch when the test says so.
// Where it is registered for MINOR, a page is also mapped or not: what was in
// the file before is not.
//
// Memory is given up in three steps, as by madvise(2): GiveUp queues the
// message; a Read behind all faults takes it; EndGivingUp empties the pages. In
// between nothing can be inserted until the read, and anything after it.
//
// Thread-safe, but a run is repeatable only with one thread.
class SimulatedUffd final : public UffdOps {
 public:
  enum class Call {
    kRegister,
    kUnregister,
    kCopy,
    kZeroPage,
    kContinue,
    kUnprotect,
    kPoison,
    kRead
  };
  enum class Touch {
    kPresent,     // the access goes through
    kWaiting,     // the thread waits for the page
    kZeroFilled,  // nobody watches the range: the kernel makes it zeros
    kPoisoned,    // SIGBUS
  };

  SimulatedUffd();

  // The VMM maps `length` bytes of `fd`, from `offset`, at `address`. `fd`
  // outlives the object.
  void Map(HostAddress address, ByteCount length, int fd, uint64_t offset);
  // The VMM unmaps what it has mapped there.
  void Unmap(HostAddress address);
  // The VMM's process ends: ESRCH and ENOMEM from here on.
  void KillProcess();

  // UFFD_FEATURE_...; none unless set. With THREAD_ID a message says the number
  // of the thread.
  void SetFeatures(uint64_t features) { features_ = features; }

  // Some thread begins to give the range up (REMOVE).
  void GiveUp(HostAddress address, ByteCount length);
  // The first such thread whose message has been read goes on: the pages are
  // holes. False if there is none.
  bool EndGivingUp();
  // True if the message of one waits to be read: nothing can be inserted.
  bool IsChanging();

  // The VMM protects the page at `address` against writing: the next touch, as
  // if it wrote, waits.
  void Protect(HostAddress address);

  // Thread `thread` touches the page at `address`.
  // REQUIRES: it does not wait; the page is mapped.
  Touch TouchPage(int thread, HostAddress address);
  // True if `thread` waits for a page.
  bool IsWaiting(int thread);
  size_t waiting();

  // The next `times` calls of `call` do nothing and return `error`.
  void FailNext(Call call, int error, int times = 1);
  // The next call of `call` first does this, as if its thread were kept from
  // running just before it enters the kernel.
  void BeforeNext(Call call, std::function<void()> action);
  // The next Copy or ZeroPage stops after `pages`, with EAGAIN.
  void StopNextAfter(PageCount pages);
  // A message that no touch caused.
  void Inject(const uffd_msg& message);
  // How often `call` was made.
  int calls(Call call);

  uint64_t features() const override { return features_; }
  UffdRegistration Register(HostAddress address, ByteCount length,
                            uint64_t modes) override;
  UffdResult Unregister(HostAddress address, ByteCount length) override;
  UffdResult Copy(HostAddress address, const uint8_t* source, ByteCount length,
                  bool wake) override;
  UffdResult ZeroPage(HostAddress address, ByteCount length,
                      bool wake) override;
  UffdResult Continue(HostAddress address, ByteCount length,
                      bool wake) override;
  UffdResult Unprotect(HostAddress address, ByteCount length) override;
  UffdResult Wake(HostAddress address, ByteCount length) override;
  UffdResult Poison(HostAddress address, ByteCount length) override;
  UffdReadResult Read(absl::Span<uffd_msg> messages) override;
  int poll_fd() const override { return event_fd_.get(); }

 private:
  static constexpr size_t kCalls = 8;

  struct Mapping {
    HostAddress address;
    ByteCount length;
    int fd;
    uint64_t offset;
  };
  struct Waiter {
    int thread;
    HostAddress page;
    uint64_t flags;  // UFFD_PAGEFAULT_FLAG_...
    bool message_read;
  };
  struct Removal {
    HostAddress address;
    ByteCount length;
    bool message_read = false;
  };
  struct Failure {
    int error = 0;
    int times = 0;
  };

  // Without mutex_.
  void RunBefore(Call call);

  // All REQUIRE mutex_.
  int TakeFailure(Call call);
  bool IsChangingLocked() const;
  const Mapping* Find(HostAddress address, ByteCount length) const;
  bool IsRegistered(HostAddress page) const;
  static off_t OffsetOf(const Mapping& mapping, HostAddress page);
  bool IsPresent(const Mapping& mapping, HostAddress page) const;
  // The guest sees it, without a fault.
  bool IsMapped(const Mapping& mapping, HostAddress page) const;
  UffdResult ContinueLocked(const Mapping& mapping, HostAddress address,
                            ByteCount length);
  void WriteNewPage(const Mapping& mapping, HostAddress page,
                    const uint8_t* content);
  Touch TouchLocked(int thread, HostAddress page);
  UffdResult Insert(Call call, HostAddress address, const uint8_t* source,
                    ByteCount length, bool wake);
  void WakeLocked(HostAddress address, ByteCount length);
  void SignalIfReadable();

  const UniqueFd event_fd_;  // readable while messages wait
  uint64_t features_ = 0;

  std::mutex mutex_;
  bool process_alive_ = true;
  std::vector<Mapping> mappings_;
  // Addresses of pages, in all four.
  std::set<uint64_t> registered_;
  std::set<uint64_t> minor_;   // of these, for MINOR too
  std::set<uint64_t> mapped_;  // of these, what is in sight
  std::set<uint64_t> protected_;
  std::set<uint64_t> poisoned_;
  std::deque<Waiter> waiters_;  // in the order in which they faulted
  std::deque<uffd_msg> injected_;
  std::deque<Removal> removals_;
  Failure failures_[kCalls];
  std::function<void()> before_[kCalls];
  int calls_[kCalls] = {};
  PageCount stop_after_;
};

// Registers the regions of `ram`, as a DestinationVm does. REQUIRES: mapped.
InstallStrategies StrategiesFor(const DestinationRam& ram, UffdOps& uffd);

// A SimulatedUffd that a test keeps while a DestinationVm owns it too.
std::unique_ptr<UffdOps> Share(SimulatedUffd* uffd);

}  // namespace postcopy

#endif  // UFFD_SIMULATED_UFFD_H_
