// Who gets in where: real daemons, real TLS over loopback TCP, certificates of
// authorities made for each test.

#include <gmock/gmock.h>
#include <google/protobuf/empty.pb.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/demovm/guest_ram.h"
#include "cmd/faultd/destination_daemon.h"
#include "cmd/pageserverd/source_daemon.h"
#include "cmd/security/test_directory.h"
#include "cmd/security/tls_credentials.h"
#include "cmd/security/tls_file_names.h"
#include "gtest/gtest.h"
#include "postcopy/v1/data_plane.grpc.pb.h"
#include "postcopy/v1/migration.grpc.pb.h"
#include "tests/two_hosts.h"

namespace postcopy {
namespace {

using ::grpc::StatusCode;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using Credentials = std::shared_ptr<grpc::ChannelCredentials>;

constexpr char kHost[] = "127.0.0.1";
constexpr char kVm[] = "guest";

#define ASSERT_OK(expression)                        \
  do {                                               \
    const absl::Status& status_ = (expression);      \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

// A client of `authority` with these names, which believes in `servers`.
Credentials Client(const DevAuthority& authority,
                   const std::vector<std::string>& names,
                   const std::string& servers, Validity validity = {},
                   PeerList peers = {}) {
  return NewTlsChannelCredentials(
      {.authorities = servers,
       .client = NewIdentity(authority, names, IdentityUse::kClient, validity)},
      std::move(peers));
}

// A connection of its own.
std::shared_ptr<grpc::Channel> Dial(const std::string& address,
                                    const Credentials& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(20));
}

// Any unary method of any service, with an empty request.
grpc::Status Call(const std::string& address, const Credentials& credentials,
                  const std::string& method) {
  grpc::GenericStub stub(Dial(address, credentials));
  grpc::ClientContext context;
  SetDeadline(context);
  grpc::CompletionQueue queue;
  grpc::ByteBuffer request(nullptr, 0);
  grpc::ByteBuffer response;
  grpc::Status status;
  auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status;
}

constexpr char kList[] = "/postcopy.v1.MigrationService/ListMigrations";
constexpr char kOpenSession[] = "/postcopy.v1.DataPlaneService/OpenSession";
constexpr char kHealth[] = "/grpc.health.v1.Health/Check";

grpc::Status List(const std::string& address, const Credentials& credentials) {
  return Call(address, credentials, kList);
}

// An answer of the service itself: the peer got in.
constexpr StatusCode kNoVersion = StatusCode::FAILED_PRECONDITION;

class SecurityTest : public ::testing::Test {
 protected:
  SecurityTest() {
    ChooseGrpcPolling();
    Fill(authority_, ca_);
  }

  // Identities for daemons on this host.
  void Fill(const DevAuthority& authority, const std::string& authorities) {
    directory_.Fill(authorities,
                    NewIdentity(authority, {kHost}, IdentityUse::kServer),
                    NewIdentity(authority, {kHost}, IdentityUse::kClient));
  }

  SecurityOptions Tls() const {
    return {.tls_dir = directory_.path(),
            .tls_reload_interval = absl::Hours(1)};
  }

  void StartSource(const SecurityOptions& security,
                   const std::string& control = "127.0.0.1:0") {
    auto source =
        SourceDaemon::Create({.control_address = control,
                              .data_address = "127.0.0.1:0",
                              .security = security,
                              .vmm_socket = directory_.File("source.sock")});
    ASSERT_OK(source.status());
    source_ = *std::move(source);
  }

  Credentials OwnClient(const std::vector<std::string>& names = {"client"},
                        Validity validity = {}) const {
    return Client(authority_, names, ca_, validity);
  }
  const std::string& control() const { return source_->control_address(); }
  const std::string& data() const { return source_->data_address(); }

