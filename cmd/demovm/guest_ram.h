// The RAM of a guest, and where a guest and this process see it.
#ifndef CMD_DEMOVM_GUEST_RAM_H_
#define CMD_DEMOVM_GUEST_RAM_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy::demovm {

// RAM ends where a PC has its devices and goes on at 4 GiB.
inline constexpr ByteCount kLowRamMax{uint64_t{3} << 30};
inline constexpr uint64_t kHighRamStart = uint64_t{4} << 30;
inline constexpr ByteCount kGuestRamMax{uint64_t{256} << 30};

// What it is made of.
enum class RamKind {
  kShared,       // memfds
  kPrivate,      // anonymous memory
  kHuge,         // memfds of huge pages, which the host must have to spare
  kHugePrivate,  // anonymous memory of huge pages
};

// "shared", "private", "huge", "huge-private"; nullopt for anything else.
std::optional<RamKind> ParseRamKind(absl::string_view name);

// A block of RAM: a region, which is a whole memfd or private, and the one slot
// that shows it.
struct RamBlock {
  Region region;
  Slot slot;
  UniqueFd memfd;          // not valid if private
  uint64_t fd_offset = 0;  // always 0: the block is the file
  uint8_t* host = nullptr;
};

// Owns the memory and the mappings; move-only, and moving keeps addresses.
// Threads: as memory.
class GuestRam {
 public:
  // RAM of zeros that takes no memory until it is touched: "ram-low" at guest
  // physical address 0, with at most `low_max` bytes, and the rest, if any, as
  // "ram-high" at kHighRamStart. The memfds cannot change size any more
  // (F_SEAL_SHRINK | F_SEAL_GROW). INVALID_ARGUMENT unless `bytes` is a
  // positive multiple of 2 MiB up to kGuestRamMax, and `low_max` (other than
  // the default in tests only) one up to kLowRamMax. RESOURCE_EXHAUSTED if the
  // host has not so many huge pages.
  static absl::StatusOr<GuestRam> Create(ByteCount bytes,
                                         ByteCount low_max = kLowRamMax,
                                         RamKind kind = RamKind::kShared);

  GuestRam(GuestRam&& other) noexcept;
  GuestRam& operator=(GuestRam&& other) noexcept;
  ~GuestRam();

  ByteCount bytes() const { return bytes_; }
  absl::Span<const RamBlock> blocks() const { return blocks_; }
  std::vector<Region> regions() const;
  std::vector<Slot> slots() const;

  // Where this process sees guest physical address 0. All RAM is mapped at its
  // guest physical address from here; nothing is mapped accessibly between the
  // blocks.
  uint8_t* guest_physical_zero() const { return base_; }
  // REQUIRES: page < bytes() / kPageSize.
  uint8_t* PageAddress(PageIndex page) const;

 private:
  GuestRam(uint8_t* reserved, size_t span, ByteCount bytes);
  absl::Status AddBlock(absl::string_view name, RamOffset start,
                        ByteCount length, uint64_t guest_physical,
                        RamKind kind);
  void Unmap();

  uint8_t* reserved_;
  size_t span_;    // reserved from reserved_, bytes
  uint8_t* base_;  // the first multiple of 2 MiB in it
  ByteCount bytes_;
  std::vector<RamBlock> blocks_;
};

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_GUEST_RAM_H_
