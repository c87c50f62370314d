#include "pageserver/snapshot_sessions.h"

#include <iterator>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status NotTheNewest(uint64_t epoch, uint64_t newest) {
  return absl::FailedPreconditionError(
      absl::StrCat("epoch ", epoch, " is not the newest, which is ", newest,
                   ": another session has taken over"));
}

absl::Status CheckPeer(absl::string_view opener, absl::string_view peer) {
  if (peer == opener) return absl::OkStatus();
  return absl::PermissionDeniedError(
      "the session is another peer's, who opened it: open one of your own");
}

bool IsAttached(const std::array<std::function<void()>, 2>& aborts) {
  return aborts[0] != nullptr || aborts[1] != nullptr;
}

}  // namespace

SnapshotSessions::Stream& SnapshotSessions::Stream::operator=(
    Stream&& other) noexcept {
  Detach();
  sessions_ = std::exchange(other.sessions_, nullptr);
  key_ = other.key_;
  any_order_ = other.any_order_;
  lane_ = other.lane_;
  snapshot_ = std::move(other.snapshot_);
  newest_ = std::move(other.newest_);
  return *this;
}

absl::Status SnapshotSessions::Stream::Check(SessionKey key) const {
  if (key.id != key_.id || key.epoch != key_.epoch) {
    return absl::FailedPreconditionError(
        "a message of the stream names another session or epoch");
  }
  const uint64_t newest = newest_->load(std::memory_order_acquire);
  return key.epoch == newest ? absl::OkStatus()
                             : NotTheNewest(key.epoch, newest);
}

void SnapshotSessions::Stream::Detach() {
  SnapshotSessions* const sessions = std::exchange(sessions_, nullptr);
  if (sessions != nullptr) sessions->Detach(key_, lane_);
}

absl::Status SnapshotSessions::Add(
    std::shared_ptr<const ServedSnapshot> snapshot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (snapshots_.size() >= kMaxServedSnapshots) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a source serves at most ", kMaxServedSnapshots, " snapshots"));
  }
  std::string name = snapshot->name();
  if (!snapshots_.emplace(name, std::move(snapshot)).second) {
    return absl::AlreadyExistsError(
        absl::StrCat("two snapshots are called \"", name,
                     "\": give each a name of its own"));
  }
  return absl::OkStatus();
}

void SnapshotSessions::ForgetUnattached() {
  const int64_t oldest_ns = clock_.NowNanos() - kSnapshotAttachNanos;
  for (auto it = by_id_.begin(); it != by_id_.end();) {
    const Session& session = it->second;
    const bool forgotten =
        !IsAttached(session.aborts) && session.opened_ns < oldest_ns;
    it = forgotten ? by_id_.erase(it) : std::next(it);
  }
}

absl::Status SnapshotSessions::Reopen(Session& session,
                                      const ServedSnapshot& snapshot,
                                      uint64_t epoch) {
  if (session.snapshot.get() != &snapshot) {
    return absl::FailedPreconditionError(
        absl::StrCat("the session that was lost is of snapshot \"",
                     session.snapshot->name(), "\""));
  }
  const uint64_t newest = session.newest->load(std::memory_order_relaxed);
  // The answer that named the newest may have been lost, until it is used.
  if (epoch > newest || (epoch < newest && IsAttached(session.aborts))) {
    return NotTheNewest(epoch, newest);
  }
  session.newest->store(newest + 1, std::memory_order_release);
  session.opened_ns = clock_.NowNanos();
  for (std::function<void()>& abort : session.aborts) {
    if (abort != nullptr) abort();
    abort = nullptr;
  }
  return absl::OkStatus();
}

std::shared_ptr<const ServedSnapshot> SnapshotSessions::Find(
    absl::string_view name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = snapshots_.find(std::string(name));
  return found == snapshots_.end() ? nullptr : found->second;
}

absl::StatusOr<SnapshotSessions::Opened> SnapshotSessions::Open(
    absl::string_view name, SessionKey lost, absl::string_view peer,
    bool any_order) {
  const std::shared_ptr<const ServedSnapshot> snapshot = Find(name);
  if (snapshot == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("this source serves no snapshot \"", name,
                     "\": name it in pageserverd's --serve_snapshot"));
  }
  // Without the lock: a file server that hangs would keep those of the other
  // snapshots waiting.
  if (absl::Status s = snapshot->CheckUnchanged(); !s.ok()) return s;
  const std::lock_guard<std::mutex> lock(mutex_);
  ForgetUnattached();
  const auto known = by_id_.find(lost.id);
  if (known != by_id_.end()) {
    if (absl::Status s = CheckPeer(known->second.peer, peer); !s.ok()) return s;
    absl::Status status = Reopen(known->second, *snapshot, lost.epoch);
    if (!status.ok()) return status;
    known->second.any_order = any_order;
    const uint64_t epoch = known->second.newest->load();
    return Opened{{lost.id, epoch}, snapshot};
  }
  if (by_id_.size() >= kMaxSnapshotSessions) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this source restores ", kMaxSnapshotSessions,
                     " VMs from its snapshots already, and takes no more"));
  }
  const uint64_t id = RandomSessionId();
  by_id_[id] = {.snapshot = snapshot,
                .newest = std::make_shared<std::atomic<uint64_t>>(1),
                .opened_ns = clock_.NowNanos(),
                .any_order = any_order,
                .peer = std::string(peer)};
  return Opened{{id, 1}, snapshot};
}

absl::StatusOr<SnapshotSessions::Stream> SnapshotSessions::Attach(
    SessionKey key, Lane lane, std::function<void()> abort,
    absl::string_view peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = by_id_.find(key.id);
  if (it == by_id_.end()) {
    return absl::NotFoundError("no such session: open one");
  }
  Session& session = it->second;
  if (absl::Status s = CheckPeer(session.peer, peer); !s.ok()) return s;
  const uint64_t newest = session.newest->load(std::memory_order_relaxed);
  if (key.epoch != newest) return NotTheNewest(key.epoch, newest);
  std::function<void()>& place = session.aborts[static_cast<size_t>(lane)];
  if (place != nullptr) {
    return absl::FailedPreconditionError(
        "the session has a stream of this lane already: open another session");
  }
  place = std::move(abort);
  Stream stream;
  stream.sessions_ = this;
  stream.key_ = key;
  stream.lane_ = lane;
  stream.any_order_ = session.any_order;
  stream.snapshot_ = session.snapshot;
  stream.newest_ = session.newest;
  return stream;
}

void SnapshotSessions::Detach(SessionKey key, Lane lane) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = by_id_.find(key.id);
  if (it == by_id_.end()) return;
  Session& session = it->second;
  // A later epoch's streams are others.
  if (session.newest->load(std::memory_order_relaxed) != key.epoch) return;
  session.aborts[static_cast<size_t>(lane)] = nullptr;
  if (!IsAttached(session.aborts)) by_id_.erase(it);
}

size_t SnapshotSessions::sessions() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return by_id_.size();
}

}  // namespace postcopy
