// What the demo shows, and whether this machine can.
#ifndef CMD_DEMO_DEMO_OPTIONS_H_
#define CMD_DEMO_DEMO_OPTIONS_H_

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "dirtytrack/types.h"

namespace postcopy {

// The programs that the demo runs.
struct DemoPrograms {
  std::string pageserverd;
  std::string faultd;
  std::string demovm;
};

struct DemoOptions {
  ByteCount ram{512 * 1024 * 1024};
  uint32_t vcpus = 2;
  // "kvm" or "process".
  std::string guest = "kvm";
  // As postcopyctl's --policy.
  std::string policy = "precopy-then-postcopy";
  // "table" or "json".
  std::string output = "table";
  // Per second, for the bulk lane; 0 = DefaultBandwidth(ram).
  ByteCount bandwidth{};
  // What the guest writes per second; empty = demovm's default.
  std::string write_rate = {};
  // As demovm's --dirty_tracking; empty = its default for `guest`.
  std::string dirty_tracking = {};
  // As demovm's --memory; empty = its default.
  std::string memory = {};
  // As demovm's.
  bool minor_faults = false;
  // "tls": certificates of a fresh authority; "insecure": plaintext.
  std::string security = "tls";
  // How long the guest runs on at the destination before it is checked.
  absl::Duration run_after = absl::Seconds(2);
  // Do not remove the directory with the children's output.
  bool keep_logs = false;
  // Empty paths are filled in by FindPrograms().
  DemoPrograms programs = {};
};

// INVALID_ARGUMENT with a sentence.
absl::Status ValidateDemoOptions(const DemoOptions& options);

// A limit that makes the network slower than the guest, so that precopy alone
// would never end: 64 MiB per second, twice that for more than 1 GiB of RAM.
ByteCount DefaultBandwidth(ByteCount ram);

// How long a step that touches all of RAM may take on a slow machine.
absl::Duration TimeForAllOf(ByteCount ram);

// Whether two VMs of `ram` fit into memory; `meminfo` is /proc/meminfo's text.
// RESOURCE_EXHAUSTED with both numbers if not.
absl::Status CheckMemory(ByteCount ram, absl::string_view meminfo);

// Where Bazel puts the programs, as seen from `own_path` (cmd/demo/demo), for
// those that `programs` does not name. NOT_FOUND names the first that is not
// there.
absl::StatusOr<DemoPrograms> FindPrograms(const std::string& own_path,
                                          DemoPrograms programs);

// Fills in what depends on this machine: looks at its memory, takes a process
// for a guest (and says so on `err`) where there is no KVM, finds the programs.
absl::Status FitToMachine(DemoOptions* options, std::ostream* err);

// `write_rate` in whole MiB per second, as demovm takes it.
absl::StatusOr<uint64_t> WriteRateMib(const std::string& write_rate);

}  // namespace postcopy

#endif  // CMD_DEMO_DEMO_OPTIONS_H_
