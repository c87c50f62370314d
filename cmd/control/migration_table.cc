#include "cmd/control/migration_table.h"

#include <google/protobuf/util/message_differencer.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/ram_layout.h"

namespace postcopy {
namespace {

absl::Status CheckName(absl::string_view field, const std::string& name) {
  if (IsValidName(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " must be 1 to ", kMaxNameBytes, " characters of [A-Za-z0-9._-]"));
}

absl::Status CheckRequest(const v1::CreateMigrationRequest& request) {
  for (const auto& [field, name] : {std::pair<const char*, const std::string&>(
                                        "request_id", request.request_id()),
                                    {"migration_id", request.migration_id()},
                                    {"vm_name", request.vm_name()}}) {
    if (absl::Status s = CheckName(field, name); !s.ok()) return s;
  }
  if (!v1::MigrationPolicy_IsValid(request.policy())) {
    return absl::InvalidArgumentError(
        absl::StrCat("policy ", request.policy(), " is unknown"));
  }
  if (!v1::PullOrder_IsValid(request.pull_order())) {
    return absl::InvalidArgumentError(
        absl::StrCat("pull_order ", request.pull_order(), " is unknown"));
  }
  const uint64_t limit = request.bulk_limit_bytes_per_second();
  if (limit != 0 && limit < kBulkLimitMin) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bulk_limit_bytes_per_second must be 0 (none) or at least ",
        kBulkLimitMin, ", not ", limit));
  }
  if (request.rounds_max() > kRoundsLimitMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("rounds_max must be at most ", kRoundsLimitMax, ", not ",
                     request.rounds_max()));
  }
  return absl::OkStatus();
}

v1::Migration ChosenBy(const v1::CreateMigrationRequest& request) {
  v1::Migration chosen;
  chosen.set_migration_id(request.migration_id());
  chosen.set_vm_name(request.vm_name());
  chosen.set_policy(request.policy() == v1::MIGRATION_POLICY_UNSPECIFIED
                        ? v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY
                        : request.policy());
  chosen.set_bulk_limit_bytes_per_second(request.bulk_limit_bytes_per_second());
  *chosen.mutable_create_time() =
      google::protobuf::util::TimeUtil::GetCurrentTime();
  return chosen;
}

}  // namespace

MigrationTable::MigrationTable(CreateSide create_side, Forget forget,
                               size_t migrations_max)
    : create_side_(std::move(create_side)),
      forget_(std::move(forget)),
      migrations_max_(migrations_max) {}

v1::Migration MigrationTable::Describe(const Entry& entry) {
  v1::Migration migration = entry.chosen;
  entry.side->Describe(migration);
  return migration;
}

const MigrationTable::Entry* MigrationTable::FindLocked(
    absl::string_view migration_id) const {
  for (const Entry& entry : entries_) {
    if (entry.chosen.migration_id() == migration_id) return &entry;
  }
  return nullptr;
}

absl::Status MigrationTable::CheckFreeLocked(
    const v1::CreateMigrationRequest& request) const {
  if (FindLocked(request.migration_id()) != nullptr) {
    return absl::AlreadyExistsError(
        absl::StrCat("migration \"", request.migration_id(),
                     "\" exists and was created by another request: choose "
                     "another migration_id"));
  }
  for (const Entry& entry : entries_) {
    if (entry.chosen.vm_name() == request.vm_name() && !entry.side->ended()) {
      return absl::AlreadyExistsError(absl::StrCat(
          "VM \"", request.vm_name(), "\" is being migrated already, by \"",
          entry.chosen.migration_id(), "\": cancel that first"));
    }
  }
  return absl::OkStatus();
}

absl::Status MigrationTable::MakeRoomLocked(
    std::shared_ptr<MigrationSide>& evicted) {
  if (entries_.size() < migrations_max_) return absl::OkStatus();
  const auto oldest =
      std::find_if(entries_.begin(), entries_.end(),
                   [](const Entry& entry) { return entry.side->ended(); });
  if (oldest == entries_.end()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this daemon has ", migrations_max_,
                     " migrations under way, which is its limit: wait until "
                     "one has ended"));
  }
  forget_(oldest->chosen.migration_id());
  evicted = std::move(oldest->side);
  entries_.erase(oldest);
  return absl::OkStatus();
}

absl::StatusOr<v1::Migration> MigrationTable::Create(
    const v1::CreateMigrationRequest& request) {
  if (absl::Status s = CheckRequest(request); !s.ok()) return s;
  // Outlives the lock: its end may have to wait for threads.
  std::shared_ptr<MigrationSide> evicted;
  std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) {
    if (entry.request.request_id() != request.request_id()) continue;
    if (google::protobuf::util::MessageDifferencer::Equals(entry.request,
                                                           request)) {
      return Describe(entry);
    }
    return absl::AlreadyExistsError(
        absl::StrCat("request_id \"", request.request_id(),
                     "\" was used for a different request"));
  }
  if (absl::Status s = CheckFreeLocked(request); !s.ok()) return s;
  if (absl::Status s = MakeRoomLocked(evicted); !s.ok()) return s;
  absl::StatusOr<std::shared_ptr<MigrationSide>> side = create_side_(request);
  if (!side.ok()) return side.status();
  entries_.push_back({request, ChosenBy(request), *std::move(side)});
  return Describe(entries_.back());
}

absl::StatusOr<std::shared_ptr<MigrationSide>> MigrationTable::Find(
    absl::string_view migration_id) const {
  std::lock_guard lock(mutex_);
  const Entry* entry = FindLocked(migration_id);
  if (entry == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no migration \"", migration_id, "\" on this daemon"));
  }
  return entry->side;
}

absl::StatusOr<v1::Migration> MigrationTable::Describe(
    absl::string_view migration_id) const {
  std::lock_guard lock(mutex_);
  const Entry* entry = FindLocked(migration_id);
  if (entry == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no migration \"", migration_id, "\" on this daemon"));
  }
  return Describe(*entry);
}

std::vector<v1::Migration> MigrationTable::List() const {
  std::lock_guard lock(mutex_);
  std::vector<v1::Migration> migrations;
  migrations.reserve(entries_.size());
  for (const Entry& entry : entries_) migrations.push_back(Describe(entry));
  return migrations;
}

void MigrationTable::VmmGone(absl::string_view vm_name) {
  std::vector<std::shared_ptr<MigrationSide>> sides;
  {
    std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.chosen.vm_name() == vm_name) sides.push_back(entry.side);
    }
  }
  for (const auto& side : sides) side->VmmGone();
}

void MigrationTable::StopAll() {
  std::vector<std::shared_ptr<MigrationSide>> sides;
  {
    std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_) sides.push_back(entry.side);
  }
  for (const auto& side : sides) side->Stop();
}

}  // namespace postcopy
