#define _GNU_SOURCE
#include "cmd/vmm_library/test_vmm.h"

#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int note(void* context, postcopy_vmm* handle, const char* what) {
  test_vmm* const vmm = context;
  strncat(vmm->journal, what, sizeof(vmm->journal) - strlen(vmm->journal) - 2);
  strcat(vmm->journal, " ");
  if (vmm->failing == NULL || strcmp(vmm->failing, what) != 0) {
    return POSTCOPY_VMM_OK;
  }
  if (vmm->explanation != NULL) postcopy_vmm_explain(handle, vmm->explanation);
  return vmm->code;
}

static int start(void* context, postcopy_vmm* handle) {
  return note(context, handle, "start");
}

static int sync_log(void* context, postcopy_vmm* handle) {
  test_vmm* const vmm = context;
  if (vmm->marks_in_sync >= 0) {
    postcopy_vmm_mark(vmm->marker, 0, (uint64_t)vmm->marks_in_sync);
  }
  return note(context, handle, "sync");
}

static int stop(void* context, postcopy_vmm* handle) {
  return note(context, handle, "stop");
}

static int pause_guest(void* context, postcopy_vmm* handle) {
  return note(context, handle, "pause");
}

static int save(void* context, postcopy_vmm* handle) {
  test_vmm* const vmm = context;
  const int code = note(context, handle, "save");
  if (code != POSTCOPY_VMM_OK) return code;
  // In two pieces, and what the second says is ignored.
  const size_t half = vmm->state_bytes / 2;
  postcopy_vmm_append_device_state(handle, vmm->state, half);
  postcopy_vmm_append_device_state(
      handle, vmm->state == NULL ? NULL : (const char*)vmm->state + half,
      vmm->state_bytes - half);
  return POSTCOPY_VMM_OK;
}

static int load(void* context, postcopy_vmm* handle, const void* state,
                size_t length) {
  test_vmm* const vmm = context;
  if (length < sizeof(vmm->loaded)) {
    memcpy(vmm->loaded, state, length);
    vmm->loaded[length] = '\0';
  }
  return note(context, handle, "load");
}

static int resume(void* context, postcopy_vmm* handle) {
  return note(context, handle, "resume");
}

static void ended(void* context, postcopy_vmm* handle, int completed) {
  note(context, handle, completed ? "completed" : "given-up");
}

postcopy_vmm_callbacks test_vmm_callbacks(test_vmm* vmm) {
  const postcopy_vmm_callbacks callbacks = {.size = sizeof(callbacks),
                                            .context = vmm,
                                            .start_dirty_logging = start,
                                            .sync_dirty_log = sync_log,
                                            .stop_dirty_logging = stop,
                                            .pause_guest = pause_guest,
                                            .save_device_state = save,
                                            .load_device_state = load,
                                            .resume_guest = resume,
                                            .migration_ended = ended};
  return callbacks;
}

int test_vmm_make(test_vmm* vmm) {
  memset(vmm, 0, sizeof(*vmm));
  vmm->marks_in_sync = -1;
  vmm->state = "the state";
  vmm->state_bytes = 9;
  vmm->memory_fd = memfd_create("ram", MFD_CLOEXEC);
  if (ftruncate(vmm->memory_fd, TEST_VMM_BYTES) != 0) return -1;
  vmm->ram = mmap(NULL, TEST_VMM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                  vmm->memory_fd, 0);
  if (vmm->ram == MAP_FAILED) return -1;
  vmm->handle = postcopy_vmm_new();
  const postcopy_vmm_region region = {.size = sizeof(region),
                                      .name = "ram",
                                      .address = vmm->ram,
                                      .length = TEST_VMM_BYTES,
                                      .memory_fd = vmm->memory_fd};
  return postcopy_vmm_add_region(vmm->handle, &region);
}

void test_vmm_end(test_vmm* vmm) {
  postcopy_vmm_marker_free(vmm->marker);
  postcopy_vmm_discard_guest(vmm->handle);
  postcopy_vmm_free(vmm->handle);
  munmap(vmm->ram, TEST_VMM_BYTES);
  close(vmm->memory_fd);
}

int test_vmm_attach(test_vmm* vmm, const char* socket, const char* name,
                    uint32_t role, uint32_t dirty_tracking) {
  const postcopy_vmm_options options = {.size = sizeof(options),
                                        .socket_path = socket,
                                        .vm_name = name,
                                        .role = role,
                                        .dirty_tracking = dirty_tracking};
  const postcopy_vmm_callbacks callbacks = test_vmm_callbacks(vmm);
  const int code = postcopy_vmm_attach(vmm->handle, &options, &callbacks);
  if (code != POSTCOPY_VMM_OK || dirty_tracking != POSTCOPY_VMM_DIRTY_LOG) {
    return code;
  }
  return postcopy_vmm_marker_new(vmm->handle, &vmm->marker);
}

int test_vmm_loop(test_vmm* vmm) {
  int code = POSTCOPY_VMM_OK;
  while (code == POSTCOPY_VMM_OK) {
    struct pollfd ready = {.fd = postcopy_vmm_fd(vmm->handle),
                           .events = POLLIN};
    if (poll(&ready, 1, -1) == 1) code = postcopy_vmm_process(vmm->handle);
  }
  return code;
}
