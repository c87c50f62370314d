#include "tests/two_hosts.h"

#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/demovm/guest_ram.h"
#include "cmd/demovm/machine.h"
#include "uffd/kernel_uffd.h"

namespace postcopy {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(1);
constexpr uint32_t kWatchMillis = 20;

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

std::unique_ptr<v1::MigrationService::Stub> StubFor(
    const std::string& address, const ClientSecurity& client) {
  return v1::MigrationService::NewStub(
      grpc::CreateChannel(address, *client.CredentialsFor(address)));
}

absl::Status Await(v1::MigrationService::Stub& stub, const std::string& id,
                   const TwoHosts::Done& done) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  v1::WatchMigrationRequest request;
  request.set_migration_id(id);
  request.set_progress_interval_ms(kWatchMillis);
  auto stream = stub.WatchMigration(&context, request);
  v1::WatchMigrationResponse response;
  while (stream->Read(&response)) {
    if (!done(response.migration())) continue;
    context.TryCancel();
    stream->Finish();
    return absl::OkStatus();
  }
  const grpc::Status end = stream->Finish();
  return absl::DeadlineExceededError(
      absl::StrCat("did not come: ", end.error_message(),
                   "; last seen: ", response.migration().ShortDebugString()));
}

absl::StatusOr<v1::Migration> CreateOn(
    v1::MigrationService::Stub& stub,
    const v1::CreateMigrationRequest& request) {
  grpc::ClientContext context;
  v1::CreateMigrationResponse response;
  absl::Status status =
      FromGrpc(stub.CreateMigration(&context, request, &response));
  if (!status.ok()) return status;
  return response.migration();
}

v1::Migration GetFrom(v1::MigrationService::Stub& stub, const std::string& id) {
  grpc::ClientContext context;
  v1::GetMigrationRequest request;
  request.set_migration_id(id);
  v1::GetMigrationResponse response;
  stub.GetMigration(&context, request, &response);
  return response.migration();
}

absl::Status CancelOn(v1::MigrationService::Stub& stub, const std::string& id) {
  grpc::ClientContext context;
  v1::CancelMigrationRequest request;
  request.set_request_id(absl::StrCat(id, "-cancel"));
  request.set_migration_id(id);
  v1::CancelMigrationResponse response;
  return FromGrpc(stub.CancelMigration(&context, request, &response));
}

}  // namespace

bool MigrationHasEnded(const v1::Migration& migration) {
  return migration.state() == v1::MIGRATION_STATE_COMPLETED ||
         migration.state() == v1::MIGRATION_STATE_CANCELLED ||
         migration.state() == v1::MIGRATION_STATE_FAILED;
}

std::string WhyNoUserfaultfd() {
  absl::StatusOr<NewUserfaultfd> uffd = CreateUserfaultfd();
  return uffd.ok() ? "" : std::string(uffd.status().message());
}

TwoHosts::TwoHosts(Options options) : options_(std::move(options)) {
  // Bazel's temporary directory is too long for a Unix socket.
  char path[] = "/tmp/postcopy-test-XXXXXX";
  directory_ = ::mkdtemp(path);
}

absl::StatusOr<std::unique_ptr<TwoHosts>> TwoHosts::Create(Options options) {
  ChooseGrpcPolling();
  std::unique_ptr<TwoHosts> hosts(new TwoHosts(options));
  auto source = SourceDaemon::Create(
      {.control_address = "127.0.0.1:0",
       .data_address = "127.0.0.1:0",
       .security = options.security,
       .vmm_socket = absl::StrCat(hosts->directory_, "/source.sock"),
       .reconnect_timeout = options.reconnect_timeout,
       .vms_max = options.vms_max,
       .log = options.source_log});
  if (!source.ok()) return source.status();
  hosts->source_ = *std::move(source);
  auto network = FaultProxy::Create(hosts->source_->data_address());
  if (!network.ok()) return network.status();
  hosts->network_ = *std::move(network);
  hosts->source_stub_ =
      StubFor(hosts->source_->control_address(), options.client);
  if (absl::Status s = hosts->StartDestinationDaemon(); !s.ok()) return s;
  return hosts;
}