  // Until gRPC has seen what was published, a second at most.
  void AwaitServed(const Credentials& credentials, bool served) const {
    while (List(control(), credentials).ok() != served) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  const DevAuthority authority_ = NewAuthority("ours");
  const std::string ca_ = authority_.identity().certificate;
  const DevAuthority other_ = NewAuthority("theirs");
  TestDirectory directory_;
  std::unique_ptr<SourceDaemon> source_;
};

void ExpectUnreachable(const grpc::Status& status) {
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE)
      << status.error_message();
}

void ExpectDenied(const grpc::Status& status, const std::string& flag,
                  const std::string& name) {
  EXPECT_EQ(status.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr(flag), HasSubstr(name)));
}

TEST_F(SecurityTest, ACertificateOfTheAuthorityIsEnoughWithoutLists) {
  StartSource(Tls());
  EXPECT_TRUE(List(control(), OwnClient()).ok());
  EXPECT_TRUE(Call(control(), OwnClient(), kHealth).ok());
  EXPECT_EQ(Call(data(), OwnClient(), kOpenSession).error_code(), kNoVersion);
}

TEST_F(SecurityTest, AClientOfAnotherAuthorityIsNotServed) {
  StartSource(Tls());
  ExpectUnreachable(List(control(), Client(other_, {"client"}, ca_)));
  ExpectUnreachable(
      Call(data(), Client(other_, {"client"}, ca_), kOpenSession));
}

TEST_F(SecurityTest, AServerOfAnotherAuthorityIsNotBelieved) {
  StartSource(Tls());
  const grpc::Status status = List(
      control(), Client(authority_, {"client"}, other_.identity().certificate));
  ExpectUnreachable(status);
  EXPECT_THAT(status.error_message(), HasSubstr("certificate verify failed"));
}

TEST_F(SecurityTest, AnExpiredCertificateIsRefused) {
  StartSource(Tls());
  ExpectUnreachable(
      List(control(),
           OwnClient({"client"}, {.until = absl::Now() - absl::Seconds(1)})));
}

TEST_F(SecurityTest, ACertificateThatDoesNotHoldYetIsRefused) {
  StartSource(Tls());
  ExpectUnreachable(
      List(control(),
           OwnClient({"client"}, {.from = absl::Now() + absl::Minutes(5)})));
}

TEST_F(SecurityTest, AClientWithoutACertificateIsRefused) {
  StartSource(Tls());
  const Credentials anonymous = grpc::SslCredentials({.pem_root_certs = ca_});
  ExpectUnreachable(List(control(), anonymous));
  ExpectUnreachable(Call(data(), anonymous, kOpenSession));
}

// A server's certificate says what it is for.
TEST_F(SecurityTest, AServersCertificateIsNoClients) {
  StartSource(Tls());
  ExpectUnreachable(List(
      control(),
      NewTlsChannelCredentials(
          {.authorities = ca_,
           .client = NewIdentity(authority_, {"client"}, IdentityUse::kServer)},
          {})));
}

TEST_F(SecurityTest, APlaintextClientIsNotServedAtATlsPort) {
  StartSource(Tls());
  ExpectUnreachable(List(control(), grpc::InsecureChannelCredentials()));
  ExpectUnreachable(
      Call(data(), grpc::InsecureChannelCredentials(), kOpenSession));
}

TEST_F(SecurityTest, ATlsClientDoesNotTalkToAPlaintextPort) {
  StartSource({.insecure_control = true, .insecure_data = true});
  ExpectUnreachable(List(control(), OwnClient()));
  EXPECT_TRUE(List(control(), grpc::InsecureChannelCredentials()).ok());
}

TEST_F(SecurityTest, TheHostThatIsDialledMustBeInTheCertificate) {
  directory_.Fill(
      ca_, NewIdentity(authority_, {"other.example"}, IdentityUse::kServer),
      NewIdentity(authority_, {kHost}, IdentityUse::kClient));
  StartSource(Tls());
  const grpc::Status status = List(control(), OwnClient());
  ExpectUnreachable(status);
  EXPECT_THAT(status.error_message(), HasSubstr("Hostname Verification"));
}

// Beside the host's name, a destination can ask for a name of its sources.
TEST_F(SecurityTest, ASourceMustHaveANameThatTheDestinationLists) {
  directory_.Fill(ca_,
                  NewIdentity(authority_, {kHost, "spiffe://example/source"},
                              IdentityUse::kServer),
                  NewIdentity(authority_, {kHost}, IdentityUse::kClient));
  StartSource(Tls());
  const auto dial = [this](const std::string& sources) {
    return Call(data(),
                Client(authority_, {"client"}, ca_, {},
                       *PeerList::Parse("--data_peers", sources)),
                kOpenSession);
  };
  EXPECT_EQ(dial("spiffe://example/source").error_code(), kNoVersion);
  const grpc::Status refused = dial("spiffe://example/elsewhere");
  ExpectUnreachable(refused);
  EXPECT_THAT(
      refused.error_message(),
      AllOf(HasSubstr("spiffe://example/source"), HasSubstr("--data_peers")));
}

// Whatever is served at the port, health and reflection included, and what is
// not.
TEST_F(SecurityTest, ANameThatIsNotListedMayCallNothing) {
  SecurityOptions security = Tls();
  security.control_peers = "orchestrator.example,spiffe://example/o";
  StartSource(security);
  EXPECT_TRUE(List(control(), OwnClient({"orchestrator.example"})).ok());
  EXPECT_TRUE(List(control(), OwnClient({"x", "spiffe://example/o"})).ok());
  for (const char* method :
       {kList, kHealth, "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/no.such/Method"}) {
    SCOPED_TRACE(method);
    ExpectDenied(Call(control(), OwnClient({"intruder.example"}), method),
                 "--control_peers", "intruder.example");
  }
}

TEST_F(SecurityTest, ANameMayBeListedForOnePlaneOnly) {
  SecurityOptions security = Tls();
  security.control_peers = "orchestrator.example";
  security.data_peers = "host-2.example";
  StartSource(security);
  const Credentials orchestrator = OwnClient({"orchestrator.example"});
  const Credentials host = OwnClient({"host-2.example"});
  EXPECT_TRUE(List(control(), orchestrator).ok());
  ExpectDenied(Call(data(), orchestrator, kOpenSession), "--data_peers",
               "orchestrator.example");
  EXPECT_EQ(Call(data(), host, kOpenSession).error_code(), kNoVersion);
  ExpectDenied(List(control(), host), "--control_peers", "host-2.example");
}

TEST_F(SecurityTest, ADestinationsControlPlaneHasTheSameRules) {
  SecurityOptions security = Tls();
  security.control_peers = "orchestrator.example";
  auto destination = DestinationDaemon::Create(
      {.control_address = "127.0.0.1:0",
       .security = security,
       .vmm_socket = directory_.File("destination.sock")});
  ASSERT_OK(destination.status());
  const std::string& address = (*destination)->control_address();
  EXPECT_TRUE(List(address, OwnClient({"orchestrator.example"})).ok());
  ExpectDenied(List(address, OwnClient({"host"})), "--control_peers", "host");
  ExpectUnreachable(List(address, grpc::InsecureChannelCredentials()));
}

TEST_F(SecurityTest, ADaemonDoesNotStartInTheOpenOrWithUselessCertificates) {
  const auto start = [this](const SecurityOptions& security) {
    return SourceDaemon::Create({.control_address = "127.0.0.1:0",
                                 .data_address = "127.0.0.1:0",
                                 .security = security,
                                 .vmm_socket = directory_.File("s.sock")})
        .status();
  };
  EXPECT_THAT(std::string(start({}).message()), HasSubstr("--tls_dir"));
  directory_.Fill(ca_,
                  NewIdentity(authority_, {kHost}, IdentityUse::kServer,
                              {.until = absl::Now() - absl::Seconds(1)}),
                  NewIdentity(authority_, {kHost}, IdentityUse::kClient));
  EXPECT_THAT(
      std::string(start(Tls()).message()),
      AllOf(HasSubstr(kServerCertificateFile), HasSubstr("has expired")));
}

// --- Unix sockets

TEST_F(SecurityTest, AUnixSocketServesItsUsers) {
  const std::string address = "unix:" + directory_.File("control.sock");
  StartSource({.insecure_data = true}, address);
  EXPECT_EQ(control(), address);
  EXPECT_TRUE(List(address, grpc::InsecureChannelCredentials()).ok());
  source_->Shutdown();
  ExpectUnreachable(List(address, grpc::InsecureChannelCredentials()));
}

TEST_F(SecurityTest, AUnixSocketTurnsOtherUsersAway) {
  const std::string address = "unix:" + directory_.File("control.sock");
  StartSource({.insecure_data = true, .control_uids = {::geteuid() + 1}},
              address);
  ExpectUnreachable(List(address, grpc::InsecureChannelCredentials()));
}

// --- Files that change

TEST_F(SecurityTest, NewAuthoritiesCountForNewConnections) {
  StartSource(Tls());
  const Credentials ours = OwnClient();
  const std::string both = ca_ + other_.identity().certificate;
  const Credentials theirs = Client(other_, {"client"}, both);
  ExpectUnreachable(List(control(), theirs));
  Fill(authority_, both);
  ASSERT_OK(source_->security().Reload());
  AwaitServed(theirs, true);
  EXPECT_TRUE(List(control(), ours).ok());
  Fill(other_, other_.identity().certificate);
  ASSERT_OK(source_->security().Reload());
  AwaitServed(Client(authority_, {"client"}, both), false);
  EXPECT_TRUE(List(control(), theirs).ok());
}

TEST_F(SecurityTest, ABrokenKeyChangesNothing) {
  std::vector<std::string> said;
  SecurityOptions security = Tls();
  security.log = [&said](const std::string& s) { said.push_back(s); };
  StartSource(security);
  directory_.Write(kServerKeyFile, "broken");
  EXPECT_FALSE(source_->security().Reload().ok());
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], AllOf(HasSubstr(kServerKeyFile),
                             HasSubstr("the old ones stay in use")));
  EXPECT_TRUE(List(control(), OwnClient()).ok());
}

