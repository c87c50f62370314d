#include "cmd/vmm_channel/packet_socket.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "cmd/vmm_channel/test_support.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr absl::Duration kLong = absl::Seconds(30);

class PacketSocketTest : public testing::Test {
 protected:
  PacketSocketTest() {
    auto [daemon, vmm] = SocketPair();
    daemon_ = PacketSocket(std::move(daemon), "the VMM");
    vmm_ = PacketSocket(std::move(vmm), "the daemon");
  }

  absl::StatusOr<Packet> Receive(absl::Duration timeout = kLong) {
    return daemon_.Receive(Deadline::After(timeout));
  }
  absl::Status Send(absl::string_view bytes, const std::vector<int>& fds = {}) {
    return vmm_.Send(bytes, fds, Deadline::After(kLong));
  }
  // Sends without this project's limits.
  void SendRaw(size_t bytes, size_t fd_count) {
    postcopy::SendRaw(vmm_.fd(), std::string(bytes, 'x'),
                      std::vector<int>(fd_count, file_.get()));
  }

  PacketSocket daemon_;
  PacketSocket vmm_;
  UniqueFd file_ = Memfd(kPageSize);
};

TEST_F(PacketSocketTest, CarriesMessageAndDescriptors) {
  v1::VmmMessage message;
  message.mutable_result()->set_command_id(7);
  const UniqueFd other = Memfd(2 * kPageSize);
  ASSERT_TRUE(
      vmm_.Send(message, {file_.get(), other.get()}, Deadline::After(kLong))
          .ok());
  absl::StatusOr<Packet> packet = Receive();
  ASSERT_TRUE(packet.ok()) << packet.status();
  v1::VmmMessage received;
  ASSERT_TRUE(received.ParseFromString(packet->bytes));
  EXPECT_EQ(received.result().command_id(), 7u);
  ASSERT_EQ(packet->fds.size(), 2u);
  EXPECT_EQ(*FileSize(packet->fds[0].get()), ByteCount(kPageSize));
  EXPECT_EQ(*FileSize(packet->fds[1].get()), ByteCount(2 * kPageSize));
  for (const UniqueFd& fd : packet->fds) {
    EXPECT_EQ(::fcntl(fd.get(), F_GETFD), FD_CLOEXEC);
  }
}

TEST_F(PacketSocketTest, TakesTheLargestPacket) {
  ASSERT_TRUE(Send(std::string(kMaxPacketBytes, 'x'),
                   std::vector<int>(kMaxDescriptors, file_.get()))
                  .ok());
  absl::StatusOr<Packet> packet = Receive();
  ASSERT_TRUE(packet.ok()) << packet.status();
  EXPECT_EQ(packet->bytes, std::string(kMaxPacketBytes, 'x'));
  EXPECT_EQ(packet->fds.size(), kMaxDescriptors);
}

TEST_F(PacketSocketTest, DoesNotSendBeyondALimit) {
  EXPECT_TRUE(Is(Send(std::string(kMaxPacketBytes + 1, 'x')),
                 StatusCode::kInvalidArgument, "at most 65536"));
  EXPECT_TRUE(Is(Send("x", std::vector<int>(kMaxDescriptors + 1, file_.get())),
                 StatusCode::kInvalidArgument, "67 descriptors"));
  EXPECT_TRUE(Is(Send(""), StatusCode::kInvalidArgument, "empty"));
  EXPECT_FALSE(daemon_.readable());
}

TEST_F(PacketSocketTest, RefusesPacketThatIsTooLong) {
  const size_t before = OpenFds();
  SendRaw(kMaxPacketBytes + 1, 3);
  EXPECT_TRUE(Is(Receive().status(), StatusCode::kInvalidArgument,
                 "the VMM sent a packet of more than 65536 bytes"));
  EXPECT_EQ(OpenFds(), before);
  // The packet is gone, the connection is not.
  ASSERT_TRUE(Send("next").ok());
  EXPECT_EQ(Receive()->bytes, "next");
}

