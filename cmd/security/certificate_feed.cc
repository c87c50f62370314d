#include "cmd/security/certificate_feed.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace postcopy {
namespace {

// Its least.
constexpr unsigned kGrpcLooksEverySeconds = 1;

absl::Status NoMemoryFile(absl::string_view what) {
  return absl::ResourceExhaustedError(
      absl::StrCat("certificates cannot be handed to gRPC: ", what, ": ",
                   std::strerror(errno)));
}

absl::StatusOr<UniqueFd> MemoryFile(absl::string_view text,
                                    std::time_t version) {
  UniqueFd fd(::memfd_create("postcopy-certificates", MFD_CLOEXEC));
  if (!fd.valid()) return NoMemoryFile("memfd_create");
  if (::write(fd.get(), text.data(), text.size()) !=
      static_cast<ssize_t>(text.size())) {
    return NoMemoryFile("write");
  }
  const timespec times[2] = {{version, 0}, {version, 0}};
  if (::futimens(fd.get(), times) != 0) return NoMemoryFile("futimens");
  return fd;
}

std::string PathOf(const UniqueFd& fd) {
  return absl::StrCat("/proc/self/fd/", fd.get());
}

// Whoever opens the path of `old` gets the one file or the other, whole.
absl::Status Replace(const UniqueFd& old, const UniqueFd& fresh) {
  if (::dup3(fresh.get(), old.get(), O_CLOEXEC) >= 0) return absl::OkStatus();
  return NoMemoryFile("dup3");
}

}  // namespace

absl::StatusOr<std::unique_ptr<CertificateFeed>> CertificateFeed::Create(
    const std::string& authorities, const Identity& identity) {
  std::unique_ptr<CertificateFeed> feed(new CertificateFeed);
  auto authorities_file = MemoryFile(authorities, feed->version_);
  if (!authorities_file.ok()) return authorities_file.status();
  auto identity_file =
      MemoryFile(identity.key + identity.certificate, feed->version_);
  if (!identity_file.ok()) return identity_file.status();
  feed->authorities_ = *std::move(authorities_file);
  feed->identity_ = *std::move(identity_file);
  // Key and certificate are in one file. gRPC opens it once for each, and takes
  // neither if its time has changed in between.
  feed->provider_ =
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          PathOf(feed->identity_), PathOf(feed->identity_),
          PathOf(feed->authorities_), kGrpcLooksEverySeconds);
  return feed;
}

absl::Status CertificateFeed::Publish(const std::string& authorities,
                                      const Identity& identity) {
  ++version_;
  auto authorities_file = MemoryFile(authorities, version_);
  if (!authorities_file.ok()) return authorities_file.status();
  auto identity_file =
      MemoryFile(identity.key + identity.certificate, version_);
  if (!identity_file.ok()) return identity_file.status();
  absl::Status status = Replace(authorities_, *authorities_file);
  return status.ok() ? Replace(identity_, *identity_file) : status;
}

}  // namespace postcopy
