#include "cmd/control/migration_table.h"

#include <google/protobuf/util/message_differencer.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <functional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cmd/control/describe.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/start_thread.h"
#include "dirtytrack/trace_id.h"

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
  if (!v1::SwitchOverMode_IsValid(request.switch_over_mode())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "switch_over_mode ", request.switch_over_mode(), " is unknown"));
  }
  absl::Status limit = CheckBulkLimit(request.bulk_limit_bytes_per_second());
  if (limit.ok()) limit = CheckSourceAddress(request.source_address());
  if (!limit.ok()) return limit;
  if (request.deadline_ms_per_gib() > kDeadlineMsPerGibMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "deadline_ms_per_gib must be at most ", kDeadlineMsPerGibMax, ", not ",
        request.deadline_ms_per_gib()));
  }
  if (request.rounds_max() > kRoundsLimitMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("rounds_max must be at most ", kRoundsLimitMax, ", not ",
                     request.rounds_max()));
  }
  if (!request.trace_id().empty() && !IsTraceId(request.trace_id())) {
    return absl::InvalidArgumentError(
        "trace_id must be empty or 32 digits of 0-9a-f, not all of them 0");
  }
  return absl::OkStatus();
}

absl::Status NoSuchMigration(absl::string_view migration_id) {
  return absl::NotFoundError(
      absl::StrCat("no migration \"", migration_id, "\" on this daemon"));
}

bool IsEnd(v1::MigrationState state) {
  return state == v1::MIGRATION_STATE_COMPLETED ||
         state == v1::MIGRATION_STATE_CANCELLED ||
         state == v1::MIGRATION_STATE_FAILED;
}

void AddSide(const SideTotals& side, MigrationTotals& totals) {
  totals.vm.Add(side.vm);
  ++totals.present[side.state];
  if (IsEnd(side.state)) ++totals.ended[side.state];
}

v1::Migration ChosenBy(const v1::CreateMigrationRequest& request) {
  v1::Migration chosen;
  chosen.set_migration_id(request.migration_id());
  chosen.set_vm_name(request.vm_name());
  chosen.set_policy(request.policy() == v1::MIGRATION_POLICY_UNSPECIFIED
                        ? v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY
                        : request.policy());
  chosen.set_trace_id(request.trace_id());
  *chosen.mutable_create_time() =
      google::protobuf::util::TimeUtil::GetCurrentTime();
  return chosen;
}