// --- Sessions

v1::OpenSessionRequest OpenRequest(uint64_t epoch, ByteCount ram) {
  v1::OpenSessionRequest request;
  request.set_protocol_version(1);
  request.set_migration_id(kVm);
  request.set_vm_name(kVm);
  request.set_epoch(epoch);
  v1::RamRegion* region = request.mutable_layout()->add_regions();
  region->set_name("ram-low");
  region->set_length_bytes(ram.value());
  region->set_page_size_bytes(kPageSize);
  return request;
}

// One destination, as the wire sees it.
class RawDestination {
 public:
  RawDestination(const std::string& address, const Credentials& credentials)
      : stub_(v1::DataPlaneService::NewStub(Dial(address, credentials))) {}

  grpc::Status Open(const v1::OpenSessionRequest& request,
                    v1::SessionRef* session) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::OpenSessionResponse response;
    const grpc::Status status =
        stub_->OpenSession(&context, request, &response);
    session->set_session_id(response.session_id());
    session->set_epoch(response.epoch());
    return status;
  }
  grpc::Status Urgent(const v1::SessionRef& session) {
    grpc::ClientContext context;
    SetDeadline(context);
    auto stream = stub_->Urgent(&context);
    v1::UrgentRequest request;
    *request.mutable_session() = session;
    request.add_ram_offsets_bytes(0);
    stream->Write(request);
    v1::UrgentResponse response;
    while (stream->Read(&response)) {
    }
    return stream->Finish();
  }
  grpc::Status Bulk(const v1::SessionRef& session) {
    grpc::ClientContext context;
    SetDeadline(context);
    auto stream = stub_->Bulk(&context);
    v1::BulkRequest request;
    *request.mutable_session() = session;
    request.mutable_attach();
    stream->Write(request);
    v1::BulkResponse response;
    while (stream->Read(&response)) {
    }
    return stream->Finish();
  }
  grpc::Status Complete(const v1::SessionRef& session) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::CompleteSessionRequest request;
    *request.mutable_session() = session;
    v1::CompleteSessionResponse response;
    return stub_->CompleteSession(&context, request, &response);
  }

 private:
  const std::unique_ptr<v1::DataPlaneService::Stub> stub_;
};

