// What the guest that touches pages under QEMU finds in its own memory, and
// what it leaves there.
#ifndef CMD_FAULTREPLAY_QEMU_GUEST_IMAGE_H_
#define CMD_FAULTREPLAY_QEMU_GUEST_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cmd/faultreplay/touch_plan.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Touches of one guest, at most.
inline constexpr size_t kGuestTouchesMax = 1 << 20;
// All memory of a guest: what a PC has below its hole under 4 GiB.
inline constexpr ByteCount kGuestMemoryMax{uint64_t{3} << 30};

// How much memory of its own a guest with so many touches has: a multiple of
// 2 MiB. REQUIRES: touches <= kGuestTouchesMax.
ByteCount GuestOwnBytes(size_t touches);

// What QEMU takes as its -bios.
std::vector<uint8_t> GuestFirmware();

// Lays a guest out that makes `touches` in RAM behind its own memory.
// REQUIRES: `own` is GuestOwnBytes() of zeros, and what both need is not above
// kGuestMemoryMax.
void InstallGuest(absl::Span<const Touch> touches, uint8_t* own);

// True once it waits for its migration, with what was written before visible.
// Any time, while it runs too.
bool GuestIsReady(const uint8_t* own);

// One touch, in ticks of the guest's time-stamp counter.
struct GuestTouch {
  // Since the guest found itself at the destination.
  uint64_t start_ticks = 0;
  uint64_t ticks = 0;
  // Its page did not hold what it must.
  bool wrong = false;
};

// What a guest that has ended has left in `own`. INTERNAL unless it has made
// all its touches.
absl::StatusOr<std::vector<GuestTouch>> ReadGuestResults(size_t touches,
                                                         const uint8_t* own);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_QEMU_GUEST_IMAGE_H_
