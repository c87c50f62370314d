#include "cmd/vmm_channel/attachment.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cmd/vmm_channel/wire_status.h"
#include "dirtytrack/memfd.h"
#include "postcopy/v1/vmm_channel.pb.h"

namespace postcopy {
namespace {

// Set in a userfaultfd's feature word by the kernel once UFFDIO_API is done
// (UFFD_FEATURE_INITIALIZED, fs/userfaultfd.c); shown by fdinfo.
constexpr uint64_t kUffdInitialized = uint64_t{1} << 31;

// AttachedRegion.descriptor_index of private regions.
constexpr uint32_t kNoDescriptor = UINT32_MAX;

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::string_view DaemonName(VmmRole role) {
  return role == VmmRole::kSource ? "pageserverd, the source"
                                  : "faultd, the destination";
}

// --- What the message says ---------------------------------------------------

absl::Status CheckGreeting(const v1::Attach& attach, VmmRole role) {
  if (attach.protocol_version() != kVmmChannelVersion) {
    return Invalid("Attach.protocol_version is ", attach.protocol_version(),
                   "; this daemon speaks version ", kVmmChannelVersion);
  }
  if (!IsValidName(attach.vm_name())) {
    return Invalid("Attach.vm_name \"", Printable(attach.vm_name()),
                   "\" is not a name: use 1 to ", kMaxNameBytes,
                   " bytes of [A-Za-z0-9._-]");
  }
  const v1::Role wanted =
      role == VmmRole::kSource ? v1::ROLE_SOURCE : v1::ROLE_DESTINATION;
  if (attach.role() == wanted) return absl::OkStatus();
  if (attach.role() != v1::ROLE_SOURCE &&
      attach.role() != v1::ROLE_DESTINATION) {
    return Invalid("Attach.role must be ", v1::Role_Name(wanted), ": this is ",
                   DaemonName(role));
  }
  return Invalid("this is ", DaemonName(role), "; attach a VM with ",
                 v1::Role_Name(attach.role()), " to the socket of ",
                 role == VmmRole::kSource ? "faultd" : "pageserverd");
}

absl::StatusOr<RamLayout> ParseLayout(const v1::Attach& attach) {
  std::vector<Region> regions;
  regions.reserve(static_cast<size_t>(attach.regions_size()));
  for (const v1::AttachedRegion& attached : attach.regions()) {
    const v1::RamRegion& region = attached.region();
    regions.push_back({region.name(), RamOffset(region.start_bytes()),
                       ByteCount(region.length_bytes()),
                       ByteCount(region.page_size_bytes())});
  }
  return RamLayout::Create(std::move(regions), RegionPages::kSmallOrHuge);
}

// The first RAM offset that no slot shows; nullopt if there is none.
// REQUIRES: CheckSlots passed, so sums do not overflow.
std::optional<RamOffset> FirstUncovered(const RamLayout& layout,
                                        std::vector<Slot> slots) {
  std::sort(slots.begin(), slots.end(),
            [](const Slot& a, const Slot& b) { return a.start < b.start; });
  RamOffset covered(0);
  for (const Slot& slot : slots) {
    if (slot.start > covered) return covered;
    covered = std::max(covered, slot.start + slot.length);
  }
  if (covered < RamOffset(0) + layout.bytes()) return covered;
  return std::nullopt;
}

bool Sends(const v1::Attach& attach, v1::DescriptorKind kind) {
  return std::find(attach.descriptors().begin(), attach.descriptors().end(),
                   kind) != attach.descriptors().end();
}

absl::StatusOr<std::vector<Slot>> ParseSlots(const v1::Attach& attach,
                                             const RamLayout& layout,
                                             VmmRole role) {
  std::vector<Slot> slots;
  for (const v1::MemorySlot& slot : attach.slots()) {
    if (slot.address_space() > UINT16_MAX || slot.slot() > UINT16_MAX) {
      return Invalid("Attach.slots[", slots.size(), "] is slot ",
                     slot.address_space(), ":", slot.slot(),
                     "; both numbers must be below 65536");
    }
    slots.push_back({{static_cast<uint16_t>(slot.address_space()),
                      static_cast<uint16_t>(slot.slot())},
                     slot.guest_physical_address(),
                     RamOffset(slot.ram_offset_bytes()),
                     ByteCount(slot.length_bytes())});
  }
  if (absl::Status status = CheckSlots(layout, slots); !status.ok()) {
    return status;
  }
  // Only a dirty log counts pages by slot.
  if (role == VmmRole::kDestination ||
      !Sends(attach, v1::DESCRIPTOR_KIND_DIRTY_LOG)) {
    return slots;
  }
  if (std::optional<RamOffset> hole = FirstUncovered(layout, slots)) {
    return Invalid("no slot of Attach.slots shows ", ToString(*hole),
                   "; at the source the slots must show all RAM, or writes ",
                   "there would be lost");
  }
  return slots;
}

// Where region `index` is said to be, all but the file.
absl::Status CheckPlace(const v1::AttachedRegion& attached, size_t index,
                        const Region& region, VmmRole role) {
  const uint64_t address = attached.host_address();
  if (address == 0 && role == VmmRole::kDestination) {
    return Invalid("Attach.regions[", index, "].host_address is not given; a ",
                   "destination must say where the region is mapped");
  }
  const uint64_t page_size = region.page_size.value();
  if (address % page_size != 0) {
    return Invalid("Attach.regions[", index, "].host_address 0x",
                   absl::Hex(address), " is not a multiple of ", page_size);
  }
  if (address > UINT64_MAX - region.length.value()) {
    return Invalid("Attach.regions[", index, "].host_address 0x",
                   absl::Hex(address), " plus its length wraps around");
  }
  const uint64_t offset = attached.descriptor_offset_bytes();
  if (offset % page_size != 0 || offset > UINT64_MAX - region.length.value()) {
    return Invalid("Attach.regions[", index, "].descriptor_offset_bytes ",
                   offset, " is not a multiple of ", page_size,
                   " inside the file");
  }
  return absl::OkStatus();
}

// What else must be true of a private region.
absl::Status CheckPrivate(const v1::AttachedRegion& attached, size_t index) {
  if (attached.host_address() == 0) {
    return Invalid("Attach.regions[", index, "].host_address is not given; ",
                   "of a private region it must be");
  }
  if (attached.descriptor_index() == kNoDescriptor &&
      attached.descriptor_offset_bytes() == 0) {
    return absl::OkStatus();
  }
  return Invalid("Attach.regions[", index,
                 "] is private, but has a place in a ",
                 "descriptor; set descriptor_index to ", kNoDescriptor,
                 " and descriptor_offset_bytes to 0");
}

// --- What the descriptors are ------------------------------------------------

// Which file a descriptor is of.
struct FileIdentity {
  dev_t device;
  ino_t inode;
  uint64_t size;
  ByteCount page_size;

