#include "cmd/vmm_channel/vmm_connection.h"

#include <functional>
#include <memory>
#include <random>
#include <thread>

#include "cmd/vmm_channel/test_support.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr absl::Duration kLong = absl::Seconds(30);

Attachment AnAttachment() {
  return Attachment{
      .vm_name = "vm-1",
      .role = VmmRole::kSource,
      .layout = *RamLayout::Create(
          {{"ram", RamOffset(0), ByteCount(kPageSize), ByteCount(kPageSize)}}),
      .memory = {},
      .memory_fds = {},
      .slots = {},
      .dirty_log = UniqueFd(),
      .userfaultfd = UniqueFd()};
}

// A connection whose VMM is the test.
class VmmConnectionTest : public testing::Test {
 protected:
  // Connects and attaches.
  void Connect(VmmConnection::Options options = {},
               VmmRole role = VmmRole::kSource) {
    auto [daemon, vmm] = SocketPair();
    vmm_ = PacketSocket(std::move(vmm), "the daemon");
    Attachment attachment = AnAttachment();
    attachment.role = role;
    connection_ = std::make_unique<VmmConnection>(
        PacketSocket(std::move(daemon), "the VMM"), std::move(attachment),
        options);
    ASSERT_TRUE(connection_->AcceptAttach().ok());
    absl::StatusOr<Packet> packet = vmm_.Receive(Deadline::After(kLong));
    ASSERT_TRUE(packet.ok()) << packet.status();
    v1::DaemonMessage message;
    ASSERT_TRUE(message.ParseFromString(packet->bytes));
    ASSERT_TRUE(message.has_attach_result());
    ASSERT_EQ(message.attach_result().code(), 0u);
  }

  // The next command, and in `fds` what came beside it.
  v1::Command NextCommand(std::vector<UniqueFd>* fds = nullptr) {
    absl::StatusOr<Packet> packet = vmm_.Receive(Deadline::After(kLong));
    EXPECT_TRUE(packet.ok()) << packet.status();
    v1::DaemonMessage message;
    if (packet.ok()) {
      EXPECT_TRUE(message.ParseFromString(packet->bytes));
      EXPECT_TRUE(message.has_command());
      if (fds != nullptr) *fds = std::move(packet->fds);
    }
    return message.command();
  }

  void Reply(const v1::CommandResult& result,
             const std::vector<int>& fds = {}) {
    v1::VmmMessage message;
    *message.mutable_result() = result;
    EXPECT_TRUE(vmm_.Send(message, fds, Deadline::After(kLong)).ok());
  }

  static v1::CommandResult Result(uint64_t id, uint32_t code = 0,
                                  const std::string& text = "") {
    v1::CommandResult result;
    result.set_command_id(id);
    result.set_code(code);
    result.set_message(text);
    return result;
  }

  // Runs `vmm` beside PauseGuest and returns what the latter does.
  absl::Status PauseBeside(const std::function<void()>& vmm) {
    std::thread thread(vmm);
    absl::Status status = connection_->PauseGuest();
    thread.join();
    return status;
  }

  // SaveDeviceState answered with `claim` and `fds`.
  absl::StatusOr<std::string> Save(const DeviceStateClaim& claim,
                                   std::vector<int> fds) {
    std::thread thread([&] {
      v1::CommandResult result = Result(NextCommand().command_id());
      result.mutable_device_state()->set_length_bytes(claim.length_bytes);
      result.mutable_device_state()->set_crc32c(claim.crc32c);
      Reply(result, fds);
    });
    absl::StatusOr<std::string> state = connection_->SaveDeviceState();
    thread.join();
    return state;
  }

  PacketSocket vmm_;
  std::unique_ptr<VmmConnection> connection_;
};

