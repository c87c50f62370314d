#include "cmd/vmm_channel/vmm_listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/packet_socket.h"
#include "cmd/vmm_channel/test_support.h"
#include "cmd/vmm_channel/vmm_client.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr absl::Duration kLong = absl::Seconds(30);

class VmmListenerTest : public testing::Test {
 protected:
  VmmListenerTest() {
    options_.socket_path = dir_ / "vmm.sock";
    options_.role = VmmRole::kSource;
    options_.attach_timeout = kLong;
    options_.on_attach = [this](const std::shared_ptr<VmmConnection>& vm) {
      journal_.Add("+" + vm->vm_name());
      return on_attach_result_;
    };
    options_.on_detach = [this](const std::string& name) {
      journal_.Add("-" + name);
    };
  }

  void Listen() {
    absl::StatusOr<std::unique_ptr<VmmListener>> listener =
        VmmListener::Create(options_);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }

  absl::StatusOr<std::unique_ptr<VmmClient>> Attach(const std::string& name) {
    return VmmClient::Attach(options_.socket_path, SourceGuest(name).guest,
                             kLong);
  }

  // A peer that has connected and said nothing.
  PacketSocket Connect() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const sockaddr_un address = *UnixAddress(options_.socket_path);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address),
                        sizeof(address)),
              0)
        << std::strerror(errno);
    return PacketSocket(std::move(fd), "the daemon");
  }

  // The daemon's answer to whatever `socket` sent.
  static absl::Status Verdict(PacketSocket& socket) {
    absl::StatusOr<Packet> packet = socket.Receive(Deadline::After(kLong));
    if (!packet.ok()) return packet.status();
    v1::DaemonMessage message;
    EXPECT_TRUE(message.ParseFromString(packet->bytes));
    EXPECT_TRUE(message.has_attach_result());
    return absl::Status(
        static_cast<absl::StatusCode>(message.attach_result().code()),
        message.attach_result().message());
  }

  // Waits until the daemon has ended the connection.
  static void ExpectEnd(PacketSocket& socket) {
    EXPECT_TRUE(Is(socket.Receive(Deadline::After(kLong)).status(),
                   StatusCode::kUnavailable, "the daemon closed"));
  }

  TempDir dir_;
  Journal journal_;
  absl::Status on_attach_result_;
  VmmListener::Options options_;
  std::unique_ptr<VmmListener> listener_;
};

// As a service manager makes it.
int ListenAt(const std::string& path, int type) {
  const int fd = ::socket(AF_UNIX, type, 0);
  const sockaddr_un address = *UnixAddress(path);
  EXPECT_EQ(
      ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
      0);
  EXPECT_EQ(::listen(fd, 8), 0);
  return fd;
}

TEST_F(VmmListenerTest, TakesOverASocketAndLeavesItsFile) {
  options_.inherited_socket = ListenAt(options_.socket_path, SOCK_SEQPACKET);
  Listen();
  EXPECT_TRUE(Attach("vm1").ok());
  listener_->Shutdown();
  EXPECT_EQ(::access(options_.socket_path.c_str(), F_OK), 0)
      << "who made it listens on for the next daemon";
  EXPECT_NE(::access((options_.socket_path + ".lock").c_str(), F_OK), 0);
}

TEST_F(VmmListenerTest, RefusesToTakeOverWhatIsNoSuchSocket) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  ::close(pipe_ends[1]);
  for (const int fd : {ListenAt(options_.socket_path, SOCK_STREAM),
                       ::socket(AF_UNIX, SOCK_SEQPACKET, 0), pipe_ends[0]}) {
    options_.inherited_socket = fd;
    const absl::Status status = VmmListener::Create(options_).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_TRUE(absl::StrContains(status.message(), "ListenSequentialPacket="))
        << status;
  }
}

