// help: everything on one screen.

#include "absl/strings/str_format.h"
#include "cmd/postcopyctl/command.h"

namespace postcopy {
namespace {

constexpr char kFlags[] = R"(
Flags:
  --source=HOST:PORT        control plane of the source (pageserverd)
  --destination=HOST:PORT   control plane of the destination (faultd)
  --source_data=HOST:PORT   data plane of the source, as the destination dials
                            it (default: port 7401 of --source)
  --vm=NAME                 the VM, as attached to both daemons
  --migration_id=ID         default for migrate: the VM's name and a random part
  --policy=POLICY           precopy-then-postcopy (default), postcopy-only or
                            precopy-only
  --bandwidth=SIZE          bulk bytes per second, such as 256MiB; 0 (default)
                            is no limit; faulted pages are exempt
  --compress                compress pages that come over the bulk lane (zstd):
                            for a network slower than a CPU compresses
  --pull_order=ORDER        which pages come first after the switch-over:
                            adaptive (default), linear, after-fault,
                            around-faults or recently-dirtied
  --rounds_max=N            rounds before the switch-over (default: 30)
  --timeout=TIME            for all of it, such as 90s or 2h (default: none);
                            a migration not yet switched over is cancelled
  --output=table|json       how to print results (default: table)

Data goes to stdout, messages and progress to stderr. Exit codes:
  0 done   1 failed, cancelled or interrupted   2 wrong usage
  3 a daemon cannot be reached
  4 a precondition does not hold (no such VM or migration, id taken, too late),
    or the time is over
)";

}  // namespace

absl::Status ValidateHelp(const Options&) { return absl::OkStatus(); }

absl::Status RunHelp(const CommandContext& context) {
  *context.out << "Usage: postcopyctl COMMAND [--flag=value ...]\n\n"
                  "Drives and shows live migrations.\n\nCommands:\n";
  for (const Command& command : AllCommands()) {
    *context.out << absl::StreamFormat("  %-12s %s\n", command.name,
                                       command.summary);
  }
  *context.out << kFlags;
  return absl::OkStatus();
}

}  // namespace postcopy
