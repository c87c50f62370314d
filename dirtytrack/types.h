// The units of this service, each a type of its own.
//
// A page index, a byte offset into guest RAM and an address in a VMM are all
// 64-bit numbers, and taking one for another corrupts guests. So none converts
// to another implicitly, and only the arithmetic that means something exists:
//
//   position - position = extent      PageIndex   with PageCount
//   position + extent   = position    RamOffset   with ByteCount
//   extent   + extent   = extent      HostAddress with ByteCount
//
// Arithmetic is checked: overflow and underflow end the process, because
// operands that came from outside have been validated before (RamLayout,
// ParseByteCount). All types are values: copy them freely between threads.
#ifndef DIRTYTRACK_TYPES_H_
#define DIRTYTRACK_TYPES_H_

#include <compare>
#include <cstdint>
#include <ostream>
#include <string>

#include "absl/strings/string_view.h"
#include "dirtytrack/check.h"

namespace postcopy {

// The granularity of tracking, transfer and installing, in bytes.
inline constexpr uint64_t kPageSize = 4096;

// A length. Derived is PageCount or ByteCount.
template <typename Derived>
class Extent {
 public:
  constexpr Extent() = default;
  constexpr explicit Extent(uint64_t value) : value_(value) {}

  constexpr uint64_t value() const { return value_; }
  constexpr bool empty() const { return value_ == 0; }

  friend constexpr auto operator<=>(const Extent&, const Extent&) = default;
  friend constexpr Derived operator+(Derived a, Derived b) {
    POSTCOPY_CHECK(a.value() <= UINT64_MAX - b.value());
    return Derived(a.value() + b.value());
  }
  friend constexpr Derived operator-(Derived a, Derived b) {
    POSTCOPY_CHECK(a.value() >= b.value());
    return Derived(a.value() - b.value());
  }
  friend constexpr Derived& operator+=(Derived& a, Derived b) {
    return a = a + b;
  }
  friend constexpr Derived& operator-=(Derived& a, Derived b) {
    return a = a - b;
  }

 private:
  uint64_t value_ = 0;
};

// A place. Derived is PageIndex, RamOffset or HostAddress.
template <typename Derived, typename Distance>
class Position {
 public:
  constexpr Position() = default;
  constexpr explicit Position(uint64_t value) : value_(value) {}

  constexpr uint64_t value() const { return value_; }

  friend constexpr auto operator<=>(const Position&, const Position&) = default;
  friend constexpr Derived operator+(Derived a, Distance b) {
    POSTCOPY_CHECK(a.value() <= UINT64_MAX - b.value());
    return Derived(a.value() + b.value());
  }
  friend constexpr Derived operator-(Derived a, Distance b) {
    POSTCOPY_CHECK(a.value() >= b.value());
    return Derived(a.value() - b.value());
  }
  friend constexpr Distance operator-(Derived a, Derived b) {
    POSTCOPY_CHECK(a.value() >= b.value());
    return Distance(a.value() - b.value());
  }
  friend constexpr Derived& operator+=(Derived& a, Distance b) {
    return a = a + b;
  }

 private:
  uint64_t value_ = 0;
};

// How many bytes.
class ByteCount : public Extent<ByteCount> {
  using Extent::Extent;
};

// How many pages of kPageSize.
class PageCount : public Extent<PageCount> {
  using Extent::Extent;
};

// A page of a VM's RAM: its RAM offset divided by kPageSize.
class PageIndex : public Position<PageIndex, PageCount> {
  using Position::Position;
};

// A byte of a VM's RAM, counted in its regions laid end to end. What travels
// on the wire; never a host address.
class RamOffset : public Position<RamOffset, ByteCount> {
  using Position::Position;
};

// An address in the VMM's process. Only the kernel can use it on the VMM's
// behalf; the daemons never dereference one.
class HostAddress : public Position<HostAddress, ByteCount> {
  using Position::Position;
};

// A KVM memory slot, named as KVM_GET_DIRTY_LOG names it: the low 16 bits are
// the slot, the high 16 bits the address space.
struct SlotId {
  uint16_t address_space = 0;
  uint16_t slot = 0;

  friend constexpr auto operator<=>(const SlotId&, const SlotId&) = default;
};

constexpr bool IsPageAligned(RamOffset offset) {
  return offset.value() % kPageSize == 0;
}
constexpr bool IsPageAligned(ByteCount bytes) {
  return bytes.value() % kPageSize == 0;
}
constexpr bool IsPageAligned(HostAddress address) {
  return address.value() % kPageSize == 0;
}

// The page that holds `offset`.
constexpr PageIndex PageOf(RamOffset offset) {
  return PageIndex(offset.value() / kPageSize);
}
// The first byte of `page`.
constexpr RamOffset OffsetOf(PageIndex page) {
  POSTCOPY_CHECK(page.value() <= UINT64_MAX / kPageSize);
  return RamOffset(page.value() * kPageSize);
}
constexpr ByteCount BytesIn(PageCount pages) {
  POSTCOPY_CHECK(pages.value() <= UINT64_MAX / kPageSize);
  return ByteCount(pages.value() * kPageSize);
}
// REQUIRES: IsPageAligned(bytes).
constexpr PageCount PagesIn(ByteCount bytes) {
  POSTCOPY_CHECK(IsPageAligned(bytes));
  return PageCount(bytes.value() / kPageSize);
}

// The pages [first, first + count).
struct PageRun {
  PageIndex first;
  PageCount count;

  constexpr PageIndex end() const { return first + count; }
  constexpr bool Contains(PageIndex page) const {
    return page >= first && page < end();
  }
  friend constexpr bool operator==(const PageRun&, const PageRun&) = default;
};

// "1536MiB", "4GiB", "4096": the largest binary unit that loses nothing.
std::string ToString(ByteCount bytes);
std::string ToString(PageCount pages);      // "17 pages"
std::string ToString(PageIndex page);       // "page 0x11"
std::string ToString(RamOffset offset);     // "RAM offset 0x11000"
std::string ToString(HostAddress address);  // "host address 0x7f0000000000"
std::string ToString(SlotId slot);          // "slot 0:3" (address space first)
std::string ToString(PageRun run);          // "pages [0x10, 0x20)"

std::ostream& operator<<(std::ostream& out, ByteCount bytes);
std::ostream& operator<<(std::ostream& out, PageCount pages);
std::ostream& operator<<(std::ostream& out, PageIndex page);
std::ostream& operator<<(std::ostream& out, RamOffset offset);
std::ostream& operator<<(std::ostream& out, HostAddress address);
std::ostream& operator<<(std::ostream& out, SlotId slot);
std::ostream& operator<<(std::ostream& out, PageRun run);

// Reads a size as ToString(ByteCount) writes it: a decimal number and one of
// no unit, B, KiB, MiB, GiB, TiB. False, with a sentence in `error`, for
// anything else, a decimal unit (KB) included, and for more than 2^64 - 1.
// `bytes` is unchanged on failure.
bool ParseByteCount(absl::string_view text, ByteCount* bytes,
                    std::string* error);

// What absl::Flag needs to hold a ByteCount.
bool AbslParseFlag(absl::string_view text, ByteCount* bytes,
                   std::string* error);
std::string AbslUnparseFlag(ByteCount bytes);

}  // namespace postcopy

#endif  // DIRTYTRACK_TYPES_H_