TEST_F(VmmListenerTest, ShowsLifeUnlessACallbackIsStuck) {
  std::atomic<bool> entered{false};
  std::atomic<bool> stuck{true};
  options_.on_attach = [&](const std::shared_ptr<VmmConnection>&) {
    entered = true;
    while (stuck) std::this_thread::yield();
    return absl::OkStatus();
  };
  Listen();
  for (int i = 0; i < 10; ++i) {
    while (!listener_->ShowsLife()) std::this_thread::yield();
  }
  std::thread vmm([&] { EXPECT_TRUE(Attach("vm1").ok()); });
  while (!entered) std::this_thread::yield();
  listener_->ShowsLife();  // whatever was asked before; asks
  EXPECT_FALSE(listener_->ShowsLife());
  EXPECT_FALSE(listener_->ShowsLife());
  stuck = false;
  vmm.join();
  while (!listener_->ShowsLife()) std::this_thread::yield();
  listener_->Shutdown();
  EXPECT_TRUE(listener_->ShowsLife());
  EXPECT_TRUE(listener_->ShowsLife());
}

TEST_F(VmmListenerTest, AttachesAndDetaches) {
  const size_t before = OpenFds();
  Listen();
  EXPECT_EQ(listener_->Find("a"), nullptr);
  absl::StatusOr<std::unique_ptr<VmmClient>> b = Attach("b");
  ASSERT_TRUE(b.ok()) << b.status();
  absl::StatusOr<std::unique_ptr<VmmClient>> a = Attach("a");
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(listener_->names(), (std::vector<std::string>{"a", "b"}));
  std::shared_ptr<VmmConnection> found = listener_->Find("a");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->vm_name(), "a");
  EXPECT_EQ(found->attachment().layout.bytes(), ByteCount(SourceGuest::kBytes));

  a->reset();
  EXPECT_EQ(journal_.Await(3), (std::vector<std::string>{"+b", "+a", "-a"}));
  EXPECT_EQ(listener_->Find("a"), nullptr);
  EXPECT_TRUE(found->closed());
  EXPECT_EQ(listener_->names(), std::vector<std::string>{"b"});
  found.reset();
  b->reset();
  journal_.Await(4);
  listener_.reset();
  EXPECT_EQ(OpenFds(), before);
}

TEST_F(VmmListenerTest, RunsCommandsThroughTheSocket) {
  class Vmm : public VmmHandler {
   public:
    absl::Status PauseGuest() override { return absl::OkStatus(); }
    absl::StatusOr<std::string> SaveDeviceState() override { return "state"; }
  };
  Listen();
  absl::StatusOr<std::unique_ptr<VmmClient>> client = Attach("a");
  ASSERT_TRUE(client.ok()) << client.status();
  Vmm vmm;
  std::thread serving([&] { EXPECT_TRUE((*client)->Serve(vmm).ok()); });
  const std::shared_ptr<VmmConnection> vm = listener_->Find("a");
  EXPECT_TRUE(vm->PauseGuest().ok());
  absl::StatusOr<std::string> state = vm->SaveDeviceState();
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(*state, "state");
  EXPECT_TRUE(Is(vm->ResumeGuest(), StatusCode::kUnimplemented,
                 "VM a: ResumeGuest: this VMM does not implement"));
  listener_->Shutdown();
  serving.join();
  EXPECT_TRUE(vm->closed());
}

TEST_F(VmmListenerTest, TimedOutVmIsDetached) {
  options_.command_timeout = absl::Milliseconds(20);
  Listen();
  absl::StatusOr<std::unique_ptr<VmmClient>> client = Attach("a");
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(Is(listener_->Find("a")->PauseGuest(),
                 StatusCode::kDeadlineExceeded, "VM a: PauseGuest"));
  EXPECT_EQ(journal_.Await(2), (std::vector<std::string>{"+a", "-a"}));
  EXPECT_EQ(listener_->Find("a"), nullptr);
}

TEST_F(VmmListenerTest, UserThatIsNotAllowedIsRefusedUnread) {
  options_.allowed_uids = {::geteuid() + 1};
  Listen();
  absl::Status status = Attach("a").status();
  EXPECT_TRUE(Is(status, StatusCode::kPermissionDenied,
                 absl::StrCat("user ", ::geteuid(), " may not attach VMs")));
  // Told although it has sent nothing.
  PacketSocket silent = Connect();
  EXPECT_TRUE(Is(Verdict(silent), StatusCode::kPermissionDenied, "user"));
  ExpectEnd(silent);
}