  bool SameFile(const FileIdentity& other) const {
    return device == other.device && inode == other.inode;
  }
};

// Checks that `fd`, which is descriptor `index` and said to be `what`, is
// shared memory, readable and writable.
absl::StatusOr<FileIdentity> CheckMemoryFile(int fd, size_t index,
                                             absl::string_view what) {
  // First, because only shared memory has seals, and only when it is known to
  // be that can no file system of the VMM's choosing stall the calls below.
  if (::fcntl(fd, F_GET_SEALS) < 0) {
    return Invalid("descriptor ", index, " (", what, ") is not shared memory; ",
                   "use a memfd");
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if ((flags & O_ACCMODE) != O_RDWR) {
    return Invalid("descriptor ", index, " (", what, ") must be opened for ",
                   "reading and writing");
  }
  if ((flags & O_APPEND) != 0) {
    return Invalid("descriptor ", index, " (", what, ") has O_APPEND, with ",
                   "which pages would land at its end; open it without");
  }
  struct statfs filesystem;
  struct stat file;
  if (::fstatfs(fd, &filesystem) != 0 || ::fstat(fd, &file) != 0) {
    return Invalid("descriptor ", index, " (", what, ") cannot be examined");
  }
  const bool huge = filesystem.f_type == HUGETLBFS_MAGIC;
  return FileIdentity{
      file.st_dev, file.st_ino, static_cast<uint64_t>(file.st_size),
      ByteCount(huge ? static_cast<uint64_t>(filesystem.f_bsize) : kPageSize)};
}

// Seals bind every descriptor of a file, whatever it was opened for.
absl::Status CheckNotSealedForWriting(int fd, size_t index) {
  constexpr int kReadOnly = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
  if ((::fcntl(fd, F_GET_SEALS) & kReadOnly) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "descriptor ", index, " is sealed against writing, and pages have to be ",
      "written; leave out F_SEAL_WRITE and F_SEAL_FUTURE_WRITE"));
}

absl::Status CheckDirtyLog(int fd, size_t index) {
  absl::StatusOr<FileIdentity> file = CheckMemoryFile(fd, index, "DIRTY_LOG");
  if (!file.ok()) return file.status();
  if (file->page_size != ByteCount(kPageSize)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "descriptor ", index, " (DIRTY_LOG) has huge pages; use a memfd ",
        "without MFD_HUGETLB"));
  }
  return RequireSeals(fd, F_SEAL_SHRINK, "the dirty log");
}

