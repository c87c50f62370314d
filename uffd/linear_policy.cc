#include "uffd/linear_policy.h"

namespace postcopy {

std::optional<PageRun> LinearPolicy::NextRun(const FetchablePages& pages,
                                             PageCount max) {
  std::optional<PageRun> run = pages.First({cursor_, pages.pages()}, max);
  if (!run.has_value()) {
    run = pages.First({PageIndex(0), pages.pages()}, max);
  }
  if (run.has_value()) cursor_ = run->end();
  return run;
}

}  // namespace postcopy