TEST_F(VmmListenerTest, NameIsTakenUntilItsVmGoes) {
  Listen();
  absl::StatusOr<std::unique_ptr<VmmClient>> first = Attach("a");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(Is(Attach("a").status(), StatusCode::kAlreadyExists,
                 "a VM named a is attached already"));
  // However fast it comes back, the end is seen first.
  for (int i = 0; i < 100; ++i) {
    first->reset();
    first = Attach("a");
    ASSERT_TRUE(first.ok()) << first.status();
  }
  const std::vector<std::string> journal = journal_.Await(201);
  for (size_t i = 0; i < 201; ++i) {
    ASSERT_EQ(journal[i], i % 2 == 0 ? "+a" : "-a");
  }
}

TEST_F(VmmListenerTest, TakesAsManyVmsAsItIsSetTo) {
  options_.vms_max = 3;
  Listen();
  std::vector<std::unique_ptr<VmmClient>> clients;
  for (int i = 0; i < 3; ++i) {
    absl::StatusOr<std::unique_ptr<VmmClient>> client =
        Attach(absl::StrCat("vm-", i));
    ASSERT_TRUE(client.ok()) << client.status();
    clients.push_back(*std::move(client));
  }
  EXPECT_TRUE(Is(Attach("vm-3").status(), StatusCode::kResourceExhausted,
                 "3 VMs are attached"));
  clients.pop_back();
  // Mostly at once; else it is still being let go.
  absl::Status status = Attach("vm-3").status();
  while (absl::IsResourceExhausted(status)) status = Attach("vm-3").status();
  EXPECT_TRUE(status.ok()) << status;
}

// A migration that is being let go has its memory and descriptors still.
TEST_F(VmmListenerTest, AVmThatHasGoneCountsUntilNothingOfItIsHeld) {
  std::shared_ptr<const void> held;
  options_.vms_max = 1;
  options_.on_attach = [&](const std::shared_ptr<VmmConnection>& vm) {
    if (held == nullptr) held = vm->held();
    return absl::OkStatus();
  };
  Listen();
  absl::StatusOr<std::unique_ptr<VmmClient>> first = Attach("a");
  ASSERT_TRUE(first.ok()) << first.status();
  first->reset();
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"-a"});
  EXPECT_TRUE(Is(Attach("b").status(), StatusCode::kResourceExhausted,
                 "1 of them have gone and are being let go: try again"));
  held.reset();
  const auto second = Attach("b");
  EXPECT_TRUE(second.ok()) << second.status();
}

TEST_F(VmmListenerTest, DefaultTakes256) {
  EXPECT_EQ(VmmListener::Options().vms_max, 256u);
}

TEST_F(VmmListenerTest, OwnerMayRefuse) {
  on_attach_result_ = absl::FailedPreconditionError("userfaultfd: no");
  const size_t before = OpenFds();
  Listen();
  EXPECT_TRUE(Is(Attach("a").status(), StatusCode::kFailedPrecondition,
                 "userfaultfd: no"));
  EXPECT_EQ(listener_->Find("a"), nullptr);
  listener_.reset();
  // No "-a": it never was.
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"+a"});
  EXPECT_EQ(OpenFds(), before);
}

// Whoever is turned away, wherever: the owner learns what he was told.
TEST_F(VmmListenerTest, OwnerIsToldOfEachRefusal) {
  options_.on_refuse = [this](const absl::Status& why) {
    journal_.Add(std::string(why.message()).substr(0, 12));
  };
  Listen();
  PacketSocket peer = Connect();
  ASSERT_TRUE(peer.Send("no message", {}, Deadline::After(kLong)).ok());
  EXPECT_FALSE(Verdict(peer).ok());
  EXPECT_EQ(journal_.Await(1), std::vector<std::string>{"the first pa"});
  on_attach_result_ = absl::FailedPreconditionError("userfaultfd: no");
  EXPECT_FALSE(Attach("a").ok());
  EXPECT_EQ(journal_.Await(3).back(), "userfaultfd:");
  listener_.reset();
  options_.allowed_uids = {::geteuid() + 1};
  Listen();
  EXPECT_FALSE(Attach("b").ok());
  EXPECT_EQ(journal_.Await(4).size(), 4u);
}

