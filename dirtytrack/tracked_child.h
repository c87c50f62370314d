// A process that writes to memory which is tracked: a VMM for tests. Test-only.
#ifndef DIRTYTRACK_TRACKED_CHILD_H_
#define DIRTYTRACK_TRACKED_CHILD_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Forks at Start, which has to come before other threads do; the child dies
// with this object and with this process. One thread.
class TrackedChild {
 public:
  enum class Memory { kAnonymous, kMemfd, kHugeAnonymous, kHugeMemfd };

  // The child maps `bytes` of `memory`, makes a WriteTracking unless `tracked`
  // is false, sends its pagemap, and stands still. UNAVAILABLE if there is no
  // such memory, else as WriteTracking::Create.
  static absl::StatusOr<std::unique_ptr<TrackedChild>> Start(
      Memory memory, ByteCount bytes, bool tracked = true);
  ~TrackedChild();
  TrackedChild(const TrackedChild&) = delete;
  TrackedChild& operator=(const TrackedChild&) = delete;

  // What the child has sent.
  HostAddress address() const { return address_; }
  pid_t pid() const { return pid_; }
  UniqueFd TakePagemap() { return std::move(pagemap_); }

  // The child writes an ever new number to a word at random, up to `writes`
  // times from now, at irregular intervals, while this process goes on.
  void Allow(uint64_t writes);
  // How often it wrote.
  uint64_t writes() const;
  // Returns when the child has stopped writing, until the next Allow.
  void Pause();
  // The paused child writes one word of `page`.
  void Poke(PageIndex page);
  // The paused child destroys its WriteTracking.
  void EndTracking();
  // Ends the child. Returns when its memory is gone.
  void Kill();

  // Copies the child's memory as a daemon would: from the memfd, or, if it has
  // none, with process_vm_readv.
  absl::Status Read(PageRun run, uint8_t* into) const;

 private:
  struct Shared;  // memory of both processes
  struct Unmap {
    void operator()(Shared* shared) const;
  };
  enum class Command : uint32_t { kRun, kPause, kPoke, kEndTracking };

  explicit TrackedChild(std::unique_ptr<Shared, Unmap> shared);
  void Do(Command command, uint64_t argument);
  [[noreturn]] static void RunChild(Shared* shared, int socket, int memfd,
                                    Memory memory, ByteCount bytes,
                                    bool tracked, pid_t parent);

  const std::unique_ptr<Shared, Unmap> shared_;
  UniqueFd memfd_;
  pid_t pid_ = -1;
  HostAddress address_;
  UniqueFd pagemap_;
};

// True for errors of Start that say what this machine lacks, and by which a
// test is skipped: userfaultfd or a feature of it, huge pages.
inline bool IsLackOfThisMachine(const absl::Status& status) {
  return absl::IsPermissionDenied(status) || absl::IsUnimplemented(status) ||
         absl::IsUnavailable(status);
}

// Huge pages that a test may use, for as long as this lives.
class ReservedHugePages {
 public:
  // Makes sure that `pages` huge pages of 2 MiB are free, if that is permitted.
  explicit ReservedHugePages(uint64_t pages);
  ~ReservedHugePages();
  ReservedHugePages(const ReservedHugePages&) = delete;
  ReservedHugePages& operator=(const ReservedHugePages&) = delete;

 private:
  uint64_t before_ = 0;
  bool changed_ = false;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_TRACKED_CHILD_H_
