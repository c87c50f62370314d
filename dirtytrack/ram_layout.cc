#include "dirtytrack/ram_layout.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

std::string Describe(const Region& region) {
  return absl::StrCat("region \"", region.name, "\"");
}

absl::Status CheckRegionShape(const Region& region, RegionPages pages) {
  const bool huge = pages == RegionPages::kSmallOrHuge;
  if (region.page_size != ByteCount(kPageSize) &&
      !(huge && region.page_size == kHugePageSize)) {
    return absl::InvalidArgumentError(absl::StrCat(
        Describe(region), " has pages of ", ToString(region.page_size),
        "; only ", ToString(ByteCount(kPageSize)),
        huge ? absl::StrCat(" and ", ToString(kHugePageSize), " are") : " is",
        " supported"));
  }
  if (region.length.empty() ||
      region.length.value() % region.page_size.value() != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        Describe(region), " has a length of ", ToString(region.length),
        "; make it a positive multiple ", "of ", ToString(region.page_size)));
  }
  return absl::OkStatus();
}

// Checks a region that must begin at `expected`.
absl::Status CheckRegion(const Region& region, RamOffset expected,
                         RegionPages pages) {
  // Checked first: the other messages print the name.
  if (!IsValidName(region.name)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the region at ", ToString(region.start), " has an unusable name; use ",
        "1 to ", kMaxNameBytes, " of the characters A-Z a-z 0-9 . _ -"));
  }
  if (absl::Status status = CheckRegionShape(region, pages); !status.ok()) {
    return status;
  }
  if (region.start != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat(Describe(region), " starts at ", ToString(region.start),
                     "; regions lie end to end from 0, so it has to start at ",
                     ToString(expected)));
  }
  // Not region.end(): the sum may overflow.
  const ByteCount before = expected - RamOffset(0);
  if (region.length > kMaxRamBytes - before) {
    return absl::InvalidArgumentError(
        absl::StrCat(Describe(region), " takes the VM beyond ",
                     ToString(kMaxRamBytes), " of RAM, the most supported"));
  }
  return absl::OkStatus();
}

// "region N: <what> is <a> on the source and <b> on the destination".
absl::Status Differs(size_t index, absl::string_view what,
                     absl::string_view source, absl::string_view destination) {
  return absl::FailedPreconditionError(
      absl::StrCat("the VM's RAM is laid out differently: ", what,
                   " of region ", index, " is ", source, " at the source and ",
                   destination, " at the destination; configure both alike"));
}

absl::Status CompareRegions(size_t index, const Region& source,
                            const Region& destination) {
  if (source.name != destination.name) {
    return Differs(index, "the name", absl::StrCat("\"", source.name, "\""),
                   absl::StrCat("\"", destination.name, "\""));
  }
  if (source.length != destination.length) {
    return Differs(index, "the length", ToString(source.length),
                   ToString(destination.length));
  }
  // Starts follow from the lengths, and Create admits one page size.
  return absl::OkStatus();
}

absl::Status CheckSlotRange(const RamLayout& layout, const Slot& slot) {
  if (!IsPageAligned(slot.start) || !IsPageAligned(slot.length) ||
      slot.length.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(slot.id), " has ", ToString(slot.length), " at ",
                     ToString(slot.start), "; both have to be multiples of ",
                     ToString(ByteCount(kPageSize)), ", the length not 0"));
  }
  if (!layout.Check(PageOf(slot.start), PagesIn(slot.length)).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(slot.id), " shows ", ToString(slot.length),
                     " at ", ToString(slot.start),
                     ", more than the VM's RAM of ", ToString(layout.bytes())));
  }
  if (slot.length.value() - 1 > UINT64_MAX - slot.guest_physical_address) {
    return absl::InvalidArgumentError(absl::StrCat(
        ToString(slot.id), " wraps around the guest-physical address space: ",
        ToString(slot.length), " at 0x",
        absl::Hex(slot.guest_physical_address)));
  }
  return absl::OkStatus();
}

uint64_t LastAddress(const Slot& slot) {
  return slot.guest_physical_address + (slot.length.value() - 1);
}

