// The certificates and keys of a directory, and what becomes of them.
#ifndef CMD_SECURITY_TLS_FILES_H_
#define CMD_SECURITY_TLS_FILES_H_

#include <sys/types.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cmd/security/identity.h"

namespace postcopy {

// The largest file that is read: hundreds of certificates.
inline constexpr size_t kTlsFileBytesMax = 1 << 20;

// How often the files are looked at. A new certificate is used for connections
// made a second after that at the latest.
inline constexpr absl::Duration kTlsReloadInterval = absl::Seconds(5);
inline constexpr absl::Duration kTlsReloadIntervalMin = absl::Milliseconds(10);
inline constexpr absl::Duration kTlsReloadIntervalMax = absl::Hours(1);

// What one look at the directory found, all of it usable.
struct TlsFileSet {
  std::string authorities;
  // Empty if not asked for.
  Identity server;
  Identity client;
};

// Reads the files that tls_file_names.h names, and reads them again when they
// have changed. Files that cannot be used change nothing: what was read before
// goes on. Has a thread of its own; thread-safe.
class TlsFiles {
 public:
  struct Options {
    std::string directory;
    // Which identities are needed; the other's files need not be there.
    bool server = false;
    bool client = false;
    absl::Duration reload_interval = kTlsReloadInterval;
    // Gets a sentence when files were taken, and when they cannot be. From the
    // thread, or from a caller of Reload.
    std::function<void(const std::string&)> log = [](const std::string&) {};
    // What time it is; for tests.
    std::function<absl::Time()> now = [] { return absl::Now(); };
  };

  // FAILED_PRECONDITION, with the file's name and what to do, unless everything
  // is there and usable now.
  static absl::StatusOr<std::unique_ptr<TlsFiles>> Create(Options options);
  ~TlsFiles();

  // The newest usable files; never null.
  std::shared_ptr<const TlsFileSet> Current() const;

  // Calls `take` with every new set from now on, from whichever thread reads
  // it, before that is in use. If it fails the set is not, and is read and
  // tried again at the next look. Once, before the first reload.
  void OnChange(std::function<absl::Status(const TlsFileSet&)> take);

  // Looks at the files now. The error is that of the files; they are looked at
  // again next time.
  absl::Status Reload();

 private:
  // What tells one state of a file from another.
  struct Mark {
    dev_t device;
    ino_t file;
    off_t size;
    int64_t modified_ns;
    int64_t changed_ns;
    bool operator==(const Mark& other) const = default;
  };
  static constexpr size_t kFiles = 5;
  using Marks = std::array<Mark, kFiles>;

  explicit TlsFiles(Options options) : options_(std::move(options)) {}

  std::string Path(const char* name) const;
  Mark MarkOf(const char* name) const;
  Marks MarksOfAll() const;
  absl::StatusOr<TlsFileSet> Read() const;
  absl::Status ReadIdentity(const char* certificate_name, const char* key_name,
                            Identity& identity) const;
  absl::Status ReloadLocked();
  void Run();

  const Options options_;

  // Held while files are read, so that sets come in order.
  std::mutex reload_mutex_;
  // Guarded by reload_mutex_.
  Marks taken_{};
  std::string last_complaint_;
  std::function<absl::Status(const TlsFileSet&)> on_change_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::shared_ptr<const TlsFileSet> current_;
  bool stop_ = false;
  std::condition_variable stop_changed_;

  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_SECURITY_TLS_FILES_H_
