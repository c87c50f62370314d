#include "uffd/message_wait.h"

#include <poll.h>
#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status SystemError(absl::string_view call) {
  return absl::InternalError(
      absl::StrCat(call, ": ", ::strerrordesc_np(errno)));
}

absl::Status Unusable() {
  return absl::InternalError(
      "the userfaultfd is unusable: somebody has made it blocking");
}

bool Control(const UniqueFd& set, int operation, int fd, uint32_t events) {
  epoll_event event = {.events = events, .data = {.fd = fd}};
  return ::epoll_ctl(set.get(), operation, fd, &event) == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MessageWait>> MessageWait::Create(int uffd,
                                                                 int wake_fd) {
  UniqueFd set(::epoll_create1(EPOLL_CLOEXEC));
  // Errors of a descriptor are told whatever it is in the set for.
  if (!set.valid() || !Control(set, EPOLL_CTL_ADD, uffd, 0) ||
      !Control(set, EPOLL_CTL_ADD, wake_fd, EPOLLIN)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "nothing to wait for faults by (epoll): ", ::strerrordesc_np(errno)));
  }
  return std::unique_ptr<MessageWait>(new MessageWait(uffd, std::move(set)));
}

absl::Status MessageWait::Listen(bool listens) {
  if (listens == listens_) return absl::OkStatus();
  const uint32_t events = listens ? uint32_t{EPOLLIN} : 0;
  if (!Control(set_, EPOLL_CTL_MOD, uffd_, events)) {
    return SystemError("epoll_ctl");
  }
  listens_ = listens;
  return absl::OkStatus();
}

MessageWait::Woken MessageWait::Wait(int timeout_ms) const {
  Woken woken;
  std::array<epoll_event, 2> events;
  const int count =
      ::epoll_wait(set_.get(), events.data(), events.size(), timeout_ms);
  if (count < 0 && errno != EINTR) woken.status = SystemError("epoll_wait");
  for (int i = 0; i < count; ++i) {
    (events[i].data.fd == uffd_ ? woken.messages : woken.wake_fd) = true;
    if ((events[i].events & (EPOLLERR | EPOLLHUP)) != 0) {
      woken.status = Unusable();
    }
  }
  return woken;
}

MessageWait::Woken MessageWait::StandIn(int timeout_ms) const {
  Woken woken;
  pollfd waited = {.fd = uffd_, .events = POLLIN, .revents = 0};
  const int count = ::poll(&waited, 1, timeout_ms);
  if (count < 0 && errno != EINTR) woken.status = SystemError("poll");
  if (count <= 0) return woken;
  woken.messages = (waited.revents & POLLIN) != 0;
  if ((waited.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) {
    woken.status = Unusable();
  }
  return woken;
}

}  // namespace postcopy
