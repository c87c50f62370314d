// help: everything on one screen, and each command on another.

#include <string>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "cmd/postcopyctl/command.h"

namespace postcopy {
namespace {

struct FlagHelp {
  absl::string_view name;
  absl::string_view text;
};

constexpr FlagHelp kFlagHelps[] = {
    {"vm", "  --vm=NAME                 the VM, as attached to both daemons\n"},
    {"migration_id",
     "  --migration_id=ID         the migration; default for migrate: the "
     "VM's\n"
     "                            name and a random part\n"},
    {"source_data",
     "  --source_data=HOST:PORT   data plane of the source, as the "
     "destination\n"
     "                            dials it (default: port 7401 of --source; "
     "for\n"
     "                            recover: as before)\n"},
    {"policy",
     "  --policy=POLICY           manual (default): postcopyctl switches over "
     "when\n"
     "                            more rounds do not pay; auto: so does the\n"
     "                            source; postcopy-only; precopy-only\n"},
    {"deadline_per_gib",
     "  --deadline_per_gib=TIME   of precopy for each GiB, then switch over\n"
     "                            (default: 30s under auto, else none)\n"},
    {"rounds_max",
     "  --rounds_max=N            rounds before the switch-over (default: "
     "30)\n"},
    {"bandwidth",
     "  --bandwidth=SIZE          bulk bytes per second, such as 256MiB; 0 is "
     "no\n"
     "                            limit; faulted pages are exempt\n"},
    {"compress",
     "  --compress                compress pages that come over the bulk lane\n"
     "                            (zstd): for a slow network\n"},
    {"pull_order",
     "  --pull_order=ORDER        which pages come first after the "
     "switch-over:\n"
     "                            adaptive (default), linear, after-fault,\n"
     "                            around-faults or recently-dirtied\n"},
    {"pause_command",
     "  --pause_command=COMMAND   /bin/sh command that stops the guest at the\n"
     "                            source, run before the switch-over\n"},
    {"resume_command",
     "  --resume_command=COMMAND  the same that lets it run, where it belongs "
     "then\n"},
    {"timeout",
     "  --timeout=TIME            for all of it, such as 90s or 2h (default: "
     "none);\n"
     "                            migrate: what is not switched over is "
     "cancelled\n"},
    {"dry_run",
     "  --dry_run                 check everything and create nothing\n"},
    {"dir", "  --dir=DIR                 where to write the certificates\n"},
    {"hosts",
     "  --hosts=A,B               names and addresses of the hosts they are "
     "for\n"},
    {"force", "  --force                   overwrite those that are there\n"},
    {"lose_missing_pages",
     "  --lose_missing_pages      yes: the guest gets SIGBUS at what is "
     "missing\n"},
};

constexpr char kCommonFlags[] =
    R"(  --source=HOST:PORT        control plane of the source (pageserverd)
  --destination=HOST:PORT   control plane of the destination (faultd)
  --tls_dir=DIR             certificates to dial daemons with
  --insecure                dial them in plaintext
  --output=table|json       how to print results (default: table)
)";

constexpr char kEnd[] = R"(
See postcopyctl COMMAND --help for the other flags of a command.

Exit codes: 0 done; 1 failed, cancelled or interrupted; 2 wrong usage; 3 a
daemon cannot be reached; 4 a precondition does not hold (no such VM or
migration, id taken, too late), or the time is over.
)";

absl::string_view HelpOf(absl::string_view flag) {
  for (const FlagHelp& help : kFlagHelps) {
    if (help.name == flag) return help.text;
  }
  return "";
}

}  // namespace

absl::Status ValidateHelp(const Options&) { return absl::OkStatus(); }

absl::Status RunHelp(const CommandContext& context) {
  *context.out << "Usage: postcopyctl COMMAND [--flag=value ...]\n\n"
                  "Drives and shows live migrations.\n\nCommands:\n";
  for (const Command& command : AllCommands()) {
    *context.out << absl::StreamFormat("  %-12s %s\n", command.name,
                                       command.summary);
  }
  *context.out << "\nFlags of all commands:\n" << kCommonFlags << kEnd;
  return absl::OkStatus();
}

void PrintCommandHelp(const CommandContext& context, const Command& command) {
  *context.out << "Usage: postcopyctl " << command.name
               << " [--flag=value ...]\n\n"
               << command.name << ": " << command.summary << ".\n\nFlags:\n"
               << kCommonFlags;
  for (const absl::string_view flag :
       absl::StrSplit(command.flags, ' ', absl::SkipEmpty())) {
    *context.out << HelpOf(flag);
  }
}

}  // namespace postcopy
