#include "cmd/security/daemon_security.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cmd/security/peer_list.h"
#include "cmd/security/tls_credentials.h"

namespace postcopy {
namespace {

template <typename... Parts>
absl::Status Contradiction(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// Either TLS or a flag that says that it shall be without.
absl::Status CheckProtected(const SecurityOptions& options, bool insecure,
                            absl::string_view flag, absl::string_view what) {
  if (insecure || !options.tls_dir.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      what,
      " would be plaintext, and open to everybody: give --tls_dir with "
      "certificates (for a trial, postcopyctl dev-certs makes them), or ",
      flag, " if plaintext is what you want"));
}

absl::Status CheckPeersUsed(const std::string& peers, bool insecure,
                            absl::string_view flag, absl::string_view why) {
  if (peers.empty() || !insecure) return absl::OkStatus();
  return Contradiction(flag, " names certificates, but ", why,
                       " has peers show none: leave one of them out");
}

absl::Status CheckControl(const SecurityOptions& options,
                          const std::string& address) {
  if (!IsUnixAddress(address)) {
    if (!options.control_uids.empty()) {
      return Contradiction(
          "--control_uids is for a control plane at a Unix socket, but "
          "--control_address is ",
          address, ": name peers at TCP with --control_peers");
    }
    absl::Status status =
        CheckProtected(options, options.insecure_control, "--insecure_control",
                       absl::StrCat("the control plane at ", address));
    if (!status.ok()) return status;
    return CheckPeersUsed(options.control_peers, options.insecure_control,
                          "--control_peers", "--insecure_control");
  }
  return CheckPeersUsed(options.control_peers, /*insecure=*/true,
                        "--control_peers", "a Unix socket");
}

// `address`: empty for who dials it.
absl::Status CheckData(const SecurityOptions& options,
                       const std::string& address) {
  if (IsUnixAddress(address)) {
    return Contradiction("--data_address=", address,
                         " is a Unix socket: the data plane is for other "
                         "hosts, give host:port");
  }
  absl::Status status = CheckProtected(
      options, options.insecure_data, "--insecure_data",
      address.empty() ? "the data plane of sources"
                      : absl::StrCat("the data plane at ", address));
  if (!status.ok()) return status;
  return CheckPeersUsed(options.data_peers, options.insecure_data,
                        "--data_peers", "--insecure_data");
}

absl::Status Check(const SecurityOptions& options,
                   const std::string& control_address,
                   const std::string& data_address) {
  if (absl::Status s = CheckControl(options, control_address); !s.ok()) {
    return s;
  }
  if (absl::Status s = CheckData(options, data_address); !s.ok()) return s;
  const bool plain = IsUnixAddress(control_address) || options.insecure_control;
  if (options.tls_dir.empty() || !plain || !options.insecure_data) {
    return absl::OkStatus();
  }
  return Contradiction(
      "--tls_dir is given, but nothing uses TLS: leave it out, or the "
      "--insecure_... flags");
}

}  // namespace

absl::Status DaemonSecurity::CheckSource(const SecurityOptions& options,
                                         const std::string& control_address,
                                         const std::string& data_address) {
  return Check(options, control_address, data_address);
}

absl::Status DaemonSecurity::CheckDestination(
    const SecurityOptions& options, const std::string& control_address) {
  return Check(options, control_address, /*data_address=*/"");
}

absl::Status DaemonSecurity::LoadFiles(bool server, bool client) {
  if (!server && !client) return absl::OkStatus();
  auto files =
      TlsFiles::Create({.directory = options_.tls_dir,
                        .server = server,
                        .client = client,
                        .reload_interval = options_.tls_reload_interval,
                        .log = options_.log});
  if (!files.ok()) return files.status();
  files_ = *std::move(files);
  if (!server) return absl::OkStatus();
  const std::shared_ptr<const TlsFileSet> now = files_->Current();
  auto feed = CertificateFeed::Create(now->authorities, now->server);
  if (!feed.ok()) return feed.status();
  feed_ = *std::move(feed);
  files_->OnChange([feed = feed_](const TlsFileSet& set) {
    return feed->Publish(set.authorities, set.server);
  });
  return absl::OkStatus();
}

absl::Status DaemonSecurity::Protect(const std::string& flag,
                                     const std::string& peers, bool insecure,
                                     PortSecurity& port) const {
  if (insecure) {
    port.credentials = grpc::InsecureServerCredentials();
    return absl::OkStatus();
  }
  absl::StatusOr<PeerList> list = PeerList::Parse(flag, peers);
  if (!list.ok()) return list.status();
  port.feed = feed_;
  port.credentials =
      NewTlsServerCredentials(feed_->provider(), *std::move(list));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DaemonSecurity>> DaemonSecurity::ForSource(
    const SecurityOptions& options, const std::string& control_address,
    const std::string& data_address) {
  std::unique_ptr<DaemonSecurity> security(new DaemonSecurity(options));
  absl::Status status = CheckSource(options, control_address, data_address);
  const bool unix = IsUnixAddress(control_address);
  if (status.ok()) {
    const bool server =
        (!unix && !options.insecure_control) || !options.insecure_data;
    status = security->LoadFiles(server, /*client=*/false);
  }
  security->control_.uids = options.control_uids;
  security->control_.log = options.log;
  if (status.ok() && !unix) {
    status = security->Protect("--control_peers", options.control_peers,
                               options.insecure_control, security->control_);
  }
  if (status.ok()) {
    status = security->Protect("--data_peers", options.data_peers,
                               options.insecure_data, security->data_);
  }
  if (!status.ok()) return status;
  return security;
}

absl::StatusOr<std::unique_ptr<DaemonSecurity>> DaemonSecurity::ForDestination(
    const SecurityOptions& options, const std::string& control_address) {
  std::unique_ptr<DaemonSecurity> security(new DaemonSecurity(options));
  absl::Status status = CheckDestination(options, control_address);
  const bool unix = IsUnixAddress(control_address);
  if (status.ok()) {
    status = security->LoadFiles(!unix && !options.insecure_control,
                                 /*client=*/!options.insecure_data);
  }
  security->control_.uids = options.control_uids;
  security->control_.log = options.log;
  if (status.ok() && !unix) {
    status = security->Protect("--control_peers", options.control_peers,
                               options.insecure_control, security->control_);
  }
  if (!status.ok()) return status;
  absl::StatusOr<PeerList> sources =
      PeerList::Parse("--data_peers", options.data_peers);
  if (!sources.ok()) return sources.status();
  security->dialling_ =
      options.insecure_data
          ? ClientSecurity::Plaintext()
          : ClientSecurity::Tls(security->files_, *std::move(sources));
  return security;
}

absl::Status DaemonSecurity::Reload() {
  return files_ == nullptr ? absl::OkStatus() : files_->Reload();
}

}  // namespace postcopy
