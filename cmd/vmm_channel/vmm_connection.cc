#include "cmd/vmm_channel/vmm_connection.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/wire_status.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

// The answer to an Attach. Never waits: nothing was sent before it.
absl::Status SendAttachResult(PacketSocket& socket,
                              const absl::Status& result) {
  v1::DaemonMessage message;
  v1::AttachResult& attach = *message.mutable_attach_result();
  attach.set_code(static_cast<uint32_t>(result.code()));
  attach.set_message(Printable(result.message()));
  return socket.Send(message, {}, Deadline::After(absl::ZeroDuration()));
}

}  // namespace

struct VmmConnection::Answer {
  // The daemon's command, carried out or not.
  absl::Status status;
  // If status is OK and the command was SaveDeviceState.
  DeviceStateClaim device_state;
  UniqueFd device_state_fd;
};

VmmConnection::VmmConnection(PacketSocket socket, Attachment attachment,
                             Options options, std::shared_ptr<const void> held)
    : held_(std::move(held)),
      attachment_(std::move(attachment)),
      options_(options),
      socket_(std::move(socket)) {}

absl::Status VmmConnection::StartDirtyLogging() {
  v1::Command command;
  command.mutable_start_dirty_logging();
  return RunSimple("StartDirtyLogging", std::move(command));
}

absl::Status VmmConnection::SyncDirtyLog() {
  v1::Command command;
  command.mutable_sync_dirty_log();
  return RunSimple("SyncDirtyLog", std::move(command));
}

absl::Status VmmConnection::StopDirtyLogging() {
  v1::Command command;
  command.mutable_stop_dirty_logging();
  return RunSimple("StopDirtyLogging", std::move(command));
}

absl::Status VmmConnection::PauseGuest() {
  v1::Command command;
  command.mutable_pause_guest();
  return RunSimple("PauseGuest", std::move(command));
}

absl::StatusOr<std::string> VmmConnection::SaveDeviceState() {
  constexpr char kName[] = "SaveDeviceState";
  v1::Command command;
  command.mutable_save_device_state();
  absl::StatusOr<Answer> answer = Run(kName, std::move(command), {});
  if (!answer.ok()) return answer.status();
  absl::StatusOr<std::string> state =
      ReadDeviceState(answer->device_state_fd.get(), answer->device_state,
                      options_.device_state_bytes_max);
  if (!state.ok()) return Prefixed(kName, state.status());
  return state;
}

absl::Status VmmConnection::LoadDeviceState(absl::string_view state) {
  constexpr char kName[] = "LoadDeviceState";
  absl::StatusOr<DeviceStateFile> file =
      WriteDeviceState(state, options_.device_state_bytes_max);
  if (!file.ok()) return Prefixed(kName, file.status());
  v1::Command command;
  v1::DeviceState& claim =
      *command.mutable_load_device_state()->mutable_device_state();
  claim.set_length_bytes(file->claim.length_bytes);
  claim.set_crc32c(file->claim.crc32c);
  return RunSimple(kName, std::move(command), {file->fd.get()});
}

absl::Status VmmConnection::ResumeGuest() {
  v1::Command command;
  command.mutable_resume_guest();
  return RunSimple("ResumeGuest", std::move(command));
}

absl::Status VmmConnection::MigrationEnded(bool completed) {
  v1::Command command;
  command.mutable_migration_ended()->set_completed(completed);
  return RunSimple("MigrationEnded", std::move(command));
}

absl::Status VmmConnection::AcceptAttach() {
  std::lock_guard lock(mutex_);
  absl::Status sent = SendAttachResult(socket_, absl::OkStatus());
  accepted_ = sent.ok();
  return sent;
}

void VmmConnection::RefuseAttach(const absl::Status& why) {
  std::lock_guard lock(mutex_);
  RefuseVmm(socket_, why);
}

absl::Status VmmConnection::RunSimple(absl::string_view name,
                                      v1::Command command,
                                      absl::Span<const int> fds) {
  return Run(name, std::move(command), fds).status();
}