// What /proc says `fd` is, such as "anon_inode:[userfaultfd]".
std::string KindOf(int fd) {
  char target[64];
  const std::string path = absl::StrCat("/proc/self/fd/", fd);
  const ssize_t length = ::readlink(path.c_str(), target, sizeof(target));
  return length < 0 ? "" : std::string(target, static_cast<size_t>(length));
}

// The feature word of a userfaultfd from its fdinfo line
// "API:\taa:<features>:<ioctls>"; nullopt if there is none.
std::optional<uint64_t> UffdFeatures(int fd) {
  const std::string path = absl::StrCat("/proc/self/fdinfo/", fd);
  FILE* info = std::fopen(path.c_str(), "re");
  if (info == nullptr) return std::nullopt;
  std::optional<uint64_t> features;
  char line[256];
  while (!features && std::fgets(line, sizeof(line), info) != nullptr) {
    uint64_t value;
    if (std::sscanf(line, "API: %*x:%" SCNx64, &value) == 1) features = value;
  }
  std::fclose(info);
  return features;
}

absl::Status CheckUffdFeatures(uint64_t features, size_t index) {
  if ((features & kUffdInitialized) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("descriptor ", index, " (USERFAULTFD): UFFDIO_API was ",
                     "not done; the VMM must do it before it attaches"));
  }
  if ((features & UFFD_FEATURE_EVENT_FORK) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "descriptor ", index, " (USERFAULTFD) has UFFD_FEATURE_EVENT_FORK, ",
        "which is not served: a child of the VMM would need its memory served ",
        "as that of a second VM; leave it out of UFFDIO_API, and keep "
        "children ",
        "out of guest memory by madvise(MADV_DONTFORK)"));
  }
  if ((features & UFFD_FEATURE_SIGBUS) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "descriptor ", index, " (USERFAULTFD) has UFFD_FEATURE_SIGBUS: missing",
        " pages would kill the VMM instead of being fetched; leave it out of ",
        "UFFDIO_API"));
  }
  return absl::OkStatus();
}

// Asks only for the name that a file has, since a call to a file system of the
// VMM's choosing might never return.
absl::Status CheckFileOfProcess(int fd, size_t index, absl::string_view what,
                                absl::string_view name) {
  const std::string kind = KindOf(fd);
  if (absl::StartsWith(kind, "/proc/") &&
      absl::EndsWith(kind, absl::StrCat("/", name))) {
    return absl::OkStatus();
  }
  return Invalid("descriptor ", index, " (", what, ") is not a ", name,
                 " of a process but \"", Printable(kind),
                 "\"; open /proc/self/", name);
}

absl::Status CheckUserfaultfd(int fd, size_t index) {
  if (const std::string kind = KindOf(fd); kind != "anon_inode:[userfaultfd]") {
    return Invalid("descriptor ", index, " (USERFAULTFD) is not a userfaultfd ",
                   "but \"", Printable(kind), "\"");
  }
  if ((::fcntl(fd, F_GETFL) & O_NONBLOCK) == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "descriptor ", index, " (USERFAULTFD) is blocking; open it with ",
        "O_NONBLOCK"));
  }
  const std::optional<uint64_t> features = UffdFeatures(fd);
  if (!features) {
    return absl::InternalError(absl::StrCat(
        "the features of a userfaultfd cannot be read from /proc/self/fdinfo/",
        fd));
  }
  return CheckUffdFeatures(*features, index);
}

