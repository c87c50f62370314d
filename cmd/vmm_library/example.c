// A whole VMM in C, for either side of a migration:
//
//   example source      SOCKET NAME    runs a guest, until it has moved away
//   example destination SOCKET NAME    waits for it, checks it, runs it
//
// SOCKET is the --vmm_socket of pageserverd or faultd. The "guest" is a thread
// that counts: step n writes n at the beginning of page n % PAGES, where it
// expects what it wrote there last. So it notices a page that is lost or old.
//
// Exit codes: 0 the guest has moved, and all of its memory is right; 1 it is
// wrong, or something failed; 2 the arguments are; 3 there was no migration to
// the end.
#define _GNU_SOURCE
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cmd/vmm_library/postcopy_vmm.h"

#define PAGES 4096
#define RAM_BYTES ((uint64_t)PAGES * POSTCOPY_VMM_PAGE_BYTES)
#define STEPS_PER_TURN 16

typedef struct vm {
  postcopy_vmm* handle;
  bool is_source;
  int memory_fd;
  unsigned char* ram;
  pthread_t guest;
  // Source: with which the guest marks what it writes.
  postcopy_vmm_marker* marker;

  // The guest holds it while it runs, so who has it while running is false has
  // a guest that stands still.
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  bool running;
  bool ending;
  uint64_t step;  // all the device state there is
  uint64_t wrong_pages;

  int completed;  // what migration_ended said; -1 before
} vm;

// --- The guest ---------------------------------------------------------------

static uint64_t* page_of(vm* vm, uint64_t step) {
  return (uint64_t*)(vm->ram + step % PAGES * POSTCOPY_VMM_PAGE_BYTES);
}

static uint64_t expected_before(uint64_t step) {
  return step > PAGES ? step - PAGES : 0;
}

static void do_step(vm* vm) {
  const uint64_t step = vm->step + 1;
  uint64_t* const page = page_of(vm, step);
  if (*page != expected_before(step)) vm->wrong_pages++;
  *page = step;
  // Behind the write, and before the guest can be paused.
  if (vm->marker != NULL) postcopy_vmm_mark_address(vm->marker, page, 8);
  vm->step = step;
}

static void* run_guest(void* argument) {
  vm* const vm = argument;
  const struct timespec pause = {.tv_nsec = 20000};
  pthread_mutex_lock(&vm->mutex);
  while (!vm->ending) {
    if (!vm->running) {
      pthread_cond_wait(&vm->changed, &vm->mutex);
      continue;
    }
    for (int i = 0; i < STEPS_PER_TURN; i++) do_step(vm);
    pthread_mutex_unlock(&vm->mutex);
    nanosleep(&pause, NULL);
    pthread_mutex_lock(&vm->mutex);
  }
  pthread_mutex_unlock(&vm->mutex);
  return NULL;
}

static void set_running(vm* vm, bool running) {
  pthread_mutex_lock(&vm->mutex);
  vm->running = running;
  pthread_cond_signal(&vm->changed);
  pthread_mutex_unlock(&vm->mutex);
}

// --- What the daemon asks ----------------------------------------------------

static int pause_guest(void* context, postcopy_vmm* handle) {
  (void)handle;
  set_running(context, false);
  return POSTCOPY_VMM_OK;
}

static int resume_guest(void* context, postcopy_vmm* handle) {
  (void)handle;
  set_running(context, true);
  return POSTCOPY_VMM_OK;
}

static int save_device_state(void* context, postcopy_vmm* handle) {
  const vm* const vm = context;
  return postcopy_vmm_append_device_state(handle, &vm->step, sizeof(vm->step));
}

static int load_device_state(void* context, postcopy_vmm* handle,
                             const void* state, size_t length) {
  vm* const vm = context;
  if (length != sizeof(vm->step)) {
    postcopy_vmm_explain(handle, "this is no device state of the example's");
    return POSTCOPY_VMM_INVALID_ARGUMENT;
  }
  memcpy(&vm->step, state, length);
  return POSTCOPY_VMM_OK;
}

static void migration_ended(void* context, postcopy_vmm* handle,
                            int completed) {
  vm* const vm = context;
  (void)handle;
  vm->completed = completed;
}

// --- The VMM -----------------------------------------------------------------

static int fail(const char* what, const vm* vm) {
  fprintf(stderr, "example: %s: %s\n", what, postcopy_vmm_message(vm->handle));
  return 1;
}

static bool make_ram(vm* vm) {
  vm->memory_fd = memfd_create("ram", MFD_CLOEXEC);
  if (vm->memory_fd < 0 || ftruncate(vm->memory_fd, RAM_BYTES) != 0) {
    return false;
  }
  vm->ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                 vm->memory_fd, 0);
  return vm->ram != MAP_FAILED;
}