TEST_F(VmmListenerTest, OwnerCannotCommandBeforeTheVmmIsAnswered) {
  absl::Status status;
  options_.on_attach = [&](const std::shared_ptr<VmmConnection>& vm) {
    status = vm->PauseGuest();
    return absl::OkStatus();
  };
  Listen();
  EXPECT_TRUE(Attach("a").ok());
  EXPECT_TRUE(Is(status, StatusCode::kFailedPrecondition, "VM a: PauseGuest"));
}

TEST_F(VmmListenerTest, BadAttachIsRefusedWithItsReason) {
  Listen();
  SourceGuest source("a");
  GuestToAttach guest = source.guest;
  guest.role = VmmRole::kDestination;
  EXPECT_TRUE(Is(VmmClient::Attach(options_.socket_path, guest, kLong).status(),
                 StatusCode::kInvalidArgument,
                 "this is pageserverd, the source; attach"));
}

TEST_F(VmmListenerTest, FirstPacketMustBeAnAttach) {
  Listen();
  for (const std::string& bytes :
       {std::string("garbage"), std::string("\x12\x00", 2)}) {
    PacketSocket socket = Connect();
    ASSERT_TRUE(socket.Send(bytes, {}, Deadline::Infinite()).ok());
    EXPECT_TRUE(Is(Verdict(socket), StatusCode::kInvalidArgument,
                   "the first packet is not a VmmMessage with an Attach"));
    ExpectEnd(socket);
  }
}

TEST_F(VmmListenerTest, OversizePacketIsRefused) {
  Listen();
  PacketSocket socket = Connect();
  SendRaw(socket.fd(), std::string(kMaxPacketBytes + 1, 'x'), {});
  EXPECT_TRUE(Is(Verdict(socket), StatusCode::kInvalidArgument,
                 "a packet of more than 65536 bytes"));
}

TEST_F(VmmListenerTest, DescriptorsAreCounted) {
  Listen();
  SourceGuest source("a");
  v1::VmmMessage message;
  v1::Attach& attach = *message.mutable_attach();
  attach.set_protocol_version(1);
  attach.set_vm_name("a");
  attach.set_role(v1::ROLE_SOURCE);
  v1::AttachedRegion& region = *attach.add_regions();
  region.mutable_region()->set_name("ram");
  region.mutable_region()->set_length_bytes(SourceGuest::kBytes);
  region.mutable_region()->set_page_size_bytes(kPageSize);
  attach.add_slots()->set_length_bytes(SourceGuest::kBytes);
  for (size_t i = 0; i < kMaxDescriptors; ++i) {
    attach.add_descriptors(v1::DESCRIPTOR_KIND_MEMORY);
  }
  const std::string bytes = message.SerializeAsString();
  const auto verdict = [&](size_t count) {
    PacketSocket socket = Connect();
    SendRaw(socket.fd(), bytes, std::vector<int>(count, source.memory.get()));
    return Verdict(socket);
  };
  EXPECT_TRUE(Is(verdict(65), StatusCode::kInvalidArgument,
                 "names 66 descriptors, but 65 came"));
  // All 66 come through, and are looked at.
  EXPECT_TRUE(Is(verdict(66), StatusCode::kInvalidArgument,
                 "no descriptor of kind DIRTY_LOG"));
  EXPECT_TRUE(Is(verdict(67), StatusCode::kInvalidArgument,
                 "more than 66 descriptors beside one packet"));
}