// --- Both together -----------------------------------------------------------

// Goes through an Attach whose message part is fine, descriptor by descriptor
// and region by region, and fills in the attachment.
class DescriptorSorter {
 public:
  DescriptorSorter(const v1::Attach& attach, std::vector<UniqueFd> fds,
                   Attachment& out)
      : attach_(attach), fds_(std::move(fds)), out_(out) {}

  absl::Status Sort();

 private:
  // What became of a descriptor of kind MEMORY.
  struct Memory {
    size_t index;
    FileIdentity file;
    bool used = false;
  };

  absl::Status TakeDescriptor(size_t index, v1::DescriptorKind kind);
  absl::Status TakeMemory(size_t index);
  absl::Status TakeDirtyLog(size_t index);
  // A file of /proc/self called `name`, into `to`.
  absl::Status TakeFileOfProcess(size_t index, absl::string_view what,
                                 absl::string_view name, UniqueFd* to);
  absl::Status TakeUserfaultfd(size_t index);
  absl::Status CheckComplete() const;
  absl::Status CheckSourceComplete() const;
  absl::Status CheckPrivateComplete() const;
  absl::Status PlaceRegion(size_t region);
  absl::Status PlacePrivate(const v1::AttachedRegion& attached, size_t region);
  absl::Status CheckApart(size_t a, size_t b) const;

  const v1::Attach& attach_;
  std::vector<UniqueFd> fds_;
  Attachment& out_;
  // Parallel to out_.memory_fds.
  std::vector<Memory> memory_;
};

absl::Status DescriptorSorter::Sort() {
  if (fds_.size() != static_cast<size_t>(attach_.descriptors_size())) {
    return Invalid("Attach.descriptors names ", attach_.descriptors_size(),
                   " descriptors, but ", fds_.size(), " came beside it");
  }
  for (size_t i = 0; i < fds_.size(); ++i) {
    absl::Status status =
        TakeDescriptor(i, attach_.descriptors(static_cast<int>(i)));
    if (!status.ok()) return status;
  }
  for (size_t i = 0; i < out_.layout.regions().size(); ++i) {
    if (absl::Status status = PlaceRegion(i); !status.ok()) return status;
    for (size_t before = 0; before < i; ++before) {
      absl::Status status = CheckApart(before, i);
      if (!status.ok()) return status;
    }
  }
  return CheckComplete();
}

absl::Status DescriptorSorter::TakeDescriptor(size_t index,
                                              v1::DescriptorKind kind) {
  switch (kind) {
    case v1::DESCRIPTOR_KIND_MEMORY:
      return TakeMemory(index);
    case v1::DESCRIPTOR_KIND_DIRTY_LOG:
      return TakeDirtyLog(index);
    case v1::DESCRIPTOR_KIND_USERFAULTFD:
      return TakeUserfaultfd(index);
    case v1::DESCRIPTOR_KIND_PAGEMAP:
      return TakeFileOfProcess(index, "PAGEMAP", "pagemap", &out_.pagemap);
    case v1::DESCRIPTOR_KIND_PROCESS_MEMORY:
      return TakeFileOfProcess(index, "PROCESS_MEMORY", "mem",
                               &out_.process_memory);
    default:
      return Invalid("Attach.descriptors[", index, "] is ",
                     static_cast<int>(kind), ", which is no kind this version ",
                     "knows");
  }
}

absl::Status DescriptorSorter::TakeMemory(size_t index) {
  absl::StatusOr<FileIdentity> file =
      CheckMemoryFile(fds_[index].get(), index, "MEMORY");
  if (!file.ok()) return file.status();
  if (out_.role == VmmRole::kDestination) {
    absl::Status status = CheckNotSealedForWriting(fds_[index].get(), index);
    if (!status.ok()) return status;
  }
  memory_.push_back({index, *file});
  out_.memory_fds.push_back(std::move(fds_[index]));
  return absl::OkStatus();
}

