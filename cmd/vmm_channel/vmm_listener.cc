#include "cmd/vmm_channel/vmm_listener.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/accept_loop.h"
#include "cmd/vmm_channel/deadline.h"
#include "cmd/vmm_channel/listening_socket.h"
#include "cmd/vmm_channel/packet_socket.h"
#include "cmd/vmm_channel/quiet_thread.h"
#include "dirtytrack/unique_fd.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

// How long a VMM that comes when there is no room, but for those that have
// gone, waits for these; and all others with it.
constexpr absl::Duration kLettingGoPatience = absl::Milliseconds(100);

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

// Everything but what the mutex guards belongs to the loop's thread while that
// runs.
class VmmListener::Impl : private AcceptLoop::Handler {
 public:
  explicit Impl(Options options) : options_(std::move(options)) {}
  ~Impl() override { Shutdown(); }

  // Once, before anything else.
  absl::Status Start() {
    absl::StatusOr<ListeningSocket> listening = ListeningSocket::Open(
        options_.inherited_socket, options_.socket_path, SOCK_SEQPACKET);
    if (!listening.ok()) return listening.status();
    return loop_.Start(*std::move(listening));
  }
  bool ShowsLife() { return loop_.ShowsLife(); }
  std::shared_ptr<VmmConnection> Find(absl::string_view vm_name) const;
  std::vector<std::string> names() const;
  void Shutdown() { loop_.Stop(); }

 private:
  // A peer that has connected and not yet attached.
  struct Pending {
    PacketSocket socket;
    Deadline deadline;
  };

  void OnConnection(UniqueFd fd) override;
  void OnReady(uint64_t id) override;
  Deadline NextDeadline() const override;
  void OnDeadline() override;
  void OnStop() override;

  // Answers a pending peer with `why` and forgets it.
  void TurnAway(uint64_t id, const absl::Status& why);
  // Answers any peer so, and says it to on_refuse.
  void Refuse(PacketSocket& socket, const absl::Status& why);

  void ReceiveAttach(uint64_t id);
  absl::StatusOr<Attachment> Parse(Packet packet) const;
  absl::Status CheckRoom(const std::string& vm_name);
  bool IsTaken(const std::string& vm_name) const;
  void Attach(uint64_t id, std::shared_ptr<VmmConnection> connection);
  // Answers OK and makes the VM known, both before Find returns it.
  absl::Status Admit(const std::shared_ptr<VmmConnection>& connection);

  void Detach(uint64_t id);
  void DetachClosed();

  const Options options_;

  // By id, which rises: the first is the oldest.
  std::map<uint64_t, Pending> pending_;
  std::map<uint64_t, std::shared_ptr<VmmConnection>> attached_;
  uint64_t next_id_ = AcceptLoop::kFirstId;
  // The attached, and those that have gone and of which something is held.
  HeldVms held_;
  Undertaker undertaker_;

  mutable std::mutex names_mutex_;
  // The VMs in attached_.
  std::map<std::string, std::shared_ptr<VmmConnection>> by_name_;

  // Last: its thread uses what is above.
  AcceptLoop loop_{this};
};

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

Deadline VmmListener::Impl::NextDeadline() const {
  return pending_.empty() ? Deadline::Infinite()
                          : pending_.begin()->second.deadline;
}

void VmmListener::Impl::OnReady(uint64_t id) {
  // An id whose peer went earlier in the same batch of events is in neither.
  if (pending_.count(id) != 0) {
    ReceiveAttach(id);
  } else if (attached_.count(id) != 0) {
    Detach(id);
  }
}

void VmmListener::Impl::OnConnection(UniqueFd fd) {
  PacketSocket socket(std::move(fd), "the VMM");
  absl::Status status = CheckPeer(socket.fd(), options_.allowed_uids).status();
  if (!status.ok()) return Refuse(socket, status);
  if (pending_.size() == kMaxPendingPeers) {
    TurnAway(pending_.begin()->first,
             absl::ResourceExhaustedError(absl::StrCat(
                 "more than ", kMaxPendingPeers, " VMMs have connected and ",
                 "not attached; send Attach as soon as connected")));
  }
  const uint64_t id = next_id_++;
  status = loop_.Watch(socket.fd(), id, EPOLLIN);
  if (!status.ok()) return Refuse(socket, status);
  pending_.emplace(
      id, Pending{std::move(socket), Deadline::After(options_.attach_timeout)});
}

void VmmListener::Impl::OnDeadline() {
  while (!pending_.empty() && pending_.begin()->second.deadline.passed()) {
    TurnAway(pending_.begin()->first,
             absl::DeadlineExceededError(
                 absl::StrCat("no Attach came within ",
                              absl::FormatDuration(options_.attach_timeout))));
  }
}

void VmmListener::Impl::TurnAway(uint64_t id, const absl::Status& why) {
  const auto found = pending_.find(id);
  loop_.Forget(found->second.socket.fd());
  Refuse(found->second.socket, why);
  pending_.erase(found);
}

void VmmListener::Impl::Refuse(PacketSocket& socket, const absl::Status& why) {
  RefuseVmm(socket, why);
  if (options_.on_refuse) options_.on_refuse(why);
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
      std::move(pending.socket), *std::move(attachment), options, held_.Hold());
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
  if (IsTaken(vm_name) || held_.count() >= options_.vms_max) DetachClosed();
  if (IsTaken(vm_name)) {
    return absl::AlreadyExistsError(absl::StrCat(
        "a VM named ", vm_name, " is attached already; close its connection ",
        "or choose another name"));
  }
  // Most of those that have gone are let go at once.
  if (attached_.size() < options_.vms_max &&
      held_.AwaitBelow(options_.vms_max, kLettingGoPatience)) {
    return absl::OkStatus();
  }
  const size_t attached = attached_.size();
  const size_t vms = std::max(held_.count(), attached);
  return absl::ResourceExhaustedError(TooManyVms(vms, vms - attached));
}

bool VmmListener::Impl::IsTaken(const std::string& vm_name) const {
  return Find(vm_name) != nullptr;
}

void VmmListener::Impl::Attach(uint64_t id,
                               std::shared_ptr<VmmConnection> connection) {
  if (options_.on_attach) {
    absl::Status status = options_.on_attach(connection);
    if (!status.ok()) {
      loop_.Forget(connection->fd());
      connection->RefuseAttach(status);
      if (options_.on_refuse) options_.on_refuse(status);
      return undertaker_.Take(std::move(connection));
    }
  }
  attached_.emplace(id, connection);
  // Only the end is of interest from here on: answers to commands are read by
  // who gave them.
  absl::Status status = loop_.Rewatch(connection->fd(), id, EPOLLRDHUP);
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
  loop_.Forget(connection->fd());
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

void VmmListener::Impl::OnStop() {
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

bool VmmListener::ShowsLife() { return impl_->ShowsLife(); }

void VmmListener::Shutdown() { impl_->Shutdown(); }

}  // namespace postcopy
