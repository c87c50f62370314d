// gRPC's credentials for mutual TLS.
#ifndef CMD_SECURITY_TLS_CREDENTIALS_H_
#define CMD_SECURITY_TLS_CREDENTIALS_H_

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>

#include <memory>

#include "cmd/security/peer_list.h"
#include "cmd/security/tls_files.h"

namespace postcopy {

// For a port: peers without a certificate of the authorities do not get past
// the handshake, and every call of one that `peers` does not name, to whichever
// service, is answered with PERMISSION_DENIED before the service sees it.
std::shared_ptr<grpc::ServerCredentials> NewTlsServerCredentials(
    std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider,
    PeerList peers);

// For dialling with the client's identity of `files`. The server must have a
// certificate of the authorities for the host that is dialled, and one of the
// names of `peers`: else the call fails with UNAVAILABLE and says so.
std::shared_ptr<grpc::ChannelCredentials> NewTlsChannelCredentials(
    const TlsFileSet& files, PeerList peers);

}  // namespace postcopy

#endif  // CMD_SECURITY_TLS_CREDENTIALS_H_
