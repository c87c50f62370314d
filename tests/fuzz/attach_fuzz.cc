// What a VMM may attach, through ParseAttach.
//
// Input: one byte of Options; one byte of how many descriptors come, and for
// each one byte of which (Descriptors); then a v1.Attach as it travels. The
// options mend what must agree before later checks are reached.
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cmd/vmm_channel/attachment.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "dirtytrack/userfaultfd.h"
#include "postcopy/v1/vmm_channel.pb.h"
#include "tests/fuzz/byte_reader.h"

namespace postcopy {
namespace {

enum Options : uint8_t {
  kDestination = 1 << 0,      // the daemon's role; else source
  kMendGreeting = 1 << 1,     // version, name and role
  kMendDescriptors = 1 << 2,  // as many kinds as descriptors
  kMendLayout = 1 << 3,       // regions of 1 to 512 pages, end to end
  kMendPlaces = 1 << 4,       // page-aligned addresses and file offsets
  kMendSlots = 1 << 5,        // one, which shows all RAM
};

// More than any input gains by.
constexpr uint8_t kDescriptorsMax = 8;
constexpr ByteCount kMemoryBytes{4 << 20};

// One descriptor of each sort. They are made once; inputs get duplicates.
class Descriptors {
 public:
  Descriptors() {
    Add(Memory(0));
    Add(Memory(0));
    Add(Memory(F_SEAL_SHRINK));
    Add(Memory(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
    Add(Memory(F_SEAL_WRITE));
    Add(Memory(F_SEAL_FUTURE_WRITE));
    Add(Reopened(O_RDONLY));
    Add(Reopened(O_RDWR | O_APPEND));
    Add(UniqueFd(::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB)));
    Add(UniqueFd(::eventfd(0, EFD_CLOEXEC)));
    Add(UniqueFd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)));
    Add(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)));
    AddPipeAndSocket();
    Add(UserfaultfdWith(0, O_NONBLOCK));
    Add(UserfaultfdWith(0, 0));
    Add(UserfaultfdWith(UFFD_FEATURE_EVENT_REMOVE, O_NONBLOCK));
    Add(UserfaultfdWith(UFFD_FEATURE_SIGBUS, O_NONBLOCK));
    Add(RawUserfaultfd(O_NONBLOCK));
    // What this machine does not let us have.
    Add(UniqueFd());
    // Behind it, so that inputs keep their meaning.
    Add(HugeMemory());
    Add(UniqueFd(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC)));
  }

  // May be invalid, as no descriptor that was received is.
  UniqueFd Get(uint8_t choice) const {
    const int fd = fds_[choice % fds_.size()].get();
    return UniqueFd(fd < 0 ? -1 : ::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  }

 private:
  // Takes no huge page, since nothing is written.
  static UniqueFd HugeMemory() {
    UniqueFd fd(::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB));
    constexpr auto kBytes = static_cast<off_t>(4 * kHugePageSize.value());
    if (fd.valid() && ::ftruncate(fd.get(), kBytes) != 0) fd.Reset();
    return fd;
  }
  static UniqueFd Memory(int seals) {
    return *CreateMemfd("memory", kMemoryBytes, seals);
  }
  UniqueFd Reopened(int flags) const {
    const std::string path =
        "/proc/self/fd/" + std::to_string(fds_.front().get());
    return UniqueFd(::open(path.c_str(), flags | O_CLOEXEC));
  }
  // Before UFFDIO_API.
  static UniqueFd RawUserfaultfd(int flags) {
    const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    if (device.valid()) {
      return UniqueFd(
          ::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags | O_CLOEXEC));
    }
    return UniqueFd(
        static_cast<int>(::syscall(SYS_userfaultfd, flags | O_CLOEXEC)));
  }
  static UniqueFd UserfaultfdWith(uint64_t features, int flags) {
    UniqueFd fd = RawUserfaultfd(flags);
    uffdio_api api = {};
    api.api = UFFD_API;
    api.features = features;
    // A kernel that refuses leaves one without API: another sort of wrong.
    if (fd.valid()) ::ioctl(fd.get(), UFFDIO_API, &api);
    return fd;
  }
  void AddPipeAndSocket() {
    int ends[2];
    POSTCOPY_CHECK(::pipe2(ends, O_CLOEXEC) == 0);
    Add(UniqueFd(ends[0]));
    Add(UniqueFd(ends[1]));
    POSTCOPY_CHECK(
        ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    Add(UniqueFd(ends[0]));
    Add(UniqueFd(ends[1]));
  }
  void Add(UniqueFd fd) { fds_.push_back(std::move(fd)); }

  std::vector<UniqueFd> fds_;
};

// Which of the descriptor numbers that an input can get are taken, from the
// lowest that was free at the first call on: bit 0 is that one.
uint32_t TakenFds() {
  static const int first = UniqueFd(::eventfd(0, EFD_CLOEXEC)).get();
  uint32_t taken = 0;
  // One more than an input gets, for what is opened to look at these.
  for (int i = 0; i < kDescriptorsMax + 1; ++i) {
    if (::fcntl(first + i, F_GETFD) >= 0) taken |= 1u << i;
  }
  return taken;
}

