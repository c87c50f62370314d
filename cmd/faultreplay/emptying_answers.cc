#include "cmd/faultreplay/emptying_answers.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "absl/status/status.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {

absl::StatusOr<std::unique_ptr<EmptyingAnswers>> EmptyingAnswers::Start(
    int userfaultfd, int snapshot, std::vector<RecordedRegion> regions) {
  UniqueFd end(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!end.valid()) return absl::ErrnoToStatus(errno, "eventfd");
  std::unique_ptr<EmptyingAnswers> answers(new EmptyingAnswers(
      userfaultfd, snapshot, std::move(regions), std::move(end)));
  EmptyingAnswers* const self = answers.get();
  absl::StatusOr<std::thread> thread = StartThread([self] { self->Run(); });
  if (!thread.ok()) return thread.status();
  self->thread_ = *std::move(thread);
  return answers;
}

EmptyingAnswers::~EmptyingAnswers() {
  // Fails only when the counter is full, and then it ends anyway.
  ::eventfd_write(end_.get(), 1);
  if (thread_.joinable()) thread_.join();
}

void EmptyingAnswers::Run() {
  std::array<pollfd, 2> waited = {
      {{.fd = end_.get(), .events = POLLIN, .revents = 0},
       {.fd = userfaultfd_, .events = POLLIN, .revents = 0}}};
  while (::poll(waited.data(), waited.size(), -1) >= 0 || errno == EINTR) {
    if ((waited[0].revents & POLLIN) != 0) return;
    ReadOne();
  }
}

void EmptyingAnswers::ReadOne() {
  uffd_msg message = {};
  if (::read(userfaultfd_, &message, sizeof(message)) != sizeof(message) ||
      message.event != UFFD_EVENT_PAGEFAULT) {
    return;
  }
  GiveBack(message.arg.pagefault.address & ~uint64_t{kPageSize - 1});
}

void EmptyingAnswers::GiveBack(uint64_t page) const {
  std::array<char, kPageSize> bytes = {};
  for (const RecordedRegion& region : regions_) {
    const uint64_t begin = region.address.value();
    if (page < begin || page - begin >= region.length.value()) continue;
    const auto at = static_cast<off_t>(region.offset + (page - begin));
    uffdio_copy copy = {.dst = page,
                        .src = reinterpret_cast<uintptr_t>(bytes.data()),
                        .len = kPageSize,
                        .mode = 0,
                        .copy = 0};
    if (::pread(snapshot_, bytes.data(), bytes.size(), at) == kPageSize &&
        ::ioctl(userfaultfd_, UFFDIO_COPY, &copy) == 0) {
      return;
    }
  }
  // It is there already, or cannot be just now: its thread looks again.
  uffdio_range range = {.start = page, .len = kPageSize};
  ::ioctl(userfaultfd_, UFFDIO_WAKE, &range);
}

}  // namespace postcopy
