// Records a working set.
#ifndef UFFD_WORKING_SET_RECORDER_H_
#define UFFD_WORKING_SET_RECORDER_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/page_state.h"
#include "uffd/pull_order.h"
#include "uffd/working_set.h"

namespace postcopy {

// An order that asks for nothing, so that every page a guest touches is a
// fault, and writes these down. Has its memory from the start; what comes when
// kWorkingSetRunsMax runs are full is not recorded.
class WorkingSetRecorder final : public PullOrder {
 public:
  WorkingSetRecorder() : runs_(new PageRun[kWorkingSetRunsMax]) {}

  std::optional<PageRun> NextRun(const PageState& /*state*/,
                                 absl::Span<const PageRun> /*requested*/,
                                 PageCount /*max*/) override {
    return std::nullopt;
  }
  void OnFault(PageRun unit) override;

  // What was touched, in order; pages touched one beside the other are one run.
  // REQUIRES: the thread that calls OnFault has ended.
  std::vector<PageRun> runs() const {
    return {runs_.get(), runs_.get() + size_};
  }

 private:
  // Of the fault loop.
  const std::unique_ptr<PageRun[]> runs_;
  size_t size_ = 0;
};

}  // namespace postcopy

#endif  // UFFD_WORKING_SET_RECORDER_H_
