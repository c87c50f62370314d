// Checks the RAM of a paused guest from outside, all of it.
#ifndef CMD_DEMOVM_GUEST_CHECKER_H_
#define CMD_DEMOVM_GUEST_CHECKER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "cmd/demovm/guest_ram.h"
#include "cmd/demovm/machine.h"

namespace postcopy::demovm {

struct GuestVerdict {
  uint64_t pages = 0;          // data pages, all of which were read
  uint64_t zero_pages = 0;     // of these, hold zeros only
  uint64_t corrupt_pages = 0;  // of these, are not as their version entry says
  uint64_t corrupt_sums = 0;   // vCPUs whose entries are not those it wrote
  std::optional<GuestMismatch> first_mismatch;  // a page, if any is corrupt

  bool ok() const { return corrupt_pages == 0 && corrupt_sums == 0; }
};

// "245760 pages (30720 of zeros): all correct", or what is wrong.
std::string ToString(const GuestVerdict& verdict);

// Compares every data page with its entry in the version table, and the table
// with the sums in `claims`, which did not travel through RAM. A page that a
// vCPU was just writing may be partly old and partly new. Reads through the
// mapping, so that pages that are still missing are faulted in; so holes of
// the memfd take memory afterwards.
// REQUIRES: `claims` are of a machine with this RAM that is paused still.
GuestVerdict CheckGuest(const GuestRam& ram, const GuestClaims& claims);

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_GUEST_CHECKER_H_
