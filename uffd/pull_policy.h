// What an order of the background is made of.
#ifndef UFFD_PULL_POLICY_H_
#define UFFD_PULL_POLICY_H_

#include <optional>

#include "dirtytrack/types.h"
#include "uffd/fetchable_pages.h"

namespace postcopy {

// An opinion on which page comes next, of one VM. Used by one thread, the
// background thread; PolicyPullOrder brings the faults to it.
class PullPolicy {
 public:
  virtual ~PullPolicy() = default;

  // The next run to ask for, 1 to `max` pages, all of them of `pages`; nullopt
  // if there is nothing to say now.
  virtual std::optional<PageRun> NextRun(const FetchablePages& pages,
                                         PageCount max) = 0;

  // The guest has missed `unit`: one page, or all of a huge one. A fault may be
  // told late, twice, or not at all if there are many.
  virtual void NoteFault(PageRun unit) = 0;
};

}  // namespace postcopy

#endif  // UFFD_PULL_POLICY_H_