absl::StatusOr<VmmConnection::Answer> VmmConnection::Run(
    absl::string_view name, v1::Command command, absl::Span<const int> fds) {
  std::lock_guard lock(mutex_);
  if (!broken_.ok()) return Prefixed(name, broken_);
  if (!accepted_) {
    return Prefixed(name, absl::FailedPreconditionError(
                              "the VM's Attach has not been answered yet"));
  }
  absl::StatusOr<Answer> answer = Exchange(std::move(command), fds);
  if (!answer.ok()) {
    socket_.Close();
    broken_ = absl::UnavailableError(
        absl::StrCat("the connection has ended: ", answer.status().message()));
    return Prefixed(name, answer.status());
  }
  if (!answer->status.ok()) return Prefixed(name, answer->status);
  return answer;
}

bool VmmConnection::MayWaitForPages(const v1::Command& command) const {
  return attachment_.role == VmmRole::kDestination &&
         (command.has_load_device_state() || command.has_resume_guest());
}

absl::StatusOr<VmmConnection::Answer> VmmConnection::Exchange(
    v1::Command command, absl::Span<const int> fds) {
  if (socket_.closed()) {
    return absl::UnavailableError("the VMM closed the connection");
  }
  if (socket_.readable()) {
    return absl::InternalError("the VMM sent a message it was not asked for");
  }
  const Deadline deadline = MayWaitForPages(command)
                                ? Deadline::Infinite()
                                : Deadline::After(options_.command_timeout);
  const uint64_t id = next_command_id_++;
  const bool saves = command.has_save_device_state();
  command.set_command_id(id);
  v1::DaemonMessage message;
  *message.mutable_command() = std::move(command);
  absl::Status sent = socket_.Send(message, fds, deadline);
  if (!sent.ok()) return NoAnswer(sent);
  absl::StatusOr<Packet> packet = socket_.Receive(deadline);
  if (!packet.ok()) return NoAnswer(packet.status());
  return ParseAnswer(*std::move(packet), id, saves);
}

absl::Status VmmConnection::NoAnswer(const absl::Status& status) const {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
      return absl::DeadlineExceededError(absl::StrCat(
          "the VMM did not answer within ",
          absl::FormatDuration(options_.command_timeout),
          "; the connection was ended, because an answer could come late"));
    case absl::StatusCode::kInvalidArgument:
      // The VMM's fault, not that of whoever gave the command.
      return absl::InternalError(status.message());
    default:
      return status;
  }
}

absl::StatusOr<VmmConnection::Answer> VmmConnection::ParseAnswer(Packet packet,
                                                                 uint64_t id,
                                                                 bool saves) {
  v1::VmmMessage message;
  if (!message.ParseFromString(packet.bytes) || !message.has_result()) {
    return absl::InternalError("the VMM sent something else than a result");
  }
  const v1::CommandResult& result = message.result();
  if (result.command_id() != id) {
    return absl::InternalError(
        absl::StrCat("the VMM answered command ", result.command_id(),
                     " when command ", id, " was to be answered"));
  }
  const size_t fds_expected = saves && result.code() == 0 ? 1 : 0;
  if (packet.fds.size() != fds_expected) {
    return absl::InternalError(absl::StrCat("the VMM sent ", packet.fds.size(),
                                            " descriptors beside its result, ",
                                            "not ", fds_expected));
  }
  Answer answer;
  answer.status = StatusFromWire(result.code(), result.message());
  answer.device_state = {result.device_state().length_bytes(),
                         result.device_state().crc32c()};
  if (fds_expected == 1) answer.device_state_fd = std::move(packet.fds[0]);
  return answer;
}

absl::Status VmmConnection::Prefixed(absl::string_view command,
                                     const absl::Status& status) const {
  return absl::Status(
      status.code(),
      absl::StrCat("VM ", vm_name(), ": ", command, ": ", status.message()));
}

void RefuseVmm(PacketSocket& socket, const absl::Status& why) {
  // If the peer cannot be told, it learns by the end of the connection.
  SendAttachResult(socket, why).IgnoreError();
  socket.CloseAfterSending();
}

}  // namespace postcopy
