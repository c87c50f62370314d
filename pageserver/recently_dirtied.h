// Which pages the guest wrote last, for a destination that asks.
#ifndef PAGESERVER_RECENTLY_DIRTIED_H_
#define PAGESERVER_RECENTLY_DIRTIED_H_

#include <cstddef>
#include <vector>

#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Runs kept, 1 MiB of them; what is older is forgotten. A destination takes no
// more either.
inline constexpr size_t kDirtiedRunsKeptMax = 64 << 10;

// A list of runs, not a bitmap: it is the end of the migration, and only what
// the guest is busy with matters. A page that was written often is in it often;
// the first place counts. Used by one thread at a time.
class RecentlyDirtied {
 public:
  // Notes that the set pages were written after all that were noted before.
  // Reads the whole bitmap, or as much as there are runs to keep.
  void Add(PageBitmapView pages);

  // The runs, the most recent first; of one Add, by ascending address.
  const std::vector<PageRun>& runs() const { return runs_; }

 private:
  std::vector<PageRun> runs_;
};

}  // namespace postcopy

#endif  // PAGESERVER_RECENTLY_DIRTIED_H_