void MendLayout(v1::Attach& attach) {
  uint64_t start = 0;
  for (int i = 0; i < attach.regions_size(); ++i) {
    v1::RamRegion& region = *attach.mutable_regions(i)->mutable_region();
    region.set_name("ram" + std::to_string(i));
    region.set_start_bytes(start);
    if (region.page_size_bytes() == kHugePageSize.value()) {
      region.set_length_bytes((region.length_bytes() % 4 + 1) *
                              kHugePageSize.value());
    } else {
      region.set_length_bytes((region.length_bytes() % 512 + 1) * kPageSize);
      region.set_page_size_bytes(kPageSize);
    }
    start += region.length_bytes();
  }
}

void MendPlaces(v1::Attach& attach) {
  for (v1::AttachedRegion& region : *attach.mutable_regions()) {
    const uint64_t page_size =
        region.region().page_size_bytes() == kHugePageSize.value()
            ? kHugePageSize.value()
            : kPageSize;
    region.set_host_address(region.host_address() / page_size * page_size);
    if (region.private_memory()) {
      region.set_descriptor_index(UINT32_MAX);
      region.set_descriptor_offset_bytes(0);
      continue;
    }
    if (page_size != kPageSize) {
      region.set_descriptor_offset_bytes(region.descriptor_offset_bytes() % 4 *
                                         page_size);
      continue;
    }
    region.set_descriptor_offset_bytes(region.descriptor_offset_bytes() %
                                       kMemoryBytes.value() / kPageSize *
                                       kPageSize);
  }
}

void MendSlots(v1::Attach& attach) {
  uint64_t bytes = 0;
  for (const v1::AttachedRegion& region : attach.regions()) {
    bytes += region.region().length_bytes();
  }
  attach.clear_slots();
  attach.add_slots()->set_length_bytes(bytes);
}

void Mend(uint8_t options, size_t fds, v1::Attach& attach) {
  if ((options & kMendGreeting) != 0) {
    attach.set_protocol_version(kVmmChannelVersion);
    attach.set_vm_name("vm");
    attach.set_role((options & kDestination) != 0 ? v1::ROLE_DESTINATION
                                                  : v1::ROLE_SOURCE);
  }
  if ((options & kMendDescriptors) != 0) {
    attach.mutable_descriptors()->Resize(static_cast<int>(fds),
                                         v1::DESCRIPTOR_KIND_MEMORY);
  }
  if ((options & kMendLayout) != 0) MendLayout(attach);
  if ((options & kMendPlaces) != 0) MendPlaces(attach);
  if ((options & kMendSlots) != 0) MendSlots(attach);
}

bool Overlap(uint64_t a, uint64_t b, const Region& first,
             const Region& second) {
  return a < b + second.length.value() && b < a + first.length.value();
}

struct stat StatOf(int fd) {
  struct stat file;
  POSTCOPY_CHECK(::fstat(fd, &file) == 0);
  return file;
}

bool SameFile(int a, int b) {
  const struct stat file_a = StatOf(a);
  const struct stat file_b = StatOf(b);
  return file_a.st_dev == file_b.st_dev && file_a.st_ino == file_b.st_ino;
}

void CheckApart(const Attachment& got, size_t a, size_t b) {
  const Region& first = got.layout.regions()[a];
  const Region& second = got.layout.regions()[b];
  const bool in_files =
      got.memory[a].fd_index.has_value() && got.memory[b].fd_index.has_value();
  if (in_files && SameFile(got.memory_fd(a), got.memory_fd(b))) {
    POSTCOPY_CHECK(!Overlap(got.memory[a].fd_offset, got.memory[b].fd_offset,
                            first, second));
  }
  const uint64_t at_a = got.memory[a].host_address.value();
  const uint64_t at_b = got.memory[b].host_address.value();
  if (at_a != 0 && at_b != 0) {
    POSTCOPY_CHECK(!Overlap(at_a, at_b, first, second));
  }
}

void CheckPages(int fd, uint64_t page_size) {
  struct statfs filesystem;
  POSTCOPY_CHECK(::fstatfs(fd, &filesystem) == 0);
  POSTCOPY_CHECK(page_size == kPageSize
                     ? filesystem.f_type == TMPFS_MAGIC
                     : filesystem.f_type == HUGETLBFS_MAGIC &&
                           static_cast<uint64_t>(filesystem.f_bsize) ==
                               page_size);
}

