// A VMM in C for tests: it notes what it is asked for, and fails where it is
// told to.
#ifndef CMD_VMM_LIBRARY_TEST_VMM_H_
#define CMD_VMM_LIBRARY_TEST_VMM_H_

#include <stddef.h>
#include <stdint.h>

#include "cmd/vmm_library/postcopy_vmm.h"

// NOLINTBEGIN(modernize-use-using,readability-identifier-naming)

#ifdef __cplusplus
extern "C" {
#endif

#define TEST_VMM_PAGES 64
#define TEST_VMM_BYTES ((uint64_t)TEST_VMM_PAGES * POSTCOPY_VMM_PAGE_BYTES)

// RAM of one region, "ram", and what the callbacks do. One thread at a time, as
// the handle.
typedef struct test_vmm {
  postcopy_vmm* handle;
  int memory_fd;
  unsigned char* ram;
  postcopy_vmm_marker* marker;

  // The callback called `failing` returns `code`, and explains it, unless that
  // is null.
  const char* failing;
  int code;
  const char* explanation;
  // What save_device_state saves.
  const void* state;
  size_t state_bytes;
  // A page that sync_dirty_log marks; below 0: none.
  int64_t marks_in_sync;

  // "pause save resume ", ...
  char journal[512];
  char loaded[64];
} test_vmm;

// Makes the RAM and a handle that knows it. 0 on success.
int test_vmm_make(test_vmm* vmm);
// Frees everything.
void test_vmm_end(test_vmm* vmm);

// All callbacks, for `vmm`.
postcopy_vmm_callbacks test_vmm_callbacks(test_vmm* vmm);

// Attaches it as `role`, called `name`.
int test_vmm_attach(test_vmm* vmm, const char* socket, const char* name,
                    uint32_t role, uint32_t dirty_tracking);

// An event loop: polls and processes, until that fails; what it said.
int test_vmm_loop(test_vmm* vmm);

#ifdef __cplusplus
}  // extern "C"
#endif

// NOLINTEND(modernize-use-using,readability-identifier-naming)

#endif  // CMD_VMM_LIBRARY_TEST_VMM_H_
