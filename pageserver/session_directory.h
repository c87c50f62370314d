// Which migration a request of the data plane is about.
#ifndef PAGESERVER_SESSION_DIRECTORY_H_
#define PAGESERVER_SESSION_DIRECTORY_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pageserver/source_migration.h"

namespace postcopy {

// Finds migrations by the name the control plane gave them and by the id of
// their session. Thread-safe.
class SessionDirectory {
 public:
  // Makes `migration` known. REQUIRES: none of that id is.
  void Add(std::string migration_id, std::string vm_name,
           std::shared_ptr<SourceMigration> migration);
  // Forgets it, which has ended, and ends the streams it has left. Not an error
  // if it is not known.
  void Remove(absl::string_view migration_id);

  // For OpenSession. NOT_FOUND names what is not there; FAILED_PRECONDITION if
  // the migration is of another VM.
  absl::StatusOr<std::shared_ptr<SourceMigration>> Find(
      absl::string_view migration_id, absl::string_view vm_name) const;
  // For all other requests. NOT_FOUND.
  absl::StatusOr<std::shared_ptr<SourceMigration>> FindSession(
      uint64_t session_id) const;

 private:
  struct Entry {
    std::string vm_name;
    std::shared_ptr<SourceMigration> migration;
  };

  mutable std::mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_;
  std::map<uint64_t, std::shared_ptr<SourceMigration>> by_session_;
};

}  // namespace postcopy

#endif  // PAGESERVER_SESSION_DIRECTORY_H_