class SessionTest : public SecurityTest {
 protected:
  void SetUp() override {
    const std::string why = WhyNoUserfaultfd();
    if (!why.empty()) GTEST_SKIP() << "no userfaultfd: " << why;
    auto client = ClientSecurity::FromFlags(directory_.path(), false);
    ASSERT_OK(client.status());
    options_.security = Tls();
    options_.client = *std::move(client);
    auto hosts = TwoHosts::Create(options_);
    ASSERT_OK(hosts.status());
    hosts_ = *std::move(hosts);
  }

  TwoHosts::Options options_;
  std::unique_ptr<TwoHosts> hosts_;
};

// Both are hosts of the same operator, with all rights on the data plane.
TEST_F(SessionTest, ASessionIsItsOpenersAndNobodyElses) {
  ASSERT_OK(hosts_->AttachSource(kVm));
  ASSERT_OK(hosts_->CreateAtSource(hosts_->SourceRequest(kVm)).status());
  RawDestination opener(hosts_->data_address(), OwnClient({"host-1"}));
  RawDestination intruder(hosts_->data_address(), OwnClient({"host-2"}));
  v1::SessionRef session;
  const auto request = [this](uint64_t epoch) {
    return OpenRequest(epoch, options_.ram);
  };
  // What fails binds nobody.
  EXPECT_EQ(intruder.Open(OpenRequest(1, ByteCount(kPageSize)), &session)
                .error_code(),
            StatusCode::FAILED_PRECONDITION);
  grpc::Status status = opener.Open(request(1), &session);
  ASSERT_TRUE(status.ok()) << status.error_message();

  v1::SessionRef none;
  for (const grpc::Status& refused :
       {intruder.Open(request(1), &none), intruder.Open(request(2), &none),
        intruder.Open(OpenRequest(2, ByteCount(kPageSize)), &none),
        intruder.Urgent(session), intruder.Bulk(session),
        intruder.Complete(session)}) {
    EXPECT_EQ(refused.error_code(), StatusCode::PERMISSION_DENIED);
    EXPECT_THAT(refused.error_message(), HasSubstr("another peer's"));
  }
  EXPECT_EQ(none.session_id(), 0u);

  // The opener is as it was: its epoch is the newest, nobody has its streams.
  EXPECT_EQ(opener.Urgent(session).error_code(),
            StatusCode::FAILED_PRECONDITION)
      << "not handed over yet";
  EXPECT_EQ(opener.Complete(session).error_code(),
            StatusCode::FAILED_PRECONDITION);
  // With a new certificate, and so a new key, it is the same host.
  RawDestination again(hosts_->data_address(), OwnClient({"host-1"}));
  status = again.Open(request(2), &session);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(intruder.Bulk(session).error_code(), StatusCode::PERMISSION_DENIED);
}