absl::Status DescriptorSorter::TakeDirtyLog(size_t index) {
  if (out_.role != VmmRole::kSource) {
    return Invalid("descriptor ", index, " is a DIRTY_LOG; only a source has ",
                   "one");
  }
  if (out_.dirty_log.valid()) {
    return Invalid("descriptor ", index, " is a second DIRTY_LOG; send one");
  }
  absl::Status status = CheckDirtyLog(fds_[index].get(), index);
  if (status.ok()) out_.dirty_log = std::move(fds_[index]);
  return status;
}

absl::Status DescriptorSorter::TakeFileOfProcess(size_t index,
                                                 absl::string_view what,
                                                 absl::string_view name,
                                                 UniqueFd* to) {
  if (out_.role != VmmRole::kSource) {
    return Invalid("descriptor ", index, " is a ", what, "; only a source has ",
                   "one");
  }
  if (to->valid()) {
    return Invalid("descriptor ", index, " is a second ", what, "; send one");
  }
  absl::Status status =
      CheckFileOfProcess(fds_[index].get(), index, what, name);
  if (status.ok()) *to = std::move(fds_[index]);
  return status;
}

absl::Status DescriptorSorter::TakeUserfaultfd(size_t index) {
  if (out_.role != VmmRole::kDestination) {
    return Invalid("descriptor ", index, " is a USERFAULTFD; only a ",
                   "destination has one");
  }
  if (out_.userfaultfd.valid()) {
    return Invalid("descriptor ", index, " is a second USERFAULTFD; send one");
  }
  absl::Status status = CheckUserfaultfd(fds_[index].get(), index);
  if (status.ok()) out_.userfaultfd = std::move(fds_[index]);
  return status;
}

absl::Status DescriptorSorter::CheckSourceComplete() const {
  if (!out_.dirty_log.valid() && !out_.pagemap.valid()) {
    return Invalid("no descriptor of kind DIRTY_LOG or PAGEMAP came; a source ",
                   "must send the memfd of its dirty log, or its pagemap");
  }
  if (out_.dirty_log.valid() && out_.pagemap.valid()) {
    return Invalid(
        "both a DIRTY_LOG and a PAGEMAP came; send the one by which ",
        "writes are to be found");
  }
  if (!out_.pagemap.valid()) return absl::OkStatus();
  for (size_t i = 0; i < out_.memory.size(); ++i) {
    if (out_.memory[i].host_address.value() != 0) continue;
    return Invalid("Attach.regions[", i, "].host_address is not given; a ",
                   "source that sends a PAGEMAP must say where the region is ",
                   "mapped");
  }
  return absl::OkStatus();
}

absl::Status DescriptorSorter::CheckComplete() const {
  if (out_.role == VmmRole::kSource) {
    if (absl::Status s = CheckSourceComplete(); !s.ok()) return s;
    if (absl::Status s = CheckPrivateComplete(); !s.ok()) return s;
  }
  if (out_.role == VmmRole::kDestination && !out_.userfaultfd.valid()) {
    return Invalid("no descriptor of kind USERFAULTFD came; a destination must",
                   " send its userfaultfd");
  }
  for (const Memory& memory : memory_) {
    if (memory.used) continue;
    return Invalid("no region is in descriptor ", memory.index,
                   " (MEMORY); do not send it");
  }
  return absl::OkStatus();
}

absl::Status DescriptorSorter::CheckPrivateComplete() const {
  const bool any = std::any_of(out_.memory.begin(), out_.memory.end(),
                               [](const AttachedMemory& memory) {
                                 return !memory.fd_index.has_value();
                               });
  if (any == out_.process_memory.valid()) return absl::OkStatus();
  if (any) {
    return Invalid("no descriptor of kind PROCESS_MEMORY came; a source with ",
                   "private regions must send its /proc/self/mem");
  }
  return Invalid(
      "a PROCESS_MEMORY came, but no region is private; do not send ", "it");
}

absl::Status DescriptorSorter::PlacePrivate(const v1::AttachedRegion& attached,
                                            size_t region) {
  if (absl::Status s = CheckPrivate(attached, region); !s.ok()) return s;
  // A process's memory is a file in which each byte is at its address.
  const uint64_t offset =
      out_.role == VmmRole::kSource ? attached.host_address() : 0;
  out_.memory.push_back(
      {HostAddress(attached.host_address()), std::nullopt, offset});
  return absl::OkStatus();
}

