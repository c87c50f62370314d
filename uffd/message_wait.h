// How two threads wait for the messages of one userfaultfd.
#ifndef UFFD_MESSAGE_WAIT_H_
#define UFFD_MESSAGE_WAIT_H_

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// One thread is always there, and one stands in for it now and then; a message
// wakes the first only while it listens. By epoll(7), so that the other can
// change that while it waits: ADR 0034 has what it costs and saves.
class MessageWait {
 public:
  // What a thread was woken for. `status` is not OK if the userfaultfd cannot
  // be waited for any more.
  struct Woken {
    bool messages = false;
    bool wake_fd = false;
    absl::Status status;
  };

  // `uffd` and `wake_fd`, an eventfd, outlive the object. RESOURCE_EXHAUSTED if
  // there is no descriptor left. Nobody listens yet.
  static absl::StatusOr<std::unique_ptr<MessageWait>> Create(int uffd,
                                                             int wake_fd);

  // Whether messages wake the thread that is always there, from now on; such
  // that wait already do it at once. Any thread, one at a time.
  absl::Status Listen(bool listens);

  // Waits for `wake_fd` and, while it listens, for messages. `timeout_ms` as of
  // epoll_wait(2). By the thread that is always there.
  Woken Wait(int timeout_ms) const;
  // Waits for messages. By the thread that stands in.
  Woken StandIn(int timeout_ms) const;

 private:
  MessageWait(int uffd, UniqueFd set) : uffd_(uffd), set_(std::move(set)) {}

  const int uffd_;
  const UniqueFd set_;  // epoll: the userfaultfd and the eventfd
  bool listens_ = false;
};

}  // namespace postcopy

#endif  // UFFD_MESSAGE_WAIT_H_
