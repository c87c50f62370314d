#include "cmd/security/security_flags.h"

#include <string>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/daemon/daemon.h"
#include "cmd/security/peer_list.h"

ABSL_FLAG(std::string, tls_dir, "",
          "directory with ca-cert.pem and, as far as needed, server-cert.pem, "
          "server-key.pem, client-cert.pem, client-key.pem; read again when "
          "they change");
ABSL_FLAG(absl::Duration, tls_reload_interval, postcopy::kTlsReloadInterval,
          "how often these files are looked at");
ABSL_FLAG(std::string, control_peers, "",
          "names (DNS or URI, in the certificate), separated by commas, of who "
          "may use the control plane; empty: every certificate of ca-cert.pem");
ABSL_FLAG(std::string, data_peers, "",
          "names of whom pages are given to (pageserverd) or taken from "
          "(faultd); empty: every certificate of ca-cert.pem");
ABSL_FLAG(std::string, control_uids, "",
          "user ids that may use a control plane at unix:/path, separated by "
          "commas; empty: root and the user this daemon runs as");
ABSL_FLAG(bool, insecure_control, false,
          "serve the control plane in plaintext, to whoever reaches it");
ABSL_FLAG(bool, insecure_data, false,
          "give pages (pageserverd) or fetch them (faultd) in plaintext");

namespace postcopy {
namespace {

absl::Status CheckInterval(absl::Duration interval) {
  if (interval >= kTlsReloadIntervalMin && interval <= kTlsReloadIntervalMax) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("must be ", absl::FormatDuration(kTlsReloadIntervalMin),
                   " to ", absl::FormatDuration(kTlsReloadIntervalMax)));
}

}  // namespace

std::vector<FlagCheck> SecurityChecks() {
  return {
      {"tls_reload_interval",
       [] { return CheckInterval(absl::GetFlag(FLAGS_tls_reload_interval)); }},
      {"control_peers",
       [] {
         return PeerList::Parse("the list", absl::GetFlag(FLAGS_control_peers))
             .status();
       }},
      {"data_peers",
       [] {
         return PeerList::Parse("the list", absl::GetFlag(FLAGS_data_peers))
             .status();
       }},
      {"control_uids",
       [] { return ParseUids(absl::GetFlag(FLAGS_control_uids)).status(); }}};
}

absl::StatusOr<SecurityOptions> SecurityOptionsFromFlags(Log* log) {
  const absl::StatusOr<std::vector<unsigned>> uids =
      ParseUids(absl::GetFlag(FLAGS_control_uids));
  if (!uids.ok()) return uids.status();
  return SecurityOptions{
      .tls_dir = absl::GetFlag(FLAGS_tls_dir),
      .tls_reload_interval = absl::GetFlag(FLAGS_tls_reload_interval),
      .insecure_control = absl::GetFlag(FLAGS_insecure_control),
      .insecure_data = absl::GetFlag(FLAGS_insecure_data),
      .control_peers = absl::GetFlag(FLAGS_control_peers),
      .data_peers = absl::GetFlag(FLAGS_data_peers),
      .control_uids = {uids->begin(), uids->end()},
      .log = [log](const std::string& sentence) {
        WriteTo(log, LogSeverity::kNotice, sentence);
      }};
}

}  // namespace postcopy
