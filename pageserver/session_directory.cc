#include "pageserver/session_directory.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"

namespace postcopy {

void SessionDirectory::Add(std::string migration_id, std::string vm_name,
                           std::shared_ptr<SourceMigration> migration) {
  std::lock_guard lock(mutex_);
  by_session_[migration->session_id()] = migration;
  const bool added =
      entries_
          .emplace(std::move(migration_id),
                   Entry{std::move(vm_name), std::move(migration)})
          .second;
  POSTCOPY_CHECK(added);
}

void SessionDirectory::Remove(absl::string_view migration_id) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(std::string(migration_id));
  if (it == entries_.end()) return;
  it->second.migration->EndStreams();
  by_session_.erase(it->second.migration->session_id());
  entries_.erase(it);
}

absl::StatusOr<std::shared_ptr<SourceMigration>> SessionDirectory::Find(
    absl::string_view migration_id, absl::string_view vm_name) const {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(std::string(migration_id));
  if (it == entries_.end()) {
    return absl::NotFoundError(absl::StrCat("the source knows no migration \"",
                                            migration_id,
                                            "\": create it there first"));
  }
  if (it->second.vm_name != vm_name) {
    return absl::FailedPreconditionError(absl::StrCat(
        "migration \"", migration_id, "\" is of VM \"", it->second.vm_name,
        "\" at the source, not of \"", vm_name, "\""));
  }
  return it->second.migration;
}

absl::StatusOr<std::shared_ptr<SourceMigration>> SessionDirectory::FindSession(
    uint64_t session_id) const {
  std::lock_guard lock(mutex_);
  const auto it = by_session_.find(session_id);
  if (it == by_session_.end()) {
    return absl::NotFoundError("no such session: open one");
  }
  return it->second;
}

}  // namespace postcopy
