// libpostcopy_vmm: how a VMM gives its guest to the migration daemon of its
// host, pageserverd at the source or faultd at the destination, without a word
// of the daemon's protocol. C11 and nothing else; C++ may include it too.
//
// WHAT A VMM DOES
//
//   postcopy_vmm_new           makes a handle
//   postcopy_vmm_add_region    says what RAM the guest has, region by region
//   postcopy_vmm_add_slot      source with a dirty log, and only if the VMM
//                              counts pages by KVM's slots
//   postcopy_vmm_attach        connects to the daemon, which may refuse
//   postcopy_vmm_marker_new    source with a dirty log: a marker for each
//                              thread that writes guest memory
//   postcopy_vmm_process       in the VMM's own event loop, when
//                              postcopy_vmm_fd is readable; or
//   postcopy_vmm_run           on a thread of its own: calls the callbacks
//   postcopy_vmm_free          the end
//
// example.c, beside this file, is a whole VMM for both sides.
//
// WHAT A FUNCTION RETURNS
//
// An int is a code of enum postcopy_vmm_code: 0 if all went well. What went
// wrong with a handle is told by postcopy_vmm_message in a sentence for whoever
// runs the VMM. A call that fails has changed nothing, unless it says
// otherwise. A null handle is INVALID_ARGUMENT. No C++ exception passes through
// this library outwards; memory that is not to be had is RESOURCE_EXHAUSTED.
//
// THREADS
//
// A handle is used by one thread at a time; different handles do not meet.
// While it lives, any thread may at any time call postcopy_vmm_stop,
// postcopy_vmm_fd and, once the guest is attached, postcopy_vmm_marker_new. A
// call that may not be made now, because another is running, is
// FAILED_PRECONDITION and leaves the message as it was. The library starts no
// thread and changes no signal's disposition. Do not cancel a thread
// (pthread_cancel) that is in it.
//
// DESCRIPTORS
//
// Those that the caller passes stay the caller's and must be open until
// postcopy_vmm_attach has returned; the daemon then has its own. Those that the
// library opens are its own and close-on-exec: the connection, the dirty log,
// the userfaultfd.
//
// FORK
//
// A child of fork() must not use a handle or a marker of its parent, and should
// call exec() soon: it holds the connection open, so that the daemon does not
// see the VMM's end, and with it all guest memory.
//
// GROWTH
//
// Every struct begins with its size, to be set to sizeof. A library that is
// newer than its caller takes what the caller does not know for 0. One that is
// older refuses a field that it does not know unless that is 0 (UNIMPLEMENTED).
// So fill structs by name: what is left out is 0. Functions are only ever
// added. The shared library cannot be unloaded (dlclose).
#ifndef CMD_VMM_LIBRARY_POSTCOPY_VMM_H_
#define CMD_VMM_LIBRARY_POSTCOPY_VMM_H_

#include <stddef.h>
#include <stdint.h>

// C's words, by C's rules.
// NOLINTBEGIN(modernize-use-using,modernize-redundant-void-arg)
// NOLINTBEGIN(readability-identifier-naming)

