// What protects a daemon's ports, and what it dials with.
#ifndef CMD_SECURITY_DAEMON_SECURITY_H_
#define CMD_SECURITY_DAEMON_SECURITY_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/security/client_security.h"
#include "cmd/security/port_security.h"
#include "cmd/security/tls_files.h"

namespace postcopy {

// As the flags of the same names say (security_flags.cc). The default permits
// nothing but a control plane at a Unix socket.
struct SecurityOptions {
  std::string tls_dir;
  absl::Duration tls_reload_interval = kTlsReloadInterval;
  bool insecure_control = false;
  bool insecure_data = false;
  // Names, separated by commas.
  std::string control_peers;
  std::string data_peers;
  std::vector<uid_t> control_uids;
  // Gets a sentence when certificates change, and when they cannot be used.
  std::function<void(const std::string&)> log = [](const std::string&) {};
};

// Decides, from options and addresses, what is served and dialled how, and
// keeps the certificates up to date. Outlives the servers it protects; the
// const methods are thread-safe.
class DaemonSecurity {
 public:
  // For pageserverd and for faultd. The data plane of the first is served, that
  // of the second dialled. INVALID_ARGUMENT if options contradict each other,
  // FAILED_PRECONDITION if something would be open that was not asked to be, or
  // as of TlsFiles::Create; each says what to do.
  static absl::StatusOr<std::unique_ptr<DaemonSecurity>> ForSource(
      const SecurityOptions& options, const std::string& control_address,
      const std::string& data_address);
  static absl::StatusOr<std::unique_ptr<DaemonSecurity>> ForDestination(
      const SecurityOptions& options, const std::string& control_address);

  // What of the above the options and addresses alone decide; of no file.
  static absl::Status CheckSource(const SecurityOptions& options,
                                  const std::string& control_address,
                                  const std::string& data_address);
  static absl::Status CheckDestination(const SecurityOptions& options,
                                       const std::string& control_address);

  const PortSecurity& control() const { return control_; }
  // pageserverd only.
  const PortSecurity& data() const { return data_; }
  // faultd only: to sources.
  const ClientSecurity& dialling() const { return dialling_; }

  // Looks at the files now; errors as of TlsFiles::Reload. OK without any.
  absl::Status Reload();

 private:
  explicit DaemonSecurity(const SecurityOptions& options) : options_(options) {}

  // `server`, `client`: which identities are needed.
  absl::Status LoadFiles(bool server, bool client);
  absl::Status Protect(const std::string& flag, const std::string& peers,
                       bool insecure, PortSecurity& port) const;

  const SecurityOptions options_;
  std::shared_ptr<TlsFiles> files_;
  // Null if no port has TLS.
  std::shared_ptr<CertificateFeed> feed_;
  PortSecurity control_;
  PortSecurity data_;
  ClientSecurity dialling_;
};

}  // namespace postcopy

#endif  // CMD_SECURITY_DAEMON_SECURITY_H_