TwoHosts::~TwoHosts() {
  // The VMMs first: theirs are the threads that might wait for a page.
  EndDestinationDaemon();
  destination_vmm_.reset();
  EndSourceDaemon();
  source_vmm_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

absl::Status TwoHosts::StartDestinationDaemon() {
  auto daemon = DestinationDaemon::Create(
      {.control_address = "127.0.0.1:0",
       .security = options_.security,
       .vmm_socket = absl::StrCat(directory_, "/destination.sock"),
       .reconnect_timeout = options_.reconnect_timeout,
       .vms_max = options_.vms_max,
       .bulk_share = &bulk_share_,
       .recorder = options_.recorder,
       .log = options_.destination_log});
  if (!daemon.ok()) return daemon.status();
  destination_ = *std::move(daemon);
  destination_stub_ = StubFor(destination_->control_address(), options_.client);
  return absl::OkStatus();
}

void TwoHosts::EndSourceDaemon() { source_.reset(); }
void TwoHosts::EndDestinationDaemon() { destination_.reset(); }

absl::StatusOr<std::unique_ptr<demovm::DemoVmm>> TwoHosts::Attach(
    const std::string& name, VmmRole role, ByteCount bytes) {
  const bool source = role == VmmRole::kSource;
  auto ram = demovm::GuestRam::Create(
      bytes, demovm::kLowRamMax,
      source ? options_.source_memory : options_.destination_memory);
  if (!ram.ok()) return ram.status();
  auto machine = demovm::CreateProcessMachine(
      {.vcpus = 2,
       .write_rate_mib_per_s = options_.write_rate_mib_per_s,
       .fill_percent = options_.fill_percent},
      *std::move(ram));
  if (!machine.ok()) return machine.status();
  if (source) {
    if (absl::Status s = (*machine)->Start(); !s.ok()) return s;
  }
  return demovm::DemoVmm::Attach(
      *std::move(machine),
      {.name = name,
       .socket_path = absl::StrCat(
           directory_, source ? "/source.sock" : "/destination.sock"),
       .role = role,
       .dirty_tracking = options_.dirty_tracking,
       .minor_faults = !source && options_.minor_faults});
}

absl::Status TwoHosts::AttachSource(const std::string& name) {
  auto vmm = Attach(name, VmmRole::kSource, options_.ram);
  if (!vmm.ok()) return vmm.status();
  source_vmm_ = *std::move(vmm);
  return absl::OkStatus();
}

absl::Status TwoHosts::AttachDestination(const std::string& name,
                                         ByteCount ram) {
  auto vmm = Attach(name, VmmRole::kDestination, ram);
  if (!vmm.ok()) return vmm.status();
  destination_vmm_ = *std::move(vmm);
  return absl::OkStatus();
}

absl::Status TwoHosts::AttachBoth(const std::string& name) {
  if (absl::Status s = AttachSource(name); !s.ok()) return s;
  return AttachDestination(name, options_.ram);
}

v1::CreateMigrationRequest TwoHosts::SourceRequest(
    const std::string& name) const {
  v1::CreateMigrationRequest request;
  request.set_request_id(absl::StrCat(name, "-create"));
  request.set_migration_id(name);
  request.set_vm_name(name);
  return request;
}

v1::CreateMigrationRequest TwoHosts::DestinationRequest(
    const std::string& name) const {
  v1::CreateMigrationRequest request = SourceRequest(name);
  request.set_source_address(network_->address());
  return request;
}

absl::Status TwoHosts::CreateBoth(const std::string& name,
                                  v1::MigrationPolicy policy,
                                  uint64_t bulk_limit) {
  v1::CreateMigrationRequest source = SourceRequest(name);
  source.set_policy(policy);
  source.set_bulk_limit_bytes_per_second(bulk_limit);
  if (auto s = CreateAtSource(source); !s.ok()) return s.status();
  v1::CreateMigrationRequest destination = DestinationRequest(name);
  destination.set_policy(policy);
  return CreateAtDestination(destination).status();
}

absl::StatusOr<v1::Migration> TwoHosts::CreateAtSource(
    const v1::CreateMigrationRequest& request) {
  return CreateOn(*source_stub_, request);
}

absl::StatusOr<v1::Migration> TwoHosts::CreateAtDestination(
    const v1::CreateMigrationRequest& request) {
  return CreateOn(*destination_stub_, request);
}

v1::Migration TwoHosts::AtSource(const std::string& id) {
  return GetFrom(*source_stub_, id);
}
v1::Migration TwoHosts::AtDestination(const std::string& id) {
  return GetFrom(*destination_stub_, id);
}

absl::Status TwoHosts::SwitchOver(const std::string& id) {
  grpc::ClientContext context;
  v1::SwitchOverRequest request;
  request.set_request_id(absl::StrCat(id, "-switch"));
  request.set_migration_id(id);
  v1::SwitchOverResponse response;
  return FromGrpc(source_stub_->SwitchOver(&context, request, &response));
}

absl::Status TwoHosts::CancelAtSource(const std::string& id) {
  return CancelOn(*source_stub_, id);
}
absl::Status TwoHosts::CancelAtDestination(const std::string& id) {
  return CancelOn(*destination_stub_, id);
}

absl::Status TwoHosts::AwaitSource(const std::string& id, const Done& done) {
  return Await(*source_stub_, id, done);
}
absl::Status TwoHosts::AwaitDestination(const std::string& id,
                                        const Done& done) {
  return Await(*destination_stub_, id, done);
}

absl::StatusOr<demovm::FinalReport> TwoHosts::FinishSource() {
  return source_vmm_->Finish();
}
absl::StatusOr<demovm::FinalReport> TwoHosts::FinishDestination() {
  return destination_vmm_->Finish();
}

}  // namespace postcopy