static int attach(vm* vm, const char* socket, const char* name) {
  const postcopy_vmm_region region = {.size = sizeof(region),
                                      .name = "ram",
                                      .address = vm->ram,
                                      .length = RAM_BYTES,
                                      .memory_fd = vm->memory_fd};
  const postcopy_vmm_options options = {
      .size = sizeof(options),
      .socket_path = socket,
      .vm_name = name,
      .role = vm->is_source ? POSTCOPY_VMM_SOURCE : POSTCOPY_VMM_DESTINATION,
      .dirty_tracking = vm->is_source ? POSTCOPY_VMM_DIRTY_LOG : 0};
  const postcopy_vmm_callbacks callbacks = {
      .size = sizeof(callbacks),
      .context = vm,
      .pause_guest = pause_guest,
      .save_device_state = save_device_state,
      .load_device_state = load_device_state,
      .resume_guest = resume_guest,
      .migration_ended = migration_ended};
  int code = postcopy_vmm_add_region(vm->handle, &region);
  if (code != POSTCOPY_VMM_OK) return code;
  code = postcopy_vmm_attach(vm->handle, &options, &callbacks);
  if (code != POSTCOPY_VMM_OK || !vm->is_source) return code;
  return postcopy_vmm_marker_new(vm->handle, &vm->marker);
}

// The VMM's event loop, which would watch other descriptors too. Until the
// migration has ended, or the connection has; returns why, if that.
static int answer_daemon(vm* vm) {
  int code = POSTCOPY_VMM_OK;
  while (code == POSTCOPY_VMM_OK && vm->completed < 0) {
    struct pollfd ready = {.fd = postcopy_vmm_fd(vm->handle), .events = POLLIN};
    if (poll(&ready, 1, -1) == 1) code = postcopy_vmm_process(vm->handle);
  }
  return code;
}

// The connection has ended without a word on the migration.
static int go_on_alone(vm* vm) {
  if (postcopy_vmm_guest_place(vm->handle) == POSTCOPY_VMM_GUEST_HERE) {
    // Nobody else can run it. A VMM that is not an example would go on for
    // good.
    set_running(vm, true);
    printf("the daemon has gone; the guest goes on here\n");
  } else {
    printf("the daemon has gone; the guest must not run here\n");
  }
  return 3;
}

// The guest is here and all of its pages are: is each as it was written last?
static int check_guest(vm* vm) {
  pthread_mutex_lock(&vm->mutex);
  for (uint64_t i = 0; i < PAGES && i < vm->step; i++) {
    if (*page_of(vm, vm->step - i) != vm->step - i) vm->wrong_pages++;
  }
  printf("%" PRIu64 " steps, %" PRIu64 " wrong pages\n", vm->step,
         vm->wrong_pages);
  const bool right = vm->wrong_pages == 0;
  pthread_mutex_unlock(&vm->mutex);
  return right ? 0 : 1;
}

static int run(vm* vm, const char* socket, const char* name) {
  if (attach(vm, socket, name) != POSTCOPY_VMM_OK) return fail("attach", vm);
  if (pthread_create(&vm->guest, NULL, run_guest, vm) != 0) {
    return fail("pthread_create", vm);
  }
  if (vm->is_source) set_running(vm, true);
  printf("attached\n");
  fflush(stdout);
  const int why = answer_daemon(vm);
  int result;
  if (vm->completed == 1) {
    result = vm->is_source ? 0 : check_guest(vm);
  } else if (vm->completed == 0) {
    result = 3;
  } else if (why == POSTCOPY_VMM_UNAVAILABLE) {
    result = go_on_alone(vm);
  } else {
    result = fail("the daemon", vm);
  }
  pthread_mutex_lock(&vm->mutex);
  vm->ending = true;
  pthread_cond_signal(&vm->changed);
  pthread_mutex_unlock(&vm->mutex);
  pthread_join(vm->guest, NULL);
  return result;
}

int main(int argc, char** argv) {
  const bool is_source = argc == 4 && strcmp(argv[1], "source") == 0;
  if (argc != 4 || (!is_source && strcmp(argv[1], "destination") != 0)) {
    fprintf(stderr, "usage: example source|destination SOCKET NAME\n");
    return 2;
  }
  vm vm = {.is_source = is_source,
           .mutex = PTHREAD_MUTEX_INITIALIZER,
           .changed = PTHREAD_COND_INITIALIZER,
           .completed = -1};
  if (!make_ram(&vm) || (vm.handle = postcopy_vmm_new()) == NULL) {
    fprintf(stderr, "example: no memory\n");
    return 1;
  }
  const int result = run(&vm, argv[2], argv[3]);
  postcopy_vmm_marker_free(vm.marker);
  postcopy_vmm_free(vm.handle);
  return result;
}
