// A bitmap as a set, for tests that compare and print.
#ifndef DIRTYTRACK_PAGE_SET_H_
#define DIRTYTRACK_PAGE_SET_H_

#include <cstdint>
#include <set>

#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"

namespace postcopy {

// The pages whose bits are set.
inline std::set<uint64_t> PagesOf(PageBitmapView bitmap) {
  std::set<uint64_t> pages;
  PageIndex at;
  while (auto run = bitmap.NextSetRun(at, PageCount(1))) {
    pages.insert(run->first.value());
    at = run->end();
  }
  return pages;
}

}  // namespace postcopy

#endif  // DIRTYTRACK_PAGE_SET_H_
