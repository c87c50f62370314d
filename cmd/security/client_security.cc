#include "cmd/security/client_security.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cmd/security/tls_credentials.h"

namespace postcopy {

bool IsUnixAddress(absl::string_view address) {
  return absl::StartsWith(address, "unix:");
}

ClientSecurity ClientSecurity::Plaintext() {
  ClientSecurity security;
  security.plaintext_ = true;
  return security;
}

ClientSecurity ClientSecurity::Tls(std::shared_ptr<const TlsFiles> files,
                                   PeerList servers) {
  ClientSecurity security;
  security.files_ = std::move(files);
  security.servers_ = std::move(servers);
  return security;
}

absl::StatusOr<ClientSecurity> ClientSecurity::FromFlags(
    const std::string& tls_dir, bool insecure) {
  if (insecure && !tls_dir.empty()) {
    return absl::InvalidArgumentError(
        "--tls_dir and --insecure contradict each other: give one of them");
  }
  if (insecure) return Plaintext();
  if (tls_dir.empty()) return ClientSecurity();
  auto files = TlsFiles::Create({.directory = tls_dir, .client = true});
  if (!files.ok()) return files.status();
  return Tls(*std::move(files));
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>>
ClientSecurity::CredentialsFor(absl::string_view address) const {
  if (plaintext_ || IsUnixAddress(address)) {
    return grpc::InsecureChannelCredentials();
  }
  if (files_ != nullptr) {
    return NewTlsChannelCredentials(*files_->Current(), servers_);
  }
  return absl::FailedPreconditionError(absl::StrCat(
      address,
      " would be dialled in plaintext: give --tls_dir with certificates, or "
      "--insecure if that is what you want"));
}

}  // namespace postcopy
