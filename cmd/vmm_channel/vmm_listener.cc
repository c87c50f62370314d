#include "cmd/vmm_channel/vmm_listener.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/deadline.h"
#include "cmd/vmm_channel/packet_socket.h"
#include "cmd/vmm_channel/wire_status.h"
#include "dirtytrack/check.h"
#include "dirtytrack/unique_fd.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

// What epoll reports by; everything else is a peer or a VM.
constexpr uint64_t kListenId = 0;
constexpr uint64_t kWakeId = 1;
constexpr uint64_t kFirstPeerId = 2;

constexpr int kEventsAtOnce = 64;

// How long accepting rests when this process may open no more files: the
// connection stays in the backlog, so epoll would report it without end.
constexpr absl::Duration kAcceptRest = absl::Milliseconds(100);

absl::Status SystemError(absl::string_view what, int error) {
  const std::string message = absl::StrCat(what, ": ", std::strerror(error));
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOENT:
    case ENOTDIR:
      return absl::FailedPreconditionError(message);
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status AnotherListens(absl::string_view path) {
  return absl::FailedPreconditionError(absl::StrCat(
      "another daemon listens on ", path, "; stop it or choose another path"));
}

// Makes sure that of all daemons only this one touches the socket at `path`.
// The lock ends with the descriptor. Its file stays, since removing it would
// let a third daemon lock a new one beside the second.
absl::StatusOr<UniqueFd> LockPath(const std::string& path) {
  const std::string lock_path = path + ".lock";
  UniqueFd lock(::open(lock_path.c_str(),
                       O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return SystemError(lock_path, errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return AnotherListens(path);
    return SystemError(lock_path, errno);
  }
  return lock;
}

UniqueFd NewSocket() {
  return UniqueFd(
      ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// Removes the socket of a dead daemon. Not an error if there is none.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : SystemError(path, errno);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is there and is no socket; remove it or choose another path"));
  }
  UniqueFd probe = NewSocket();
  if (!probe.valid()) return SystemError("socket", errno);
  const int result =
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof(address));
  // Only a socket that nobody listens on refuses; any other answer, a socket
  // of another type or a full backlog included, comes from somebody alive.
  if (result == 0 || errno != ECONNREFUSED) return AnotherListens(path);
  if (::unlink(path.c_str()) != 0) return SystemError(path, errno);
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Listen(const std::string& path) {
  absl::StatusOr<sockaddr_un> address = UnixAddress(path);
  if (!address.ok()) return address.status();
  absl::Status removed = RemoveStale(path, *address);
  if (!removed.ok()) return removed;
  UniqueFd fd = NewSocket();
  if (!fd.valid()) return SystemError("socket", errno);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&*address),
             sizeof(*address)) != 0) {
    return SystemError(path, errno);
  }
  // Nobody can connect before listen(), so the mode is right from the start.
  if (::chmod(path.c_str(), 0660) != 0 || ::listen(fd.get(), SOMAXCONN) != 0) {
    return SystemError(path, errno);
  }
  return fd;
}

// The user at the other end when it connected; nullopt if unknown.
std::optional<uid_t> PeerUid(int fd) {
  ucred credentials = {};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return std::nullopt;
  }
  return credentials.uid;
}

// Threads inherit the mask: signals are for the threads that the program chose.
template <typename Function>
std::thread StartWithoutSignals(Function function) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(function));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

// Lets go of connections on a thread of its own: the last reference to a dead
// VM's memory frees it, which takes seconds for a large one. Thread-safe.
class Undertaker {
 public:
  Undertaker() : thread_(StartWithoutSignals([this] { Run(); })) {}
  // Returns when all have been let go of.
  ~Undertaker() {
    {
      std::lock_guard lock(mutex_);
      done_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

  void Take(std::shared_ptr<VmmConnection> connection) {
    {
      std::lock_guard lock(mutex_);
      dead_.push_back(std::move(connection));
    }
    changed_.notify_one();
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return done_ || !dead_.empty(); });
      if (dead_.empty()) return;
      std::vector<std::shared_ptr<VmmConnection>> dead = std::move(dead_);
      dead_.clear();
      lock.unlock();
      dead.clear();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<VmmConnection>> dead_;
  bool done_ = false;
  // Last: it uses what is above.
  std::thread thread_;
};

}  // namespace

// Everything but what the two mutexes guard belongs to the listener's thread
// while that runs.
class VmmListener::Impl {
 public:
  explicit Impl(Options options);
  ~Impl() { Shutdown(); }

