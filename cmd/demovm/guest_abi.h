// What the guest program and its VMM agree on.
//
// Included by code that runs inside the guest, where there is no library: only
// plain structs and functions that are always inlined.
#ifndef CMD_DEMOVM_GUEST_ABI_H_
#define CMD_DEMOVM_GUEST_ABI_H_

#include <cstdint>

namespace postcopy::demovm {

inline constexpr uint64_t kGuestPageBytes = 4096;
inline constexpr uint64_t kWordsPerPage = kGuestPageBytes / sizeof(uint64_t);

// A vCPU says how far it is every so many steps. A power of two.
inline constexpr uint64_t kStepsPerReport = 128;

// Where things lie in guest RAM, and what the guest does there. A page of its
// own in guest RAM; the VMM keeps a copy and sends it with the machine's state.
// Addresses are guest physical; pages are counted as RAM offsets are, over the
// regions laid end to end.
struct GuestParams {
  uint64_t magic;
  uint64_t ram_pages;
  uint64_t low_pages;        // pages below the hole under 4 GiB
  uint64_t hole_bytes;       // lies between page low_pages - 1 and low_pages
  uint64_t program_address;  // what GuestProgram() spans
  uint64_t mailbox_address;  // vCPU 0's page; the others' follow
  uint64_t stack_address;    // vCPU 0's kStackPages pages; the others' follow
  uint64_t table_address;    // a uint32_t per data page: its version entry
  uint64_t first_data_page;
  uint64_t data_pages;
  uint32_t vcpus;
  uint32_t hot_percent;   // of a vCPU's pages are rewritten at random
  uint32_t never_mask;    // 0, or 2^n - 1: 1 of 2^n pages is never written
  uint32_t fill_percent;  // of the pages are written before the guest starts
  uint64_t seed;
};
inline constexpr uint64_t kGuestParamsMagic = 0x31'6d76'6f6d'6564;  // "demovm1"

// All that a vCPU knows from one step to the next. Under KVM these words live
// in the vCPU's XMM registers (word i in the low half of XMM i), so that they
// travel with the vCPU's state and never through RAM: RAM that is lost or old
// on the destination cannot take the evidence with it.
enum GuestRegister : uint32_t {
  kRandom,         // state of the random numbers; never 0
  kSteps,          // steps done
  kPageWrites,     // data pages written
  kChecks,         // data pages read and compared with their entry
  kMismatches,     // comparisons that failed, sums included
  kWalk,           // next of its own pages to check in order
  kTableSum,       // sum of TableTerm() over all its pages, as written
  kWalkSum,        // sum of TableTerm() over its pages below kWalk, as read
  kInFlight,       // page being rewritten now (its index + 1), or 0 for none
  kInFlightEntry,  // that page's entries: old in the low half, new in the high
  kGuestRegisterCount
};

// What a report says, with four numbers.
enum GuestReport : uint32_t {
  kReportProgress = 1,  // steps, page writes, checks, mismatches
  kReportBadPage = 2,   // page, entry, first bad word's index, word found
  kReportBadSum = 3,    // vCPU, sum expected, sum found, 0
};
// Under KVM a report is an `out` to this port, with the kind in EAX and the
// numbers in RBX, RCX, RSI, RDI.
inline constexpr uint16_t kReportPort = 0x500;

// A vCPU's mailbox, for who reads the guest's RAM after its end.
struct GuestMailbox {
  uint64_t steps;
  uint64_t mismatches;
  uint64_t first_kind;  // GuestReport of the first mismatch, or 0
  uint64_t first[4];    // its numbers
};

// A version entry: 0 for a page that was never written, else how often it was,
// with this bit if the last write filled it with zeros.
inline constexpr uint32_t kZeroedBit = uint32_t{1} << 31;

// In the guest's code, never a call and never counted by coverage: functions
// and counters of its VMM are nowhere in the guest. In the VMM, as any other.
#if !defined(DEMOVM_GUEST_CODE)
#define DEMOVM_INLINE inline
#elif defined(__clang__)
#define DEMOVM_NOT_INSTRUMENTED \
  [[gnu::no_profile_instrument_function]] [[clang::no_sanitize("coverage")]]
#define DEMOVM_INLINE DEMOVM_NOT_INSTRUMENTED [[gnu::always_inline]] inline
#else
#define DEMOVM_NOT_INSTRUMENTED [[gnu::no_profile_instrument_function]]
#define DEMOVM_INLINE DEMOVM_NOT_INSTRUMENTED [[gnu::always_inline]] inline
#endif

// A bijection of 64-bit words that leaves no pattern (SplitMix64's finalizer).
DEMOVM_INLINE constexpr uint64_t Scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// True if a page with this entry holds zeros only.
DEMOVM_INLINE constexpr bool IsZeroEntry(uint32_t entry) {
  return entry == 0 || (entry & kZeroedBit) != 0;
}

// Word j of a page is PageSeed + j * PageStride. As Scramble is a bijection,
// any two pages or versions that are not zero differ in every word.
DEMOVM_INLINE constexpr uint64_t PageSeed(uint64_t page, uint32_t entry) {
  return IsZeroEntry(entry) ? 0 : Scramble((page << 32) + entry);
}
DEMOVM_INLINE constexpr uint64_t PageStride(uint32_t entry) {
  return IsZeroEntry(entry) ? 0 : 0x9e3779b97f4a7c15;
}

// What a page adds to the sum of its owner's table: 0 if never written.
DEMOVM_INLINE constexpr uint64_t TableTerm(uint64_t page, uint32_t entry) {
  return entry == 0 ? 0 : Scramble(~((page << 32) + entry));
}

// The entry after one more write, which fills the page with zeros if `zeroed`.
DEMOVM_INLINE constexpr uint32_t NextEntry(uint32_t entry, bool zeroed) {
  const uint32_t count = (entry + 1) & ~kZeroedBit;
  return (count == 0 ? 1 : count) | (zeroed ? kZeroedBit : 0);
}

// The pages that vCPU `vcpu` owns: every params.vcpus-th. Its page number `own`
// is page OwnedPage(); it has OwnedPages() of them.
DEMOVM_INLINE constexpr uint64_t OwnedPages(const GuestParams& params,
                                            uint32_t vcpu) {
  return (params.data_pages - vcpu + params.vcpus - 1) / params.vcpus;
}
DEMOVM_INLINE constexpr uint64_t OwnedPage(const GuestParams& params,
                                           uint32_t vcpu, uint64_t own) {
  return params.first_data_page + own * params.vcpus + vcpu;
}
// True if its page number `own` stays a hole for ever.
DEMOVM_INLINE constexpr bool IsNeverWritten(const GuestParams& params,
                                            uint64_t own) {
  return params.never_mask != 0 &&
         (own & params.never_mask) == params.never_mask;
}
// How many of `owned` pages, the first ones, are the hot set. At least 1.
DEMOVM_INLINE constexpr uint64_t HotPages(const GuestParams& params,
                                          uint64_t owned) {
  const uint64_t hot = owned * params.hot_percent / 100;
  return hot == 0 ? 1 : hot;
}

DEMOVM_INLINE constexpr uint64_t AddressOfPage(const GuestParams& params,
                                               uint64_t page) {
  return page * kGuestPageBytes +
         (page >= params.low_pages ? params.hole_bytes : 0);
}
DEMOVM_INLINE constexpr uint64_t EntryAddress(const GuestParams& params,
                                              uint64_t page) {
  return params.table_address +
         (page - params.first_data_page) * sizeof(uint32_t);
}

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_GUEST_ABI_H_
