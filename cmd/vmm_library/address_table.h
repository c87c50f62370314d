// From addresses of this process to pages of the slots of a dirty log.
#ifndef CMD_VMM_LIBRARY_ADDRESS_TABLE_H_
#define CMD_VMM_LIBRARY_ADDRESS_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "dirtytrack/dirty_log_writer.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Immutable, so any thread may use it.
class AddressTable {
 public:
  // Addresses [begin, end) of pages of one slot.
  struct Part {
    uint64_t begin;
    uint64_t end;
    SlotId slot;
    PageIndex first;  // of the slot, at `begin`
  };

  // `addresses` are those of the layout's regions; 0: not told. `cover` is what
  // CoverRam has made for the layout.
  AddressTable(const RamLayout& layout, absl::Span<const HostAddress> addresses,
               absl::Span<const SlotCover> cover);

  // Marks the pages that hold the bytes [address, address + length), each in
  // one slot that shows it. False, and nothing is marked, if any of the bytes
  // is in no region. Takes any numbers. As lock-free as `writer`. `hint` is the
  // caller's, null at first: callers mark near where they marked before.
  bool Mark(uint64_t address, uint64_t length, DirtyLogWriter& writer,
            const Part*& hint) const;

 private:
  // The same without a look at the hint, which it sets.
  bool MarkAnywhere(uint64_t address, uint64_t length, DirtyLogWriter& writer,
                    const Part*& hint) const;
  // The part that holds `address`, or null.
  const Part* Find(uint64_t address) const;
  // True if every byte of [begin, end) is in some part. REQUIRES: begin < end.
  bool Knows(uint64_t begin, uint64_t end) const;
  // Marks the pages of [begin, end). REQUIRES: not empty, and inside `part`.
  static void MarkIn(const Part& part, uint64_t begin, uint64_t end,
                     DirtyLogWriter& writer);

  std::vector<Part> parts_;  // ascending
};

// What runs for most marks is inline.

inline void AddressTable::MarkIn(const Part& part, uint64_t begin, uint64_t end,
                                 DirtyLogWriter& writer) {
  const uint64_t first = (begin - part.begin) / kPageSize;
  const uint64_t last = (end - 1 - part.begin) / kPageSize;
  if (first == last) {
    writer.Mark(part.slot, part.first + PageCount(first));
  } else {
    writer.MarkRun(part.slot, {part.first + PageCount(first),
                               PageCount(last - first + 1)});
  }
}

inline bool AddressTable::Mark(uint64_t address, uint64_t length,
                               DirtyLogWriter& writer,
                               const Part*& hint) const {
  const bool inside = hint != nullptr && length > 0 && address >= hint->begin &&
                      address < hint->end && length <= hint->end - address;
  if (!inside) return MarkAnywhere(address, length, writer, hint);
  MarkIn(*hint, address, address + length, writer);
  return true;
}

}  // namespace postcopy

#endif  // CMD_VMM_LIBRARY_ADDRESS_TABLE_H_
