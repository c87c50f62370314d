#include "cmd/vmm_channel/vmm_client.h"

#include <sys/socket.h>

#include <future>
#include <thread>

#include "cmd/vmm_channel/device_state.h"
#include "cmd/vmm_channel/test_support.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr absl::Duration kLong = absl::Seconds(30);

// A daemon that is the test.
class VmmClientTest : public testing::Test {
 protected:
  VmmClientTest() {
    listening_ = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const sockaddr_un address = *UnixAddress(path_);
    EXPECT_EQ(
        ::bind(listening_.get(), reinterpret_cast<const sockaddr*>(&address),
               sizeof(address)),
        0);
    EXPECT_EQ(::listen(listening_.get(), 4), 0);
  }

  absl::StatusOr<std::unique_ptr<VmmClient>> Attach(
      const GuestToAttach& guest, absl::Duration timeout = kLong) {
    return VmmClient::Attach(path_, guest, timeout);
  }

  void Accept() {
    daemon_ = PacketSocket(
        UniqueFd(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC)),
        "the VMM");
  }
  // What the VMM sent; its descriptors in fds_.
  v1::VmmMessage Receive() {
    absl::StatusOr<Packet> packet = daemon_.Receive(Deadline::After(kLong));
    EXPECT_TRUE(packet.ok()) << packet.status();
    v1::VmmMessage message;
    if (packet.ok()) {
      EXPECT_TRUE(message.ParseFromString(packet->bytes));
      fds_ = std::move(packet->fds);
    }
    return message;
  }
  void Send(const v1::DaemonMessage& message,
            const std::vector<int>& fds = {}) {
    EXPECT_TRUE(daemon_.Send(message, fds, Deadline::After(kLong)).ok());
  }
  void AnswerAttach(uint32_t code, const std::string& text) {
    v1::DaemonMessage message;
    message.mutable_attach_result()->set_code(code);
    message.mutable_attach_result()->set_message(text);
    Send(message);
  }

  // An attached client.
  std::unique_ptr<VmmClient> Attached() {
    SourceGuest guest("a");
    auto client = std::async([&] { return Attach(guest.guest); });
    Accept();
    Receive();
    AnswerAttach(0, "");
    absl::StatusOr<std::unique_ptr<VmmClient>> attached = client.get();
    EXPECT_TRUE(attached.ok()) << attached.status();
    return attached.ok() ? *std::move(attached) : nullptr;
  }
  // Sends `command` and returns the answer.
  v1::CommandResult Ask(v1::Command command, const std::vector<int>& fds = {}) {
    v1::DaemonMessage message;
    *message.mutable_command() = std::move(command);
    message.mutable_command()->set_command_id(++id_);
    Send(message, fds);
    const v1::CommandResult result = Receive().result();
    EXPECT_EQ(result.command_id(), id_);
    return result;
  }

  TempDir dir_;
  const std::string path_ = dir_ / "vmm.sock";
  UniqueFd listening_;
  PacketSocket daemon_;
  std::vector<UniqueFd> fds_;
  uint64_t id_ = 0;
};

TEST_F(VmmClientTest, SendsWhatTheGuestIs) {
  SourceGuest source("a");
  GuestToAttach& guest = source.guest;
  const UniqueFd other = Memfd(kPageSize);
  guest.regions = {
      {"x", ByteCount(8192), source.memory.get(), 4096, HostAddress(0x10000)},
      {"y", ByteCount(4096), other.get(), 0, HostAddress(0x20000)},
      {"z", ByteCount(4096), source.memory.get(), 0, HostAddress(0x30000)}};
  guest.slots = {{{1, 2}, 0x1000, RamOffset(0), ByteCount(16384)}};
  auto client = std::async([&] { return Attach(guest); });
  Accept();
  const v1::Attach attach = Receive().attach();
  AnswerAttach(0, "");
  EXPECT_TRUE(client.get().ok());

  EXPECT_EQ(attach.protocol_version(), 1u);
  EXPECT_EQ(attach.vm_name(), "a");
  EXPECT_EQ(attach.role(), v1::ROLE_SOURCE);
  ASSERT_EQ(attach.regions_size(), 3);
  EXPECT_EQ(attach.regions(2).region().start_bytes(), 12288u);
  EXPECT_EQ(attach.regions(0).descriptor_index(), 0u);
  EXPECT_EQ(attach.regions(1).descriptor_index(), 1u);
  EXPECT_EQ(attach.regions(2).descriptor_index(), 0u);  // sent once
  EXPECT_EQ(attach.regions(0).descriptor_offset_bytes(), 4096u);
  EXPECT_EQ(attach.regions(1).host_address(), 0x20000u);
  EXPECT_EQ(attach.slots(0).address_space(), 1u);
  ASSERT_EQ(attach.descriptors_size(), 3);
  EXPECT_EQ(attach.descriptors(2), v1::DESCRIPTOR_KIND_DIRTY_LOG);
  EXPECT_EQ(fds_.size(), 3u);
}

