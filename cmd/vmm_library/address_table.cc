#include "cmd/vmm_library/address_table.h"

#include <algorithm>

namespace postcopy {

AddressTable::AddressTable(const RamLayout& layout,
                           absl::Span<const HostAddress> addresses,
                           absl::Span<const SlotCover> cover) {
  for (size_t i = 0; i < layout.regions().size(); ++i) {
    const uint64_t host = addresses[i].value();
    const Region& region = layout.regions()[i];
    // One that wraps around is no memory; the daemon will say so.
    if (host == 0 || host > UINT64_MAX - region.length.value()) continue;
    for (const SlotCover& part : cover) {
      const RamOffset begin = std::max(region.start, OffsetOf(part.ram.first));
      const RamOffset end = std::min(region.end(), OffsetOf(part.ram.end()));
      if (begin >= end) continue;
      parts_.push_back(
          {.begin = host + (begin - region.start).value(),
           .end = host + (end - region.start).value(),
           .slot = part.slot,
           .first = part.first_in_slot + (PageOf(begin) - part.ram.first)});
    }
  }
  std::sort(parts_.begin(), parts_.end(),
            [](const Part& a, const Part& b) { return a.begin < b.begin; });
}

const AddressTable::Part* AddressTable::Find(uint64_t address) const {
  const auto behind = std::upper_bound(
      parts_.begin(), parts_.end(), address,
      [](uint64_t wanted, const Part& part) { return wanted < part.begin; });
  if (behind == parts_.begin()) return nullptr;
  const Part& part = *std::prev(behind);
  return address < part.end ? &part : nullptr;
}

bool AddressTable::Knows(uint64_t begin, uint64_t end) const {
  while (begin < end) {
    const Part* part = Find(begin);
    if (part == nullptr) return false;
    begin = part->end;
  }
  return true;
}

bool AddressTable::MarkAnywhere(uint64_t address, uint64_t length,
                                DirtyLogWriter& writer,
                                const Part*& hint) const {
  if (length == 0) return true;
  if (address > UINT64_MAX - length) return false;
  const uint64_t end = address + length;
  const Part* part = Find(address);
  if (part == nullptr) return false;
  if (end > part->end && !Knows(part->end, end)) return false;
  MarkIn(*part, address, std::min(end, part->end), writer);
  while (part->end < end) {
    const uint64_t begin = part->end;
    part = Find(begin);
    MarkIn(*part, begin, std::min(end, part->end), writer);
  }
  hint = part;
  return true;
}

}  // namespace postcopy