  // Once, before anything else.
  absl::Status Start();
  std::shared_ptr<VmmConnection> Find(absl::string_view vm_name) const;
  std::vector<std::string> names() const;
  void Shutdown();

 private:
  // A peer that has connected and not yet attached.
  struct Pending {
    PacketSocket socket;
    Deadline deadline;
  };

  absl::Status Watch(int fd, uint64_t id, uint32_t events, int operation);
  void Forget(int fd);

  void Run();
  // How long epoll may wait.
  Deadline NextDeadline() const;
  void Handle(uint64_t id);

  void AcceptOne();
  void RestAccepting();
  void ResumeAccepting();
  void Greet(UniqueFd fd);
  absl::Status CheckPeer(int fd) const;
  void TurnAwayLate();
  // Answers a pending peer with `why` and forgets it.
  void TurnAway(uint64_t id, const absl::Status& why);

  void ReceiveAttach(uint64_t id);
  absl::StatusOr<Attachment> Parse(Packet packet) const;
  absl::Status CheckRoom(const std::string& vm_name);
  bool IsTaken(const std::string& vm_name) const;
  void Attach(uint64_t id, std::shared_ptr<VmmConnection> connection);
  // Answers OK and makes the VM known, both before Find returns it.
  absl::Status Admit(const std::shared_ptr<VmmConnection>& connection);

  void Detach(uint64_t id);
  void DetachClosed();
  void DetachAll();

  Options options_;
  UniqueFd lock_;
  UniqueFd listening_;
  UniqueFd epoll_;
  UniqueFd wake_;

  // By id, which rises: the first is the oldest.
  std::map<uint64_t, Pending> pending_;
  std::map<uint64_t, std::shared_ptr<VmmConnection>> attached_;
  uint64_t next_id_ = kFirstPeerId;
  // While accepting rests: until when.
  std::optional<Deadline> resting_;
  Undertaker undertaker_;

  mutable std::mutex names_mutex_;
  // The VMs in attached_.
  std::map<std::string, std::shared_ptr<VmmConnection>> by_name_;

  // Held through Shutdown, so that a second call returns no earlier.
  std::mutex shutdown_mutex_;
  std::thread thread_;
};

VmmListener::Impl::Impl(Options options) : options_(std::move(options)) {
  if (options_.allowed_uids.empty()) {
    options_.allowed_uids = {0, ::geteuid()};
  }
}

absl::Status VmmListener::Impl::Start() {
  // Checked before the lock file is made.
  absl::StatusOr<sockaddr_un> address = UnixAddress(options_.socket_path);
  if (!address.ok()) return address.status();
  absl::StatusOr<UniqueFd> lock = LockPath(options_.socket_path);
  if (!lock.ok()) return lock.status();
  lock_ = *std::move(lock);
  absl::StatusOr<UniqueFd> listening = Listen(options_.socket_path);
  if (!listening.ok()) return listening.status();
  listening_ = *std::move(listening);
  epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return SystemError("epoll_create1", errno);
  wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return SystemError("eventfd", errno);
  absl::Status status = Watch(wake_.get(), kWakeId, EPOLLIN, EPOLL_CTL_ADD);
  if (!status.ok()) return status;
  status = Watch(listening_.get(), kListenId, EPOLLIN, EPOLL_CTL_ADD);
  if (!status.ok()) return status;
  thread_ = StartWithoutSignals([this] { Run(); });
  return absl::OkStatus();
}

std::shared_ptr<VmmConnection> VmmListener::Impl::Find(
    absl::string_view vm_name) const {
  std::lock_guard lock(names_mutex_);
  const auto found = by_name_.find(std::string(vm_name));
  return found == by_name_.end() ? nullptr : found->second;
}

std::vector<std::string> VmmListener::Impl::names() const {
  std::lock_guard lock(names_mutex_);
  std::vector<std::string> names;
  names.reserve(by_name_.size());
  for (const auto& [name, connection] : by_name_) names.push_back(name);
  return names;
}

void VmmListener::Impl::Shutdown() {
  std::lock_guard lock(shutdown_mutex_);
  if (thread_.joinable()) {
    POSTCOPY_CHECK(thread_.get_id() != std::this_thread::get_id());
    const uint64_t one = 1;
    POSTCOPY_CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
    thread_.join();
  }
  // Without a listening socket the file belongs to somebody else.
  if (listening_.valid()) ::unlink(options_.socket_path.c_str());
  listening_.Reset();
  lock_.Reset();
}