TEST_F(VmmConnectionTest, EachCommandSaysWhatItIs) {
  Connect();
  using Case = v1::Command::CommandCase;
  const std::vector<std::pair<Case, std::function<absl::Status()>>> commands = {
      {Case::kStartDirtyLogging,
       [this] { return connection_->StartDirtyLogging(); }},
      {Case::kSyncDirtyLog, [this] { return connection_->SyncDirtyLog(); }},
      {Case::kStopDirtyLogging,
       [this] { return connection_->StopDirtyLogging(); }},
      {Case::kPauseGuest, [this] { return connection_->PauseGuest(); }},
      {Case::kResumeGuest, [this] { return connection_->ResumeGuest(); }},
      {Case::kMigrationEnded,
       [this] { return connection_->MigrationEnded(true); }},
  };
  uint64_t last_id = 0;
  for (const auto& [expected, run] : commands) {
    v1::Command command;
    std::thread vmm([&] {
      command = NextCommand();
      Reply(Result(command.command_id()));
    });
    const absl::Status status = run();
    vmm.join();
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(command.command_case(), expected);
    EXPECT_GT(command.command_id(), last_id);
    last_id = command.command_id();
  }
}

TEST_F(VmmConnectionTest, PassesOnWhatTheVmmAnswers) {
  Connect();
  EXPECT_TRUE(Is(PauseBeside([this] {
                   Reply(Result(NextCommand().command_id(), 9, "not\nnow"));
                 }),
                 StatusCode::kFailedPrecondition,
                 "VM vm-1: PauseGuest: not?now"));
  EXPECT_TRUE(Is(PauseBeside([this] {
                   Reply(Result(NextCommand().command_id(), 4711, "odd"));
                 }),
                 StatusCode::kUnknown, "odd"));
  EXPECT_FALSE(connection_->closed());
  EXPECT_TRUE(
      PauseBeside([this] { Reply(Result(NextCommand().command_id())); }).ok());
}

TEST_F(VmmConnectionTest, LoadsDeviceState) {
  Connect();
  absl::StatusOr<std::string> received;
  std::thread vmm([&] {
    std::vector<UniqueFd> fds;
    const v1::Command command = NextCommand(&fds);
    const v1::DeviceState& claim = command.load_device_state().device_state();
    if (fds.size() == 1) {
      received =
          ReadDeviceState(fds[0].get(), {claim.length_bytes(), claim.crc32c()});
    }
    Reply(Result(command.command_id()));
  });
  const absl::Status status = connection_->LoadDeviceState("the state");
  vmm.join();
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(*received, "the state");
}

TEST_F(VmmConnectionTest, SavesDeviceState) {
  Connect();
  absl::StatusOr<DeviceStateFile> file = WriteDeviceState("the state");
  ASSERT_TRUE(file.ok());
  absl::StatusOr<std::string> state = Save(file->claim, {file->fd.get()});
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(*state, "the state");
}

TEST_F(VmmConnectionTest, BadDeviceStateIsRefusedAndTheConnectionStays) {
  Connect({.command_timeout = kLong, .device_state_bytes_max = 9});
  absl::StatusOr<DeviceStateFile> file = WriteDeviceState("the state");
  ASSERT_TRUE(file.ok());
  const size_t before = OpenFds();
  DeviceStateClaim bad = file->claim;
  bad.crc32c ^= 0x80000000;
  EXPECT_TRUE(Is(Save(bad, {file->fd.get()}).status(), StatusCode::kDataLoss,
                 "VM vm-1: SaveDeviceState: the device state's CRC-32C"));
  bad = file->claim;
  bad.length_bytes = 10;
  EXPECT_TRUE(Is(Save(bad, {file->fd.get()}).status(),
                 StatusCode::kInvalidArgument, "10 bytes; at most 9"));
  EXPECT_TRUE(Is(connection_->LoadDeviceState("0123456789"),
                 StatusCode::kInvalidArgument,
                 "VM vm-1: LoadDeviceState: the device state has 10 bytes"));
  EXPECT_FALSE(connection_->closed());
  EXPECT_EQ(OpenFds(), before);
  EXPECT_TRUE(Save(file->claim, {file->fd.get()}).ok());
}

