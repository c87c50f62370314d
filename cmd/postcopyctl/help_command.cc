// help: everything on one screen.

#include "absl/strings/str_format.h"
#include "cmd/postcopyctl/command.h"

namespace postcopy {
namespace {

constexpr char kFlags[] = R"(
Flags:
  --source=HOST:PORT        control plane of the source (pageserverd)
  --destination=HOST:PORT   control plane of the destination (faultd)
  --source_data=HOST:PORT   its data plane (default: port 7401 of --source)
  --vm=NAME                 the VM, as attached to both daemons
  --migration_id=ID         default for migrate: the VM's name and a random part
  --policy=POLICY           precopy-then-postcopy (default), postcopy-only or
                            precopy-only
  --bandwidth=SIZE          bulk bytes per second, such as 256MiB; faulted pages
                            are exempt (default: no limit)
  --compress                zstd on the bulk lane, for slow networks
  --pull_order=ORDER        what comes first after the switch-over: adaptive
                            (default), linear, after-fault, around-faults or
                            recently-dirtied
  --rounds_max=N            rounds before the switch-over (default: 30)
  --timeout=TIME            for all of it, such as 90s or 2h (default: none)
  --tls_dir=DIR             certificates to dial daemons with
  --insecure                dial them in plaintext
  --dir=DIR --hosts=A,B     dev-certs: where to write, for which hosts
  --force                   dev-certs: overwrite
  --output=table|json       how to print results (default: table)

Exit codes: 0 done; 1 failed, cancelled or interrupted; 2 wrong usage; 3 a
daemon cannot be reached; 4 a precondition does not hold (no such VM or
migration, id taken, too late), or the time is over.
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
