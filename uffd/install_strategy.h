// How the pages of one region are made visible to the guest.
#ifndef UFFD_INSTALL_STRATEGY_H_
#define UFFD_INSTALL_STRATEGY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// What to do with the pages of one region. The results are those of UffdOps:
// pages done from the start, and why no more. Pieces lie in the region, are not
// empty, mapped, and whole pages of it. Thread-safe.
class InstallStrategy {
 public:
  using Piece = DestinationRam::Piece;

  virtual ~InstallStrategy() = default;

  // Gives pages that the guest cannot see yet the bytes at `source`, up to the
  // first that it can see (EEXIST), and wakes who waits for what was done.
  // EFAULT: they were emptied meanwhile, if replaces().
  virtual UffdResult Data(UffdOps& ops, const Piece& piece,
                          const uint8_t* source) const = 0;
  // Fills holes with zeros, up to the first page that is there (EEXIST), and
  // wakes who waits.
  virtual UffdResult Zero(UffdOps& ops, const Piece& piece) const = 0;
  // Shows the guest what has been stored already, and wakes who waits. EEXIST:
  // it can see the first page. EFAULT: that is a hole.
  virtual UffdResult Reveal(UffdOps& ops, const Piece& piece) const = 0;

  // False: what the guest cannot see is a hole, so it must be emptied to be
  // missing, and the kernel inserts only once. True: stale bytes may stay in
  // the file until fresh ones replace them. Then Data does not notice that
  // somebody else was quicker: whoever calls it holds the PageClaims of the
  // piece and has looked, after taking them, that all of it is missing.
  virtual bool replaces() const = 0;

  // True: what is received may wait in a file of this process, from which
  // Reveal takes it; then EEXIST from Reveal says that nothing waits there.
  // Whoever calls that holds the PageClaims of the piece, or of its first page
  // where it is huge. Memory must not be unregistered before all is revealed.
  virtual bool staged() const { return false; }

  // For people: "UFFDIO_COPY, UFFDIO_ZEROPAGE".
  virtual absl::string_view name() const = 0;
};

// One for each region, in the layout's order.
using InstallStrategies = std::vector<std::unique_ptr<InstallStrategy>>;

// UFFDIO_REGISTER_MODE_... for a region of a VMM that did UFFDIO_API with
// `features`: MISSING; with UFFD_FEATURE_MINOR_SHMEM, where the file can be
// reached and has small pages, MINOR; with UFFD_FEATURE_WP_HUGETLBFS_SHMEM, WP,
// which the VMM may have set there already and would lose.
uint64_t RegisterModes(const DestinationRam::Piece& region, uint64_t features);

// The strategy for `region`, by what the kernel can do there:
//
//   a file that can be   UFFDIO_COPY; where stale bytes are, into the file with
//   reached, and MINOR   pwrite(2), then UFFDIO_CONTINUE; UFFDIO_ZEROPAGE
//   anonymous, shmem     UFFDIO_COPY, UFFDIO_ZEROPAGE
//   staged               as without; what waits, by UFFDIO_COPY from its file
//   hugetlbfs            UFFDIO_COPY, and UFFDIO_COPY of zeros: the kernel has
//                        no zero page of that size to map
//
// UNIMPLEMENTED, saying what the VMM should use, if none fits.
// RESOURCE_EXHAUSTED if there is no address space for a huge page of zeros, or
// to map what waits.
absl::StatusOr<std::unique_ptr<InstallStrategy>> ChooseInstallStrategy(
    const DestinationRam::Piece& region, const UffdRegistration& registration);

}  // namespace postcopy

#endif  // UFFD_INSTALL_STRATEGY_H_
