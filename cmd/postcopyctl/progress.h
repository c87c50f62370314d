// Shows a running migration: one live line on a terminal, otherwise a line for
// each change of state and each second.
#ifndef CMD_POSTCOPYCTL_PROGRESS_H_
#define CMD_POSTCOPYCTL_PROGRESS_H_

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cmd/postcopyctl/migrate.h"
#include "cmd/postcopyctl/migration_board.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Measures how fast pages arrive after the switch-over, which no daemon
// reports, from counters seen one after the other.
class RateMeter {
 public:
  // `pages` so far, at `now`. The rate in bytes per second over at least half a
  // second; 0 until then.
  uint64_t Update(uint64_t pages, absl::Duration now);

 private:
  bool started_ = false;
  uint64_t pages_ = 0;
  absl::Duration since_;
  uint64_t rate_ = 0;
};

// "PRECOPY round 2  left 12,000/131,072 pages  240.1 MiB/s",
// "POSTCOPY  missing 5,000/131,072 pages  210.0 MiB/s  faults 1,234
//  p99 310 us". `postcopy_rate` is a RateMeter's. Without a newline.
std::string FormatProgress(const MigrationView& view, uint64_t postcopy_rate);

// What a terminal needs to show `text` in place of the line before: never
// longer than `width` columns, or it would wrap and stay.
std::string LiveLine(absl::string_view text, size_t width);

// Not thread-safe.
class ProgressPrinter : public MigrateObserver {
 public:
  // `terminal_width` = 0: `out` is not a terminal. `prefix` starts messages.
  ProgressPrinter(std::ostream* out, size_t terminal_width, std::string prefix);
  // Leaves the cursor on a line of its own.
  ~ProgressPrinter() override;

  void OnView(const MigrationView& view, absl::Duration elapsed) override;
  void OnMessage(absl::string_view message) override;
  // Ends the live line, if there is one.
  void Finish();

 private:
  std::ostream* const out_;
  const size_t terminal_width_;
  const std::string prefix_;
  RateMeter meter_;
  bool live_ = false;  // The cursor stands behind a live line.
  bool printed_ = false;
  v1::MigrationState last_state_ = v1::MIGRATION_STATE_UNSPECIFIED;
  absl::Duration last_printed_ = absl::ZeroDuration();
};

// Columns of the terminal that stderr is; 0 if it is none.
size_t StderrWidth();

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_PROGRESS_H_