TEST_F(PacketSocketTest, RefusesTooManyDescriptors) {
  const size_t before = OpenFds();
  for (const size_t count : {kMaxDescriptors + 1, size_t{253}}) {
    SendRaw(1, count);
    EXPECT_TRUE(Is(Receive().status(), StatusCode::kInvalidArgument,
                   "the VMM sent more than 66 descriptors"));
  }
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(PacketSocketTest, EmptyPacketCountsAsClosing) {
  const size_t before = OpenFds();
  SendRaw(0, 2);
  EXPECT_TRUE(Is(Receive().status(), StatusCode::kUnavailable,
                 "the VMM closed the connection"));
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(PacketSocketTest, ReportsThatThePeerClosed) {
  EXPECT_FALSE(daemon_.closed());
  ASSERT_TRUE(Send("last words").ok());
  vmm_ = PacketSocket();
  EXPECT_TRUE(daemon_.closed());
  EXPECT_EQ(Receive()->bytes, "last words");
  EXPECT_TRUE(Is(Receive().status(), StatusCode::kUnavailable,
                 "the VMM closed the connection"));
  // And no SIGPIPE.
  EXPECT_TRUE(Is(daemon_.Send("x", {}, Deadline::Infinite()),
                 StatusCode::kUnavailable, "the VMM closed the connection"));
}

TEST_F(PacketSocketTest, WaitsNoLongerThanTheDeadline) {
  EXPECT_TRUE(Is(Receive(absl::Milliseconds(5)).status(),
                 StatusCode::kDeadlineExceeded, "the VMM did not answer"));
  absl::Status status;
  while (status.ok()) {
    status = vmm_.Send(std::string(kMaxPacketBytes, 'x'), {},
                       Deadline::After(absl::Milliseconds(5)));
  }
  EXPECT_TRUE(Is(status, StatusCode::kDeadlineExceeded, "the daemon"));
}

TEST_F(PacketSocketTest, CloseWakesWhoWaits) {
  std::thread closer([this] { daemon_.Close(); });
  EXPECT_TRUE(Is(Receive().status(), StatusCode::kUnavailable, ""));
  closer.join();
  EXPECT_TRUE(daemon_.closed());
}

TEST_F(PacketSocketTest, SignalsDoNotEndAWait) {
  struct sigaction action = {};
  action.sa_handler = [](int) {};  // without SA_RESTART
  ASSERT_EQ(::sigaction(SIGUSR1, &action, nullptr), 0);
  std::atomic<bool> received = false;
  absl::StatusOr<Packet> packet;
  std::thread receiver([&] {
    packet = Receive();
    received = true;
  });
  for (int i = 0; i < 1000; ++i) {
    ::pthread_kill(receiver.native_handle(), SIGUSR1);
    if (i % 100 == 0) std::this_thread::yield();
  }
  EXPECT_FALSE(received);
  ASSERT_TRUE(Send("x").ok());
  receiver.join();
  EXPECT_TRUE(packet.ok()) << packet.status();
}

TEST_F(PacketSocketTest, CloseAfterSendingLetsThePeerRead) {
  const size_t before = OpenFds();
  for (int i = 0; i < 3; ++i) SendRaw(1000, 2);
  ASSERT_TRUE(daemon_.Send("why", {}, Deadline::Infinite()).ok());
  daemon_.CloseAfterSending();
  daemon_ = PacketSocket();
  EXPECT_EQ(vmm_.Receive(Deadline::After(kLong))->bytes, "why");
  EXPECT_TRUE(Is(vmm_.Receive(Deadline::After(kLong)).status(),
                 StatusCode::kUnavailable, "the daemon closed"));
  EXPECT_EQ(OpenFds(), before - 1);
}

TEST(UnixAddressTest, TakesPathsThatFit) {
  EXPECT_TRUE(UnixAddress(std::string(107, 'x')).ok());
  EXPECT_TRUE(Is(UnixAddress(std::string(108, 'x')).status(),
                 StatusCode::kInvalidArgument, "108 bytes"));
  EXPECT_TRUE(
      Is(UnixAddress("").status(), StatusCode::kInvalidArgument, "empty"));
  EXPECT_TRUE(Is(UnixAddress(absl::string_view("a\0b", 3)).status(),
                 StatusCode::kInvalidArgument, "NUL"));
}

TEST(DeadlineTest, RoundsUpAndNeverOverflows) {
  EXPECT_EQ(Deadline::Infinite().PollMillis(), -1);
  EXPECT_EQ(Deadline::After(absl::InfiniteDuration()).PollMillis(), -1);
  EXPECT_FALSE(Deadline::After(absl::InfiniteDuration()).passed());
  EXPECT_EQ(Deadline::After(-absl::Seconds(1)).PollMillis(), 0);
  EXPECT_TRUE(Deadline::After(-absl::InfiniteDuration()).passed());
  EXPECT_TRUE(Deadline::After(absl::ZeroDuration()).passed());
  EXPECT_EQ(Deadline::After(absl::Hours(24 * 365)).PollMillis(), INT_MAX);
}

}  // namespace
}  // namespace postcopy