absl::Status VmmListener::Impl::Watch(int fd, uint64_t id, uint32_t events,
                                      int operation) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = id;
  if (::epoll_ctl(epoll_.get(), operation, fd, &event) == 0) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the daemon cannot watch one more connection: ", std::strerror(errno)));
}

void VmmListener::Impl::Forget(int fd) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void VmmListener::Impl::Run() {
  epoll_event events[kEventsAtOnce];
  for (;;) {
    const int count = ::epoll_wait(epoll_.get(), events, kEventsAtOnce,
                                   NextDeadline().PollMillis());
    POSTCOPY_CHECK(count >= 0 || errno == EINTR);
    for (int i = 0; i < count; ++i) {
      if (events[i].data.u64 == kWakeId) return DetachAll();
      Handle(events[i].data.u64);
    }
    TurnAwayLate();
    if (resting_ && resting_->passed()) ResumeAccepting();
  }
}

Deadline VmmListener::Impl::NextDeadline() const {
  Deadline next = resting_.value_or(Deadline::Infinite());
  if (!pending_.empty()) {
    next = std::min(next, pending_.begin()->second.deadline);
  }
  return next;
}

void VmmListener::Impl::Handle(uint64_t id) {
  // An id whose peer went earlier in the same batch of events is in neither.
  if (id == kListenId) {
    AcceptOne();
  } else if (pending_.count(id) != 0) {
    ReceiveAttach(id);
  } else if (attached_.count(id) != 0) {
    Detach(id);
  }
}

// One at a time, so that a crowd at the door does not keep others waiting.
void VmmListener::Impl::AcceptOne() {
  UniqueFd fd(::accept4(listening_.get(), nullptr, nullptr,
                        SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.valid()) return Greet(std::move(fd));
  if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
      errno == ENOBUFS) {
    RestAccepting();
  }
  // Else the peer has gone again.
}

void VmmListener::Impl::RestAccepting() {
  Forget(listening_.get());
  resting_ = Deadline::After(kAcceptRest);
}

void VmmListener::Impl::ResumeAccepting() {
  resting_.reset();
  if (!Watch(listening_.get(), kListenId, EPOLLIN, EPOLL_CTL_ADD).ok()) {
    RestAccepting();
  }
}

void VmmListener::Impl::Greet(UniqueFd fd) {
  PacketSocket socket(std::move(fd), "the VMM");
  if (absl::Status status = CheckPeer(socket.fd()); !status.ok()) {
    return RefuseVmm(socket, status);
  }
  if (pending_.size() == kMaxPendingPeers) {
    TurnAway(pending_.begin()->first,
             absl::ResourceExhaustedError(absl::StrCat(
                 "more than ", kMaxPendingPeers, " VMMs have connected and ",
                 "not attached; send Attach as soon as connected")));
  }
  const uint64_t id = next_id_++;
  absl::Status status = Watch(socket.fd(), id, EPOLLIN, EPOLL_CTL_ADD);
  if (!status.ok()) return RefuseVmm(socket, status);
  pending_.emplace(
      id, Pending{std::move(socket), Deadline::After(options_.attach_timeout)});
}

absl::Status VmmListener::Impl::CheckPeer(int fd) const {
  const std::optional<uid_t> uid = PeerUid(fd);
  if (!uid) {
    return absl::PermissionDeniedError(
        "the daemon cannot tell which user this VMM runs as");
  }
  const std::vector<uid_t>& allowed = options_.allowed_uids;
  if (std::find(allowed.begin(), allowed.end(), *uid) != allowed.end()) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError(absl::StrCat(
      "user ", *uid, " may not attach VMs; add it to the daemon's allowed ",
      "user ids"));
}

void VmmListener::Impl::TurnAwayLate() {
  while (!pending_.empty() && pending_.begin()->second.deadline.passed()) {
    TurnAway(pending_.begin()->first,
             absl::DeadlineExceededError(
                 absl::StrCat("no Attach came within ",
                              absl::FormatDuration(options_.attach_timeout))));
  }
}

void VmmListener::Impl::TurnAway(uint64_t id, const absl::Status& why) {
  const auto found = pending_.find(id);
  Forget(found->second.socket.fd());
  RefuseVmm(found->second.socket, why);
  pending_.erase(found);
}

