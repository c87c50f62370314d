#include "cmd/security/tls_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cmd/security/certificate_check.h"
#include "cmd/security/tls_file_names.h"
#include "cmd/vmm_channel/quiet_thread.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

int64_t Nanos(const timespec& time) {
  return time.tv_sec * kNanosPerSecond + time.tv_nsec;
}

absl::Status CannotRead(absl::string_view path, int error) {
  if (error == ENOENT || error == ENOTDIR) {
    return absl::FailedPreconditionError(absl::StrCat(
        path,
        " is missing: --tls_dir must have it (for a trial, postcopyctl "
        "dev-certs makes all its files)"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(path, " cannot be read: ", std::strerror(error),
                   "; the user that runs this program must be able to"));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  // Does not wait for the writer of what turns out to be a pipe.
  const UniqueFd fd(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) return CannotRead(path, errno);
  struct stat info = {};
  if (::fstat(fd.get(), &info) != 0) return CannotRead(path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is no file: put a PEM file there"));
  }
  std::string text(kTlsFileBytesMax + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got =
        ::read(fd.get(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return CannotRead(path, errno);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kTlsFileBytesMax) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " has more than ", kTlsFileBytesMax,
                     " bytes: that is no PEM file of certificates"));
  }
  text.resize(size);
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsFiles>> TlsFiles::Create(Options options) {
  std::unique_ptr<TlsFiles> files(new TlsFiles(std::move(options)));
  const Marks marks = files->MarksOfAll();
  absl::StatusOr<TlsFileSet> set = files->Read();
  if (!set.ok()) return set.status();
  files->taken_ = marks;
  files->current_ = std::make_shared<const TlsFileSet>(*std::move(set));
  files->thread_ = StartWithoutSignals([self = files.get()] { self->Run(); });
  return files;
}

TlsFiles::~TlsFiles() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<const TlsFileSet> TlsFiles::Current() const {
  std::lock_guard lock(mutex_);
  return current_;
}

void TlsFiles::OnChange(std::function<absl::Status(const TlsFileSet&)> take) {
  std::lock_guard lock(reload_mutex_);
  on_change_ = std::move(take);
  // What came between construction and this call is not missed.
  if (!on_change_(*Current()).ok()) taken_ = {};
}

absl::Status TlsFiles::Reload() {
  std::lock_guard lock(reload_mutex_);
  absl::Status status = ReloadLocked();
  if (status.ok()) {
    last_complaint_.clear();
  } else if (std::string complaint(status.message());
             complaint != last_complaint_) {
    // Once, however often the same files are looked at.
    last_complaint_ = std::move(complaint);
    options_.log(absl::StrCat(
        "the new files in ", options_.directory,
        " are not used, the old ones stay in use: ", last_complaint_));
  }
  return status;
}

absl::Status TlsFiles::ReloadLocked() {
  const Marks marks = MarksOfAll();
  if (marks == taken_) return absl::OkStatus();
  absl::StatusOr<TlsFileSet> set = Read();
  if (!set.ok()) return set.status();
  // Replaced while they were read: the next look finds them at rest.
  if (MarksOfAll() != marks) return absl::OkStatus();
  auto taken = std::make_shared<const TlsFileSet>(*std::move(set));
  if (on_change_) {
    if (absl::Status s = on_change_(*taken); !s.ok()) return s;
  }
  {
    std::lock_guard lock(mutex_);
    current_ = taken;
  }
  taken_ = marks;
  const std::string& certificate =
      options_.server ? taken->server.certificate : taken->client.certificate;
  options_.log(absl::StrCat(
      "new files in ", options_.directory,
      " are in use for new connections; the certificate holds until ",
      absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", HoldsUntil(certificate),
                       absl::UTCTimeZone())));
  return absl::OkStatus();
}

std::string TlsFiles::Path(const char* name) const {
  return absl::StrCat(options_.directory, "/", name);
}

TlsFiles::Mark TlsFiles::MarkOf(const char* name) const {
  struct stat info = {};
  // A file that is not there has the mark of none.
  if (::stat(Path(name).c_str(), &info) != 0) return {};
  return {.device = info.st_dev,
          .file = info.st_ino,
          .size = info.st_size,
          .modified_ns = Nanos(info.st_mtim),
          .changed_ns = Nanos(info.st_ctim)};
}

TlsFiles::Marks TlsFiles::MarksOfAll() const {
  return {MarkOf(kAuthoritiesFile), MarkOf(kServerCertificateFile),
          MarkOf(kServerKeyFile), MarkOf(kClientCertificateFile),
          MarkOf(kClientKeyFile)};
}

absl::StatusOr<TlsFileSet> TlsFiles::Read() const {
  TlsFileSet set;
  const std::string path = Path(kAuthoritiesFile);
  absl::StatusOr<std::string> authorities = ReadFile(path);
  if (!authorities.ok()) return authorities.status();
  absl::Status status = CheckAuthorities({path, *authorities});
  set.authorities = *std::move(authorities);
  if (status.ok() && options_.server) {
    status = ReadIdentity(kServerCertificateFile, kServerKeyFile, set.server);
  }
  if (status.ok() && options_.client) {
    status = ReadIdentity(kClientCertificateFile, kClientKeyFile, set.client);
  }
  if (!status.ok()) return status;
  return set;
}

absl::Status TlsFiles::ReadIdentity(const char* certificate_name,
                                    const char* key_name,
                                    Identity& identity) const {
  const std::string certificate_path = Path(certificate_name);
  const std::string key_path = Path(key_name);
  absl::StatusOr<std::string> certificate = ReadFile(certificate_path);
  if (!certificate.ok()) return certificate.status();
  absl::StatusOr<std::string> key = ReadFile(key_path);
  if (!key.ok()) return key.status();
  absl::Status status = CheckIdentity({certificate_path, *certificate},
                                      {key_path, *key}, options_.now());
  identity = {*std::move(certificate), *std::move(key)};
  return status;
}

void TlsFiles::Run() {
  const auto interval = absl::ToChronoNanoseconds(options_.reload_interval);
  std::unique_lock lock(mutex_);
  while (!stop_changed_.wait_for(lock, interval, [this] { return stop_; })) {
    lock.unlock();
    Reload().IgnoreError();  // It has said so.
    lock.lock();
  }
}

}  // namespace postcopy