absl::Status DescriptorSorter::PlaceRegion(size_t region) {
  const v1::AttachedRegion& attached =
      attach_.regions(static_cast<int>(region));
  const Region& layout = out_.layout.regions()[region];
  absl::Status status = CheckPlace(attached, region, layout, out_.role);
  if (!status.ok()) return status;
  if (attached.private_memory()) return PlacePrivate(attached, region);
  const auto memory = std::find_if(
      memory_.begin(), memory_.end(), [&attached](const Memory& candidate) {
        return candidate.index == attached.descriptor_index();
      });
  if (memory == memory_.end()) {
    return Invalid("Attach.regions[", region, "].descriptor_index is ",
                   attached.descriptor_index(), ", which is no descriptor of ",
                   "kind MEMORY");
  }
  const uint64_t end =
      attached.descriptor_offset_bytes() + layout.length.value();
  if (end > memory->file.size) {
    return Invalid("Attach.regions[", region, "] ends at byte ", end,
                   " of descriptor ", memory->index, ", which has only ",
                   memory->file.size, " bytes; ftruncate it first");
  }
  if (memory->file.page_size != layout.page_size) {
    return Invalid("Attach.regions[", region, "] was described with pages of ",
                   ToString(layout.page_size), ", but those of descriptor ",
                   memory->index, " are of ", ToString(memory->file.page_size),
                   "; set page_size_bytes to these, of which only ",
                   ToString(ByteCount(kPageSize)), " and ",
                   ToString(kHugePageSize), " are served");
  }
  memory->used = true;
  out_.memory.push_back({HostAddress(attached.host_address()),
                         static_cast<size_t>(memory - memory_.begin()),
                         attached.descriptor_offset_bytes()});
  return absl::OkStatus();
}

absl::Status DescriptorSorter::CheckApart(size_t a, size_t b) const {
  const auto overlap = [this, a, b](uint64_t start_a, uint64_t start_b) {
    return start_a < start_b + out_.layout.regions()[b].length.value() &&
           start_b < start_a + out_.layout.regions()[a].length.value();
  };
  const AttachedMemory& first = out_.memory[a];
  const AttachedMemory& second = out_.memory[b];
  const bool in_files =
      first.fd_index.has_value() && second.fd_index.has_value();
  if (in_files &&
      memory_[*first.fd_index].file.SameFile(memory_[*second.fd_index].file) &&
      overlap(first.fd_offset, second.fd_offset)) {
    return Invalid("Attach.regions[", a, "] and [", b, "] overlap in the same ",
                   "file; each page of RAM needs memory of its own");
  }
  // A source that gives no addresses has them all at 0.
  const bool told =
      first.host_address.value() != 0 && second.host_address.value() != 0;
  if (told &&
      overlap(first.host_address.value(), second.host_address.value())) {
    return Invalid("Attach.regions[", a, "] and [", b, "] overlap at ",
                   ToString(std::max(first.host_address, second.host_address)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Attachment> ParseAttach(const v1::Attach& attach,
                                       std::vector<UniqueFd> fds,
                                       VmmRole role) {
  if (absl::Status status = CheckGreeting(attach, role); !status.ok()) {
    return status;
  }
  absl::StatusOr<RamLayout> layout = ParseLayout(attach);
  if (!layout.ok()) return layout.status();
  absl::StatusOr<std::vector<Slot>> slots = ParseSlots(attach, *layout, role);
  if (!slots.ok()) return slots.status();
  Attachment attachment{.vm_name = attach.vm_name(),
                        .role = role,
                        .layout = *std::move(layout),
                        .memory = {},
                        .memory_fds = {},
                        .slots = *std::move(slots),
                        .dirty_log = UniqueFd(),
                        .pagemap = UniqueFd(),
                        .process_memory = UniqueFd(),
                        .userfaultfd = UniqueFd()};
  DescriptorSorter sorter(attach, std::move(fds), attachment);
  if (absl::Status status = sorter.Sort(); !status.ok()) return status;
  return attachment;
}

}  // namespace postcopy
