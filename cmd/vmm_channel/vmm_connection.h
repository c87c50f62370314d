// A VM that is attached to a daemon, and what the daemon can ask of its VMM.
#ifndef CMD_VMM_CHANNEL_VMM_CONNECTION_H_
#define CMD_VMM_CHANNEL_VMM_CONNECTION_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "cmd/vmm_channel/attachment.h"
#include "cmd/vmm_channel/deadline.h"
#include "cmd/vmm_channel/device_state.h"
#include "cmd/vmm_channel/packet_socket.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

namespace v1 {
class Command;
}  // namespace v1

// Thread-safe: commands of several threads run one after another. Made by
// VmmListener; the owner keeps it alive while it uses the attachment.
//
// Every command blocks until the VMM has answered. Its errors:
//
//   what the VMM answered (codes that do not exist become UNKNOWN)
//   DEADLINE_EXCEEDED    no answer within Options::command_timeout. The
//                        connection is ended, since the answer may come late
//                        and the VMM may have done what it was asked for.
//   UNAVAILABLE          the connection has ended, before or meanwhile
//   INTERNAL             the VMM broke the protocol; the connection is ended
//   FAILED_PRECONDITION  VmmListener has not yet answered the VMM's Attach
//
// Messages begin with the VM's name and the command.
class VmmConnection {
 public:
  struct Options {
    // Of one command, sending included; waiting for another thread's is not.
    // Does not hold for LoadDeviceState and ResumeGuest at a destination: there
    // the VMM touches RAM, which takes as long as the source cannot be reached,
    // and to give up would lose the guest. They end with the connection.
    absl::Duration command_timeout = absl::Seconds(10);
    // Lower than the default only in tests.
    size_t device_state_bytes_max = kMaxDeviceStateBytes;
  };

  // `socket` is connected to the VMM that sent `attachment`. `held` is let go
  // behind that; may be null.
  VmmConnection(PacketSocket socket, Attachment attachment, Options options,
                std::shared_ptr<const void> held = nullptr);
  VmmConnection(const VmmConnection&) = delete;
  VmmConnection& operator=(const VmmConnection&) = delete;

  const std::string& vm_name() const { return attachment_.vm_name; }
  // Does not change, and its descriptors stay open, until destruction.
  const Attachment& attachment() const { return attachment_; }
  // For who keeps something of the attachment, to be kept as long: the VM is
  // one of --vms_max until then. See HeldVms.
  const std::shared_ptr<const void>& held() const { return held_; }

  // The commands of vmm_channel.proto, in the order of a migration. Source:
  absl::Status StartDirtyLogging();
  absl::Status SyncDirtyLog();
  absl::Status StopDirtyLogging();
  absl::Status PauseGuest();
  // Also DATA_LOSS or INVALID_ARGUMENT if what the VMM sent is damaged or too
  // much; the connection stays.
  absl::StatusOr<std::string> SaveDeviceState();
  // Destination. Also INVALID_ARGUMENT, and nothing is sent, if `state` is too
  // large.
  absl::Status LoadDeviceState(absl::string_view state);
  // Either.
  absl::Status ResumeGuest();
  // After this the VMM may close at any time.
  absl::Status MigrationEnded(bool completed);

  // Whether the guest has been handed over to another host: what is attached
  // here is what it left behind. Set once; for daemons to remember.
  void MarkHandedOver() { handed_over_.store(true); }
  bool handed_over() const { return handed_over_.load(); }

  // True once the connection has ended, whoever ended it. Never goes back.
  // Does not wait for commands.
  bool closed() const { return socket_.closed(); }

  // Ends the connection; a command that waits in another thread fails with
  // UNAVAILABLE. Does not wait for it.
  void Close() { socket_.Close(); }

  // For VmmListener: tells the VMM that it is attached; commands may follow.
  // UNAVAILABLE if it has gone.
  absl::Status AcceptAttach();
  // For VmmListener: tells the VMM why it is not attached, and ends the
  // connection.
  void RefuseAttach(const absl::Status& why);
  // For VmmListener's epoll.
  int fd() const { return socket_.fd(); }

 private:
  struct Answer;

  // Runs `command` to its answer. `fds` go beside it.
  absl::StatusOr<Answer> Run(absl::string_view name, v1::Command command,
                             absl::Span<const int> fds);
  // Run for commands whose answer is nothing but a status.
  absl::Status RunSimple(absl::string_view name, v1::Command command,
                         absl::Span<const int> fds = {});
  // True if a page fault may keep the VMM from answering.
  bool MayWaitForPages(const v1::Command& command) const;
  // One packet each way; UNAVAILABLE, DEADLINE_EXCEEDED or INTERNAL if that
  // fails, after which the connection is of no use any more.
  absl::StatusOr<Answer> Exchange(v1::Command command,
                                  absl::Span<const int> fds);
  // What failing to send a command or to receive its answer means.
  absl::Status NoAnswer(const absl::Status& status) const;
  // The answer to command `id`; `saves`: with device state.
  static absl::StatusOr<Answer> ParseAnswer(Packet packet, uint64_t id,
                                            bool saves);
  // `status` with the VM and the command before its message.
  absl::Status Prefixed(absl::string_view command,
                        const absl::Status& status) const;

  const std::shared_ptr<const void> held_;  // first, so that it goes last
  const Attachment attachment_;
  const Options options_;
  std::atomic<bool> handed_over_{false};

  // Held through a whole command. Guards what follows; socket_.Close() and
  // socket_.closed() need no guard.
  std::mutex mutex_;
  PacketSocket socket_;
  bool accepted_ = false;
  uint64_t next_command_id_ = 1;
  // Why the connection was ended by Break; OK if it was not.
  absl::Status broken_;
};

// Answers an Attach on a bare socket with a refusal and ends the connection.
void RefuseVmm(PacketSocket& socket, const absl::Status& why);

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_VMM_CONNECTION_H_
