// record: the trace of a real program.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "cmd/daemon/daemon.h"
#include "cmd/faultreplay/command.h"
#include "cmd/faultreplay/program_recording.h"

namespace postcopy {
namespace {

absl::Status CheckFlags(const ReplayContext& context) {
  const ReplayFlags& flags = context.flags;
  if (context.arguments.empty()) {
    return absl::InvalidArgumentError(
        "record which program? faultreplay record --out=FILE -- COMMAND ...");
  }
  if (flags.out.empty()) {
    return absl::InvalidArgumentError("--out=FILE takes the trace");
  }
  if (flags.events_max == 0 || flags.events_max > kTraceEventsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--events_max is 1 to ", kTraceEventsMax));
  }
  if (flags.after < absl::ZeroDuration() ||
      flags.duration <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        "--after is not negative, --duration positive");
  }
  return absl::OkStatus();
}

// Whether the program ended as it should: a recording that breaks programs is
// none.
absl::Status CheckEnd(int wait_status, bool may_be_told) {
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) {
    return absl::OkStatus();
  }
  const bool told =
      WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGTERM;
  if (told && may_be_told) return absl::OkStatus();
  return absl::AbortedError(
      WIFEXITED(wait_status) ? absl::StrCat("the program ended with exit code ",
                                            WEXITSTATUS(wait_status))
                             : absl::StrCat("the program was ended by signal ",
                                            WTERMSIG(wait_status)));
}

absl::Status CheckWhole(const Trace& trace) {
  if (!trace.ended_early) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the trace ends early, ", trace.dropped,
      " touches are not in it: faultd could write no more to $TMPDIR; make "
      "room there, or set it to another directory, and record again"));
}

}  // namespace

absl::Status RunRecord(const ReplayContext& context) {
  absl::Status status = CheckFlags(context);
  if (!status.ok()) return status;
  const ReplayFlags& flags = context.flags;
  RecordOptions options = {.command = context.arguments,
                           .after = flags.after,
                           .after_file = flags.after_file,
                           .duration = flags.duration,
                           .region_min = flags.region_min,
                           .events_max = flags.events_max,
                           .faultd = flags.programs.faultd};
  status = FindDaemon("faultd", &options.faultd);
  if (!status.ok()) return status;
  // It is for us, and not for the program.
  if (flags.ready_fd >= 0) ::fcntl(flags.ready_fd, F_SETFD, FD_CLOEXEC);
  absl::Status told;
  options.on_recording = [&] {
    *context.err << "faultreplay: recording" << std::endl;
    if (flags.ready_fd >= 0) {
      told = TellReady(flags.ready_fd, {{"state", "recording"}});
    }
  };
  const absl::StatusOr<RecordedProgram> recorded = RecordProgram(options);
  if (!recorded.ok()) return recorded.status();
  // What there is, also of a program that failed.
  status = WriteAnyTrace(flags.out, recorded->trace);
  status.Update(told);
  status.Update(CheckWhole(recorded->trace));
  *context.err << "faultreplay: " << recorded->trace.events.size()
               << " touches of " << recorded->pages.value() << " pages in "
               << recorded->regions << " regions, of which "
               << recorded->pages_saved.value() << " had content" << std::endl;
  status.Update(CheckEnd(recorded->wait_status,
                         flags.duration != absl::InfiniteDuration()));
  return status;
}

}  // namespace postcopy
