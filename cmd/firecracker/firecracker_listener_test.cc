#include "cmd/firecracker/firecracker_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/packet_socket.h"
#include "cmd/vmm_channel/test_support.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr absl::Duration kLong = absl::Seconds(30);

// What Firecracker writes for a guest of `pages` pages.
std::string Handshake(uint64_t pages) {
  return absl::StrCat(
      "[{\"base_host_virt_addr\":4096,\"size\":", pages * kPageSize,
      ",\"offset\":0,\"page_size\":4096,"
      "\"page_size_kib\":4096}]");
}

// The same, made `bytes` long by a key that nobody knows.
std::string LongHandshake(size_t bytes) {
  const std::string head = "[{\"pad\":\"";
  const std::string tail = "\"," + Handshake(1).substr(2);
  return head + std::string(bytes - head.size() - tail.size(), 'x') + tail;
}

ino_t Inode(int fd) {
  struct stat info = {};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return info.st_ino;
}

// Its journal calls a VM by its pages, which are different for each: "+3" when
// it came, "-3" when it went.
class FirecrackerListenerTest : public testing::Test {
 protected:
  FirecrackerListenerTest() : file_(Memfd(kPageSize)) {
    options_.socket_path = dir_ / "uffd.sock";
    options_.attach_timeout = kLong;
    options_.on_attach = [this](FirecrackerVm vm) {
      return OnAttach(std::move(vm));
    };
    options_.on_detach = [this](uint64_t id) {
      journal_.Add("-" + names_[id]);
    };
    options_.on_refuse = [this](const absl::Status& why) {
      refusals_.Add(why.ToString());
    };
  }

  absl::Status OnAttach(FirecrackerVm vm) {
    const std::string name =
        absl::StrCat(vm.regions[0].size.value() / kPageSize);
    EXPECT_TRUE(names_.emplace(vm.id, name).second) << "id given twice";
    EXPECT_EQ(vm.pid, ::getpid());
    EXPECT_EQ(Inode(vm.userfaultfd.get()), Inode(file_.get()));
    EXPECT_EQ(::fcntl(vm.userfaultfd.get(), F_GETFD), FD_CLOEXEC);
    vm_ = std::move(vm);
    journal_.Add("+" + name);
    return on_attach_result_;
  }

  void Listen() {
    absl::StatusOr<std::unique_ptr<FirecrackerListener>> listener =
        FirecrackerListener::Create(options_);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }

  // What connect(2) says.
  int TryConnect(int fd) const {
    const sockaddr_un address = *UnixAddress(options_.socket_path);
    return ::connect(fd, reinterpret_cast<const sockaddr*>(&address),
                     sizeof(address));
  }

  // A peer that has connected and said nothing.
  UniqueFd Connect() const {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(TryConnect(fd.get()), 0) << std::strerror(errno);
    return fd;
  }

  // A peer that has sent `bytes`, with the file `fds` times beside them.
  UniqueFd Send(const std::string& bytes, size_t fds = 1) const {
    UniqueFd fd = Connect();
    SendRaw(fd.get(), bytes, std::vector<int>(fds, file_.get()));
    return fd;
  }

  // A VM of that many pages, taken by the owner or about to be.
  UniqueFd Attach(uint64_t pages) const { return Send(Handshake(pages)); }

  // True if the daemon ends the connection within that time.
  static bool Ends(const UniqueFd& peer, int millis) {
    pollfd entry{peer.get(), 0, 0};
    return ::poll(&entry, 1, millis) == 1 && (entry.revents & POLLHUP) != 0;
  }

  static void ExpectEnd(const UniqueFd& peer) {
    EXPECT_TRUE(Ends(peer, 30000));
  }

  // Waits for the refusal of that number, the first being 1.
  void ExpectRefusal(size_t number, absl::StatusCode code,
                     const std::string& part) {
    const std::string refusal = refusals_.Await(number)[number - 1];
    EXPECT_TRUE(absl::StartsWith(refusal, absl::StatusCodeToString(code)))
        << refusal;
    EXPECT_TRUE(absl::StrContains(refusal, part)) << refusal;
  }

  TempDir dir_;
  // Stands for the userfaultfd.
  UniqueFd file_;
  Journal journal_;
  Journal refusals_;
  absl::Status on_attach_result_;
  // The listener's thread's, as is vm_ until the journal says that it is there.
  std::map<uint64_t, std::string> names_;
  FirecrackerVm vm_;
  FirecrackerListener::Options options_;
  std::unique_ptr<FirecrackerListener> listener_;
};