// Checks slots that CheckSlotRange has passed.
absl::Status CheckSlotOverlap(std::vector<Slot> slots) {
  std::sort(slots.begin(), slots.end(), [](const Slot& a, const Slot& b) {
    return std::pair(a.id.address_space, a.guest_physical_address) <
           std::pair(b.id.address_space, b.guest_physical_address);
  });
  // Neighbours suffice: of overlapping ranges in order of their starts, some
  // neighbours overlap.
  for (size_t i = 1; i < slots.size(); ++i) {
    const Slot& a = slots[i - 1];
    const Slot& b = slots[i];
    if (a.id.address_space == b.id.address_space &&
        b.guest_physical_address <= LastAddress(a)) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToString(a.id), " and ", ToString(b.id),
                       " overlap at guest-physical address 0x",
                       absl::Hex(b.guest_physical_address)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool IsValidName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  c == '.' || c == '_' || c == '-';
         });
}

absl::StatusOr<RamLayout> RamLayout::Create(std::vector<Region> regions,
                                            RegionPages pages) {
  if (regions.empty() || regions.size() > kMaxRegions) {
    return absl::InvalidArgumentError(
        absl::StrCat("a VM has 1 to ", kMaxRegions, " regions of RAM, not ",
                     regions.size()));
  }
  RamOffset end;
  std::set<std::string> names;
  for (const Region& region : regions) {
    if (absl::Status status = CheckRegion(region, end, pages); !status.ok()) {
      return status;
    }
    if (!names.insert(region.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "two regions are called \"", region.name, "\"; rename one"));
    }
    end = region.end();
  }
  return RamLayout(std::move(regions));
}

absl::Status RamLayout::Check(PageIndex first, PageCount count) const {
  if (!count.empty() && first.value() < pages().value() &&
      count.value() <= pages().value() - first.value()) {
    return absl::OkStatus();
  }
  const std::string run = ToString(PageRun{first, count});
  if (count.empty()) {
    return absl::OutOfRangeError(
        absl::StrCat(run, " is empty; ask for at least one page"));
  }
  return absl::OutOfRangeError(absl::StrCat(
      run, " is not inside the VM's RAM, which has ", ToString(pages())));
}

size_t RamLayout::RegionOf(PageIndex page) const {
  POSTCOPY_CHECK(page.value() < pages().value());
  const auto after = std::upper_bound(
      regions_.begin(), regions_.end(), OffsetOf(page),
      [](RamOffset offset, const Region& r) { return offset < r.start; });
  return static_cast<size_t>(after - regions_.begin()) - 1;
}

absl::Status RamLayout::Matches(const RamLayout& other) const {
  const size_t common = std::min(regions_.size(), other.regions_.size());
  for (size_t i = 0; i < common; ++i) {
    absl::Status status = CompareRegions(i, regions_[i], other.regions_[i]);
    if (!status.ok()) return status;
  }
  if (regions_.size() != other.regions_.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the VM's RAM is laid out differently: ", regions_.size(),
                     " regions at the source and ", other.regions_.size(),
                     " at the destination; configure both alike"));
  }
  return absl::OkStatus();
}

absl::Status CheckSlots(const RamLayout& layout, absl::Span<const Slot> slots) {
  if (slots.size() > kMaxSlots) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a VM has at most ", kMaxSlots, " slots, not ", slots.size()));
  }
  std::set<SlotId> ids;
  for (const Slot& slot : slots) {
    if (!ids.insert(slot.id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToString(slot.id), " is listed twice"));
    }
    if (absl::Status status = CheckSlotRange(layout, slot); !status.ok()) {
      return status;
    }
  }
  return CheckSlotOverlap({slots.begin(), slots.end()});
}

absl::StatusOr<std::vector<SlotCover>> CoverRam(const RamLayout& layout,
                                                absl::Span<const Slot> slots) {
  std::vector<Slot> by_start(slots.begin(), slots.end());
  std::sort(by_start.begin(), by_start.end(),
            [](const Slot& a, const Slot& b) { return a.start < b.start; });
  std::vector<SlotCover> covers;
  PageIndex end;  // RAM below is covered
  for (const Slot& slot : by_start) {
    const PageRun shown = slot.pages();
    if (shown.first > end) break;  // a gap
    if (shown.end() <= end) continue;
    covers.push_back({{end, shown.end() - end},
                      slot.id,
                      PageIndex((end - shown.first).value())});
    end = shown.end();
  }
  if (end.value() == layout.pages().value()) return covers;
  return absl::InvalidArgumentError(absl::StrCat(
      "no slot shows the page at ", ToString(OffsetOf(end)),
      ", so writes to it cannot be tracked; describe the slots of all of the "
      "VM's RAM of ",
      ToString(layout.bytes())));
}

}  // namespace postcopy
