// Structs of callers that may have been compiled with another version of
// postcopy_vmm.h.
#ifndef CMD_VMM_LIBRARY_VERSIONED_STRUCT_H_
#define CMD_VMM_LIBRARY_VERSIONED_STRUCT_H_

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cmd/vmm_library/postcopy_vmm.h"

namespace postcopy {

// A copy of `*from`, whose first member is its size as its maker knows it; what
// that maker does not know is 0. `first_version_bytes` is what the struct had
// in version 1. INVALID_ARGUMENT if `from` is null or its size none that the
// struct `name` can have; UNIMPLEMENTED if it is longer than this library's and
// anything behind that is not 0.
template <typename Struct>
absl::StatusOr<Struct> CopyVersioned(const Struct* from,
                                     size_t first_version_bytes,
                                     absl::string_view name) {
  if (from == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the ", name, " is null"));
  }
  const size_t size = from->size;
  if (size < first_version_bytes || size > POSTCOPY_VMM_STRUCT_BYTES_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ".size is ", size, "; set it to sizeof(", name,
                     ") and leave nothing else unset"));
  }
  const char* const bytes = reinterpret_cast<const char*>(from);
  Struct copy{};
  std::memcpy(&copy, bytes, std::min(size, sizeof(Struct)));
  if (size > sizeof(Struct) &&
      std::any_of(bytes + sizeof(Struct), bytes + size,
                  [](char byte) { return byte != 0; })) {
    return absl::UnimplementedError(absl::StrCat(
        name, " has ", size, " bytes and says something behind byte ",
        sizeof(Struct),
        ", which is all that this libpostcopy_vmm knows; install one as new "
        "as the VMM's"));
  }
  return copy;
}

}  // namespace postcopy

#endif  // CMD_VMM_LIBRARY_VERSIONED_STRUCT_H_
