// How a program dials daemons.
#ifndef CMD_SECURITY_CLIENT_SECURITY_H_
#define CMD_SECURITY_CLIENT_SECURITY_H_

#include <grpcpp/security/credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/security/peer_list.h"
#include "cmd/security/tls_files.h"

namespace postcopy {

// True for "unix:/path", where the kernel says who is at the other end.
bool IsUnixAddress(absl::string_view address);

// Gives credentials for addresses: plaintext at Unix sockets, and at TCP mutual
// TLS, or plaintext if that was asked for. Copies share the files. Thread-safe.
class ClientSecurity {
 public:
  // Dials Unix sockets only.
  ClientSecurity() = default;

  static ClientSecurity Plaintext();
  // With the client's identity of `files`, as it is at each dial. Servers must
  // be one of `servers`.
  static ClientSecurity Tls(std::shared_ptr<const TlsFiles> files,
                            PeerList servers = {});
  // As the flags --tls_dir and --insecure say; neither is ClientSecurity().
  // Errors as of TlsFiles::Create; INVALID_ARGUMENT for both.
  static absl::StatusOr<ClientSecurity> FromFlags(const std::string& tls_dir,
                                                  bool insecure);

  // For one channel to `address`. FAILED_PRECONDITION, with what to do, if
  // there is no way to dial it.
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsFor(
      absl::string_view address) const;

 private:
  bool plaintext_ = false;
  std::shared_ptr<const TlsFiles> files_;
  PeerList servers_;
};

}  // namespace postcopy

#endif  // CMD_SECURITY_CLIENT_SECURITY_H_
