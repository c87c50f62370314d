// The VMM's end of the VMM channel: attach a guest, then do what the daemon
// asks.
#ifndef CMD_VMM_CHANNEL_VMM_CLIENT_H_
#define CMD_VMM_CHANNEL_VMM_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cmd/vmm_channel/attachment.h"
#include "cmd/vmm_channel/packet_socket.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {

namespace v1 {
class Command;
}  // namespace v1

// A region as the VMM knows it; its RAM offset follows from its place.
struct RegionToAttach {
  std::string name;
  ByteCount length;
  // Its shared memory; stays the caller's. -1: it is private.
  int memory_fd = -1;
  uint64_t fd_offset = 0;
  // Required at a destination, with a pagemap, and of private memory.
  HostAddress host_address;
  ByteCount page_size{kPageSize};
};

// A guest to attach. Descriptors stay the caller's, who may close them after
// Attach (but must keep the userfaultfd: when the last one is closed, missing
// pages read as zeros).
struct GuestToAttach {
  std::string vm_name;
  VmmRole role = VmmRole::kSource;
  // In RAM order.
  std::vector<RegionToAttach> regions;
  // Source with a dirty log: must show all RAM.
  std::vector<Slot> slots;
  // Source: the memfd of the dirty log.
  int dirty_log_fd = -1;
  // Source, instead: from WriteTracking (dirtytrack/write_tracking.h), which
  // must live until the VM is detached.
  int pagemap_fd = -1;
  // Source with private regions: /proc/self/mem.
  int process_memory_fd = -1;
  // Destination: from CreateUserfaultfd (dirtytrack/userfaultfd.h).
  int userfaultfd = -1;
};

// What a VMM can do. See the commands in vmm_channel.proto for what each must
// achieve before it returns. Called one at a time, on the thread of Serve. An
// error goes to the daemon with its code and message. A method that is not
// overridden answers UNIMPLEMENTED.
class VmmHandler {
 public:
  virtual ~VmmHandler() = default;
  virtual absl::Status StartDirtyLogging();
  virtual absl::Status SyncDirtyLog();
  virtual absl::Status StopDirtyLogging();
  virtual absl::Status PauseGuest();
  // At most kMaxDeviceStateBytes.
  virtual absl::StatusOr<std::string> SaveDeviceState();
  virtual absl::Status LoadDeviceState(absl::string_view state);
  virtual absl::Status ResumeGuest();
  // The default does nothing.
  virtual void MigrationEnded(bool completed);
};

// One guest's connection to one daemon.
class VmmClient {
 public:
  // Connects to the daemon at `socket_path` and attaches `guest`. A refusal
  // comes back with the daemon's code and message. Else: UNAVAILABLE if no
  // daemon listens there, DEADLINE_EXCEEDED after `timeout`, INVALID_ARGUMENT
  // for what cannot even be sent, INTERNAL for what is no answer.
  static absl::StatusOr<std::unique_ptr<VmmClient>> Attach(
      absl::string_view socket_path, const GuestToAttach& guest,
      absl::Duration timeout);

  // Answers commands with `handler` until the connection ends: OK if the
  // daemon or Shutdown ended it, else an error (after which the connection has
  // ended too). To be called once.
  absl::Status Serve(VmmHandler& handler);

  // For callers with an event loop of their own, in place of Serve: when fd()
  // is readable, answers the command that has come. Does not wait for one: OK
  // too if there is none. An error means that the connection has ended, with
  // UNAVAILABLE if the daemon or Shutdown ended it.
  absl::Status ServeReady(VmmHandler& handler);
  int fd() const { return socket_.fd(); }

  // Ends the connection and with it Serve, which returns when the handler's
  // current call has. For any thread, and for signal handlers.
  void Shutdown();

 private:
  explicit VmmClient(PacketSocket socket) : socket_(std::move(socket)) {}

  absl::Status ServeOne(VmmHandler& handler);

  PacketSocket socket_;
  std::atomic<bool> shut_down_{false};
};

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_VMM_CLIENT_H_
