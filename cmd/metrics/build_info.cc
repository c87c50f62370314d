#include "cmd/metrics/build_info.h"

// bazel build --per_file_copt=cmd/metrics/build_info\.cc@-DPOSTCOPY_COMMIT=ID
#ifndef POSTCOPY_COMMIT
#define POSTCOPY_COMMIT unknown
#endif
#define POSTCOPY_QUOTED(text) #text
#define POSTCOPY_EXPANDED(text) POSTCOPY_QUOTED(text)

namespace postcopy {

const char* BuildVersion() { return "0.1.0"; }

const char* BuildCommit() { return POSTCOPY_EXPANDED(POSTCOPY_COMMIT); }

}  // namespace postcopy
