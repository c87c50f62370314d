#include "cmd/daemon/serve.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <future>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cmd/daemon/daemon.h"
#include "cmd/systemd/service_manager.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {
namespace {

// How often the status line is looked at, and the service manager told that a
// stop takes longer.
constexpr absl::Duration kTick = absl::Seconds(1);

// The same while it is told to end: who waits for it waits no longer than this.
constexpr absl::Duration kDrainTick = absl::Milliseconds(100);

// A sign of life is sent this many times in the watchdog's time.
constexpr int kSignsPerWatchdog = 4;

// How much longer than now a stop may take, each time it is told. What hangs is
// killed after that.
constexpr absl::Duration kMoreTime = absl::Seconds(30);

// By a clock that nobody sets.
absl::Time Now() { return absl::FromUnixNanos(Clock::Monotonic()->NowNanos()); }

std::string Counted(size_t count, const char* what) {
  return absl::StrCat(count, " ", what, count == 1 ? "" : "s");
}

// The signal that came within `patience`, or 0.
int WaitForSignal(absl::Duration patience) {
  const sigset_t set = DaemonSignals();
  if (patience == absl::InfiniteDuration()) {
    return std::max(0, ::sigwaitinfo(&set, nullptr));
  }
  const timespec time = absl::ToTimespec(patience);
  return std::max(0, ::sigtimedwait(&set, nullptr, &time));
}

// What Serve does. Of main's thread.
class Service {
 public:
  explicit Service(const ServeHooks& hooks) : hooks_(hooks) {}
  ~Service() {
    if (stopper_.joinable()) stopper_.join();
  }

  void Run() {
    TellStatus();
    manager_.Ready();
    while (!MayEnd()) {
      Explain();
      const int signal = WaitForSignal(Patience());
      if (signal == SIGHUP) Reload();
      if (signal == SIGTERM || signal == SIGINT) OnAskedToEnd();
      Tick();
    }
    manager_.Stopping();
    manager_.Status("ending");
  }

 private:
  absl::Duration Patience() const {
    if (drain_.asked()) return kDrainTick;
    if (!manager_.there()) return absl::InfiniteDuration();
    return std::min(kTick, manager_.watchdog() / kSignsPerWatchdog);
  }

  bool MayEnd() {
    if (!drain_.asked()) return false;
    // Before the load: what is given up must not be seen as it was before.
    const bool given_up = HasGivenUp();
    const DaemonLoad load = hooks_.load();
    const DaemonLoad waited_for =
        given_up ? load : DaemonLoad{.needing = load.needing + 1};
    if (!drain_.IsOver(waited_for, hooks_.drain_timeout(), Now())) return false;
    if (load.needing > 0) {
      hooks_.log(absl::StrCat("ends although ", Counted(load.needing, "guest"),
                              " will wait for ever for missing pages"));
    }
    return true;
  }

  void OnAskedToEnd() {
    if (!drain_.Ask(Now())) return;
    // A peer or a VMM that does not answer holds it up: not this thread, which
    // feeds the watchdog.
    absl::StatusOr<std::thread> stopper = StartThread([this] {
      hooks_.stop_taking();
      stopped_.set_value();
    });
    if (stopper.ok()) {
      stopper_ = *std::move(stopper);
    } else {
      hooks_.stop_taking();
      stopped_.set_value();
    }
    // Mostly it takes no time.
    given_up_.wait_for(absl::ToChronoMilliseconds(kDrainTick));
  }

  // Whether stop_taking has returned.
  bool HasGivenUp() const {
    return given_up_.wait_for(std::chrono::seconds(0)) ==
           std::future_status::ready;
  }

  // Once, as soon as it is known.
  void Explain() {
    if (explained_ || !drain_.asked() || !HasGivenUp()) return;
    explained_ = true;
    hooks_.log(WhyNotYet());
  }

  std::string WhyNotYet() const {
    if (!HasGivenUp()) {
      return "told to end: cancels the migrations that are not decided";
    }
    return drain_.WhyNot(hooks_.load(), hooks_.drain_timeout(), Now());
  }

  void Reload() {
    manager_.Reloading();
    hooks_.log(hooks_.reload());
    manager_.Ready();
  }

  void Tick() {
    // A stuck thread is not helped by more time either.
    if (hooks_.shows_life()) {
      if (manager_.watchdog() < absl::InfiniteDuration()) manager_.Alive();
      if (drain_.asked()) manager_.NeedsTime(kMoreTime);
    }
    TellStatus();
  }

  void TellStatus() {
    if (!manager_.there()) return;
    std::string line = drain_.asked() ? WhyNotYet() : Describe(hooks_.load());
    if (line == told_) return;
    manager_.Status(line);
    told_ = std::move(line);
  }

  const ServeHooks& hooks_;
  const ServiceManager manager_;
  Drain drain_;
  bool explained_ = false;
  std::string told_;
  std::promise<void> stopped_;
  const std::future<void> given_up_ = stopped_.get_future();
  std::thread stopper_;
};

}  // namespace

std::string Describe(const DaemonLoad& load) {
  std::string text = absl::StrCat(Counted(load.vms, "VM"), ", ",
                                  Counted(load.migrations, "migration"));
  if (load.needing > 0) {
    absl::StrAppend(&text, ", ", Counted(load.needing, "guest"),
                    load.needing == 1 ? " needs" : " need",
                    " this daemon for missing pages");
  }
  if (load.failing > 0) {
    absl::StrAppend(&text, "; pages of ", Counted(load.failing, "VM"),
                    " cannot be had, see the log");
  }
  return text;
}

bool Drain::Ask(absl::Time now) {
  if (asks_++ > 0) return false;
  since_ = now;
  return true;
}

bool Drain::IsOver(const DaemonLoad& load, absl::Duration timeout,
                   absl::Time now) const {
  return load.needing == 0 || asks_ > 1 || now - since_ >= timeout;
}

std::string Drain::WhyNot(const DaemonLoad& load, absl::Duration timeout,
                          absl::Time now) const {
  std::string text =
      absl::StrCat("told to end, but stays: ", Counted(load.needing, "guest"),
                   load.needing == 1 ? " needs" : " need",
                   " it for missing pages. SIGTERM once more ends it at once");
  if (timeout < absl::InfiniteDuration()) {
    const absl::Duration left =
        std::max(absl::ZeroDuration(), timeout - (now - since_));
    absl::StrAppend(&text, "; else it ends in ",
                    absl::FormatDuration(absl::Ceil(left, absl::Seconds(1))));
  }
  return text;
}

void Serve(const ServeHooks& hooks) { Service(hooks).Run(); }

}  // namespace postcopy