void VmmListener::Impl::ReceiveAttach(uint64_t id) {
  Pending& pending = pending_.find(id)->second;
  absl::StatusOr<Packet> packet =
      pending.socket.Receive(Deadline::After(absl::ZeroDuration()));
  if (absl::IsDeadlineExceeded(packet.status())) return;
  if (!packet.ok()) return TurnAway(id, packet.status());
  absl::StatusOr<Attachment> attachment = Parse(*std::move(packet));
  if (!attachment.ok()) return TurnAway(id, attachment.status());
  absl::Status room = CheckRoom(attachment->vm_name);
  if (!room.ok()) return TurnAway(id, room);
  VmmConnection::Options options;
  options.command_timeout = options_.command_timeout;
  auto connection = std::make_shared<VmmConnection>(
      std::move(pending.socket), *std::move(attachment), options);
  pending_.erase(id);
  Attach(id, std::move(connection));
}

absl::StatusOr<Attachment> VmmListener::Impl::Parse(Packet packet) const {
  v1::VmmMessage message;
  if (!message.ParseFromString(packet.bytes) || !message.has_attach()) {
    return absl::InvalidArgumentError(
        "the first packet is not a VmmMessage with an Attach in it");
  }
  return ParseAttach(message.attach(), std::move(packet.fds), options_.role);
}

absl::Status VmmListener::Impl::CheckRoom(const std::string& vm_name) {
  // A VMM that closes and comes back at once may be seen in the wrong order.
  if (IsTaken(vm_name) || attached_.size() >= options_.vms_max) DetachClosed();
  if (IsTaken(vm_name)) {
    return absl::AlreadyExistsError(absl::StrCat(
        "a VM named ", vm_name, " is attached already; close its connection ",
        "or choose another name"));
  }
  if (attached_.size() < options_.vms_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      attached_.size(), " VMs are attached, as many as this daemon is set to ",
      "take"));
}

bool VmmListener::Impl::IsTaken(const std::string& vm_name) const {
  return Find(vm_name) != nullptr;
}

void VmmListener::Impl::Attach(uint64_t id,
                               std::shared_ptr<VmmConnection> connection) {
  if (options_.on_attach) {
    absl::Status status = options_.on_attach(connection);
    if (!status.ok()) {
      Forget(connection->fd());
      connection->RefuseAttach(status);
      return undertaker_.Take(std::move(connection));
    }
  }
  attached_.emplace(id, connection);
  // Only the end is of interest from here on: answers to commands are read by
  // who gave them.
  absl::Status status = Watch(connection->fd(), id, EPOLLRDHUP, EPOLL_CTL_MOD);
  if (status.ok()) status = Admit(connection);
  if (!status.ok()) Detach(id);
}

absl::Status VmmListener::Impl::Admit(
    const std::shared_ptr<VmmConnection>& connection) {
  std::lock_guard lock(names_mutex_);
  absl::Status status = connection->AcceptAttach();
  if (status.ok()) by_name_.emplace(connection->vm_name(), connection);
  return status;
}

void VmmListener::Impl::Detach(uint64_t id) {
  auto node = attached_.extract(id);
  std::shared_ptr<VmmConnection> connection = std::move(node.mapped());
  Forget(connection->fd());
  connection->Close();
  {
    std::lock_guard lock(names_mutex_);
    by_name_.erase(connection->vm_name());
  }
  if (options_.on_detach) options_.on_detach(connection->vm_name());
  undertaker_.Take(std::move(connection));
}

void VmmListener::Impl::DetachClosed() {
  std::vector<uint64_t> closed;
  for (const auto& [id, connection] : attached_) {
    if (connection->closed()) closed.push_back(id);
  }
  for (const uint64_t id : closed) Detach(id);
}

void VmmListener::Impl::DetachAll() {
  while (!pending_.empty()) {
    TurnAway(pending_.begin()->first,
             absl::UnavailableError("the daemon is shutting down"));
  }
  while (!attached_.empty()) Detach(attached_.begin()->first);
}

VmmListener::VmmListener(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

VmmListener::~VmmListener() = default;

absl::StatusOr<std::unique_ptr<VmmListener>> VmmListener::Create(
    Options options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  if (absl::Status status = impl->Start(); !status.ok()) return status;
  return std::unique_ptr<VmmListener>(new VmmListener(std::move(impl)));
}

std::shared_ptr<VmmConnection> VmmListener::Find(
    absl::string_view vm_name) const {
  return impl_->Find(vm_name);
}

std::vector<std::string> VmmListener::names() const { return impl_->names(); }

void VmmListener::Shutdown() { impl_->Shutdown(); }

}  // namespace postcopy