void CheckMemory(const Attachment& got) {
  POSTCOPY_CHECK(got.memory.size() == got.layout.regions().size());
  for (size_t i = 0; i < got.memory.size(); ++i) {
    const AttachedMemory& memory = got.memory[i];
    const uint64_t length = got.layout.regions()[i].length.value();
    const uint64_t page_size = got.layout.regions()[i].page_size.value();
    POSTCOPY_CHECK(memory.fd_offset % page_size == 0);
    POSTCOPY_CHECK(memory.host_address.value() % page_size == 0);
    if (memory.fd_index.has_value()) {
      POSTCOPY_CHECK(*memory.fd_index < got.memory_fds.size());
      POSTCOPY_CHECK(memory.fd_offset + length <=
                     static_cast<uint64_t>(StatOf(got.memory_fd(i)).st_size));
      CheckPages(got.memory_fd(i), page_size);
    } else {
      POSTCOPY_CHECK(memory.host_address.value() != 0);
      POSTCOPY_CHECK((got.role == VmmRole::kSource) ==
                     got.process_memory.valid());
    }
    POSTCOPY_CHECK(memory.host_address.value() <= UINT64_MAX - length);
    for (size_t before = 0; before < i; ++before) CheckApart(got, before, i);
  }
}

// Shared memory, open for reading and writing.
void CheckMemoryFile(int fd) {
  POSTCOPY_CHECK(::fcntl(fd, F_GET_SEALS) >= 0);
  POSTCOPY_CHECK((::fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
  POSTCOPY_CHECK((::fcntl(fd, F_GETFL) & O_APPEND) == 0);
}

void CheckSource(const Attachment& got) {
  POSTCOPY_CHECK(got.dirty_log.valid() != got.pagemap.valid());
  POSTCOPY_CHECK(!got.userfaultfd.valid());
  if (got.dirty_log.valid()) {
    CheckMemoryFile(got.dirty_log.get());
    CheckPages(got.dirty_log.get(), kPageSize);
    POSTCOPY_CHECK(
        (::fcntl(got.dirty_log.get(), F_GET_SEALS) & F_SEAL_SHRINK) != 0);
    POSTCOPY_CHECK(CoverRam(got.layout, got.slots).ok());
    return;
  }
  for (const AttachedMemory& memory : got.memory) {
    POSTCOPY_CHECK(memory.host_address.value() != 0);
  }
}

void CheckDestination(const Attachment& got) {
  constexpr int kReadOnly = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
  POSTCOPY_CHECK(!got.dirty_log.valid() && !got.pagemap.valid());
  POSTCOPY_CHECK(!got.process_memory.valid());
  POSTCOPY_CHECK(got.userfaultfd.valid());
  POSTCOPY_CHECK((::fcntl(got.userfaultfd.get(), F_GETFL) & O_NONBLOCK) != 0);
  for (const UniqueFd& fd : got.memory_fds) {
    POSTCOPY_CHECK((::fcntl(fd.get(), F_GET_SEALS) & kReadOnly) == 0);
  }
  for (const AttachedMemory& memory : got.memory) {
    POSTCOPY_CHECK(memory.host_address.value() != 0);
  }
}

void CheckAccepted(const v1::Attach& attach, VmmRole role,
                   const Attachment& got) {
  POSTCOPY_CHECK(got.role == role);
  POSTCOPY_CHECK(got.vm_name == attach.vm_name() && IsValidName(got.vm_name));
  POSTCOPY_CHECK(CheckSlots(got.layout, got.slots).ok());
  for (const UniqueFd& fd : got.memory_fds) CheckMemoryFile(fd.get());
  CheckMemory(got);
  if (role == VmmRole::kSource) {
    CheckSource(got);
  } else {
    CheckDestination(got);
  }
}

void CheckRefused(const absl::Status& status) {
  POSTCOPY_CHECK(absl::IsInvalidArgument(status) ||
                 absl::IsFailedPrecondition(status));
  POSTCOPY_CHECK(!status.message().empty());
  // It goes to a log and over the channel.
  for (const char letter : status.message()) {
    POSTCOPY_CHECK(letter >= ' ' && letter <= '~');
  }
}

void Fuzz(ByteReader input) {
  static const Descriptors& descriptors = *new Descriptors;
  // It would say a line for each string that is no UTF-8.
  const google::protobuf::LogSilencer silencer;
  const uint32_t taken_before = TakenFds();
  const uint8_t options = input.Byte();
  const uint8_t count = input.Byte() % (kDescriptorsMax + 1);
  std::vector<UniqueFd> fds;
  for (uint8_t i = 0; i < count; ++i) {
    fds.push_back(descriptors.Get(input.Byte()));
  }
  v1::Attach attach;
  if (attach.ParseFromArray(input.rest().data(),
                            static_cast<int>(input.rest().size()))) {
    Mend(options, fds.size(), attach);
    const VmmRole role = (options & kDestination) != 0 ? VmmRole::kDestination
                                                       : VmmRole::kSource;
    const absl::StatusOr<Attachment> got =
        ParseAttach(attach, std::move(fds), role);
    if (got.ok()) {
      CheckAccepted(attach, role, *got);
    } else {
      CheckRefused(got.status());
    }
  }
  fds.clear();
  POSTCOPY_CHECK(TakenFds() == taken_before);
}

}  // namespace
}  // namespace postcopy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  postcopy::Fuzz(postcopy::ByteReader({data, size}));
  return 0;
}
