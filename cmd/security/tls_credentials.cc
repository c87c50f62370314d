#include "cmd/security/tls_credentials.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cmd/daemon/grpc_status.h"

namespace postcopy {
namespace {

using grpc::experimental::ExternalCertificateVerifier;
using grpc::experimental::HostNameCertificateVerifier;
using grpc::experimental::IdentityKeyCertPair;
using grpc::experimental::StaticDataCertificateProvider;
using grpc::experimental::TlsChannelCredentialsOptions;
using grpc::experimental::TlsCustomVerificationCheckRequest;
using grpc::experimental::TlsServerCredentialsOptions;

void Append(const std::vector<grpc::string_ref>& names,
            std::vector<std::string>& out) {
  for (const grpc::string_ref& name : names) {
    out.emplace_back(name.data(), name.size());
  }
}

// Looks at every call of a port.
class PeerCheck final : public grpc::AuthMetadataProcessor {
 public:
  explicit PeerCheck(PeerList peers) : peers_(std::move(peers)) {}

  // It looks into memory only.
  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& /*metadata*/,
                       grpc::AuthContext* context, OutputMetadata* /*consumed*/,
                       OutputMetadata* /*response*/) override {
    std::vector<std::string> names;
    Append(context->FindPropertyValues(GRPC_PEER_DNS_PROPERTY_NAME), names);
    Append(context->FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME), names);
    return ToGrpc(peers_.Check(names));
  }

 private:
  const PeerList peers_;
};

// The host's name, as gRPC would check it alone, and then the list.
class ServerVerifier final : public ExternalCertificateVerifier {
 public:
  explicit ServerVerifier(PeerList peers) : peers_(std::move(peers)) {}

  bool Verify(TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)> callback,
              grpc::Status* sync_status) override {
    // It answers at once.
    host_name_.Verify(request, std::move(callback), sync_status);
    if (!sync_status->ok()) return true;
    std::vector<std::string> names;
    Append(request->dns_names(), names);
    Append(request->uri_names(), names);
    *sync_status = ToGrpc(peers_.Check(names));
    return true;
  }

  void Cancel(TlsCustomVerificationCheckRequest* /*request*/) override {}

 private:
  HostNameCertificateVerifier host_name_;
  const PeerList peers_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> NewTlsServerCredentials(
    std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider,
    PeerList peers) {
  TlsServerCredentialsOptions options(std::move(provider));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  auto credentials = grpc::experimental::TlsServerCredentials(options);
  if (!peers.empty()) {
    credentials->SetAuthMetadataProcessor(
        std::make_shared<PeerCheck>(std::move(peers)));
  }
  return credentials;
}

std::shared_ptr<grpc::ChannelCredentials> NewTlsChannelCredentials(
    const TlsFileSet& files, PeerList peers) {
  TlsChannelCredentialsOptions options;
  options.set_certificate_provider(
      std::make_shared<StaticDataCertificateProvider>(
          files.authorities,
          std::vector<IdentityKeyCertPair>{
              {files.client.key, files.client.certificate}}));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_certificate_verifier(
      ExternalCertificateVerifier::Create<ServerVerifier>(std::move(peers)));
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace postcopy
