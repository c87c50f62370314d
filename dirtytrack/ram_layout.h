// Which memory a VM has: its regions laid end to end, and the KVM slots that
// look at them.
#ifndef DIRTYTRACK_RAM_LAYOUT_H_
#define DIRTYTRACK_RAM_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Limits on what a VMM or a peer may describe.
inline constexpr size_t kMaxRegions = 64;
inline constexpr size_t kMaxSlots = 512;
inline constexpr size_t kMaxNameBytes = 128;
inline constexpr ByteCount kMaxRamBytes{uint64_t{1} << 44};  // 16 TiB

// The larger page size that a region of hugetlbfs memory may have.
inline constexpr ByteCount kHugePageSize{uint64_t{2} << 20};

// Which page sizes the regions of a layout may have. Dirty pages and pages that
// travel between hosts are of kPageSize everywhere; memory that is only filled
// may be made of larger ones.
enum class RegionPages {
  kSmall,        // kPageSize
  kSmallOrHuge,  // or kHugePageSize
};

// One contiguous block of guest RAM with one page size (QEMU: RAMBlock;
// Firecracker: mapping).
struct Region {
  std::string name;
  RamOffset start;
  ByteCount length;
  ByteCount page_size{kPageSize};

  RamOffset end() const { return start + length; }
  friend bool operator==(const Region&, const Region&) = default;
};

// One KVM memory slot and the RAM it shows.
struct Slot {
  SlotId id;
  uint64_t guest_physical_address = 0;
  RamOffset start;
  ByteCount length;

  PageRun pages() const { return {PageOf(start), PagesIn(length)}; }
  friend bool operator==(const Slot&, const Slot&) = default;
};

// The regions of one VM, validated. Immutable, so any thread may read it.
class RamLayout {
 public:
  // Fails with INVALID_ARGUMENT, naming the region and what to change, unless:
  // there are 1..kMaxRegions regions; names are 1..kMaxNameBytes bytes of
  // [A-Za-z0-9._-] and unique; page_size is one that `pages` allows; length is
  // a positive multiple of it; each region starts where the one before it ends
  // (the first at 0), with no gap and no overlap; the sum is at most
  // kMaxRamBytes.
  static absl::StatusOr<RamLayout> Create(
      std::vector<Region> regions, RegionPages pages = RegionPages::kSmall);

  absl::Span<const Region> regions() const { return regions_; }
  ByteCount bytes() const { return regions_.back().end() - RamOffset(0); }
  PageCount pages() const { return PagesIn(bytes()); }

  // OK if all of `run` lies in the layout and `run` is not empty; else
  // OUT_OF_RANGE with the run and the size in the message. Takes any numbers,
  // also such whose sum overflows.
  absl::Status Check(PageIndex first, PageCount count) const;

  // The index in regions() of the region that holds `page`.
  // REQUIRES: page < pages().
  size_t RegionOf(PageIndex page) const;

  // OK if `other` describes the same RAM; else FAILED_PRECONDITION naming the
  // first difference, with this layout called "source" and `other`
  // "destination".
  absl::Status Matches(const RamLayout& other) const;

 private:
  explicit RamLayout(std::vector<Region> regions)
      : regions_(std::move(regions)) {}

  std::vector<Region> regions_;
};

// Checks slots against `layout`: at most kMaxSlots; ids unique; start and
// length page-aligned, length positive, inside the layout; slots of the same
// address space do not overlap in guest-physical addresses and these do not
// wrap. INVALID_ARGUMENT names the slot (both, for an overlap). The same RAM
// may be shown by several slots.
absl::Status CheckSlots(const RamLayout& layout, absl::Span<const Slot> slots);

// RAM pages, and a slot that shows them from its page `first_in_slot` on.
struct SlotCover {
  PageRun ram;
  SlotId slot;
  PageIndex first_in_slot;
};

// One slot for each page of `layout`: covers ascending and without a gap.
// INVALID_ARGUMENT, naming the first page that no slot shows: writes to it
// could not be tracked. REQUIRES: CheckSlots(layout, slots) is OK.
absl::StatusOr<std::vector<SlotCover>> CoverRam(const RamLayout& layout,
                                                absl::Span<const Slot> slots);

// True if `name` has 1..kMaxNameBytes bytes of [A-Za-z0-9._-]: what VMs and
// regions may be called.
bool IsValidName(absl::string_view name);

}  // namespace postcopy

#endif  // DIRTYTRACK_RAM_LAYOUT_H_
