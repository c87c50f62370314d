// Whether certificates and keys are such that TLS can use them.
#ifndef CMD_SECURITY_CERTIFICATE_CHECK_H_
#define CMD_SECURITY_CERTIFICATE_CHECK_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace postcopy {

// Text of a PEM file, and what messages call it.
struct NamedPem {
  absl::string_view name;
  absl::string_view pem;
};

// `ca` has one or more certificates, and nothing after the first is damaged.
// Whether they have expired is not looked at: whoever has one of an expired
// authority is refused by the handshake. FAILED_PRECONDITION.
absl::Status CheckAuthorities(NamedPem ca);

// `certificate` (the first is the leaf, others lead to the authority) holds at
// `now`, and `key` is its private key, without a passphrase.
// FAILED_PRECONDITION names the file and says what to do.
absl::Status CheckIdentity(NamedPem certificate, NamedPem key, absl::Time now);

// Until when the first certificate of `pem` holds; the infinite past if there
// is none.
absl::Time HoldsUntil(absl::string_view pem);

}  // namespace postcopy

#endif  // CMD_SECURITY_CERTIFICATE_CHECK_H_
