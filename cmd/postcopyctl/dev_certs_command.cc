// dev-certs: a certificate authority and certificates for a trial.

#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "cmd/postcopyctl/command.h"
#include "cmd/security/dev_certificates.h"

namespace postcopy {

absl::Status ValidateDevCerts(const Options& options) {
  if (options.dir.empty()) {
    return absl::InvalidArgumentError(
        "dev-certs needs --dir: where shall the files go?");
  }
  if (options.hosts.empty()) {
    return absl::InvalidArgumentError(
        "dev-certs needs --hosts: the names or addresses by which daemons are "
        "dialled, separated by commas");
  }
  return absl::OkStatus();
}

absl::Status RunDevCerts(const CommandContext& context) {
  const Options& options = context.options;
  absl::Status status = WriteDevCerts(
      {.directory = options.dir,
       .hosts = absl::StrSplit(options.hosts, ',', absl::SkipEmpty()),
       .force = options.force});
  if (!status.ok()) return status;
  *context.err << "postcopyctl: certificates for 30 days are in " << options.dir
               << ": give it to daemons and postcopyctl as --tls_dir. Whoever "
                  "has ca-key.pem can make more; for trials only"
               << std::endl;
  return absl::OkStatus();
}

}  // namespace postcopy
