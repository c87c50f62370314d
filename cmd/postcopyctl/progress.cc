#include "cmd/postcopyctl/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cmd/postcopyctl/migrate_step.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/units.h"
#include "dirtytrack/types.h"

namespace postcopy {
namespace {

constexpr absl::Duration kMeterWindow = absl::Milliseconds(500);
constexpr absl::Duration kPlainInterval = absl::Seconds(1);
// Fast enough to look alive, slow enough to be read.
constexpr absl::Duration kLiveInterval = absl::Milliseconds(100);
// For a terminal that does not say how wide it is.
constexpr size_t kDefaultWidth = 80;

std::string FormatFaults(const v1::Migration& destination) {
  std::string text =
      absl::StrCat("  faults ", FormatCount(destination.pages().faulted()));
  if (destination.fault_latency().count() > 0) {
    absl::StrAppend(&text, "  p99 ",
                    FormatMicros(destination.fault_latency().p99_us()));
  }
  return text;
}

std::string FormatPages(absl::string_view what, const v1::PageCounters& pages) {
  return absl::StrCat("  ", what, " ", FormatCount(pages.remaining()), "/",
                      FormatCount(pages.total()), " pages");
}

// Who watches one side only sees what that side knows.
std::string FormatPrecopy(const v1::Migration& source,
                          const v1::Migration& destination) {
  if (source.state() == v1::MIGRATION_STATE_UNSPECIFIED) {
    return FormatPages("missing", destination.pages());
  }
  return absl::StrCat(" round ", source.rounds(),
                      FormatPages("left", source.pages()), "  ",
                      FormatRate(source.precopy_bytes_per_second()));
}

std::string FormatTrouble(const MigrationView& view) {
  std::string text;
  for (const SideView* side : {&view.source, &view.destination}) {
    if (side->stream.ok() || HasEnded(side->migration.state())) continue;
    absl::StrAppend(&text, "  (no word from the ",
                    side == &view.source ? "source" : "destination", ")");
  }
  return text;
}

uint64_t PagesArrived(const v1::PageCounters& pages) {
  return pages.faulted() + pages.background();
}

}  // namespace

uint64_t RateMeter::Update(uint64_t pages, absl::Duration now) {
  if (!started_ || pages < pages_) {
    started_ = true;
    pages_ = pages;
    since_ = now;
    return rate_ = 0;
  }
  if (now - since_ < kMeterWindow) return rate_;
  double seconds = absl::ToDoubleSeconds(now - since_);
  rate_ = static_cast<uint64_t>(
      static_cast<double>((pages - pages_) * kPageSize) / seconds);
  pages_ = pages;
  since_ = now;
  return rate_;
}

std::string FormatProgress(const MigrationView& view, uint64_t postcopy_rate) {
  const v1::Migration& source = view.source.migration;
  const v1::Migration& destination = view.destination.migration;
  v1::MigrationState state = OverallState(source, destination);
  std::string text = StateName(state);
  switch (state) {
    case v1::MIGRATION_STATE_PRECOPY:
      text += FormatPrecopy(source, destination);
      break;
    case v1::MIGRATION_STATE_POSTCOPY:
    case v1::MIGRATION_STATE_PAUSED:
    case v1::MIGRATION_STATE_RECOVERING:
      absl::StrAppend(&text, FormatPages("missing", destination.pages()), "  ",
                      FormatRate(postcopy_rate), FormatFaults(destination));
      break;
    case v1::MIGRATION_STATE_COMPLETED:
      absl::StrAppend(&text, FormatFaults(destination));
      break;
    default:
      break;
  }
  return text + FormatTrouble(view);
}

std::string LiveLine(absl::string_view text, size_t width) {
  // The last column stays free: writing it makes some terminals wrap.
  return absl::StrCat("\r", text.substr(0, width > 0 ? width - 1 : 0),
                      "\033[K");
}

ProgressPrinter::ProgressPrinter(std::ostream* out, size_t terminal_width,
                                 std::string prefix)
    : out_(out), terminal_width_(terminal_width), prefix_(std::move(prefix)) {}

ProgressPrinter::~ProgressPrinter() { Finish(); }

void ProgressPrinter::OnView(const MigrationView& view,
                             absl::Duration elapsed) {
  uint64_t rate =
      meter_.Update(PagesArrived(view.destination.migration.pages()), elapsed);
  v1::MigrationState state =
      OverallState(view.source.migration, view.destination.migration);
  absl::Duration interval =
      terminal_width_ > 0 ? kLiveInterval : kPlainInterval;
  if (printed_ && state == last_state_ && elapsed - last_printed_ < interval) {
    return;
  }
  printed_ = true;
  last_state_ = state;
  last_printed_ = elapsed;
  std::string line =
      absl::StrCat(absl::StrFormat("[%6.1fs] ", absl::ToDoubleSeconds(elapsed)),
                   FormatProgress(view, rate));
  if (terminal_width_ > 0) {
    *out_ << LiveLine(line, terminal_width_) << std::flush;
    live_ = true;
  } else {
    *out_ << line << "\n" << std::flush;
  }
}

void ProgressPrinter::OnMessage(absl::string_view message) {
  Finish();
  *out_ << prefix_ << message << "\n" << std::flush;
}

void ProgressPrinter::Finish() {
  if (live_) *out_ << "\n" << std::flush;
  live_ = false;
}

size_t StderrWidth() {
  if (!::isatty(STDERR_FILENO)) return 0;
  winsize size = {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
    return kDefaultWidth;
  }
  return size.ws_col;
}

}  // namespace postcopy
