// Puts precopied pages into the destination's RAM file, and takes stale ones
// out again.
#ifndef UFFD_PRECOPY_STORE_H_
#define UFFD_PRECOPY_STORE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"

namespace postcopy {

// Writes the files behind the VMM's mappings with pwrite(2): the guest finds
// such a page when it touches it, without a fault to userfaultfd. Neither
// writing nor punching raises one.
//
// For one thread at a time, while the guest does not run.
//
// Errors: RESOURCE_EXHAUSTED if the file system of the RAM file is full (size
// of the tmpfs, memory cgroup), else INTERNAL; both name the region.
class PrecopyStore {
 public:
  // Both outlive the object.
  PrecopyStore(const DestinationRam* ram, PageState* state)
      : ram_(*ram), state_(*state) {}

  // Makes the pages of `run` what it says, whatever they were, and marks them
  // received. Zeros become holes. On failure the pages stored so far are
  // received, pages left in an unknown state are missing, the rest is as
  // before.
  // REQUIRES: the run is not empty, lies in the layout, in regions that have
  // files, and its data is empty or of the right size.
  ReceiveResult Store(const ReceivedRun& run);

  // Makes every page of `stale` missing and punches it out of its file. The
  // first call punches all that is not received, also what the VMM has written
  // to before it attached; from then on it cannot. Regions without a file are
  // left as they are. Later calls cost a look at
  // each bitmap word and a system call for each run that was received. On
  // failure some pages are not punched: call it again, which then punches all
  // once more.
  // REQUIRES: stale.pages() is the layout's.
  ReceiveResult Discard(PageBitmapView stale);

 private:
  ReceiveResult StoreData(const ReceivedRun& run);
  ReceiveResult StoreZero(PageRun run);
  // Stores the first piece of a run; its bytes are the first of `data`.
  ReceiveResult WritePiece(const DestinationRam::Piece& piece,
                           absl::Span<const uint8_t> data);
  absl::Status EmptyMissing();
  absl::Status Punch(PageRun run);
  absl::Status Error(absl::string_view verb, PageRun run, int error) const;

  const DestinationRam& ram_;
  PageState& state_;
  // Every page that is not received is a hole of its file.
  bool emptied_ = false;
};

}  // namespace postcopy

#endif  // UFFD_PRECOPY_STORE_H_