TEST_F(FirecrackerListenerTest, HandsOverWhatTheVmmSent) {
  const size_t before = OpenFds();
  Listen();
  UniqueFd vmm = Attach(3);
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+3"});
  EXPECT_EQ(vm_.regions, (std::vector<FirecrackerRegion>{
                             {HostAddress(4096), ByteCount(3 * kPageSize), 0,
                              ByteCount(kPageSize)}}));
  vmm.Reset();
  EXPECT_EQ(journal_.Await(2), (std::vector<std::string>{"+3", "-3"}));
  listener_.reset();
  EXPECT_EQ(refusals_.Await(0).size(), 0u);
  vm_ = {};
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, HalfAConnectionIsNone) {
  Listen();
  const UniqueFd vmm = Attach(1);
  ASSERT_EQ(::shutdown(vmm.get(), SHUT_WR), 0);
  EXPECT_EQ(journal_.Await(2), (std::vector<std::string>{"+1", "-1"}));
  ExpectEnd(vmm);
}

TEST_F(FirecrackerListenerTest, HandshakeMayComeByteByByte) {
  Listen();
  const std::string bytes = Handshake(1);
  const UniqueFd vmm = Send(bytes.substr(0, 1));
  for (const char c : bytes.substr(1)) {
    ASSERT_EQ(::send(vmm.get(), &c, 1, MSG_NOSIGNAL), 1);
  }
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+1"});
}

TEST_F(FirecrackerListenerTest, HandshakeMayBeAsLongAsAllowed) {
  Listen();
  const UniqueFd fits = Send(LongHandshake(kHandshakeBytesMax));
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+1"});
  const UniqueFd too_long = Send(LongHandshake(kHandshakeBytesMax + 1));
  ExpectEnd(too_long);
  ExpectRefusal(1, StatusCode::kInvalidArgument, "longer than 65536 bytes");
}

TEST_F(FirecrackerListenerTest, WhoSendsSomethingElseIsTurnedAway) {
  struct Case {
    std::string bytes;
    size_t fds;
    const char* message;
  };
  const Case cases[] = {
      {Handshake(1), 0, "beside the first bytes of the handshake: 0; send one"},
      {"[", 0, "beside the first bytes of the handshake: 0; send one"},
      {Handshake(1), 2, "beside the first bytes of the handshake: 2; send one"},
      {Handshake(1), 3, "too many descriptors came beside the handshake"},
      {Handshake(1), 253, "too many descriptors came beside the handshake"},
      {"garbage", 1, "begins with byte 103 instead of '['"},
      {"[]", 1, "the array is empty"},
      {Handshake(0), 1, "region 0: size is 0"},
      {std::string(kHandshakeBytesMax + 1, ' '), 1, "longer than 65536 bytes"},
  };
  const size_t before = OpenFds();
  Listen();
  size_t refusals = 0;
  for (const Case& c : cases) {
    ExpectEnd(Send(c.bytes, c.fds));
    ExpectRefusal(++refusals, StatusCode::kInvalidArgument, c.message);
  }
  listener_.reset();
  EXPECT_EQ(journal_.Await(0).size(), 0u);
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, DescriptorMustComeWithTheFirstBytes) {
  const size_t before = OpenFds();
  Listen();
  UniqueFd vmm = Send("[");
  SendRaw(vmm.get(), Handshake(1).substr(1), {file_.get()});
  ExpectEnd(vmm);
  ExpectRefusal(1, StatusCode::kInvalidArgument,
                "a descriptor came beside later bytes");
  vmm.Reset();
  listener_.reset();
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, WhoGoesEarlyIsForgotten) {
  const size_t before = OpenFds();
  Listen();
  Connect().Reset();
  ExpectRefusal(1, StatusCode::kUnavailable,
                "closed the connection before its handshake was whole");
  Send("[{").Reset();
  ExpectRefusal(2, StatusCode::kUnavailable, "closed the connection before");
  listener_.reset();
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, WhoIsSlowRunsIntoTheTimeout) {
  options_.attach_timeout = absl::Milliseconds(20);
  const size_t before = OpenFds();
  Listen();
  ExpectEnd(Connect());
  ExpectRefusal(1, StatusCode::kDeadlineExceeded,
                "no whole handshake came within 20ms");
  UniqueFd half = Connect();
  // Where this thread itself is slow, the connection has ended before.
  TrySendRaw(half.get(), "[{", {file_.get()});
  ExpectEnd(half);
  ExpectRefusal(2, StatusCode::kDeadlineExceeded, "within 20ms");
  half.Reset();
  listener_.reset();
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, UserThatIsNotAllowedIsRefusedUnread) {
  options_.allowed_uids = {::geteuid() + 1};
  Listen();
  ExpectEnd(Connect());
  ExpectRefusal(1, StatusCode::kPermissionDenied,
                absl::StrCat("user ", ::geteuid(), " may not attach VMs"));
}

