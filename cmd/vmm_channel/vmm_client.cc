#include "cmd/vmm_channel/vmm_client.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "cmd/vmm_channel/deadline.h"
#include "cmd/vmm_channel/device_state.h"
#include "cmd/vmm_channel/wire_status.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

// A daemon that takes no answers for that long is as good as gone.
constexpr absl::Duration kAnswerTimeout = absl::Seconds(10);

// An Attach and the descriptors that go beside it (the caller's).
struct AttachPacket {
  v1::VmmMessage message;
  std::vector<int> fds;

  v1::Attach& attach() { return *message.mutable_attach(); }

  uint32_t Add(int fd, v1::DescriptorKind kind) {
    fds.push_back(fd);
    attach().add_descriptors(kind);
    return static_cast<uint32_t>(fds.size() - 1);
  }
  // As Add, but a memory file that several regions share is sent once.
  uint32_t AddMemory(int fd) {
    const auto known = std::find(fds.begin(), fds.end(), fd);
    if (known == fds.end()) return Add(fd, v1::DESCRIPTOR_KIND_MEMORY);
    return static_cast<uint32_t>(known - fds.begin());
  }
};

void AddRegions(const GuestToAttach& guest, AttachPacket& packet) {
  uint64_t start = 0;
  for (const RegionToAttach& region : guest.regions) {
    v1::AttachedRegion& attached = *packet.attach().add_regions();
    attached.mutable_region()->set_name(region.name);
    attached.mutable_region()->set_start_bytes(start);
    attached.mutable_region()->set_length_bytes(region.length.value());
    attached.mutable_region()->set_page_size_bytes(region.page_size.value());
    attached.set_host_address(region.host_address.value());
    attached.set_private_memory(region.memory_fd < 0);
    attached.set_descriptor_index(
        region.memory_fd < 0 ? UINT32_MAX : packet.AddMemory(region.memory_fd));
    attached.set_descriptor_offset_bytes(region.fd_offset);
    // May wrap: the daemon refuses such a layout with a better message.
    start += region.length.value();
  }
}

void AddSlots(const GuestToAttach& guest, v1::Attach& attach) {
  for (const Slot& slot : guest.slots) {
    v1::MemorySlot& out = *attach.add_slots();
    out.set_address_space(slot.id.address_space);
    out.set_slot(slot.id.slot);
    out.set_guest_physical_address(slot.guest_physical_address);
    out.set_ram_offset_bytes(slot.start.value());
    out.set_length_bytes(slot.length.value());
  }
}

AttachPacket MakeAttach(const GuestToAttach& guest) {
  AttachPacket packet;
  packet.attach().set_protocol_version(kVmmChannelVersion);
  packet.attach().set_vm_name(guest.vm_name);
  packet.attach().set_role(
      guest.role == VmmRole::kSource ? v1::ROLE_SOURCE : v1::ROLE_DESTINATION);
  AddRegions(guest, packet);
  AddSlots(guest, packet.attach());
  if (guest.dirty_log_fd >= 0) {
    packet.Add(guest.dirty_log_fd, v1::DESCRIPTOR_KIND_DIRTY_LOG);
  }
  if (guest.pagemap_fd >= 0) {
    packet.Add(guest.pagemap_fd, v1::DESCRIPTOR_KIND_PAGEMAP);
  }
  if (guest.process_memory_fd >= 0) {
    packet.Add(guest.process_memory_fd, v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
  }
  if (guest.userfaultfd >= 0) {
    packet.Add(guest.userfaultfd, v1::DESCRIPTOR_KIND_USERFAULTFD);
  }
  return packet;
}

absl::StatusOr<PacketSocket> Connect(absl::string_view path,
                                     absl::Duration timeout) {
  absl::StatusOr<sockaddr_un> address = UnixAddress(path);
  if (!address.ok()) return address.status();
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("socket: ", std::strerror(errno)));
  }
  // connect(2) waits for room in a full backlog, and for no longer than this.
  // At least a microsecond, since 0 would be for ever.
  const timeval limit =
      absl::ToTimeval(std::max(timeout, absl::Microseconds(1)));
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  int result;
  do {
    result = ::connect(fd.get(), reinterpret_cast<sockaddr*>(&*address),
                       sizeof(*address));
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    const absl::StatusCode code = errno == EACCES
                                      ? absl::StatusCode::kPermissionDenied
                                      : absl::StatusCode::kUnavailable;
    return absl::Status(code, absl::StrCat("cannot connect to the daemon at ",
                                           path, ": ", std::strerror(errno)));
  }
  return PacketSocket(std::move(fd), "the daemon");
}

// Waits for the daemon's verdict.
absl::Status AwaitAttachResult(PacketSocket& socket, Deadline deadline) {
  absl::StatusOr<Packet> packet = socket.Receive(deadline);
  if (!packet.ok()) return packet.status();
  v1::DaemonMessage message;
  if (!message.ParseFromString(packet->bytes) || !message.has_attach_result()) {
    return absl::InternalError(
        "the daemon answered Attach with something else than AttachResult");
  }
  return StatusFromWire(message.attach_result().code(),
                        message.attach_result().message());
}

// A result and the descriptor that goes beside it, if any.
struct Reply {
  v1::VmmMessage message;
  UniqueFd fd;

  v1::CommandResult& result() { return *message.mutable_result(); }
};

void SetStatus(const absl::Status& status, Reply& reply) {
  reply.result().set_code(static_cast<uint32_t>(status.code()));
  reply.result().set_message(Printable(status.message()));
}

