#include "uffd/read_ring.h"

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr uint64_t kWakeTag = UINT64_MAX;

// How long to wait where the kernel has no memory for a request (EAGAIN and
// EBUSY of io_uring_enter(2)): without it a full system would be spun on.
constexpr std::chrono::milliseconds kKernelBusyPause(1);

class IoUring final : public ReadRing {
 public:
  IoUring(io_uring ring, UniqueFd wake) : ring_(ring), wake_(std::move(wake)) {}
  IoUring(const IoUring&) = delete;
  IoUring& operator=(const IoUring&) = delete;
  ~IoUring() override { ::io_uring_queue_exit(&ring_); }

  void Read(uint32_t tag, int fd, uint64_t offset,
            absl::Span<uint8_t> into) override;
  absl::StatusOr<size_t> Wait(absl::Span<Result> results) override;
  void Wake() override;

 private:
  io_uring_sqe* NewEntry(uint64_t tag);
  void ArmWake();
  void Disarm();
  // Moves completions to `results`; returns how many.
  size_t Reap(absl::Span<Result> results);

  io_uring ring_;
  // An eventfd, which the ring polls.
  const UniqueFd wake_;
  bool armed_ = false;
};

void IoUring::Read(uint32_t tag, int fd, uint64_t offset,
                   absl::Span<uint8_t> into) {
  io_uring_sqe* const entry = NewEntry(tag);
  ::io_uring_prep_read(entry, fd, into.data(),
                       static_cast<unsigned>(into.size()), offset);
  ::io_uring_sqe_set_data64(entry, tag);
}

absl::StatusOr<size_t> IoUring::Wait(absl::Span<Result> results) {
  POSTCOPY_CHECK(!results.empty());
  if (!armed_) ArmWake();
  const int submitted = ::io_uring_submit_and_wait(&ring_, 1);
  if (submitted == -EAGAIN || submitted == -EBUSY) {
    std::this_thread::sleep_for(kKernelBusyPause);
  } else if (submitted < 0 && submitted != -EINTR) {
    return absl::InternalError(
        absl::StrCat("io_uring_enter: ", ::strerrordesc_np(-submitted)));
  }
  return Reap(results);
}

void IoUring::Wake() {
  const uint64_t one = 1;
  // Fails only where the counter is full, and then the ring is awake.
  [[maybe_unused]] const ssize_t written =
      ::write(wake_.get(), &one, sizeof(one));
}

io_uring_sqe* IoUring::NewEntry(uint64_t tag) {
  io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
  POSTCOPY_CHECK(entry != nullptr);
  POSTCOPY_CHECK(tag == kWakeTag || tag <= UINT32_MAX);
  return entry;
}

void IoUring::ArmWake() {
  io_uring_sqe* const entry = NewEntry(kWakeTag);
  // Polled, not read: a ring that is destroyed leaves the kernel no address of
  // ours to write to.
  ::io_uring_prep_poll_add(entry, wake_.get(), POLLIN);
  ::io_uring_sqe_set_data64(entry, kWakeTag);
  armed_ = true;
}

void IoUring::Disarm() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof(count));
  armed_ = false;
}

size_t IoUring::Reap(absl::Span<Result> results) {
  size_t count = 0;
  io_uring_cqe* entry = nullptr;
  while (count < results.size() && ::io_uring_peek_cqe(&ring_, &entry) == 0) {
    const uint64_t tag = ::io_uring_cqe_get_data64(entry);
    if (tag == kWakeTag) {
      Disarm();
    } else {
      results[count++] = {static_cast<uint32_t>(tag), entry->res};
    }
    ::io_uring_cqe_seen(&ring_, entry);
  }
  return count;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReadRing>> CreateIoUring(uint32_t depth) {
  POSTCOPY_CHECK(depth >= 1 && depth <= kMaxRingDepth);
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return IoUringError(errno);
  io_uring ring = {};
  // One more, for the wake-up.
  const int error = ::io_uring_queue_init(depth + 1, &ring, /*flags=*/0);
  if (error < 0) return IoUringError(-error);
  return std::make_unique<IoUring>(ring, std::move(wake));
}

absl::Status IoUringError(int error) {
  const std::string message =
      absl::StrCat("cannot set up io_uring: ", ::strerrordesc_np(error));
  switch (error) {
    case EPERM:
    case EACCES:
      return absl::FailedPreconditionError(absl::StrCat(
          message,
          "; set the sysctl kernel.io_uring_disabled to 0, and allow "
          "io_uring_setup, io_uring_enter and io_uring_register in "
          "the seccomp profile of this service"));
    case ENOSYS:
      return absl::FailedPreconditionError(absl::StrCat(
          message,
          "; use a kernel of 5.6 or later with CONFIG_IO_URING, and "
          "a seccomp profile that allows it"));
    case ENOMEM:
      return absl::ResourceExhaustedError(absl::StrCat(
          message,
          "; raise the limit of locked memory (LimitMEMLOCK) or free "
          "memory"));
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(absl::StrCat(
          message, "; raise the limit of open files (LimitNOFILE)"));
    default:
      return absl::InternalError(message);
  }
}

}  // namespace postcopy