// Does `what` with all of them: each may wait for a peer or a VMM, and none
// waits for that of another.
void AtOnce(const std::vector<std::shared_ptr<MigrationSide>>& sides,
            const std::function<void(MigrationSide&)>& what) {
  std::vector<std::thread> threads;
  for (const auto& side : sides) {
    const auto one = [&what, side] { what(*side); };
    absl::StatusOr<std::thread> thread = StartThread(one);
    if (thread.ok()) {
      threads.push_back(*std::move(thread));
    } else {
      one();
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

absl::Status CheckBulkLimit(uint64_t bytes_per_second) {
  if (bytes_per_second == 0 || bytes_per_second >= kBulkLimitMin) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("bulk_limit_bytes_per_second must be 0 (none) or at least ",
                   kBulkLimitMin, ", not ", bytes_per_second));
}

absl::Status CheckSourceAddress(const std::string& address) {
  // Sources are at TCP ports; a Unix socket would be dialled without TLS, and
  // past --data_peers.
  if (absl::StartsWith(address, "unix:")) {
    return absl::InvalidArgumentError(
        "source_address must be host:port, not a Unix socket");
  }
  if (address.size() <= kAddressBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("source_address must have at most ", kAddressBytesMax,
                   " bytes, not ", address.size()));
}

MigrationTable::MigrationTable(CreateSide create_side,
                               ValidateSide validate_side, Forget forget,
                               size_t migrations_max)
    : create_side_(std::move(create_side)),
      validate_side_(std::move(validate_side)),
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
  if (looked_at_.count(request.vm_name()) > 0) {
    return absl::UnavailableError(absl::StrCat("a dry run looks at VM \"",
                                               request.vm_name(),
                                               "\" at this moment: try again"));
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

absl::StatusOr<std::vector<MigrationTable::Entry>::iterator>
MigrationTable::RoomLocked() {
  if (entries_.size() < migrations_max_) return entries_.end();
  const auto oldest =
      std::find_if(entries_.begin(), entries_.end(),
                   [](const Entry& entry) { return entry.side->ended(); });
  if (oldest != entries_.end()) return oldest;
  return absl::ResourceExhaustedError(
      absl::StrCat("this daemon has ", migrations_max_,
                   " migrations under way, which is its limit: wait until "
                   "one has ended"));
}

absl::Status MigrationTable::MakeRoomLocked(
    std::shared_ptr<MigrationSide>& evicted) {
  const auto oldest = RoomLocked();
  if (!oldest.ok()) return oldest.status();
  if (*oldest == entries_.end()) return absl::OkStatus();
  AddSide((*oldest)->side->Totals(), forgotten_);
  forget_((*oldest)->chosen.migration_id());
  evicted = std::move((*oldest)->side);
  entries_.erase(*oldest);
  return absl::OkStatus();
}

absl::StatusOr<v1::Migration> MigrationTable::Validate(
    const v1::CreateMigrationRequest& request) {
  {
    std::lock_guard lock(mutex_);
    if (!refusal_.empty()) return absl::UnavailableError(refusal_);
    if (absl::Status s = CheckFreeLocked(request); !s.ok()) return s;
    if (absl::Status s = RoomLocked().status(); !s.ok()) return s;
    looked_at_.insert(request.vm_name());
  }
  absl::StatusOr<v1::Migration> looked = validate_side_(request);
  {
    std::lock_guard lock(mutex_);
    looked_at_.erase(request.vm_name());
  }
  if (!looked.ok()) return looked.status();
  v1::Migration migration = ChosenBy(request);
  migration.clear_create_time();
  migration.MergeFrom(*looked);
  return migration;
}

absl::StatusOr<v1::Migration> MigrationTable::Create(
    const v1::CreateMigrationRequest& request) {
  // What creates nothing is not counted.
  if (request.validate_only()) {
    if (absl::Status s = CheckRequest(request); !s.ok()) return s;
    return Validate(request);
  }
  // Outlives the lock: its end may have to wait for threads.
  std::shared_ptr<MigrationSide> evicted;
  std::lock_guard lock(mutex_);
  absl::StatusOr<v1::Migration> created = CreateLocked(request, evicted);
  ++forgotten_.create_requests;
  if (!created.ok()) ++forgotten_.create_refusals;
  return created;
}

absl::StatusOr<v1::Migration> MigrationTable::CreateLocked(
    const v1::CreateMigrationRequest& request,
    std::shared_ptr<MigrationSide>& evicted) {
  if (absl::Status s = CheckRequest(request); !s.ok()) return s;
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
  if (!refusal_.empty()) return absl::UnavailableError(refusal_);
  if (absl::Status s = CheckFreeLocked(request); !s.ok()) return s;
  if (absl::Status s = MakeRoomLocked(evicted); !s.ok()) return s;
  v1::CreateMigrationRequest traced = request;
  if (traced.trace_id().empty()) traced.set_trace_id(NewTraceId());
  absl::StatusOr<std::shared_ptr<MigrationSide>> side = create_side_(traced);
  if (!side.ok()) return side.status();
  entries_.push_back({request, ChosenBy(traced), *std::move(side)});
  return Describe(entries_.back());
}

absl::StatusOr<std::shared_ptr<MigrationSide>> MigrationTable::Find(
    absl::string_view migration_id) const {
  std::lock_guard lock(mutex_);
  const Entry* entry = FindLocked(migration_id);
  if (entry == nullptr) return NoSuchMigration(migration_id);
  return entry->side;
}

absl::StatusOr<v1::Migration> MigrationTable::Describe(
    absl::string_view migration_id) const {
  std::lock_guard lock(mutex_);
  const Entry* entry = FindLocked(migration_id);
  if (entry == nullptr) return NoSuchMigration(migration_id);
  return Describe(*entry);
}

std::vector<v1::Migration> MigrationTable::List() const {
  std::lock_guard lock(mutex_);
  std::vector<v1::Migration> migrations;
  migrations.reserve(entries_.size());
  for (const Entry& entry : entries_) {
    migrations.push_back(Describe(entry));
    migrations.back().clear_state_changes();
  }
  return migrations;
}

absl::Status MigrationTable::Delete(absl::string_view migration_id) {
  // Outlives the lock: its end may have to wait for threads.
  std::shared_ptr<MigrationSide> forgotten;
  std::lock_guard lock(mutex_);
  const Entry* const entry = FindLocked(migration_id);
  if (entry == nullptr) return NoSuchMigration(migration_id);
  if (absl::Status s = entry->side->MayDelete(); !s.ok()) return s;
  const auto at = entries_.begin() + (entry - entries_.data());
  AddSide(at->side->Totals(), forgotten_);
  forget_(at->chosen.migration_id());
  forgotten = std::move(at->side);
  entries_.erase(at);
  return absl::OkStatus();
}

MigrationTotals MigrationTable::Totals() const {
  std::lock_guard lock(mutex_);
  MigrationTotals totals = forgotten_;
  // What has been forgotten is not here.
  totals.present = {};
  for (const Entry& entry : entries_) AddSide(entry.side->Totals(), totals);
  return totals;
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

std::vector<std::shared_ptr<MigrationSide>> MigrationTable::Sides() const {
  std::vector<std::shared_ptr<MigrationSide>> sides;
  std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) sides.push_back(entry.side);
  return sides;
}

void MigrationTable::StopTaking(std::string why) {
  {
    std::lock_guard lock(mutex_);
    refusal_ = std::move(why);
  }
  AtOnce(Sides(), [](MigrationSide& side) {
    // One that is refused is committed, or soon known not to be.
    if (!side.ended()) side.Cancel().IgnoreError();
  });
}

MigrationTable::Load MigrationTable::load() const {
  Load load;
  for (const auto& side : Sides()) {
    v1::Migration now;
    side->Describe(now);
    if (side->ended()) continue;
    ++load.running;
    if (NeedsItsDaemon(now.state())) ++load.needing;
  }
  return load;
}

bool MigrationTable::AllShowLife() {
  bool all = true;
  // Each is asked, so that each is asked again.
  for (const auto& side : Sides()) {
    if (!side->ShowsLife()) all = false;
  }
  return all;
}

void MigrationTable::StopAll() {
  AtOnce(Sides(), [](MigrationSide& side) { side.Stop(); });
}

void MigrationTable::AskAllToStop() {
  for (const auto& side : Sides()) side->AskToStop();
}

}  // namespace postcopy
