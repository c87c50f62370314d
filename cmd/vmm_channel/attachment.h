// What a VMM attaches, after every claim it makes was checked.
#ifndef CMD_VMM_CHANNEL_ATTACHMENT_H_
#define CMD_VMM_CHANNEL_ATTACHMENT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

namespace v1 {
class Attach;
}  // namespace v1

// The only version of the VMM channel there is.
inline constexpr uint32_t kVmmChannelVersion = 1;

// Which end of the migration a daemon is, and the VMs attached to it are.
enum class VmmRole {
  kSource,       // pageserverd
  kDestination,  // faultd
};

// Where the RAM of a region is.
struct AttachedMemory {
  // Of the region's first byte in the VMM. At a source with a dirty log it may
  // be 0: not told.
  HostAddress host_address;
  // Index in Attachment::memory_fds; regions may share a file. nullopt: the
  // region is private to the VMM.
  std::optional<size_t> fd_index;
  // Of the region's first byte in that file, or in Attachment::process_memory;
  // a multiple of its page size.
  uint64_t fd_offset = 0;
};

// A VM as ParseAttach lets it through:
//
//   memory       one per region of `layout`. Each lies inside its file, as long
//                as the VMM does not truncate it (map only what is sealed); no
//                two lie over each other in one file or in the VMM. Private
//                ones are only said to be mapped there.
//   memory_fds   shared memory, readable and writable, with pages of the size
//                that its regions have.
//   slots        checked by CheckSlots. At a source with a dirty log they show
//                all RAM.
//   dirty_log    source: memory sealed against shrinking, readable and
//                writable. Its content is not looked at. Else invalid.
//   pagemap      source: what calls itself a pagemap. Whose it is, and whether
//                it is one, shows only when it is used. A source has either a
//                dirty log or a pagemap. Else invalid.
//   process_memory  source with private regions: what calls itself the memory
//                of a process. As with the pagemap. Else invalid.
//   userfaultfd  destination: non-blocking (the VMM can undo that later), API
//                done, no EVENT_FORK. Whose memory it is and whether it is
//                UFFD_USER_MODE_ONLY shows only when it is used. Else invalid.
struct Attachment {
  std::string vm_name;
  VmmRole role;
  RamLayout layout;
  std::vector<AttachedMemory> memory;
  std::vector<UniqueFd> memory_fds;
  std::vector<Slot> slots;
  UniqueFd dirty_log;
  UniqueFd pagemap;
  UniqueFd process_memory;
  UniqueFd userfaultfd;

  // What region `region` can be read from, at fd_offset: its file; of a private
  // one, process_memory, or -1 at a destination.
  // REQUIRES: region < memory.size().
  int memory_fd(size_t region) const {
    const std::optional<size_t> index = memory[region].fd_index;
    return index.has_value() ? memory_fds[*index].get() : process_memory.get();
  }
};

// Checks `attach` and the descriptors beside it, all from a VMM that may be
// wrong or hostile, for a daemon whose role is `role`. INVALID_ARGUMENT or
// FAILED_PRECONDITION with a sentence that tells the VMM's author what to
// change. All descriptors are closed on failure. Makes no system call on a
// descriptor before it is known to be of a kind on which that cannot block.
absl::StatusOr<Attachment> ParseAttach(const v1::Attach& attach,
                                       std::vector<UniqueFd> fds, VmmRole role);

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_ATTACHMENT_H_
