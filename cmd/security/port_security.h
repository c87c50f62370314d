// Who gets in at a port of a daemon.
#ifndef CMD_SECURITY_PORT_SECURITY_H_
#define CMD_SECURITY_PORT_SECURITY_H_

#include <grpcpp/security/server_credentials.h>
#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cmd/security/certificate_feed.h"

namespace postcopy {

struct PortSecurity {
  // At a TCP port. Null: it must not be served.
  std::shared_ptr<grpc::ServerCredentials> credentials;
  // At a Unix socket: users that may connect; empty: root and the user this
  // process runs as.
  std::vector<uid_t> uids;
  // Gets a sentence when somebody was turned away there.
  std::function<void(const std::string&)> log = [](const std::string&) {};
  // What `credentials` read, as long as the server is there.
  std::shared_ptr<CertificateFeed> feed;
};

}  // namespace postcopy

#endif  // CMD_SECURITY_PORT_SECURITY_H_
