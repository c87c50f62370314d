// A certificate authority for tests and trials.
#ifndef CMD_SECURITY_DEV_CERTIFICATES_H_
#define CMD_SECURITY_DEV_CERTIFICATES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "cmd/security/identity.h"
#include "cmd/security/openssl_ptr.h"

namespace postcopy {

// From when until when a certificate holds.
struct Validity {
  // Before now, since clocks differ.
  absl::Time from = absl::Now() - absl::Minutes(5);
  absl::Time until = absl::Now() + absl::Hours(24 * 30);
};

enum class IdentityUse { kServer, kClient };

// Signs certificates with a key that it makes itself (EC, P-256). Not
// thread-safe.
class DevAuthority {
 public:
  // `name` tells it from others. INTERNAL if OpenSSL cannot.
  static absl::StatusOr<DevAuthority> Create(const std::string& name,
                                             Validity validity = {});

  // A fresh key and a certificate for `names`: each an IP address, a URI (it
  // has "://") or a host name. INVALID_ARGUMENT names one that is none.
  absl::StatusOr<Identity> Issue(absl::Span<const std::string> names,
                                 IdentityUse use, Validity validity = {}) const;

  // Its own.
  const Identity& identity() const { return identity_; }

 private:
  DevAuthority(OpensslPtr<EVP_PKEY> key, OpensslPtr<X509> certificate,
               Identity identity);

  OpensslPtr<EVP_PKEY> key_;
  OpensslPtr<X509> certificate_;
  Identity identity_;
};

struct DevCertsOptions {
  // Made if it is not there, for this user alone.
  std::string directory;
  // Where the daemons are, as peers dial them; also in the client's
  // certificate, by which --control_peers and --data_peers know it.
  std::vector<std::string> hosts;
  // Overwrite what is there.
  bool force = false;
};

// Writes what --tls_dir wants (tls_files.h), and the authority's key beside it
// (ca-key.pem), with which more can be signed. Keys have mode 0600.
// ALREADY_EXISTS, and nothing is written, if a file is there and must not be
// overwritten; INVALID_ARGUMENT as of Issue, or for no host.
absl::Status WriteDevCerts(const DevCertsOptions& options);

}  // namespace postcopy

#endif  // CMD_SECURITY_DEV_CERTIFICATES_H_
