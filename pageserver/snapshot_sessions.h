// Who is being restored from the snapshots that a source serves.
#ifndef PAGESERVER_SNAPSHOT_SESSIONS_H_
#define PAGESERVER_SNAPSHOT_SESSIONS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/clock.h"
#include "pageserver/served_snapshot.h"
#include "pageserver/session_key.h"

namespace postcopy {

// Snapshots of one source.
inline constexpr size_t kMaxServedSnapshots = 64;
// Sessions of all of them: VMs that are being restored, each with a thread for
// either lane.
inline constexpr size_t kMaxSnapshotSessions = 128;
// How long a session without a stream is kept for whoever has opened it.
inline constexpr int64_t kSnapshotAttachNanos = 10 * kNanosPerSecond;

// A session lives from Open until the last of its streams has ended, or, if
// none was attached, until kSnapshotAttachNanos have passed and another wants
// its place. Thread-safe.
class SnapshotSessions {
 public:
  enum class Lane { kUrgent, kBulk };

  // What a stream has of its session. Not to outlive the SnapshotSessions.
  class Stream {
   public:
    Stream(Stream&& other) noexcept { *this = std::move(other); }
    Stream& operator=(Stream&& other) noexcept;
    ~Stream() { Detach(); }

    const std::shared_ptr<const ServedSnapshot>& snapshot() const {
      return snapshot_;
    }
    // What Open was told.
    bool any_order() const { return any_order_; }
    // FAILED_PRECONDITION if `key` is another session or epoch than the
    // stream's, or that is not the newest any more.
    absl::Status Check(SessionKey key) const;

   private:
    friend class SnapshotSessions;
    Stream() = default;
    void Detach();

    SnapshotSessions* sessions_ = nullptr;
    SessionKey key_;
    Lane lane_ = Lane::kUrgent;
    bool any_order_ = false;
    std::shared_ptr<const ServedSnapshot> snapshot_;
    std::shared_ptr<const std::atomic<uint64_t>> newest_;
  };

  struct Opened {
    SessionKey key;
    std::shared_ptr<const ServedSnapshot> snapshot;
  };

  // `clock` outlives this.
  explicit SnapshotSessions(Clock* clock) : clock_(*clock) {}

  // Serves one more. ALREADY_EXISTS if one has that name, RESOURCE_EXHAUSTED
  // beyond kMaxServedSnapshots.
  absl::Status Add(std::shared_ptr<const ServedSnapshot> snapshot);

  // Opens a session of the snapshot `name`. If `lost` is one, it is that with
  // the next epoch, and its streams are aborted. NOT_FOUND: there is no such
  // snapshot. DATA_LOSS: it has been changed. FAILED_PRECONDITION: `lost` is
  // of another snapshot, or there is a newer epoch of it that has streams.
  // RESOURCE_EXHAUSTED beyond kMaxSnapshotSessions. `peer` is whatever names
  // who asks: a session is its opener's, and PERMISSION_DENIED for others.
  // `any_order`: its urgent pages may come so.
  absl::StatusOr<Opened> Open(absl::string_view name, SessionKey lost,
                              absl::string_view peer = {},
                              bool any_order = false);

  // Takes a stream into its session. `abort` makes it end soon; called at most
  // once, while the Stream is there, with a lock held. NOT_FOUND: no such
  // session. FAILED_PRECONDITION: the epoch is not the newest, or the session
  // has such a stream. PERMISSION_DENIED: `peer` has not opened it.
  absl::StatusOr<Stream> Attach(SessionKey key, Lane lane,
                                std::function<void()> abort,
                                absl::string_view peer = {});

  size_t sessions() const;

 private:
  struct Session {
    std::shared_ptr<const ServedSnapshot> snapshot;
    // Also read without the lock, by streams.
    std::shared_ptr<std::atomic<uint64_t>> newest;
    int64_t opened_ns = 0;
    bool any_order = false;
    // Who opened it.
    std::string peer;
    // Of the streams of the newest epoch; empty: there is none.
    std::array<std::function<void()>, 2> aborts;
  };

  // Null: there is none of that name.
  std::shared_ptr<const ServedSnapshot> Find(absl::string_view name) const;

  // REQUIRE mutex_.
  void ForgetUnattached();
  absl::Status Reopen(Session& session, const ServedSnapshot& snapshot,
                      uint64_t epoch);

  void Detach(SessionKey key, Lane lane);

  Clock& clock_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::map<std::string, std::shared_ptr<const ServedSnapshot>, std::less<>>
      snapshots_;
  std::map<uint64_t, Session> by_id_;
};

}  // namespace postcopy

#endif  // PAGESERVER_SNAPSHOT_SESSIONS_H_