TEST_F(FirecrackerListenerTest, UserThatIsAllowedAttaches) {
  options_.allowed_uids = {::geteuid() + 1, ::geteuid()};
  Listen();
  const UniqueFd vmm = Attach(1);
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+1"});
}

TEST_F(FirecrackerListenerTest, TakesAsManyVmsAsItIsSetTo) {
  options_.vms_max = 3;
  Listen();
  std::vector<UniqueFd> vmms;
  for (uint64_t i = 1; i <= 3; ++i) {
    vmms.push_back(Attach(i));
    journal_.Await(i);
  }
  ExpectEnd(Attach(4));
  ExpectRefusal(1, StatusCode::kResourceExhausted, "3 VMs are attached");
  vmms.pop_back();
  const UniqueFd next = Attach(5);
  EXPECT_EQ(journal_.Await(5),
            (std::vector<std::string>{"+1", "+2", "+3", "-3", "+5"}));
}

TEST_F(FirecrackerListenerTest, DefaultTakes256) {
  EXPECT_EQ(FirecrackerListener::Options().vms_max, 256u);
}

TEST_F(FirecrackerListenerTest, SilentPeersDoNotHoldUpOthers) {
  Listen();
  std::vector<UniqueFd> silent;
  for (size_t i = 0; i < kMaxUnfinishedHandshakes; ++i) {
    silent.push_back(Connect());
  }
  const UniqueFd vmm = Attach(1);
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+1"});
  // There was room for one less than it took: the oldest had to go.
  ExpectEnd(silent[0]);
  ExpectRefusal(1, StatusCode::kResourceExhausted,
                "more than 16 VMMs have connected and not sent");
  for (size_t i = 1; i < silent.size(); ++i) EXPECT_FALSE(Ends(silent[i], 0));
}

TEST_F(FirecrackerListenerTest, AsManyPeersAsAllowedMayTakeTheirTime) {
  Listen();
  std::vector<UniqueFd> slow;
  for (size_t i = 0; i + 1 < kMaxUnfinishedHandshakes; ++i) {
    slow.push_back(Send("["));
  }
  const UniqueFd vmm = Attach(100);
  journal_.Await(1);
  for (size_t i = 0; i < slow.size(); ++i) {
    SendRaw(slow[i].get(), Handshake(i + 1).substr(1), {});
  }
  EXPECT_EQ(journal_.Await(kMaxUnfinishedHandshakes).size(),
            kMaxUnfinishedHandshakes);
}

TEST_F(FirecrackerListenerTest, OwnerMayRefuse) {
  on_attach_result_ = absl::FailedPreconditionError("no snapshot");
  const size_t before = OpenFds();
  Listen();
  ExpectEnd(Attach(1));
  ExpectRefusal(1, StatusCode::kFailedPrecondition, "no snapshot");
  listener_.reset();
  // No "-1": it never was.
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+1"});
  vm_ = {};
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, WhatFollowsTheHandshakeIsDropped) {
  const size_t before = OpenFds();
  Listen();
  UniqueFd vmm = Send(Handshake(1) + "[{ more at once");
  journal_.Await(1);
  for (int i = 0; i < 100; ++i) {
    SendRaw(vmm.get(), std::string(1000, 'x'), {file_.get(), file_.get()});
  }
  vmm.Reset();
  EXPECT_EQ(journal_.Await(2), (std::vector<std::string>{"+1", "-1"}));
  listener_.reset();
  EXPECT_EQ(refusals_.Await(0).size(), 0u);
  vm_ = {};
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, NeedsNoOwner) {
  options_.on_attach = nullptr;
  options_.on_detach = nullptr;
  options_.on_refuse = nullptr;
  Listen();
  Attach(1).Reset();
  ExpectEnd(Send("garbage"));
}

