// Where Firecracker's VMs hand over their page faults: a listening socket and
// the VMs that are attached through it.
#ifndef CMD_FIRECRACKER_FIRECRACKER_LISTENER_H_
#define CMD_FIRECRACKER_FIRECRACKER_LISTENER_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/firecracker/handshake.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Peers that have connected and whose handshake is not yet whole. One more, and
// the oldest of them is turned away: Firecracker sends all at once, so peers
// that say nothing cannot keep others out.
inline constexpr size_t kMaxUnfinishedHandshakes = 16;

// A VM as its handshake describes it.
struct FirecrackerVm {
  // Names the VM; a listener gives none twice.
  uint64_t id = 0;
  // The process that connected; 0 if it is in a PID namespace that this process
  // does not see. It need not be alive any more.
  pid_t pid = 0;
  // As ParseHandshake promises. That such memory exists is not checked.
  std::vector<FirecrackerRegion> regions;
  // The descriptor that came beside the regions, close-on-exec. That it is a
  // userfaultfd is not checked.
  UniqueFd userfaultfd;
};

// Accepts Firecracker's VMs as the page-fault handler of each, checks who they
// are and what they send, and notices when they go. Firecracker connects to a
// Unix stream socket, sends one JSON array with a userfaultfd beside its first
// bytes, and keeps the connection open as long as the VM lives; it hears
// nothing. One thread of its own does all of it, for all VMs. Thread-safe.
class FirecrackerListener {
 public:
  struct Options {
    // At most 107 bytes. Beside it lies a lock file, "<socket_path>.lock".
    std::string socket_path;
    // A socket that listens there already, of which the listener becomes the
    // owner; -1: it makes one.
    int inherited_socket = -1;
    // Who may attach; checked before a byte of theirs is read. Empty: root and
    // the user this process runs as.
    std::vector<uid_t> allowed_uids;
    // VMs attached at a time.
    size_t vms_max = kMaxVms;
    // From connecting to the whole handshake.
    absl::Duration attach_timeout = absl::Seconds(5);

    // Called for each VM that passed all checks; the VM is the owner's from
    // here on. An error closes the connection. May be empty: all are taken, and
    // their userfaultfds closed, which makes missing pages read as zeros.
    std::function<absl::Status(FirecrackerVm)> on_attach;
    // Called once for each VM that on_attach took, after its connection has
    // ended. May be empty.
    std::function<void(uint64_t id)> on_detach;
    // Called for each peer that was turned away, on_attach's refusals included,
    // after its connection was closed, with a sentence that says why: the
    // protocol has no way to tell the peer. May be empty.
    std::function<void(const absl::Status& why)> on_refuse;
    // All run on the listener's thread: all other VMMs wait while they do. So
    // they are short and do not call Shutdown.
  };

  // Listens; when it returns, VMMs can connect. The socket has mode 0660. A
  // socket file that a dead daemon has left is replaced. Errors:
  // INVALID_ARGUMENT for the path; FAILED_PRECONDITION if another daemon
  // listens there, or if what is there is no socket; else what the kernel said.
  static absl::StatusOr<std::unique_ptr<FirecrackerListener>> Create(
      Options options);

  // Shuts down.
  ~FirecrackerListener();
  FirecrackerListener(const FirecrackerListener&) = delete;
  FirecrackerListener& operator=(const FirecrackerListener&) = delete;

  // False if the thread has not come round since the last call. By one thread
  // at a time.
  bool ShowsLife();

  // Listens no longer, removes the socket file, ends all connections, turns
  // away who is not attached yet, and calls on_detach for each VM. When it
  // returns no callback runs or will run. Later calls do nothing. Not to be
  // called from a callback.
  void Shutdown();

 private:
  class Impl;
  explicit FirecrackerListener(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace postcopy

#endif  // CMD_FIRECRACKER_FIRECRACKER_LISTENER_H_
