// How gRPC's servers get at certificates that change.
#ifndef CMD_SECURITY_CERTIFICATE_FEED_H_
#define CMD_SECURITY_CERTIFICATE_FEED_H_

#include <grpcpp/security/tls_certificate_provider.h>

#include <ctime>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/security/identity.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Hands gRPC one consistent pair of authorities and identity after another.
//
// gRPC 1.51 takes changing certificates from files only. If it reads a key that
// does not fit, its server accepts nobody any more; and it may read one of two
// files before they are replaced and the other after. So it never sees the
// operator's files: what has been checked is put into memory files, in one
// step each (docs/adr/0022). Not thread-safe.
class CertificateFeed {
 public:
  // RESOURCE_EXHAUSTED if there is no memory or descriptor for it.
  static absl::StatusOr<std::unique_ptr<CertificateFeed>> Create(
      const std::string& authorities, const Identity& identity);

  // gRPC uses these from a second later at the latest. Both must be usable
  // (certificate_check.h). RESOURCE_EXHAUSTED as above: the old ones stay.
  absl::Status Publish(const std::string& authorities,
                       const Identity& identity);

  // For the credentials. What uses it must end before the feed.
  std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider()
      const {
    return provider_;
  }

 private:
  CertificateFeed() = default;

  // Counts up, for gRPC to see in the files' times that they changed.
  std::time_t version_ = 1;
  UniqueFd authorities_;
  UniqueFd identity_;
  std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider_;
};

}  // namespace postcopy

#endif  // CMD_SECURITY_CERTIFICATE_FEED_H_
