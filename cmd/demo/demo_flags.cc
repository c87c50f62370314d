#include "cmd/demo/demo_flags.h"

#include <cstdint>
#include <string>

#include "absl/flags/flag.h"
#include "absl/time/time.h"
#include "dirtytrack/types.h"

ABSL_FLAG(postcopy::ByteCount, ram, postcopy::ByteCount(512 << 20),
          "RAM of the guest.");
ABSL_FLAG(uint32_t, vcpus, 2, "vCPUs of the guest.");
ABSL_FLAG(std::string, guest, "kvm", "kvm or process.");
ABSL_FLAG(std::string, policy, "precopy-then-postcopy", "How to migrate.");
ABSL_FLAG(std::string, output, "table", "table or json.");
ABSL_FLAG(postcopy::ByteCount, bandwidth, postcopy::ByteCount(0),
          "Bulk bytes per second; 0 = by --ram.");
ABSL_FLAG(std::string, write_rate, "", "What the guest writes per second.");
ABSL_FLAG(std::string, dirty_tracking, "", "How dirty pages are found.");
ABSL_FLAG(std::string, memory, "", "What the guest's RAM is made of.");
ABSL_FLAG(bool, minor_faults, false, "Stale pages stay in memory.");
ABSL_FLAG(std::string, security, "tls", "tls or insecure.");
ABSL_FLAG(absl::Duration, run_after, absl::Seconds(2),
          "How long the guest runs on before it is checked.");
ABSL_FLAG(bool, keep_logs, false, "Keep the children's output.");
ABSL_FLAG(std::string, pageserverd, "", "Path of pageserverd.");
ABSL_FLAG(std::string, faultd, "", "Path of faultd.");
ABSL_FLAG(std::string, demovm, "", "Path of demovm.");

namespace postcopy {

const char kDemoHelp[] = R"(Usage: demo [--flag=value ...]

Starts both daemons and two VMMs on this machine, migrates a guest that writes
all the time, then stops it and compares every page with what it should be.

Flags:
  --ram=SIZE            RAM of the guest (default: 512MiB); the demo needs twice
                        that and 1 GiB more
  --vcpus=N             1 to 8 (default: 2)
  --guest=kvm|process   a guest of /dev/kvm (default), or threads of the VMM
  --policy=POLICY       precopy-then-postcopy (default), postcopy-only or
                        precopy-only
  --bandwidth=SIZE      bulk bytes per second (default: 64MiB, slower than the
                        guest writes; 128MiB for more than 1GiB of RAM)
  --write_rate=SIZE     what the guest writes per second (default: 300MiB); 0 is
                        no limit
  --dirty_tracking=HOW  how dirty pages are found. With --guest=kvm:
                          kvm-manual    KVM's bitmaps, cleared in a second step
                                        (default)
                          kvm-log       KVM's bitmaps, cleared when read
                          kvm-ring      KVM's rings, one for each vCPU
                        With --guest=process:
                          log           its program marks its pages (default)
                        With both:
                          pagemap-scan  the kernel tells (Linux 6.7)
  --memory=KIND         what the guest's RAM is made of: shared (default),
                        private, huge or huge-private (2 MiB pages, which both
                        VMMs take of vm.nr_hugepages)
  --minor_faults        stale pages stay in the guest's memory until fresh ones
                        replace them (UFFDIO_CONTINUE)
  --security=tls|insecure
                        certificates of an authority made for the run (default),
                        or plaintext
  --run_after=TIME      how long the guest runs on before it is checked (2s)
  --output=table|json   how to print the report (default: table)
  --keep_logs           keep the output of the programs it runs
  --pageserverd=PATH, --faultd=PATH, --demovm=PATH
                        these programs (default: built beside this one)

The report goes to stdout, everything else to stderr. Exit codes:
  0 the guest came through unharmed   1 it did not, or could not be moved
  2 wrong usage
)";

DemoOptions DemoOptionsFromFlags() {
  return {.ram = absl::GetFlag(FLAGS_ram),
          .vcpus = absl::GetFlag(FLAGS_vcpus),
          .guest = absl::GetFlag(FLAGS_guest),
          .policy = absl::GetFlag(FLAGS_policy),
          .output = absl::GetFlag(FLAGS_output),
          .bandwidth = absl::GetFlag(FLAGS_bandwidth),
          .write_rate = absl::GetFlag(FLAGS_write_rate),
          .dirty_tracking = absl::GetFlag(FLAGS_dirty_tracking),
          .memory = absl::GetFlag(FLAGS_memory),
          .minor_faults = absl::GetFlag(FLAGS_minor_faults),
          .security = absl::GetFlag(FLAGS_security),
          .run_after = absl::GetFlag(FLAGS_run_after),
          .keep_logs = absl::GetFlag(FLAGS_keep_logs),
          .programs = {.pageserverd = absl::GetFlag(FLAGS_pageserverd),
                       .faultd = absl::GetFlag(FLAGS_faultd),
                       .demovm = absl::GetFlag(FLAGS_demovm)}};
}

}  // namespace postcopy
