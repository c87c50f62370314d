#include "cmd/faultreplay/delay_proxy.h"

#include <sys/socket.h>

#include <string>
#include <utility>

#include "cmd/faultreplay/loopback.h"
#include "dirtytrack/clock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

// A client and the server's end of its connection, with a proxy in between.
class DelayProxyTest : public ::testing::Test {
 protected:
  void Connect(int64_t delay_ns) {
    uint16_t port;
    auto listener = ListenOnLoopback(&port);
    ASSERT_TRUE(listener.ok()) << listener.status();
    auto proxy = DelayProxy::Create(LoopbackAddress(port), delay_ns);
    ASSERT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
    auto client = ConnectToLoopback(PortOf(proxy_->address()));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    server_ = AcceptConnection(listener->get());
    ASSERT_TRUE(server_.valid());
  }

  std::unique_ptr<DelayProxy> proxy_;
  UniqueFd client_;
  UniqueFd server_;
};

TEST_F(DelayProxyTest, BytesPassUnchangedBothWays) {
  Connect(0);
  const std::string sent(1 << 20, 'x');
  std::string received(sent.size(), ' ');
  for (auto [from, to] :
       {std::pair(&client_, &server_), {&server_, &client_}}) {
    // More than the sockets' buffers hold.
    std::thread sender(
        [&, from = from] { SendAll(from->get(), sent.data(), sent.size()); });
    EXPECT_TRUE(ReceiveAll(to->get(), received.data(), received.size()));
    sender.join();
    EXPECT_EQ(received, sent);
  }
}

TEST_F(DelayProxyTest, EachWayTakesAtLeastTheDelay) {
  constexpr int64_t kDelay = 20 * kNanosPerMilli;
  Connect(kDelay);
  const int64_t begin_ns = Clock::Monotonic()->NowNanos();
  char byte = 'x';
  ASSERT_TRUE(SendAll(client_.get(), &byte, 1));
  ASSERT_TRUE(ReceiveAll(server_.get(), &byte, 1));
  ASSERT_TRUE(SendAll(server_.get(), &byte, 1));
  ASSERT_TRUE(ReceiveAll(client_.get(), &byte, 1));
  EXPECT_GE(Clock::Monotonic()->NowNanos() - begin_ns, 2 * kDelay);
}

TEST_F(DelayProxyTest, TheEndPassesBehindTheBytes) {
  Connect(kNanosPerMilli);
  char bytes[3] = {'a', 'b', 'c'};
  ASSERT_TRUE(SendAll(client_.get(), bytes, sizeof(bytes)));
  ::shutdown(client_.get(), SHUT_WR);
  EXPECT_TRUE(ReceiveAll(server_.get(), bytes, sizeof(bytes)));
  EXPECT_FALSE(ReceiveAll(server_.get(), bytes, 1));
}

TEST_F(DelayProxyTest, ItEndsWithBytesOnTheirWay) {
  Connect(10 * kNanosPerSecond);
  char byte = 'x';
  ASSERT_TRUE(SendAll(client_.get(), &byte, 1));
  ::shutdown(client_.get(), SHUT_RDWR);
}

}  // namespace
}  // namespace postcopy
