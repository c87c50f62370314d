#include "cmd/vmm_channel/accept_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/quiet_thread.h"
#include "dirtytrack/check.h"

namespace postcopy {
namespace {

// What epoll reports by; everything else is the handler's.
constexpr uint64_t kListenId = 0;
constexpr uint64_t kWakeId = 1;
static_assert(AcceptLoop::kFirstId > kWakeId);

constexpr int kEventsAtOnce = 64;

// How long accepting rests when this process may open no more files: the
// connection stays in the backlog, so epoll would report it without end.
constexpr absl::Duration kAcceptRest = absl::Milliseconds(100);

}  // namespace

absl::Status AcceptLoop::Start(ListeningSocket listening) {
  listening_ = std::move(listening);
  epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return absl::ErrnoToStatus(errno, "epoll_create1");
  wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return absl::ErrnoToStatus(errno, "eventfd");
  absl::Status status = Watch(wake_.get(), kWakeId, EPOLLIN);
  if (!status.ok()) return status;
  status = Watch(listening_.fd(), kListenId, EPOLLIN);
  if (!status.ok()) return status;
  thread_ = StartWithoutSignals([this] { Run(); });
  return absl::OkStatus();
}

void AcceptLoop::Stop() {
  std::lock_guard lock(stop_mutex_);
  if (thread_.joinable()) {
    POSTCOPY_CHECK(thread_.get_id() != std::this_thread::get_id());
    stopping_.store(true);
    Wake();
    thread_.join();
  }
  listening_.Close();
}

bool AcceptLoop::ShowsLife() {
  std::lock_guard lock(stop_mutex_);
  return !thread_.joinable() || life_.Ask([this] { Wake(); });
}

void AcceptLoop::Wake() {
  const uint64_t one = 1;
  POSTCOPY_CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
}

bool AcceptLoop::Woken() {
  uint64_t ignored = 0;
  POSTCOPY_CHECK(::read(wake_.get(), &ignored, sizeof(ignored)) ==
                 sizeof(ignored));
  life_.Answer();
  return stopping_.load();
}

absl::Status AcceptLoop::Watch(int fd, uint64_t id, uint32_t events) {
  return Control(EPOLL_CTL_ADD, fd, id, events);
}

absl::Status AcceptLoop::Rewatch(int fd, uint64_t id, uint32_t events) {
  return Control(EPOLL_CTL_MOD, fd, id, events);
}

void AcceptLoop::Forget(int fd) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

absl::Status AcceptLoop::Control(int operation, int fd, uint64_t id,
                                 uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = id;
  if (::epoll_ctl(epoll_.get(), operation, fd, &event) == 0) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the daemon cannot watch one more connection: ", std::strerror(errno)));
}

void AcceptLoop::Run() {
  epoll_event events[kEventsAtOnce];
  for (;;) {
    const int count = ::epoll_wait(epoll_.get(), events, kEventsAtOnce,
                                   NextDeadline().PollMillis());
    POSTCOPY_CHECK(count >= 0 || errno == EINTR);
    for (int i = 0; i < count; ++i) {
      // Each event by itself may take seconds, a crowd of them minutes: the
      // thread is not stuck as long as it gets on.
      life_.Answer();
      const uint64_t id = events[i].data.u64;
      if (id == kWakeId) {
        if (Woken()) return handler_->OnStop();
      } else if (id == kListenId) {
        AcceptOne();
      } else {
        handler_->OnReady(id);
      }
      // Each may take long by itself, and is not to be counted together with
      // the others: a loop that gets on is alive.
      life_.Answer();
    }
    handler_->OnDeadline();
    if (resting_ && resting_->passed()) ResumeAccepting();
  }
}

Deadline AcceptLoop::NextDeadline() const {
  return std::min(resting_.value_or(Deadline::Infinite()),
                  handler_->NextDeadline());
}

// One at a time, so that a crowd at the door does not keep others waiting.
void AcceptLoop::AcceptOne() {
  UniqueFd fd(::accept4(listening_.fd(), nullptr, nullptr,
                        SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.valid()) return handler_->OnConnection(std::move(fd));
  if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
      errno == ENOBUFS) {
    RestAccepting();
  }
  // Else the peer has gone again.
}

void AcceptLoop::RestAccepting() {
  Forget(listening_.fd());
  resting_ = Deadline::After(kAcceptRest);
}

void AcceptLoop::ResumeAccepting() {
  resting_.reset();
  if (!Watch(listening_.fd(), kListenId, EPOLLIN).ok()) RestAccepting();
}

}  // namespace postcopy