TEST_F(VmmClientTest, RefusalComesBackAsItsStatus) {
  SourceGuest guest("a");
  auto client = std::async([&] { return Attach(guest.guest); });
  Accept();
  Receive();
  AnswerAttach(6, "taken");
  EXPECT_TRUE(Is(client.get().status(), StatusCode::kAlreadyExists, "taken"));
}

TEST_F(VmmClientTest, DaemonThatDoesNotAnswerRunsIntoTheTimeout) {
  SourceGuest guest("a");
  EXPECT_TRUE(Is(Attach(guest.guest, absl::Milliseconds(20)).status(),
                 StatusCode::kDeadlineExceeded, "the daemon did not answer"));
}

TEST_F(VmmClientTest, FullBacklogRunsIntoTheTimeout) {
  SourceGuest guest("a");
  ASSERT_EQ(::listen(listening_.get(), 0), 0);
  EXPECT_FALSE(Attach(guest.guest, absl::Milliseconds(20)).ok());
  EXPECT_TRUE(Is(Attach(guest.guest, absl::Milliseconds(20)).status(),
                 StatusCode::kUnavailable, "cannot connect to the daemon"));
}

TEST_F(VmmClientTest, NobodyListens) {
  SourceGuest guest("a");
  listening_.Reset();
  EXPECT_TRUE(Is(Attach(guest.guest).status(), StatusCode::kUnavailable,
                 "cannot connect to the daemon at"));
  EXPECT_TRUE(
      Is(VmmClient::Attach(std::string(108, 'x'), guest.guest, kLong).status(),
         StatusCode::kInvalidArgument, "107"));
}

TEST_F(VmmClientTest, TooMuchCannotBeSent) {
  SourceGuest guest("a");
  guest.guest.vm_name = std::string(kMaxPacketBytes, 'x');
  EXPECT_TRUE(Is(Attach(guest.guest).status(), StatusCode::kInvalidArgument,
                 "cannot be sent"));
}

TEST_F(VmmClientTest, OtherAnswerIsAnError) {
  SourceGuest guest("a");
  auto client = std::async([&] { return Attach(guest.guest); });
  Accept();
  v1::DaemonMessage message;
  message.mutable_command();
  Send(message);
  EXPECT_TRUE(Is(client.get().status(), StatusCode::kInternal,
                 "something else than AttachResult"));
}

// Notes what it was asked for.
class RecordingVmm : public VmmHandler {
 public:
  absl::Status StartDirtyLogging() override { return Note("start"); }
  absl::Status SyncDirtyLog() override { return Note("sync"); }
  absl::Status StopDirtyLogging() override { return Note("stop"); }
  absl::Status PauseGuest() override { return Note("pause"); }
  absl::StatusOr<std::string> SaveDeviceState() override { return state; }
  absl::Status LoadDeviceState(absl::string_view loaded) override {
    return Note("load " + std::string(loaded));
  }
  absl::Status ResumeGuest() override { return absl::AbortedError("stuck"); }
  void MigrationEnded(bool completed) override {
    Note(completed ? "completed" : "given up").IgnoreError();
  }

  std::string state = "the state";
  std::vector<std::string> notes;

 private:
  absl::Status Note(std::string note) {
    notes.push_back(std::move(note));
    return absl::OkStatus();
  }
};

TEST_F(VmmClientTest, HandlerAnswersEachCommand) {
  std::unique_ptr<VmmClient> client = Attached();
  ASSERT_NE(client, nullptr);
  RecordingVmm vmm;
  auto serving = std::async([&] { return client->Serve(vmm); });
  v1::Command command;
  command.mutable_start_dirty_logging();
  EXPECT_EQ(Ask(command).code(), 0u);
  command.mutable_sync_dirty_log();
  EXPECT_EQ(Ask(command).code(), 0u);
  command.mutable_stop_dirty_logging();
  EXPECT_EQ(Ask(command).code(), 0u);
  command.mutable_pause_guest();
  EXPECT_EQ(Ask(command).code(), 0u);
  command.mutable_resume_guest();
  v1::CommandResult result = Ask(command);
  EXPECT_EQ(result.code(), 10u);
  EXPECT_EQ(result.message(), "stuck");
  command.mutable_migration_ended()->set_completed(true);
  EXPECT_EQ(Ask(command).code(), 0u);
  command.mutable_migration_ended()->set_completed(false);
  EXPECT_EQ(Ask(command).code(), 0u);
  command.clear_command();
  EXPECT_EQ(Ask(command).code(), 12u);  // from a newer daemon
  daemon_ = PacketSocket();
  EXPECT_TRUE(serving.get().ok());
  EXPECT_EQ(vmm.notes,
            (std::vector<std::string>{"start", "sync", "stop", "pause",
                                      "completed", "given up"}));
}

