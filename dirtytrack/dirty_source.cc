#include "dirtytrack/dirty_source.h"

#include "absl/strings/str_cat.h"

namespace postcopy {

absl::Status CheckDirtySourceUse(bool started, PageCount ram,
                                 PageBitmapView bitmap) {
  if (!started) {
    return absl::FailedPreconditionError("dirty tracking is not started");
  }
  if (bitmap.pages() < ram) {
    return absl::InvalidArgumentError(
        absl::StrCat("a bitmap of ", ToString(bitmap.pages()),
                     " is too small for a VM of ", ToString(ram)));
  }
  return absl::OkStatus();
}

}  // namespace postcopy