#ifdef __cplusplus
extern "C" {
#endif

#define POSTCOPY_VMM_API __attribute__((visibility("default")))

// The version of this header.
#define POSTCOPY_VMM_VERSION 2

// Limits.
#define POSTCOPY_VMM_PAGE_BYTES 4096
#define POSTCOPY_VMM_HUGE_PAGE_BYTES 2097152
#define POSTCOPY_VMM_REGIONS_MAX 64
#define POSTCOPY_VMM_SLOTS_MAX 512
#define POSTCOPY_VMM_NAME_BYTES_MAX 128
#define POSTCOPY_VMM_MARKERS_MAX 64
#define POSTCOPY_VMM_DEVICE_STATE_BYTES_MAX 67108864
#define POSTCOPY_VMM_STRUCT_BYTES_MAX 4096
// What the daemon keeps of a sentence.
#define POSTCOPY_VMM_EXPLANATION_BYTES_MAX 1024
#define POSTCOPY_VMM_TIMEOUT_DEFAULT_MS 10000

// What became of a call, here and at the daemon. The numbers are those of
// gRPC's status codes.
enum postcopy_vmm_code {
  POSTCOPY_VMM_OK = 0,
  POSTCOPY_VMM_CANCELLED = 1,
  POSTCOPY_VMM_UNKNOWN = 2,
  POSTCOPY_VMM_INVALID_ARGUMENT = 3,
  POSTCOPY_VMM_DEADLINE_EXCEEDED = 4,
  POSTCOPY_VMM_NOT_FOUND = 5,
  POSTCOPY_VMM_ALREADY_EXISTS = 6,
  POSTCOPY_VMM_PERMISSION_DENIED = 7,
  POSTCOPY_VMM_RESOURCE_EXHAUSTED = 8,
  POSTCOPY_VMM_FAILED_PRECONDITION = 9,
  POSTCOPY_VMM_ABORTED = 10,
  POSTCOPY_VMM_OUT_OF_RANGE = 11,
  POSTCOPY_VMM_UNIMPLEMENTED = 12,
  POSTCOPY_VMM_INTERNAL = 13,
  POSTCOPY_VMM_UNAVAILABLE = 14,
  POSTCOPY_VMM_DATA_LOSS = 15,
  POSTCOPY_VMM_UNAUTHENTICATED = 16
};

// Which side of a migration the guest is attached for.
enum postcopy_vmm_role {
  POSTCOPY_VMM_SOURCE = 1,      // to pageserverd; the guest runs
  POSTCOPY_VMM_DESTINATION = 2  // to faultd; RAM is empty
};

// How the daemon learns which pages the guest has written (source).
enum postcopy_vmm_dirty_tracking {
  // The VMM marks them in a log that it shares with the daemon: every page, by
  // whomever it was written, from start_dirty_logging to stop_dirty_logging.
  POSTCOPY_VMM_DIRTY_LOG = 1,
  // The daemon asks the kernel (PAGEMAP_SCAN, Linux 6.7): the VMM has nothing
  // to do, but memory must be written by this process only, through the
  // addresses of the regions. Not for vhost-user or VFIO. The library registers
  // the regions with a userfaultfd of its own, in mode WP, while the handle
  // lives, and turns transparent huge pages off for them.
  POSTCOPY_VMM_DIRTY_PAGEMAP = 2
};

// What the memory of a region is, if not shared memory in ordinary pages. Since
// version 2: an older library refuses them, and so does an older daemon.
enum postcopy_vmm_region_flags {
  // It is of this process alone: MAP_PRIVATE, of no file, not locked (mlock).
  // memory_fd is -1, memory_offset 0, and the address is given.
  //
  // At a destination postcopy_vmm_attach throws away what is there, and from
  // then on whoever touches it waits. At a source the daemon is given this
  // process's /proc/self/mem, for reading, and this process must not end before
  // migration_ended.
  POSTCOPY_VMM_REGION_PRIVATE = 1,
  // It is of huge pages of POSTCOPY_VMM_HUGE_PAGE_BYTES (MFD_HUGETLB, a file on
  // hugetlbfs, or MAP_HUGETLB), which is the page size that is meant below.
  // Transparent huge pages are ordinary ones. The other side's region may have
  // other pages.
  POSTCOPY_VMM_REGION_HUGE_PAGES = 2
};

// Where the guest may run; see postcopy_vmm_guest_place.
enum postcopy_vmm_place {
  POSTCOPY_VMM_GUEST_HERE = 1,       // here and nowhere else
  POSTCOPY_VMM_GUEST_ELSEWHERE = 2,  // not here
  POSTCOPY_VMM_GUEST_UNKNOWN = 3     // perhaps elsewhere: must not run here
};

// A guest, attached or about to be.
typedef struct postcopy_vmm postcopy_vmm;

// One thread's right to mark pages.
typedef struct postcopy_vmm_marker postcopy_vmm_marker;

// A region of guest RAM; its place in RAM is behind the region before. Source
// and destination must have the same regions in the same order.
typedef struct postcopy_vmm_region {
  size_t size;
  // 1 to 128 bytes of [A-Za-z0-9._-], different for each region.
  const char* name;
  // Where this process sees the region: a multiple of the page size. Null only
  // at a source with a dirty log, which then cannot mark it by address, and not
  // if it is private.
  void* address;
  // Bytes, a positive multiple of the page size.
  uint64_t length;
  // Its shared memory, opened for reading and writing: a memfd, in ordinary
  // pages; see the flags for others.
  int32_t memory_fd;
  // Of enum postcopy_vmm_region_flags; 0 is the usual.
  uint32_t flags;
  // Where the region begins in that file: a multiple of the page size.
  uint64_t memory_offset;
} postcopy_vmm_region;

// A memory slot of KVM. Only needed if pages are to be marked by KVM's slots:
// then together they must show all RAM. If none is added, region n is slot n of
// address space 0.
typedef struct postcopy_vmm_slot {
  size_t size;
  uint16_t address_space;
  uint16_t slot;
  // 0.
  uint32_t flags;
  uint64_t guest_physical_address;
  // Where the slot begins in RAM, that is, in the regions laid end to end; and
  // its length. Both are multiples of the page size.
  uint64_t ram_offset;
  uint64_t length;
} postcopy_vmm_slot;

// How to attach.
typedef struct postcopy_vmm_options {
  size_t size;
  // The daemon's Unix socket (its --vmm_socket), at most 107 bytes.
  const char* socket_path;
  // 1 to 128 bytes of [A-Za-z0-9._-]; what the orchestrator calls the VM.
  const char* vm_name;
  // enum postcopy_vmm_role.
  uint32_t role;
  // Source: enum postcopy_vmm_dirty_tracking. Destination: 0.
  uint32_t dirty_tracking;
  // Destination: what the userfaultfd is asked to do besides telling of missing
  // pages, as UFFD_FEATURE_* of <linux/userfaultfd.h>:
  // UFFD_FEATURE_EVENT_REMOVE if the guest has a balloon, or the VMM gives
  // memory up in another way, which it must not do before load_device_state;
  // UFFD_FEATURE_MINOR_SHMEM to have stale pages stay in memory_fd until fresh
  // ones replace them; UFFD_FEATURE_THREAD_ID to have waits told by thread. 0
  // is the usual. A feature that the daemon does not serve it refuses. Source:
  // 0.
  uint64_t userfaultfd_features;
  // 0.
  uint64_t flags;
  // How long the daemon may take to answer, in milliseconds; 0 stands for
  // POSTCOPY_VMM_TIMEOUT_DEFAULT_MS.
  uint32_t timeout_ms;
  // 0.
  uint32_t reserved;
} postcopy_vmm_options;

// What the daemon asks of the VMM, in the order of a migration. Each is called
// by postcopy_vmm_process or postcopy_vmm_run, on its thread, one at a time,
// and returns a code. Anything but 0 goes to the daemon, with the sentence
// given to postcopy_vmm_explain, and numbers that are no code become
// POSTCOPY_VMM_UNKNOWN; the connection stays. The daemon waits for 10 s, but
// for load_device_state and resume_guest at a destination, which may take as
// long as missing pages do.
//
// From a callback, only these may be called with the handle:
// postcopy_vmm_explain, postcopy_vmm_append_device_state (in
// save_device_state), postcopy_vmm_marker_new, postcopy_vmm_guest_place,
// postcopy_vmm_fd, postcopy_vmm_stop. A callback must not leave by longjmp. An
// exception of C++ that leaves it ends the connection.
typedef struct postcopy_vmm_callbacks {
  size_t size;
  // Passed to each of them.
  void* context;

  // Source with a dirty log; null: nothing to be done.
  //
  // From here on every page written has to be marked. A VMM that marks all the
  // time has nothing to do here.
  int (*start_dirty_logging)(void* context, postcopy_vmm* vmm);
  // Pages that were written before this call and are not marked yet (KVM's
  // log and rings) are to be marked before it returns.
  int (*sync_dirty_log)(void* context, postcopy_vmm* vmm);
  // Pages need not be marked any more.
  int (*stop_dirty_logging)(void* context, postcopy_vmm* vmm);

  // Source; must be given.
  //
  // To stop all vCPUs and everything else that writes RAM; with a dirty log,
  // then to mark what was written, as sync_dirty_log does. OK if paused.
  int (*pause_guest)(void* context, postcopy_vmm* vmm);
  // To save all of the guest but its RAM, by postcopy_vmm_append_device_state.
  // The guest is paused.
  int (*save_device_state)(void* context, postcopy_vmm* vmm);

  // Destination; must be given.
  //
  // To load what save_device_state saved; `state` is the library's until the
  // callback returns. From here on RAM may be touched: missing pages come.
  int (*load_device_state)(void* context, postcopy_vmm* vmm, const void* state,
                           size_t length);

  // Both.
  //
  // Must be given. To let the guest run: at the destination, or at the source
  // if the migration was given up. OK if it runs.
  int (*resume_guest)(void* context, postcopy_vmm* vmm);
  // The migration is over. Null: nothing to be done. completed = 1: every page
  // is at the destination; a source may end. 0: it was given up; a destination
  // may end.
  void (*migration_ended)(void* context, postcopy_vmm* vmm, int completed);
} postcopy_vmm_callbacks;

// --- Handles -----------------------------------------------------------------

// The version of the header that the library was built with.
POSTCOPY_VMM_API uint32_t postcopy_vmm_version(void);

// "INVALID_ARGUMENT" for 3, and so on; "UNKNOWN" for what is no code. Static.
POSTCOPY_VMM_API const char* postcopy_vmm_code_name(int code);

// A handle without a guest; null if there is no memory. Opens nothing.
POSTCOPY_VMM_API postcopy_vmm* postcopy_vmm_new(void);

// Ends the connection, if there is one, and frees the handle; its markers stay
// valid. OK for null. FAILED_PRECONDITION while another call is running, from a
// callback for example: nothing is done then.
//
// At a destination whose guest may still miss pages (load_device_state was
// called, migration_ended with 1 was not) the userfaultfd stays open as long as
// the process lives: closing it would let missing pages read as zeros, or as
// stale bytes with UFFD_FEATURE_MINOR_SHMEM. So its
// threads wait, which is better than to go on with wrong memory. See
// postcopy_vmm_discard_guest.
POSTCOPY_VMM_API int postcopy_vmm_free(postcopy_vmm* vmm);

// What was wrong when the last call with this handle failed; "" if it went
// well. Valid until the next call with the handle. Never null.
POSTCOPY_VMM_API const char* postcopy_vmm_message(const postcopy_vmm* vmm);

// --- Attaching ---------------------------------------------------------------

// Adds a region or a slot; what it points to is copied. INVALID_ARGUMENT for a
// struct that is null or of a wrong size, or for a limit, a null name, a
// descriptor that is not open; whether the rest is right is told by
// postcopy_vmm_attach. FAILED_PRECONDITION after that has gone well.
POSTCOPY_VMM_API int postcopy_vmm_add_region(postcopy_vmm* vmm,
                                             const postcopy_vmm_region* region);
POSTCOPY_VMM_API int postcopy_vmm_add_slot(postcopy_vmm* vmm,
                                           const postcopy_vmm_slot* slot);

// Connects to the daemon and attaches the guest; waits for its answer. At a
// source the guest may run. A destination must not write RAM from here on until
// load_device_state; what was written before is discarded. Private memory must
// not even be read.
//
// A refusal comes back with the daemon's code and sentence. Besides:
//   INVALID_ARGUMENT     what was given makes no sense; see the message
//   FAILED_PRECONDITION  attached before; or the memory is registered with
//                        another userfaultfd (POSTCOPY_VMM_DIRTY_PAGEMAP, or
//                        private); or it is private and was touched meanwhile,
//                        or is locked
//   UNAVAILABLE          no daemon listens there
//   PERMISSION_DENIED    the socket may not be opened, or no userfaultfd made;
//                        the message says what to grant
//   UNIMPLEMENTED        the kernel has no such userfaultfd
//   DEADLINE_EXCEEDED    the daemon did not answer in time
//   RESOURCE_EXHAUSTED   no memory or descriptors
// After a failure it may be called again, with other options too.
POSTCOPY_VMM_API int postcopy_vmm_attach(
    postcopy_vmm* vmm, const postcopy_vmm_options* options,
    const postcopy_vmm_callbacks* callbacks);

// --- Answering the daemon ----------------------------------------------------

// To be watched for POLLIN; see postcopy_vmm_process. -1 before the guest is
// attached. The library's; it stays open until postcopy_vmm_free.
POSTCOPY_VMM_API int postcopy_vmm_fd(const postcopy_vmm* vmm);

// Answers the daemon's command, if one has come: calls the callback and sends
// what came of it. Does not wait for a command. OK also if there was none.
// FAILED_PRECONDITION if the guest is not attached, or another call is running.
// All else means that the connection has ended, for good, and is what later
// calls return too: forget postcopy_vmm_fd, and see postcopy_vmm_guest_place.
//   UNAVAILABLE          the daemon has closed it, or has ended
//   CANCELLED            postcopy_vmm_stop was called
//   DEADLINE_EXCEEDED    the daemon did not take the answer within 10 s
//   INTERNAL             the daemon broke the protocol, or a callback threw
//   INVALID_ARGUMENT     the same: a packet beyond its limits
//   RESOURCE_EXHAUSTED   no memory or descriptors
POSTCOPY_VMM_API int postcopy_vmm_process(postcopy_vmm* vmm);

// The same, again and again, waiting for commands, until the connection ends:
// what it returns is why, and is never OK.
POSTCOPY_VMM_API int postcopy_vmm_run(postcopy_vmm* vmm);

// Ends the connection and so postcopy_vmm_run, which returns when the callback
// that is running has; called from that callback, it keeps its answer from the
// daemon. No callback begins after this has returned. For any thread and for
// signal handlers. Before the guest is attached: ends it as soon as it is.
POSTCOPY_VMM_API void postcopy_vmm_stop(postcopy_vmm* vmm);

// Whether the guest may run here, by what has passed over the connection; an
// enum postcopy_vmm_place. That is what a VMM needs to know whose guest is
// paused when the connection ends.
//
//   source       HERE; UNKNOWN once save_device_state went well, until
//                resume_guest goes well or the migration is given up;
//                ELSEWHERE when it is complete. From then on the library
//                refuses what the daemon asks of the guest.
//   destination  ELSEWHERE; HERE from load_device_state on
//   not attached HERE
POSTCOPY_VMM_API int postcopy_vmm_guest_place(const postcopy_vmm* vmm);

// From a callback: why it is about to fail. Copied; the daemon keeps the first
// 1024 bytes, and of those what is printable ASCII. FAILED_PRECONDITION outside
// of callbacks, INVALID_ARGUMENT for null.
POSTCOPY_VMM_API int postcopy_vmm_explain(postcopy_vmm* vmm,
                                          const char* sentence);

// From save_device_state: adds `length` bytes to what is saved. Copied. If it
// fails, so does save_device_state, whatever that returns. FAILED_PRECONDITION
// outside of that callback; INVALID_ARGUMENT for more than
// POSTCOPY_VMM_DEVICE_STATE_BYTES_MAX bytes in all, or null with a length.
POSTCOPY_VMM_API int postcopy_vmm_append_device_state(postcopy_vmm* vmm,
                                                      const void* bytes,
                                                      size_t length);

// Destination: the guest runs no more, and never will: closes the userfaultfd.
// Who waits for a missing page goes on and reads zeros, or stale bytes with
// UFFD_FEATURE_MINOR_SHMEM, when the daemon has let
// go of it too, so this is for a VMM that is about to throw the guest away.
// FAILED_PRECONDITION while another call is running.
POSTCOPY_VMM_API int postcopy_vmm_discard_guest(postcopy_vmm* vmm);

// --- Marking pages -----------------------------------------------------------

// A marker for one thread, with which it marks pages in the dirty log. It
// outlives the handle if need be. At most POSTCOPY_VMM_MARKERS_MAX at a time.
// INVALID_ARGUMENT for null; FAILED_PRECONDITION if the guest is not attached
// or has no dirty log; RESOURCE_EXHAUSTED if there are too many. *marker is
// null then. Leaves the message as it was.
//
// The marker of a thread that writes memory is best made between
// postcopy_vmm_attach and the first postcopy_vmm_process: before that the
// daemon cannot have asked for marks.
POSTCOPY_VMM_API int postcopy_vmm_marker_new(postcopy_vmm* vmm,
                                             postcopy_vmm_marker** marker);

// Gives the marker back. OK for null.
POSTCOPY_VMM_API void postcopy_vmm_marker_free(postcopy_vmm_marker* marker);

// The functions that mark are lock-free: none waits, allocates or makes a
// system call, and marking a page costs some nanoseconds. One thread at a time
// for each marker. Mark a page AFTER it was written: then whoever finds the
// mark finds the bytes as well. `marker` must not be null.
//
// A slot is (address space << 16 | slot), as KVM_GET_DIRTY_LOG has it; its
// pages are numbered from 0.
//
// OK; or OUT_OF_RANGE if there is no such slot, page or address, and then
// nothing was marked.

// Marks a page of a slot.
POSTCOPY_VMM_API int postcopy_vmm_mark(postcopy_vmm_marker* marker,
                                       uint32_t slot, uint64_t page);

// Marks `count` pages of a slot from page `first` on.
POSTCOPY_VMM_API int postcopy_vmm_mark_pages(postcopy_vmm_marker* marker,
                                             uint32_t slot, uint64_t first,
                                             uint64_t count);

// Marks the pages whose bits are set in `words`, a part of a bitmap as KVM
// gives it: bit b of words[i] is page 64 * (first_word + i) + b of the slot.
// Bits behind the slot's last page are ignored.
POSTCOPY_VMM_API int postcopy_vmm_mark_bitmap(postcopy_vmm_marker* marker,
                                              uint32_t slot,
                                              uint64_t first_word,
                                              const uint64_t* words,
                                              size_t word_count);

// Marks the pages that hold the bytes [address, address + length) of this
// process's memory. They may lie in several regions.
POSTCOPY_VMM_API int postcopy_vmm_mark_address(postcopy_vmm_marker* marker,
                                               const void* address,
                                               uint64_t length);

#ifdef __cplusplus
}  // extern "C"
#endif

// NOLINTEND(readability-identifier-naming)
// NOLINTEND(modernize-use-using,modernize-redundant-void-arg)

#endif  // CMD_VMM_LIBRARY_POSTCOPY_VMM_H_
