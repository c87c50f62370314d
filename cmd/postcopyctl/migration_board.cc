#include "cmd/postcopyctl/migration_board.h"

#include <utility>

#include "cmd/postcopyctl/names.h"

namespace postcopy {

SideView& MigrationBoard::Side(v1::Role role) {
  return role == v1::ROLE_SOURCE ? view_.source : view_.destination;
}

void MigrationBoard::Update(v1::Role role, const v1::Migration& migration) {
  absl::MutexLock lock(&mutex_);
  SideView& side = Side(role);
  // Answers to calls and stream messages may overtake each other.
  if (!HasEnded(side.migration.state()) || HasEnded(migration.state())) {
    side.migration = migration;
  }
  side.stream = absl::OkStatus();
  ++version_;
}

void MigrationBoard::SetInterrupted(v1::Role role, const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  Side(role).stream = why;
  ++version_;
}

void MigrationBoard::SetLost(v1::Role role, const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  Side(role).stream = why;
  Side(role).lost = true;
  ++version_;
}

void MigrationBoard::SetSwitchOver(std::optional<absl::Status> answer) {
  absl::MutexLock lock(&mutex_);
  view_.switch_over = std::move(answer);
  ++version_;
}

MigrationView MigrationBoard::View() const {
  absl::MutexLock lock(&mutex_);
  return view_;
}

MigrationView MigrationBoard::AwaitChange(uint64_t* version,
                                          absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  auto changed = [this, version]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return version_ != *version;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&changed), timeout);
  *version = version_;
  return view_;
}

}  // namespace postcopy
