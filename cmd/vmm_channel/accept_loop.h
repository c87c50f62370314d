// The thread that waits on a listening socket and on all that came of it.
#ifndef CMD_VMM_CHANNEL_ACCEPT_LOOP_H_
#define CMD_VMM_CHANNEL_ACCEPT_LOOP_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/status/status.h"
#include "cmd/vmm_channel/deadline.h"
#include "cmd/vmm_channel/listening_socket.h"
#include "dirtytrack/life_sign.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Accepts connections and says which of them are ready, by one thread with one
// epoll. Watch, Rewatch and Forget are for that thread; Stop is for any other.
class AcceptLoop {
 public:
  // Connections are named by numbers from here on; those below are the loop's.
  static constexpr uint64_t kFirstId = 2;

  // What the loop calls, all on its thread and one at a time.
  class Handler {
   public:
    virtual ~Handler() = default;
    // Somebody has connected. `fd` is close-on-exec and does not block.
    virtual void OnConnection(UniqueFd fd) = 0;
    // What is watched as `id` is ready, or it was when this batch of events
    // was fetched: it may have been forgotten since.
    virtual void OnReady(uint64_t id) = 0;
    // When OnDeadline must be called at the latest.
    virtual Deadline NextDeadline() const = 0;
    // Called when that moment has passed, and at other times.
    virtual void OnDeadline() = 0;
    // Stop was called; the last call.
    virtual void OnStop() = 0;
  };

  // `handler` must outlive the thread.
  explicit AcceptLoop(Handler* handler) : handler_(handler) {}
  ~AcceptLoop() { Stop(); }
  AcceptLoop(const AcceptLoop&) = delete;
  AcceptLoop& operator=(const AcceptLoop&) = delete;

  // Accepts from `listening` and starts the thread. RESOURCE_EXHAUSTED, or what
  // the kernel said. Once.
  absl::Status Start(ListeningSocket listening);

  // See LifeSign::Ask. True before Start and after Stop. By one thread.
  bool ShowsLife();

  // Watches `fd` for `events` (EPOLLIN, ...) as long as they hold; Rewatch
  // changes the events. RESOURCE_EXHAUSTED if the kernel does not.
  absl::Status Watch(int fd, uint64_t id, uint32_t events);
  absl::Status Rewatch(int fd, uint64_t id, uint32_t events);
  // Watches `fd` no longer. To be called before it is closed.
  void Forget(int fd);

  // Ends the thread and closes the listening socket. When it returns nothing
  // is or will be called. Later calls do nothing. Not to be called from the
  // handler.
  void Stop();

 private:
  absl::Status Control(int operation, int fd, uint64_t id, uint32_t events);
  void Run();
  void Wake();
  // Takes a wake-up; true if it is Stop's.
  bool Woken();
  // How long epoll may wait.
  Deadline NextDeadline() const;
  void AcceptOne();
  void RestAccepting();
  void ResumeAccepting();

  Handler* const handler_;
  ListeningSocket listening_;
  UniqueFd epoll_;
  UniqueFd wake_;
  // While accepting rests: until when.
  std::optional<Deadline> resting_;
  LifeSign life_;
  std::atomic<bool> stopping_{false};

  // Held through Stop, so that a second call returns no earlier.
  std::mutex stop_mutex_;
  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_ACCEPT_LOOP_H_
