// Missing pages by ascending address.
#ifndef UFFD_LINEAR_POLICY_H_
#define UFFD_LINEAR_POLICY_H_

#include <optional>

#include "dirtytrack/types.h"
#include "uffd/fetchable_pages.h"
#include "uffd/pull_policy.h"

namespace postcopy {

// Upwards, and from the first page again when it has come to the end: sooner
// or later every missing page.
class LinearPolicy final : public PullPolicy {
 public:
  enum class Faults {
    kIgnore,
    // Go on behind the most recent one.
    kFollow,
  };

  explicit LinearPolicy(Faults faults) : faults_(faults) {}

  std::optional<PageRun> NextRun(const FetchablePages& pages,
                                 PageCount max) override;
  void NoteFault(PageRun unit) override {
    if (faults_ == Faults::kFollow) cursor_ = unit.end();
  }

 private:
  const Faults faults_;
  PageIndex cursor_;
};

}  // namespace postcopy

#endif  // UFFD_LINEAR_POLICY_H_