TEST_F(VmmConnectionTest, DeviceStateComesWithOneDescriptor) {
  const UniqueFd file = Memfd(1);
  Connect();
  EXPECT_TRUE(Is(Save({1, 0}, {}).status(), StatusCode::kInternal,
                 "0 descriptors beside its result, not 1"));
  EXPECT_TRUE(connection_->closed());
  Connect();
  EXPECT_TRUE(Is(Save({1, 0}, {file.get(), file.get()}).status(),
                 StatusCode::kInternal, "2 descriptors"));
  EXPECT_TRUE(connection_->closed());
}

TEST_F(VmmConnectionTest, OtherResultsComeWithoutDescriptors) {
  Connect();
  const UniqueFd file = Memfd(1);
  const size_t before = OpenFds();
  EXPECT_TRUE(Is(PauseBeside([&] {
                   Reply(Result(NextCommand().command_id()), {file.get()});
                 }),
                 StatusCode::kInternal, "1 descriptors beside its result"));
  EXPECT_TRUE(connection_->closed());
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(VmmConnectionTest, WrongCommandIdEndsTheConnection) {
  Connect();
  EXPECT_TRUE(
      Is(PauseBeside([this] { Reply(Result(NextCommand().command_id() + 1)); }),
         StatusCode::kInternal,
         "VM vm-1: PauseGuest: the VMM answered command 2 when "));
  EXPECT_TRUE(connection_->closed());
  // The VMM sees the end, and later commands say why.
  EXPECT_TRUE(Is(vmm_.Receive(Deadline::After(kLong)).status(),
                 StatusCode::kUnavailable, "closed"));
  EXPECT_TRUE(Is(connection_->ResumeGuest(), StatusCode::kUnavailable,
                 "VM vm-1: ResumeGuest: the connection has ended: the VMM "
                 "answered command 2"));
}

TEST_F(VmmConnectionTest, UnexpectedMessageEndsTheConnection) {
  for (const std::string& bytes :
       {std::string("garbage"), std::string("\x0a\x00", 2)}) {
    Connect();
    EXPECT_TRUE(Is(PauseBeside([&] {
                     NextCommand();
                     EXPECT_TRUE(
                         vmm_.Send(bytes, {}, Deadline::Infinite()).ok());
                   }),
                   StatusCode::kInternal, "something else than a result"));
    EXPECT_TRUE(connection_->closed());
  }
}

TEST_F(VmmConnectionTest, AnswerBeforeTheCommandEndsTheConnection) {
  Connect();
  Reply(Result(1));
  EXPECT_TRUE(Is(connection_->PauseGuest(), StatusCode::kInternal,
                 "a message it was not asked for"));
  EXPECT_TRUE(connection_->closed());
}

TEST_F(VmmConnectionTest, OversizeAnswerEndsTheConnection) {
  Connect();
  EXPECT_TRUE(Is(PauseBeside([this] {
                   NextCommand();
                   const std::string bytes(kMaxPacketBytes + 1, 'x');
                   ::send(vmm_.fd(), bytes.data(), bytes.size(), 0);
                 }),
                 StatusCode::kInternal, "a packet of more than 65536 bytes"));
  EXPECT_TRUE(connection_->closed());
}

TEST_F(VmmConnectionTest, SilentVmmRunsIntoTheTimeout) {
  Connect({.command_timeout = absl::Milliseconds(20)});
  EXPECT_TRUE(Is(connection_->PauseGuest(), StatusCode::kDeadlineExceeded,
                 "VM vm-1: PauseGuest: the VMM did not answer within 20ms"));
  EXPECT_TRUE(connection_->closed());
  EXPECT_TRUE(Is(connection_->PauseGuest(), StatusCode::kUnavailable,
                 "did not answer within 20ms"));
}

// At a destination, loading and resuming touch RAM: a source that cannot be
// reached for longer than the time-out must not cost the guest its life.
TEST_F(VmmConnectionTest, DestinationMayWaitForPagesBeyondTheTimeout) {
  constexpr absl::Duration kTimeout = absl::Milliseconds(1);
  Connect({.command_timeout = kTimeout}, VmmRole::kDestination);
  for (bool load : {true, false}) {
    std::thread vmm([&] {
      const uint64_t id = NextCommand().command_id();
      // Nothing can end this wait early; only its end is not on time.
      const Deadline later = Deadline::After(5 * kTimeout);
      while (!later.passed()) std::this_thread::yield();
      Reply(Result(id));
    });
    const absl::Status status = load ? connection_->LoadDeviceState("state")
                                     : connection_->ResumeGuest();
    vmm.join();
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST_F(VmmConnectionTest, VmmDiesInTheMiddleOfACommand) {
  Connect();
  EXPECT_TRUE(Is(PauseBeside([this] {
                   NextCommand();
                   vmm_ = PacketSocket();
                 }),
                 StatusCode::kUnavailable,
                 "VM vm-1: PauseGuest: the VMM closed the connection"));
  EXPECT_TRUE(connection_->closed());
}

TEST_F(VmmConnectionTest, VmmDiesWhileIdle) {
  Connect();
  EXPECT_FALSE(connection_->closed());
  vmm_ = PacketSocket();
  EXPECT_TRUE(connection_->closed());
  EXPECT_TRUE(Is(connection_->PauseGuest(), StatusCode::kUnavailable,
                 "the VMM closed the connection"));
}

TEST_F(VmmConnectionTest, CloseEndsACommand) {
  Connect();
  EXPECT_TRUE(Is(PauseBeside([this] {
                   NextCommand();
                   connection_->Close();
                 }),
                 StatusCode::kUnavailable, "PauseGuest"));
}

TEST_F(VmmConnectionTest, CommandsOfManyThreadsTakeTurns) {
  Connect();
  constexpr int kThreads = 4;
  constexpr int kEach = 50;
  std::thread vmm([this] {
    for (int i = 0; i < kThreads * kEach; ++i) {
      Reply(Result(NextCommand().command_id()));
    }
  });
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([this] {
      for (int j = 0; j < kEach; ++j) {
        EXPECT_TRUE(connection_->SyncDirtyLog().ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  vmm.join();
}

TEST_F(VmmConnectionTest, NoCommandBeforeAttachIsAnswered) {
  auto [daemon, vmm] = SocketPair();
  VmmConnection connection(PacketSocket(std::move(daemon), "the VMM"),
                           AnAttachment(), {});
  EXPECT_TRUE(Is(connection.PauseGuest(), StatusCode::kFailedPrecondition,
                 "Attach has not been answered"));
  EXPECT_FALSE(connection.closed());
}

TEST_F(VmmConnectionTest, RandomAnswersAreAnsweredWithAStatus) {
  std::mt19937 random(7);
  const size_t before = OpenFds();
  for (int i = 0; i < 2000; ++i) {
    Connect();
    v1::VmmMessage message;
    *message.mutable_result() = Result(1, random() % 20, "message");
    std::string bytes = message.SerializeAsString();
    bytes[random() % bytes.size()] = static_cast<char>(random());
    // The socket takes the answer's place in the queue only after the command:
    // so a thread, which costs most of this test's time.
    const absl::Status status = PauseBeside([&] {
      NextCommand();
      EXPECT_TRUE(vmm_.Send(bytes, {}, Deadline::Infinite()).ok());
    });
    ASSERT_TRUE(status.ok() || !status.message().empty());
  }
  connection_.reset();
  vmm_ = PacketSocket();
  EXPECT_EQ(OpenFds(), before);
}

}  // namespace
}  // namespace postcopy
