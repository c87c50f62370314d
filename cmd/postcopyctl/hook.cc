#include "cmd/postcopyctl/hook.h"

#include <signal.h>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/process/child_process.h"

namespace postcopy {
namespace {

std::string NameOf(HookEvent event) {
  return event == HookEvent::kPause ? "pause" : "resume";
}

}  // namespace

absl::Status RunHook(const std::string& command, const HookContext& context,
                     absl::Duration timeout) {
  const std::string event = NameOf(context.event);
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(
      {.argv = {
           "/usr/bin/env", absl::StrCat("POSTCOPY_EVENT=", event),
           absl::StrCat("POSTCOPY_SIDE=", RoleName(context.side)),
           absl::StrCat("POSTCOPY_VM=", context.vm_name),
           absl::StrCat("POSTCOPY_MIGRATION_ID=", context.migration_id),
           absl::StrCat("POSTCOPY_SOURCE=", context.source_address),
           absl::StrCat("POSTCOPY_DESTINATION=", context.destination_address),
           "/bin/sh", "-c",
           // What it prints is no data of ours.
           "exec 1>&2; exec /bin/sh -c \"$1\"", "sh", command}});
  if (!child.ok()) return child.status();
  const std::string what =
      absl::StrCat("the ", event, " command for the ", RoleName(context.side));
  const absl::StatusOr<ExitStatus> end = child->Wait(timeout);
  if (!end.ok()) {
    // The shell leads a group of its own.
    ::kill(-child->pid(), SIGKILL);
    return absl::DeadlineExceededError(
        absl::StrCat(what, " has not ended within ",
                     absl::FormatDuration(timeout), " and was killed"));
  }
  if (end->ok()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", end->ToString()));
}

}  // namespace postcopy