TEST_F(VmmListenerTest, SecondPacketDoesNotHideTheReason) {
  Listen();
  PacketSocket socket = Connect();
  ASSERT_TRUE(socket.Send("garbage", {}, Deadline::Infinite()).ok());
  // May come before or after the refusal.
  socket.Send("more", {}, Deadline::Infinite()).IgnoreError();
  EXPECT_TRUE(Is(Verdict(socket), StatusCode::kInvalidArgument, ""));
}

TEST_F(VmmListenerTest, SilentPeersDoNotHoldUpOthers) {
  Listen();
  std::vector<PacketSocket> silent;
  for (size_t i = 0; i < kMaxPendingPeers; ++i) silent.push_back(Connect());
  EXPECT_TRUE(Attach("a").ok());
  // There was room for one less than it took: the oldest had to go.
  EXPECT_TRUE(Is(Verdict(silent[0]), StatusCode::kResourceExhausted,
                 "send Attach as soon as connected"));
  ExpectEnd(silent[0]);
  for (size_t i = 1; i < silent.size(); ++i) EXPECT_FALSE(silent[i].closed());
  EXPECT_TRUE(Attach("b").ok());
}

TEST_F(VmmListenerTest, AsManyPeersAsAllowedMayTakeTheirTime) {
  Listen();
  std::vector<PacketSocket> silent;
  for (size_t i = 0; i + 1 < kMaxPendingPeers; ++i) silent.push_back(Connect());
  EXPECT_TRUE(Attach("a").ok());
  for (const PacketSocket& socket : silent) EXPECT_FALSE(socket.closed());
}

TEST_F(VmmListenerTest, SilentPeerRunsIntoTheTimeout) {
  options_.attach_timeout = absl::Milliseconds(20);
  Listen();
  PacketSocket silent = Connect();
  EXPECT_TRUE(Is(Verdict(silent), StatusCode::kDeadlineExceeded,
                 "no Attach came within 20ms"));
  ExpectEnd(silent);
}

