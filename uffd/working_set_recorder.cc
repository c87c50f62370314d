#include "uffd/working_set_recorder.h"

namespace postcopy {

void WorkingSetRecorder::OnFault(PageRun unit) {
  if (size_ > 0) {
    PageRun& last = runs_[size_ - 1];
    if (unit.first == last.end()) {
      last.count += unit.count;
      return;
    }
    if (unit.end() == last.first) {
      last = {unit.first, unit.count + last.count};
      return;
    }
  }
  if (size_ == kWorkingSetRunsMax) return;
  runs_[size_++] = unit;
}

}  // namespace postcopy
