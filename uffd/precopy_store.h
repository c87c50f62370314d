// Puts precopied pages into the destination's RAM file, and takes stale ones
// out again.
#ifndef UFFD_PRECOPY_STORE_H_
#define UFFD_PRECOPY_STORE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/install_strategy.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"

namespace postcopy {

// Writes the files behind the VMM's mappings: the guest finds such a page when
// it touches it, without a fault to userfaultfd unless it is registered for
// MINOR. Neither writing nor punching raises one. Pages of staged regions wait
// in their file, and are a fault when they are touched.
//
// Where the region's strategy replaces() what the guest cannot see, stale pages
// stay in their file and are only marked missing.
//
// Huge pages are filled small page by small page, and are missing as a whole as
// long as a part of them is, when the guest comes: Discard sees to that. A huge
// page with any content has none that counts as zeros: PageState says of its
// first page what is true of all.
//
// For one thread at a time, while the guest does not run.
//
// Errors: RESOURCE_EXHAUSTED if the file system of the RAM file is full (size
// of the tmpfs, memory cgroup), else INTERNAL; both name the region.
class PrecopyStore {
 public:
  // All outlive the object.
  PrecopyStore(const DestinationRam* ram, PageState* state,
               const InstallStrategies* strategies);

  // Makes the pages of `run` what it says, whatever they were, and marks them
  // received. Zeros become holes where nothing else needs the memory. On
  // failure the pages stored so far are
  // received, pages left in an unknown state are missing, the rest is as
  // before.
  // REQUIRES: the run is not empty, lies in the layout, in regions that have
  // files, and its data is empty or of the right size.
  ReceiveResult Store(const ReceivedRun& run);

  // Makes every page of `stale` missing, with the huge page that it is of, and
  // punches it out of its file, unless it may stay there; likewise huge pages
  // that are received in parts. The first call of this or of Store punches all
  // that is not received, also what the VMM has written to before it attached;
  // from then on it cannot. Regions without a file are left as they are. Later
  // calls cost a look at each bitmap word and a system call for each run that
  // was received and must not stay. On failure some pages are not punched: call
  // it again, which then punches all once more. REQUIRES: stale.pages() is the
  // layout's.
  ReceiveResult Discard(PageBitmapView stale);

 private:
  ReceiveResult StoreData(const ReceivedRun& run);
  ReceiveResult StoreZero(PageRun run);
  ReceiveResult StoreZeroPiece(const DestinationRam::Piece& piece);
  // The beginning of `run` that is consecutive, and of one huge page if of any.
  DestinationRam::Piece FirstPart(PageRun run) const;
  // Stores the first piece of a run; its bytes are the first of `data`.
  ReceiveResult WritePiece(const DestinationRam::Piece& piece,
                           absl::Span<const uint8_t> data);
  absl::Status EmptyMissing();
  // Makes all of `run` missing, and holes if those before are.
  void Drop(PageRun run, ReceiveResult* result);
  // Drops huge pages that are received in parts.
  void DropParts(ReceiveResult* result);
  void DropPartsOf(PageRun region, ReceiveResult* result);
  bool IsPart(PageRun unit) const;
  // `run` and the rest of the huge pages at its ends.
  PageRun Widened(PageRun run) const;
  // Of the regions where stale pages must not stay.
  absl::Status Discard(PageRun run);
  absl::Status Punch(PageRun run);
  // REQUIRES for all: huge pages. Whether there is content in one.
  bool IsFilled(PageRun unit) const { return filled_[SlotOf(unit)]; }
  // No two units begin this close to each other.
  size_t SlotOf(PageRun unit) const {
    return unit.first.value() / ram_.largest_unit().value();
  }
  void Fill(PageRun unit);
  void Unfill(PageRun run);
  absl::Status Error(absl::string_view verb, PageRun run, int error) const;

  const DestinationRam& ram_;
  PageState& state_;
  const InstallStrategies& strategies_;
  // Every page that is not received is a hole of its file, but for stale ones
  // that may stay.
  bool emptied_ = false;
  bool begun_ = false;  // it has been once
  // For each huge page, at SlotOf.
  std::vector<bool> filled_;
};

}  // namespace postcopy

#endif  // UFFD_PRECOPY_STORE_H_
