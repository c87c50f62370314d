// One replay of a trace by a guest under QEMU while QEMU's own postcopy brings
// its RAM.
#ifndef CMD_FAULTREPLAY_QEMU_QEMU_REPLAY_H_
#define CMD_FAULTREPLAY_QEMU_QEMU_REPLAY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/run_result.h"
#include "cmd/faultreplay/source_memory.h"
#include "cmd/faultreplay/touch_plan.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Migrations that are tried until QEMU completes one. QEMU 7.2 with preempt
// gives some up on a busy machine (postcopy_place_page: File exists).
inline constexpr int kQemuAttemptsMax = 3;

struct QemuReplayOptions {
  // Path of qemu-system-x86_64.
  std::string program;
  // The capability postcopy-preempt: a connection of its own for urgent pages.
  bool preempt = false;
  // max-postcopy-bandwidth, in bytes per second; 0: no limit.
  ByteCount bandwidth;
  // Added to each direction between the two, by a proxy; 0: none.
  int64_t delay_ns = 0;
  // From the migration's begin until all has come and all touches are made.
  absl::Duration timeout = absl::Minutes(2);
  // The vCPU is bound to the first; empty: it is not.
  std::vector<int> cpus;
};

// OK if a guest can make the touches of `plan`: one thread without pauses, not
// too many, not too much RAM. Else INVALID_ARGUMENT.
absl::Status CheckQemuPlan(const TouchPlan& plan);

// Has a QEMU whose guest's RAM is `source` migrate it to another one by
// postcopy from the first moment, where the guest makes the touches of `plan`
// while its pages come. Every page of the destination is looked at in the end.
//
// The guest cannot know whether a page is there before it touches it, but QEMU
// counts the pages that were asked for. So as many first touches, the longest,
// are waits in the result; the others have found their page.
//
// In the result, whole_ns and residency count from the moment in which the
// destination's guest ran, the others from when the guest found itself there.
//
// INVALID_ARGUMENT as CheckQemuPlan; FAILED_PRECONDITION if KVM is missing or
// QEMU refuses; DEADLINE_EXCEEDED; UNAVAILABLE if QEMU has given up or cannot
// be started, kQemuAttemptsMax times; else what QEMU says. Whatever it
// is, no process is left.
absl::StatusOr<RunResult> RunQemuReplay(const TouchPlan& plan,
                                        const SourceMemory& source,
                                        const QemuReplayOptions& options);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_QEMU_QEMU_REPLAY_H_
