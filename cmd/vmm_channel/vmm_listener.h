// The daemon's end of the VMM channel: a listening socket and the VMs that
// are attached through it.
#ifndef CMD_VMM_CHANNEL_VMM_LISTENER_H_
#define CMD_VMM_CHANNEL_VMM_LISTENER_H_

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cmd/daemon/vm_limits.h"
#include "cmd/vmm_channel/attachment.h"
#include "cmd/vmm_channel/vmm_connection.h"

namespace postcopy {

// Peers that have connected and not yet sent their Attach. One more, and the
// oldest of them is turned away: who means it sends Attach at once, so peers
// that say nothing cannot keep others out.
inline constexpr size_t kMaxPendingPeers = 16;

// Accepts VMMs, checks who they are and what they attach, and notices when
// they go. One thread of its own does all of it, for all VMs. Thread-safe.
class VmmListener {
 public:
  struct Options {
    // At most 107 bytes. Beside it lies a lock file, "<socket_path>.lock".
    std::string socket_path;
    // A socket that listens there already, of which the listener becomes the
    // owner; -1: it makes one.
    int inherited_socket = -1;
    VmmRole role = VmmRole::kSource;
    // Who may attach; checked before a byte of theirs is read. Empty: root and
    // the user this process runs as.
    std::vector<uid_t> allowed_uids;
    // VMs attached at a time, those included that have gone and of which
    // something is held (VmmConnection::held).
    size_t vms_max = kMaxVms;
    // From connecting to the whole Attach.
    absl::Duration attach_timeout = absl::Seconds(5);
    // See VmmConnection::Options.
    absl::Duration command_timeout = absl::Seconds(10);

    // Called for each VM that passed all checks. An error refuses the VM and
    // goes to the VMM as it is. May be empty: all are taken.
    std::function<absl::Status(const std::shared_ptr<VmmConnection>&)>
        on_attach;
    // Called once for each VM that on_attach took, after its connection has
    // ended and Find no longer finds it. May be empty.
    std::function<void(const std::string& vm_name)> on_detach;
    // Called for each peer that was turned away, with what it was told. May be
    // empty.
    std::function<void(const absl::Status& why)> on_refuse;
    // All run on the listener's thread: all other VMMs wait while they do. So
    // they are short, send no command and do not call Shutdown. For a name,
    // they are called in turn: a VM that comes back is attached only after
    // on_detach for the one before has returned.
  };

  // Listens; when it returns, VMMs can connect. The socket has mode 0660. A
  // socket file that a dead daemon has left is replaced. Errors:
  // INVALID_ARGUMENT for the path; FAILED_PRECONDITION if another daemon
  // listens there, or if what is there is no socket; else what the kernel said.
  static absl::StatusOr<std::unique_ptr<VmmListener>> Create(Options options);

  // Shuts down.
  ~VmmListener();
  VmmListener(const VmmListener&) = delete;
  VmmListener& operator=(const VmmListener&) = delete;

  // The attached VM of that name; null if there is none. It can end at any
  // time; the object stays valid as long as the pointer is held.
  std::shared_ptr<VmmConnection> Find(absl::string_view vm_name) const;

  // The attached VMs, sorted.
  std::vector<std::string> names() const;

  // False if the thread has not come round since the last call. By one thread
  // at a time.
  bool ShowsLife();

  // Listens no longer, removes the socket file, ends all connections and calls
  // on_detach for each. When it returns no callback runs or will run. Later
  // calls do nothing. Not to be called from a callback.
  void Shutdown();

 private:
  class Impl;
  explicit VmmListener(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_VMM_LISTENER_H_