TEST_F(VmmListenerTest, SocketIsForOwnerAndGroup) {
  Listen();
  struct stat info;
  ASSERT_EQ(::stat(options_.socket_path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
  listener_->Shutdown();
  EXPECT_NE(::stat(options_.socket_path.c_str(), &info), 0);
}

TEST_F(VmmListenerTest, TwoDaemonsDoNotShareAPath) {
  Listen();
  EXPECT_TRUE(Is(VmmListener::Create(options_).status(),
                 StatusCode::kFailedPrecondition, "another daemon listens on"));
  EXPECT_TRUE(Attach("a").ok());
  listener_.reset();
  Listen();
}

TEST_F(VmmListenerTest, SomebodyElsesSocketIsLeftAlone) {
  for (const int type : {SOCK_SEQPACKET, SOCK_STREAM, SOCK_DGRAM}) {
    UniqueFd other(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    const sockaddr_un address = *UnixAddress(options_.socket_path);
    ASSERT_EQ(::bind(other.get(), reinterpret_cast<const sockaddr*>(&address),
                     sizeof(address)),
              0);
    if (type != SOCK_DGRAM) {
      ASSERT_EQ(::listen(other.get(), 1), 0);
    }
    EXPECT_TRUE(Is(VmmListener::Create(options_).status(),
                   StatusCode::kFailedPrecondition, "another daemon"));
    ASSERT_EQ(::unlink(options_.socket_path.c_str()), 0);
  }
}

TEST_F(VmmListenerTest, StaleSocketIsReplaced) {
  {
    UniqueFd dead(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const sockaddr_un address = *UnixAddress(options_.socket_path);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address),
                     sizeof(address)),
              0);
    ASSERT_EQ(::listen(dead.get(), 1), 0);
  }
  Listen();
  EXPECT_TRUE(Attach("a").ok());
}

TEST_F(VmmListenerTest, FileThatIsNoSocketIsLeftAlone) {
  std::ofstream(options_.socket_path) << "precious";
  EXPECT_TRUE(Is(VmmListener::Create(options_).status(),
                 StatusCode::kFailedPrecondition, "is no socket"));
  EXPECT_TRUE(std::filesystem::exists(options_.socket_path));
}

TEST_F(VmmListenerTest, BadPathsAreRefused) {
  options_.socket_path = dir_ / std::string(108, 'x');
  EXPECT_TRUE(Is(VmmListener::Create(options_).status(),
                 StatusCode::kInvalidArgument, "Unix sockets allow 107"));
  options_.socket_path = dir_ / "missing/vmm.sock";
  EXPECT_TRUE(Is(VmmListener::Create(options_).status(),
                 StatusCode::kFailedPrecondition, "No such file"));
}

TEST_F(VmmListenerTest, ShutdownEndsEverything) {
  Listen();
  absl::StatusOr<std::unique_ptr<VmmClient>> client = Attach("a");
  ASSERT_TRUE(client.ok()) << client.status();
  PacketSocket silent = Connect();
  listener_->Shutdown();
  listener_->Shutdown();
  EXPECT_EQ(journal_.Await(2), (std::vector<std::string>{"+a", "-a"}));
  EXPECT_EQ(listener_->Find("a"), nullptr);
  VmmHandler idle;
  EXPECT_TRUE((*client)->Serve(idle).ok());
  // Accepted or not, it is not left waiting.
  EXPECT_FALSE(silent.Receive(Deadline::After(kLong)).status().code() ==
               StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(Is(Attach("b").status(), StatusCode::kUnavailable,
                 "cannot connect to the daemon at"));
}

TEST_F(VmmListenerTest, VmmProcessThatIsKilledIsDetached) {
  Listen();
  // Forked before it attaches, so that this process holds no end of it.
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    absl::StatusOr<std::unique_ptr<VmmClient>> client = Attach("a");
    const char byte = client.ok() ? 'y' : 'n';
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  ::close(ready[1]);
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  ::close(ready[0]);
  std::shared_ptr<VmmConnection> vm = listener_->Find("a");
  ASSERT_NE(vm, nullptr);
  std::thread killer([child] {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  });
  EXPECT_TRUE(Is(vm->PauseGuest(), StatusCode::kUnavailable,
                 "VM a: PauseGuest: the VMM closed the connection"));
  killer.join();
  EXPECT_EQ(journal_.Await(2), (std::vector<std::string>{"+a", "-a"}));
}

TEST_F(VmmListenerTest, ManyVmmsComeAndGoAtOnce) {
  const size_t before = OpenFds();
  Listen();
  constexpr int kThreads = 4;
  constexpr int kRounds = 25;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < kRounds; ++i) {
        absl::StatusOr<std::unique_ptr<VmmClient>> client =
            Attach(absl::StrCat("vm-", t));
        ASSERT_TRUE(client.ok()) << client.status();
        ASSERT_NE(listener_->Find(absl::StrCat("vm-", t)), nullptr);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  journal_.Await(2 * kThreads * kRounds);
  listener_.reset();
  EXPECT_EQ(OpenFds(), before);
}

// Whatever comes as a first packet, with whatever descriptors, the daemon
// answers or closes, keeps nothing, and takes the next VM.
TEST_F(VmmListenerTest, SurvivesRandomPackets) {
  const size_t before = OpenFds();
  Listen();
  std::mt19937 random(20240608);
  const UniqueFd file = Memfd(kPageSize, F_SEAL_SHRINK);
  for (int i = 0; i < 10000; ++i) {
    PacketSocket socket = Connect();
    std::string bytes(1 + random() % 200, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    // Half of them look like an Attach at first.
    if (bytes.size() > 2 && random() % 2 == 0) {
      bytes[0] = 0x0a;
      bytes[1] = static_cast<char>((bytes.size() - 2) & 0x7f);
    }
    const std::vector<int> fds(random() % 4, file.get());
    ASSERT_TRUE(socket.Send(bytes, fds, Deadline::Infinite()).ok());
    if (i % 2 != 0) continue;  // goes without waiting for an answer
    ASSERT_FALSE(Verdict(socket).ok());
  }
  EXPECT_TRUE(Attach("a").ok());
  journal_.Await(2);
  listener_.reset();
  EXPECT_EQ(OpenFds(), before + 1);
}

}  // namespace
}  // namespace postcopy