TEST_F(FirecrackerListenerTest, ShutdownEndsEverything) {
  const size_t before = OpenFds();
  Listen();
  UniqueFd first = Attach(1);
  journal_.Await(1);
  UniqueFd second = Attach(2);
  journal_.Await(2);
  UniqueFd silent = Connect();
  listener_->Shutdown();
  listener_->Shutdown();
  EXPECT_EQ(journal_.Await(4),
            (std::vector<std::string>{"+1", "+2", "-1", "-2"}));
  ExpectEnd(first);
  ExpectEnd(second);
  // Accepted or not, it is not left waiting.
  ExpectEnd(silent);
  UniqueFd late(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_NE(TryConnect(late.get()), 0);
  EXPECT_FALSE(std::filesystem::exists(options_.socket_path));
  listener_.reset();
  for (UniqueFd* fd : {&first, &second, &silent, &late}) fd->Reset();
  vm_ = {};
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(FirecrackerListenerTest, SocketIsForOwnerAndGroup) {
  Listen();
  struct stat info;
  ASSERT_EQ(::stat(options_.socket_path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
}

TEST_F(FirecrackerListenerTest, TwoDaemonsDoNotShareAPath) {
  Listen();
  EXPECT_TRUE(Is(FirecrackerListener::Create(options_).status(),
                 StatusCode::kFailedPrecondition, "another daemon listens on"));
  const UniqueFd vmm = Attach(1);
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+1"});
  listener_.reset();
  Listen();
}

TEST_F(FirecrackerListenerTest, StaleSocketIsReplaced) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    UniqueFd dead(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    const sockaddr_un address = *UnixAddress(options_.socket_path);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address),
                     sizeof(address)),
              0);
    ASSERT_EQ(::listen(dead.get(), 1), 0);
    EXPECT_TRUE(Is(FirecrackerListener::Create(options_).status(),
                   StatusCode::kFailedPrecondition, "another daemon"));
    dead.Reset();
    Listen();
    const UniqueFd vmm = Connect();
    listener_.reset();
  }
}

TEST_F(FirecrackerListenerTest, FileThatIsNoSocketIsLeftAlone) {
  std::ofstream(options_.socket_path) << "precious";
  EXPECT_TRUE(Is(FirecrackerListener::Create(options_).status(),
                 StatusCode::kFailedPrecondition, "is no socket"));
  EXPECT_TRUE(std::filesystem::exists(options_.socket_path));
}

TEST_F(FirecrackerListenerTest, ManyVmsComeAndGoAtOnce) {
  const size_t before = OpenFds();
  Listen();
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kRounds = 25;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      for (uint64_t i = 0; i < kRounds; ++i) Attach(1 + t * kRounds + i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<std::string> journal =
      journal_.Await(2 * kThreads * kRounds);
  EXPECT_EQ(std::set(journal.begin(), journal.end()).size(), journal.size());
  listener_.reset();
  vm_ = {};
  EXPECT_EQ(OpenFds(), before);
}

// Whatever comes, with whatever descriptors, nothing is kept, and the next VM
// is taken.
TEST_F(FirecrackerListenerTest, SurvivesRandomPeers) {
  const size_t before = OpenFds();
  Listen();
  std::mt19937 random(20240608);
  constexpr size_t kPeers = 2000;
  for (size_t i = 0; i < kPeers; ++i) {
    std::string bytes = Handshake(1);
    // Cut, and damaged in one place: a few are still whole.
    bytes.resize(1 + random() % bytes.size());
    bytes[random() % bytes.size()] = static_cast<char>(random());
    Send(bytes, random() % 4).Reset();
  }
  const UniqueFd vmm = Attach(77);
  // All that came before it have been looked at when it is.
  const auto is_there = [](const std::vector<std::string>& journal) {
    return std::find(journal.begin(), journal.end(), "+77") != journal.end();
  };
  for (size_t i = 1; !is_there(journal_.Await(i));) ++i;
  listener_.reset();
  vm_ = {};
  EXPECT_EQ(OpenFds(), before + 1);
}

}  // namespace
}  // namespace postcopy
