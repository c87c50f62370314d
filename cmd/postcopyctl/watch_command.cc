// watch: follows a migration without touching it.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/migration_board.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/progress.h"
#include "cmd/postcopyctl/report.h"
#include "cmd/postcopyctl/side_watcher.h"
#include "cmd/postcopyctl/uptime.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);

const SideView& Side(const MigrationView& view, const DaemonClient& client) {
  return client.role() == v1::ROLE_SOURCE ? view.source : view.destination;
}

// Writes each side whenever it has changed, one object per line.
class JsonPrinter {
 public:
  explicit JsonPrinter(std::ostream* out) : out_(out) {}

  void Print(const MigrationView& view) {
    PrintIfNew(view.source.migration, &source_);
    PrintIfNew(view.destination.migration, &destination_);
  }

 private:
  void PrintIfNew(const v1::Migration& migration, std::string* last) {
    if (migration.state() == v1::MIGRATION_STATE_UNSPECIFIED) return;
    std::string json = MigrationJson(migration);
    if (json == *last) return;
    *out_ << json << "\n" << std::flush;
    *last = json;
  }

  std::ostream* const out_;
  std::string source_;
  std::string destination_;
};

// How watching ends after `view`; nullopt: not yet.
std::optional<absl::Status> EndOf(const MigrationView& view,
                                  const Clients& clients) {
  bool all_ended = true;
  for (const auto& client : clients) {
    const SideView& side = Side(view, *client);
    v1::MigrationState state = side.migration.state();
    if (side.lost) return side.stream;
    if (!HasEnded(state)) {
      all_ended = false;
    } else if (state != v1::MIGRATION_STATE_COMPLETED) {
      return absl::AbortedError(absl::StrCat(
          "the migration is ", StateName(state), " at the ",
          RoleName(client->role()), ": ", side.migration.status_message()));
    }
  }
  if (!all_ended) return std::nullopt;
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateWatch(const Options& options) {
  return ValidateGet(options);
}

absl::Status RunWatch(const CommandContext& context) {
  absl::StatusOr<Clients> clients = ConnectAll(context);
  if (!clients.ok()) return clients.status();
  MigrationBoard board;
  std::vector<std::unique_ptr<SideWatcher>> watchers;
  for (const auto& client : *clients) {
    watchers.push_back(std::make_unique<SideWatcher>(
        client.get(), context.options.migration_id, WatchOptions(), &board));
  }
  JsonPrinter json(context.out);
  // Here the progress is the data; only a terminal gets the live line.
  ProgressPrinter lines(context.terminal_width > 0 ? context.err : context.out,
                        context.terminal_width, "postcopyctl: ");
  const absl::Duration start = Uptime();
  uint64_t version = 0;
  while (!context.interrupted()) {
    MigrationView view = board.AwaitChange(&version, kTick);
    for (const auto& watcher : watchers) watcher->BreakSilentStream();
    absl::Duration elapsed = Uptime() - start;
    if (context.json()) {
      json.Print(view);
    } else {
      lines.OnView(view, elapsed);
    }
    std::optional<absl::Status> end = EndOf(view, *clients);
    if (end.has_value()) return *end;
    if (elapsed >= context.options.timeout) {
      return absl::DeadlineExceededError(
          "the migration has not ended within --timeout; it goes on");
    }
  }
  return absl::CancelledError("interrupted; the migration goes on");
}

}  // namespace postcopy