TEST_F(VmmClientTest, DeviceStateGoesBothWays) {
  std::unique_ptr<VmmClient> client = Attached();
  ASSERT_NE(client, nullptr);
  RecordingVmm vmm;
  auto serving = std::async([&] { return client->Serve(vmm); });
  v1::Command command;
  command.mutable_save_device_state();
  v1::CommandResult result = Ask(command);
  ASSERT_EQ(fds_.size(), 1u);
  EXPECT_EQ(
      *ReadDeviceState(fds_[0].get(), {result.device_state().length_bytes(),
                                       result.device_state().crc32c()}),
      "the state");

  absl::StatusOr<DeviceStateFile> file = WriteDeviceState("loaded");
  ASSERT_TRUE(file.ok());
  v1::DeviceState& claim =
      *command.mutable_load_device_state()->mutable_device_state();
  claim.set_length_bytes(file->claim.length_bytes);
  claim.set_crc32c(file->claim.crc32c);
  EXPECT_EQ(Ask(command, {file->fd.get()}).code(), 0u);
  EXPECT_EQ(Ask(command).code(), 3u);  // without a descriptor
  claim.set_crc32c(file->claim.crc32c ^ 1);
  EXPECT_EQ(Ask(command, {file->fd.get()}).code(), 15u);
  client->Shutdown();
  EXPECT_TRUE(serving.get().ok());
  EXPECT_EQ(vmm.notes, std::vector<std::string>{"load loaded"});
}

TEST_F(VmmClientTest, TooLargeDeviceStateIsAnErrorNotAnEnd) {
  std::unique_ptr<VmmClient> client = Attached();
  ASSERT_NE(client, nullptr);
  RecordingVmm vmm;
  vmm.state = std::string(kMaxDeviceStateBytes + 1, 'x');
  auto serving = std::async([&] { return client->Serve(vmm); });
  v1::Command command;
  command.mutable_save_device_state();
  const v1::CommandResult result = Ask(command);
  EXPECT_EQ(result.code(), 3u);
  EXPECT_EQ(fds_.size(), 0u);
  client->Shutdown();
  EXPECT_TRUE(serving.get().ok());
}

TEST_F(VmmClientTest, GarbageFromTheDaemonEndsServing) {
  std::unique_ptr<VmmClient> client = Attached();
  ASSERT_NE(client, nullptr);
  RecordingVmm vmm;
  ASSERT_TRUE(daemon_.Send("garbage", {}, Deadline::Infinite()).ok());
  EXPECT_TRUE(Is(client->Serve(vmm), StatusCode::kInternal,
                 "something else than a command"));
  EXPECT_TRUE(daemon_.closed());
}

TEST_F(VmmClientTest, AnEventLoopAnswersWhatHasCome) {
  std::unique_ptr<VmmClient> client = Attached();
  ASSERT_NE(client, nullptr);
  RecordingVmm vmm;
  EXPECT_TRUE(client->ServeReady(vmm).ok());  // nothing has come
  v1::DaemonMessage message;
  message.mutable_command()->mutable_pause_guest();
  Send(message);
  EXPECT_TRUE(client->ServeReady(vmm).ok());
  EXPECT_EQ(Receive().result().code(), 0u);
  EXPECT_EQ(vmm.notes, std::vector<std::string>{"pause"});
  daemon_ = PacketSocket();
  EXPECT_TRUE(Is(client->ServeReady(vmm), StatusCode::kUnavailable,
                 "closed the connection"));
}

TEST_F(VmmClientTest, ServeReadyEndsTheConnectionAfterGarbage) {
  std::unique_ptr<VmmClient> client = Attached();
  ASSERT_NE(client, nullptr);
  RecordingVmm vmm;
  ASSERT_TRUE(daemon_.Send("garbage", {}, Deadline::Infinite()).ok());
  EXPECT_TRUE(Is(client->ServeReady(vmm), StatusCode::kInternal,
                 "something else than a command"));
  EXPECT_TRUE(daemon_.closed());
}

TEST_F(VmmClientTest, ShutdownBeforeServeIsRemembered) {
  std::unique_ptr<VmmClient> client = Attached();
  ASSERT_NE(client, nullptr);
  client->Shutdown();
  RecordingVmm vmm;
  EXPECT_TRUE(client->Serve(vmm).ok());
}

}  // namespace
}  // namespace postcopy