// --- Certificates that change while a guest moves

class RotationTest : public SessionTest {
 protected:
  static constexpr uint64_t kSlowBulk = 4 << 20;

  void Rotate(const DevAuthority& authority, const std::string& authorities) {
    Fill(authority, authorities);
    ASSERT_OK(hosts_->ReloadSource());
    ASSERT_OK(hosts_->ReloadDestination());
    // Until the source shows what was published.
    const Credentials client = Client(authority, {kHost}, authorities);
    const std::string& now = directory_.Read(kServerCertificateFile);
    while (ServedCertificate(client) != now) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  // What the source's data plane shows; empty if it does not let us in.
  std::string ServedCertificate(const Credentials& client) const {
    auto stub =
        v1::DataPlaneService::NewStub(Dial(hosts_->data_address(), client));
    grpc::ClientContext context;
    SetDeadline(context);
    v1::OpenSessionRequest request;
    v1::OpenSessionResponse response;
    stub->OpenSession(&context, request, &response);
    const auto auth = context.auth_context();
    if (auth == nullptr) return "";
    const auto shown = auth->FindPropertyValues("x509_pem_cert");
    return shown.empty() ? "" : std::string(shown[0].data(), shown[0].size());
  }

  // The lanes come back with what is valid now.
  void CutAndAwaitReturn() {
    const uint32_t before = hosts_->AtSource(kVm).recoveries();
    hosts_->network().Cut();
    ASSERT_OK(
        hosts_->AwaitSource(kVm, [before](const v1::Migration& migration) {
          return migration.recoveries() > before;
        }));
  }
};

TEST_F(RotationTest, AMigrationOutlivesItsCertificatesAndItsAuthority) {
  ASSERT_OK(hosts_->AttachBoth(kVm));
  ASSERT_OK(hosts_->CreateBoth(kVm, v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY,
                               kSlowBulk));
  ASSERT_OK(hosts_->AwaitSource(
      kVm, [](const v1::Migration& m) { return m.pages().precopied() > 100; }));

  // New certificates of the same authority.
  Rotate(authority_, ca_);
  CutAndAwaitReturn();
  // A new authority: first both are believed, then certificates change, then
  // the old one is believed no more.
  const std::string both = ca_ + other_.identity().certificate;
  Rotate(authority_, both);
  Rotate(other_, both);
  CutAndAwaitReturn();
  Rotate(other_, other_.identity().certificate);
  CutAndAwaitReturn();
  EXPECT_EQ(ServedCertificate(Client(authority_, {kHost}, both)), "");

  // And after the switch-over, with pages missing.
  ASSERT_OK(hosts_->SwitchOver(kVm));
  ASSERT_OK(hosts_->AwaitDestination(kVm, [](const v1::Migration& m) {
    return m.state() == v1::MIGRATION_STATE_POSTCOPY || MigrationHasEnded(m);
  }));
  hosts_->network().Cut();
  ASSERT_OK(hosts_->AwaitDestination(kVm, MigrationHasEnded));
  EXPECT_EQ(hosts_->AtDestination(kVm).state(), v1::MIGRATION_STATE_COMPLETED)
      << hosts_->AtDestination(kVm).ShortDebugString();
  const auto report = hosts_->FinishDestination();
  ASSERT_OK(report.status());
  EXPECT_EQ(report->progress.mismatches, 0u);
  ASSERT_TRUE(report->verdict.has_value());
  EXPECT_TRUE(report->verdict->ok());
}

}  // namespace
}  // namespace postcopy
