// POSTCOPY_CHECK: ends the process when a programmer's assumption is false.
//
// For errors of this code only. What a peer, a VMM, a file or the kernel says
// is answered with absl::Status and never with a check.
#ifndef DIRTYTRACK_CHECK_H_
#define DIRTYTRACK_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define POSTCOPY_CHECK(condition)                                           \
  do {                                                                      \
    if (!(condition)) [[unlikely]] {                                        \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, \
                   #condition);                                             \
      std::abort();                                                         \
    }                                                                       \
  } while (false)

#endif  // DIRTYTRACK_CHECK_H_