void Save(VmmHandler& handler, Reply& reply) {
  absl::StatusOr<std::string> state = handler.SaveDeviceState();
  if (!state.ok()) return SetStatus(state.status(), reply);
  absl::StatusOr<DeviceStateFile> file = WriteDeviceState(*state);
  if (!file.ok()) return SetStatus(file.status(), reply);
  v1::DeviceState& claim = *reply.result().mutable_device_state();
  claim.set_length_bytes(file->claim.length_bytes);
  claim.set_crc32c(file->claim.crc32c);
  reply.fd = std::move(file->fd);
}

absl::Status Load(VmmHandler& handler, const v1::DeviceState& claim,
                  absl::Span<const UniqueFd> fds) {
  if (fds.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("LoadDeviceState came with ", fds.size(),
                     " descriptors, not with one memfd"));
  }
  absl::StatusOr<std::string> state =
      ReadDeviceState(fds[0].get(), {claim.length_bytes(), claim.crc32c()});
  if (!state.ok()) return state.status();
  return handler.LoadDeviceState(*state);
}

// Carries out every command whose answer is nothing but a status.
absl::Status Execute(VmmHandler& handler, const v1::Command& command,
                     absl::Span<const UniqueFd> fds) {
  switch (command.command_case()) {
    case v1::Command::kStartDirtyLogging:
      return handler.StartDirtyLogging();
    case v1::Command::kSyncDirtyLog:
      return handler.SyncDirtyLog();
    case v1::Command::kStopDirtyLogging:
      return handler.StopDirtyLogging();
    case v1::Command::kPauseGuest:
      return handler.PauseGuest();
    case v1::Command::kLoadDeviceState:
      return Load(handler, command.load_device_state().device_state(), fds);
    case v1::Command::kResumeGuest:
      return handler.ResumeGuest();
    case v1::Command::kMigrationEnded:
      handler.MigrationEnded(command.migration_ended().completed());
      return absl::OkStatus();
    default:
      return absl::UnimplementedError(
          "this VMM is too old to know that command");
  }
}

Reply Answer(VmmHandler& handler, const v1::Command& command,
             absl::Span<const UniqueFd> fds) {
  Reply reply;
  if (command.has_save_device_state()) {
    Save(handler, reply);
  } else {
    SetStatus(Execute(handler, command, fds), reply);
  }
  reply.result().set_command_id(command.command_id());
  return reply;
}

absl::Status NotOverridden(absl::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat("this VMM does not implement ", what));
}

}  // namespace

absl::Status VmmHandler::StartDirtyLogging() {
  return NotOverridden("StartDirtyLogging");
}
absl::Status VmmHandler::SyncDirtyLog() {
  return NotOverridden("SyncDirtyLog");
}
absl::Status VmmHandler::StopDirtyLogging() {
  return NotOverridden("StopDirtyLogging");
}
absl::Status VmmHandler::PauseGuest() { return NotOverridden("PauseGuest"); }
absl::StatusOr<std::string> VmmHandler::SaveDeviceState() {
  return NotOverridden("SaveDeviceState");
}
absl::Status VmmHandler::LoadDeviceState(absl::string_view /*state*/) {
  return NotOverridden("LoadDeviceState");
}
absl::Status VmmHandler::ResumeGuest() { return NotOverridden("ResumeGuest"); }
void VmmHandler::MigrationEnded(bool /*completed*/) {}

absl::StatusOr<std::unique_ptr<VmmClient>> VmmClient::Attach(
    absl::string_view socket_path, const GuestToAttach& guest,
    absl::Duration timeout) {
  const Deadline deadline = Deadline::After(timeout);
  absl::StatusOr<PacketSocket> socket = Connect(socket_path, timeout);
  if (!socket.ok()) return socket.status();
  AttachPacket packet = MakeAttach(guest);
  absl::Status sent = socket->Send(packet.message, packet.fds, deadline);
  // A daemon that refuses before it reads has said why, and closed.
  if (!sent.ok() && !absl::IsUnavailable(sent)) return sent;
  absl::Status result = AwaitAttachResult(*socket, deadline);
  if (!result.ok()) return result;
  if (!sent.ok()) return sent;
  return std::unique_ptr<VmmClient>(new VmmClient(*std::move(socket)));
}

absl::Status VmmClient::Serve(VmmHandler& handler) {
  absl::Status status;
  do {
    status = ServeOne(handler);
  } while (status.ok());
  socket_.Close();
  if (shut_down_ || absl::IsUnavailable(status)) return absl::OkStatus();
  return status;
}

absl::Status VmmClient::ServeReady(VmmHandler& handler) {
  if (!socket_.readable()) return absl::OkStatus();
  absl::Status status = ServeOne(handler);
  if (!status.ok()) socket_.Close();
  return status;
}

absl::Status VmmClient::ServeOne(VmmHandler& handler) {
  absl::StatusOr<Packet> packet = socket_.Receive(Deadline::Infinite());
  if (!packet.ok()) return packet.status();
  v1::DaemonMessage message;
  if (!message.ParseFromString(packet->bytes) || !message.has_command()) {
    return absl::InternalError("the daemon sent something else than a command");
  }
  Reply reply = Answer(handler, message.command(), packet->fds);
  std::vector<int> fds;
  if (reply.fd.valid()) fds.push_back(reply.fd.get());
  return socket_.Send(reply.message, fds, Deadline::After(kAnswerTimeout));
}

void VmmClient::Shutdown() {
  shut_down_ = true;
  socket_.Close();
}

}  // namespace postcopy
