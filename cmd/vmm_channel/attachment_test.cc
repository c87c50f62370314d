#include "cmd/vmm_channel/attachment.h"

#include <linux/userfaultfd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <functional>
#include <random>

#include "cmd/vmm_channel/test_support.h"
#include "postcopy/v1/vmm_channel.pb.h"
#include "uffd/kernel_uffd.h"

namespace postcopy {
namespace {

// A number that no version knows may well come over the wire.
template <typename Enum>
Enum Unknown(int number) {
  return static_cast<Enum>(number);  // NOLINT(*EnumCastOutOfRange)
}

using absl::StatusCode;

constexpr uint64_t kMiB = 1 << 20;

// A userfaultfd before UFFDIO_API; invalid if this process may have none.
UniqueFd RawUserfaultfd(int flags) {
  UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device.valid()) {
    return UniqueFd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags));
  }
  return UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, flags)));
}

UniqueFd UserfaultfdWith(uint64_t features, int flags = O_NONBLOCK) {
  UniqueFd fd = RawUserfaultfd(flags);
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = features;
  EXPECT_EQ(::ioctl(fd.get(), UFFDIO_API, &api), 0);
  return fd;
}

bool HasUserfaultfd() { return CreateUserfaultfd().ok(); }

// A valid Attach of two regions in one memfd, and what goes beside it. Tests
// change one thing and read the refusal.
struct Case {
  v1::Attach attach;
  std::vector<UniqueFd> fds;

  v1::AttachedRegion& region(int i) { return *attach.mutable_regions(i); }
  v1::MemorySlot& slot(int i) { return *attach.mutable_slots(i); }
  void Add(UniqueFd fd, v1::DescriptorKind kind) {
    fds.push_back(std::move(fd));
    attach.add_descriptors(kind);
  }
  void AddRegion(const std::string& name, uint64_t start, uint64_t address) {
    v1::AttachedRegion& added = *attach.add_regions();
    added.mutable_region()->set_name(name);
    added.mutable_region()->set_start_bytes(start);
    added.mutable_region()->set_length_bytes(kMiB);
    added.mutable_region()->set_page_size_bytes(kPageSize);
    added.set_host_address(address);
    added.set_descriptor_offset_bytes(start);
  }
  absl::StatusOr<Attachment> Parse(VmmRole role) {
    return ParseAttach(attach, std::move(fds), role);
  }
};

Case Common(v1::Role role) {
  Case out;
  out.attach.set_protocol_version(1);
  out.attach.set_vm_name("vm-1");
  out.attach.set_role(role);
  out.AddRegion("low", 0, 0x10000000);
  out.AddRegion("high", kMiB, 0x20000000);
  out.Add(Memfd(2 * kMiB), v1::DESCRIPTOR_KIND_MEMORY);
  return out;
}

Case Source() {
  Case out = Common(v1::ROLE_SOURCE);
  v1::MemorySlot& slot = *out.attach.add_slots();
  slot.set_address_space(1);
  slot.set_slot(2);
  slot.set_guest_physical_address(0x100000);
  slot.set_length_bytes(2 * kMiB);
  out.Add(Memfd(kPageSize, F_SEAL_SHRINK), v1::DESCRIPTOR_KIND_DIRTY_LOG);
  return out;
}

UniqueFd Pagemap() {
  return UniqueFd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
}

// Without slots, which only a dirty log needs.
Case PagemapSource() {
  Case out = Common(v1::ROLE_SOURCE);
  out.Add(Pagemap(), v1::DESCRIPTOR_KIND_PAGEMAP);
  return out;
}

Case Destination() {
  Case out = Common(v1::ROLE_DESTINATION);
  out.Add(UserfaultfdWith(0), v1::DESCRIPTOR_KIND_USERFAULTFD);
  return out;
}

TEST(ParseAttachTest, TakesASource) {
  Case attach = Source();
  const int memory = attach.fds[0].get();
  absl::StatusOr<Attachment> got = attach.Parse(VmmRole::kSource);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->vm_name, "vm-1");
  EXPECT_EQ(got->layout.bytes(), ByteCount(2 * kMiB));
  ASSERT_EQ(got->memory.size(), 2u);
  EXPECT_EQ(got->memory[1].host_address, HostAddress(0x20000000));
  EXPECT_EQ(got->memory[1].fd_offset, kMiB);
  EXPECT_EQ(got->memory_fd(1), memory);
  ASSERT_EQ(got->slots.size(), 1u);
  EXPECT_EQ(got->slots[0].id, (SlotId{1, 2}));
  EXPECT_TRUE(got->dirty_log.valid());
  EXPECT_FALSE(got->userfaultfd.valid());
}

TEST(ParseAttachTest, TakesASourceWithAPagemap) {
  absl::StatusOr<Attachment> got = PagemapSource().Parse(VmmRole::kSource);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(got->pagemap.valid());
  EXPECT_FALSE(got->dirty_log.valid());
  EXPECT_TRUE(got->slots.empty());
}

TEST(ParseAttachTest, TakesADestination) {
  if (!HasUserfaultfd()) GTEST_SKIP() << CreateUserfaultfd().status();
  absl::StatusOr<Attachment> got = Destination().Parse(VmmRole::kDestination);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(got->userfaultfd.valid());
  EXPECT_FALSE(got->dirty_log.valid());
}

TEST(ParseAttachTest, SourceMayKeepItsAddressesToItself) {
  Case attach = Source();
  attach.region(0).clear_host_address();
  attach.region(1).clear_host_address();
  EXPECT_TRUE(attach.Parse(VmmRole::kSource).ok());
}

TEST(ParseAttachTest, TakesTmpfsFilesAndSeveralOfThem) {
  Case attach = Source();
  char path[] = "/dev/shm/vmm_channel.XXXXXX";
  UniqueFd file(::mkstemp(path));
  if (!file.valid()) GTEST_SKIP() << "no /dev/shm";
  ::unlink(path);
  ASSERT_EQ(::ftruncate(file.get(), kMiB), 0);
  attach.Add(std::move(file), v1::DESCRIPTOR_KIND_MEMORY);
  attach.region(1).set_descriptor_index(2);
  attach.region(1).set_descriptor_offset_bytes(0);
  absl::StatusOr<Attachment> got = attach.Parse(VmmRole::kSource);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->memory_fds.size(), 2u);
  EXPECT_NE(got->memory_fd(0), got->memory_fd(1));
}

// One thing that is wrong, and what the VMM's author is told.
struct Refusal {
  const char* name;
  std::function<void(Case&)> change;
  StatusCode code;
  const char* message;
};

void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.name;
}
std::string RefusalName(const testing::TestParamInfo<Refusal>& info) {
  return info.param.name;
}

void ExpectRefused(Case attach, VmmRole role, const Refusal& refusal) {
  refusal.change(attach);
  EXPECT_TRUE(Is(attach.Parse(role).status(), refusal.code, refusal.message));
}

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kPrecondition = StatusCode::kFailedPrecondition;

// Replaces descriptor `index` by `make()`.
template <typename Make>
auto Replace(size_t index, Make make) {
  return [index, make](Case& c) { c.fds[index] = UniqueFd(make()); };
}

int ReadEndOfPipe() {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  ::close(ends[1]);
  return ends[0];
}
int Reopened(int fd, int flags) {
  return ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags);
}
int RegularFile() {
  // The test itself: neither tmpfs nor writable.
  return ::open("/proc/self/exe", O_RDONLY);
}

// Wrong at either end.
class AnyRoleTest : public testing::TestWithParam<Refusal> {};

TEST_P(AnyRoleTest, IsRefusedByBoth) {
  const size_t before = OpenFds();
  ExpectRefused(Source(), VmmRole::kSource, GetParam());
  if (HasUserfaultfd()) {
    ExpectRefused(Destination(), VmmRole::kDestination, GetParam());
  }
  EXPECT_EQ(OpenFds(), before);
}

const Refusal kAnyRole[] = {
    {"Version2", [](Case& c) { c.attach.set_protocol_version(2); }, kInvalid,
     "protocol_version is 2; this daemon speaks version 1"},
    {"NoVersion", [](Case& c) { c.attach.clear_protocol_version(); }, kInvalid,
     "protocol_version is 0"},
    {"NoName", [](Case& c) { c.attach.clear_vm_name(); }, kInvalid,
     "vm_name \"\" is not a name"},
    {"BadName", [](Case& c) { c.attach.set_vm_name("a/b\n"); }, kInvalid,
     "vm_name \"a/b?\" is not a name"},
    {"LongName", [](Case& c) { c.attach.set_vm_name(std::string(129, 'x')); },
     kInvalid, "is not a name: use 1 to 128 bytes"},
    {"NoRole", [](Case& c) { c.attach.clear_role(); }, kInvalid,
     "Attach.role must be ROLE_"},
    {"OddRole", [](Case& c) { c.attach.set_role(Unknown<v1::Role>(77)); },
     kInvalid, "Attach.role must be ROLE_"},
    {"NoRegion", [](Case& c) { c.attach.clear_regions(); }, kInvalid,
     "1 to 64 regions"},
    {"TooManyRegions",
     [](Case& c) {
       for (int i = 2; i < 65; ++i) {
         c.AddRegion("r" + std::to_string(i), i * kMiB, 0x100000000 + i * kMiB);
       }
     },
     kInvalid, "not 65"},
    {"EmptyRegion", [](Case& c) { c.region(0).clear_region(); }, kInvalid,
     "unusable name"},
    {"GapInLayout",
     [](Case& c) {
       c.region(1).mutable_region()->set_start_bytes(kMiB + kPageSize);
     },
     kInvalid, "has to start at"},
    {"OverlapInLayout",
     [](Case& c) {
       c.region(1).mutable_region()->set_start_bytes(kMiB - kPageSize);
     },
     kInvalid, "has to start at"},
    {"UnalignedLength",
     [](Case& c) { c.region(1).mutable_region()->set_length_bytes(kMiB + 1); },
     kInvalid, "positive multiple"},
    {"HugeLength",
     [](Case& c) {
       c.region(1).mutable_region()->set_length_bytes(-kPageSize);
     },
     kInvalid, "16TiB"},
    {"VeryHugePages",
     [](Case& c) {
       c.region(0).mutable_region()->set_page_size_bytes(1 << 30);
     },
     kInvalid, "has pages of 1GiB; only 4KiB and 2MiB are supported"},
    {"HalfAHugePage",
     [](Case& c) {
       c.region(0).mutable_region()->set_page_size_bytes(2 << 20);
     },
     kInvalid, "has a length of 1MiB; make it a positive multiple of 2MiB"},
    {"SameRegionName",
     [](Case& c) { c.region(1).mutable_region()->set_name("low"); }, kInvalid,
     "two regions are called \"low\""},
    {"SlotNumberTooLarge",
     [](Case& c) {
       v1::MemorySlot& slot = *c.attach.add_slots();
       slot.set_slot(65536);
       slot.set_length_bytes(kPageSize);
     },
     kInvalid, "is slot 0:65536; both numbers must be below 65536"},
    {"SlotAddressSpaceTooLarge",
     [](Case& c) {
       v1::MemorySlot& slot = *c.attach.add_slots();
       slot.set_address_space(UINT32_MAX);
       slot.set_length_bytes(kPageSize);
     },
     kInvalid, "both numbers must be below 65536"},
    {"SlotOutsideRam",
     [](Case& c) {
       v1::MemorySlot& slot = *c.attach.add_slots();
       slot.set_slot(9);
       slot.set_ram_offset_bytes(2 * kMiB);
       slot.set_length_bytes(kPageSize);
     },
     kInvalid, "slot 0:9"},
    {"UnalignedAddress",
     [](Case& c) { c.region(1).set_host_address(0x20000001); }, kInvalid,
     "regions[1].host_address 0x20000001 is not a multiple of 4096"},
    {"WrappingAddress",
     [](Case& c) { c.region(1).set_host_address(-kPageSize); }, kInvalid,
     "wraps around"},
    {"UnalignedOffset",
     [](Case& c) { c.region(1).set_descriptor_offset_bytes(kMiB + 512); },
     kInvalid, "regions[1].descriptor_offset_bytes 1049088 is not a multiple"},
    {"WrappingOffset",
     [](Case& c) { c.region(1).set_descriptor_offset_bytes(-kPageSize); },
     kInvalid, "descriptor_offset_bytes"},
    {"FewerDescriptorsThanNamed", [](Case& c) { c.fds.pop_back(); }, kInvalid,
     "names 2 descriptors, but 1 came"},
    {"NoDescriptors", [](Case& c) { c.fds.clear(); }, kInvalid,
     "names 2 descriptors, but 0 came"},
    {"MoreDescriptorsThanNamed",
     [](Case& c) { c.fds.push_back(Memfd(kPageSize)); }, kInvalid,
     "names 2 descriptors, but 3 came"},
    {"KindUnspecified",
     [](Case& c) {
       c.attach.set_descriptors(0, v1::DESCRIPTOR_KIND_UNSPECIFIED);
     },
     kInvalid, "Attach.descriptors[0] is 0, which is no kind"},
    {"KindUnknown",
     [](Case& c) {
       c.attach.set_descriptors(0, Unknown<v1::DescriptorKind>(99));
     },
     kInvalid, "Attach.descriptors[0] is 99, which is no kind"},
    {"NoSuchDescriptor", [](Case& c) { c.region(0).set_descriptor_index(7); },
     kInvalid,
     "regions[0].descriptor_index is 7, which is no descriptor of kind MEMORY"},
    {"DescriptorOfOtherKind",
     [](Case& c) { c.region(0).set_descriptor_index(1); }, kInvalid,
     "regions[0].descriptor_index is 1, which is no descriptor of kind MEMORY"},
    {"UnusedMemory",
     [](Case& c) { c.Add(Memfd(kPageSize), v1::DESCRIPTOR_KIND_MEMORY); },
     kInvalid, "no region is in descriptor 2 (MEMORY)"},
    {"MemoryIsPipe", Replace(0, ReadEndOfPipe), kInvalid,
     "descriptor 0 (MEMORY) is not shared memory; use a memfd"},
    {"MemoryIsDevNull", Replace(0, [] { return ::open("/dev/null", O_RDWR); }),
     kInvalid, "descriptor 0 (MEMORY) is not shared memory"},
    {"MemoryIsRegularFile", Replace(0, RegularFile), kInvalid,
     "descriptor 0 (MEMORY) is not shared memory"},
    {"MemoryIsEventfd", Replace(0, [] { return ::eventfd(0, 0); }), kInvalid,
     "descriptor 0 (MEMORY) is not shared memory"},
    {"MemoryIsPath",
     [](Case& c) { c.fds[0] = UniqueFd(Reopened(c.fds[0].get(), O_PATH)); },
     kInvalid, "descriptor 0 (MEMORY) is not shared memory"},
    {"MemoryIsReadOnly",
     [](Case& c) { c.fds[0] = UniqueFd(Reopened(c.fds[0].get(), O_RDONLY)); },
     kInvalid, "must be opened for reading and writing"},
    {"MemoryIsWriteOnly",
     [](Case& c) { c.fds[0] = UniqueFd(Reopened(c.fds[0].get(), O_WRONLY)); },
     kInvalid, "must be opened for reading and writing"},
    {"MemoryAppends",
     [](Case& c) {
       c.fds[0] = UniqueFd(Reopened(c.fds[0].get(), O_RDWR | O_APPEND));
     },
     kInvalid, "O_APPEND"},
    {"MemoryTooSmall", Replace(0, [] { return Memfd(2 * kMiB - 1).Release(); }),
     kInvalid,
     "regions[1] ends at byte 2097152 of descriptor 0, which has only 2097151"},
    {"OverlapInFile",
     [](Case& c) { c.region(1).set_descriptor_offset_bytes(kMiB - kPageSize); },
     kInvalid, "regions[0] and [1] overlap in the same file"},
    {"OverlapInFileByTwoDescriptors",
     [](Case& c) {
       c.Add(UniqueFd(Reopened(c.fds[0].get(), O_RDWR)),
             v1::DESCRIPTOR_KIND_MEMORY);
       c.region(1).set_descriptor_index(2);
       c.region(1).set_descriptor_offset_bytes(0);
     },
     kInvalid, "regions[0] and [1] overlap in the same file"},
    {"OverlapInAddresses",
     [](Case& c) {
       c.region(1).set_host_address(0x10000000 + kMiB - kPageSize);
     },
     kInvalid, "regions[0] and [1] overlap at host address 0x100ff000"},
};
INSTANTIATE_TEST_SUITE_P(ParseAttach, AnyRoleTest, testing::ValuesIn(kAnyRole),
                         RefusalName);

// Wrong at a source.
class SourceTest : public testing::TestWithParam<Refusal> {};

TEST_P(SourceTest, IsRefused) {
  const size_t before = OpenFds();
  ExpectRefused(Source(), VmmRole::kSource, GetParam());
  EXPECT_EQ(OpenFds(), before);
}

const Refusal kSource[] = {
    {"OtherRole", [](Case& c) { c.attach.set_role(v1::ROLE_DESTINATION); },
     kInvalid,
     "this is pageserverd, the source; attach a VM with ROLE_DESTINATION to "
     "the socket of faultd"},
    {"NoSlots", [](Case& c) { c.attach.clear_slots(); }, kInvalid,
     "no slot of Attach.slots shows RAM offset 0x0"},
    {"SlotsMissTheStart",
     [](Case& c) {
       c.slot(0).set_ram_offset_bytes(kPageSize);
       c.slot(0).set_length_bytes(2 * kMiB - kPageSize);
     },
     kInvalid, "no slot of Attach.slots shows RAM offset 0x0"},
    {"SlotsMissTheMiddle",
     [](Case& c) {
       c.slot(0).set_length_bytes(kMiB);
       v1::MemorySlot& slot = *c.attach.add_slots();
       slot.set_guest_physical_address(1 << 30);
       slot.set_ram_offset_bytes(kMiB + kPageSize);
       slot.set_length_bytes(kMiB - kPageSize);
     },
     kInvalid, "no slot of Attach.slots shows RAM offset 0x100000"},
    {"SlotsMissTheEnd",
     [](Case& c) { c.slot(0).set_length_bytes(2 * kMiB - kPageSize); },
     kInvalid, "no slot of Attach.slots shows RAM offset 0x1ff000"},
    {"NoDirtyLog",
     [](Case& c) {
       c.fds.pop_back();
       c.attach.mutable_descriptors()->RemoveLast();
     },
     kInvalid, "no descriptor of kind DIRTY_LOG or PAGEMAP came"},
    {"DirtyLogAndPagemap",
     [](Case& c) { c.Add(Pagemap(), v1::DESCRIPTOR_KIND_PAGEMAP); }, kInvalid,
     "both a DIRTY_LOG and a PAGEMAP came"},
    {"TwoPagemaps",
     [](Case& c) {
       c = PagemapSource();
       c.Add(Pagemap(), v1::DESCRIPTOR_KIND_PAGEMAP);
     },
     kInvalid, "descriptor 2 is a second PAGEMAP"},
    {"PagemapIsAnotherFile",
     [](Case& c) {
       c = PagemapSource();
       c.fds[1] = UniqueFd(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
     },
     kInvalid,
     "descriptor 1 (PAGEMAP) is not a pagemap of a process but \"/proc/"},
    {"PagemapIsPipe",
     [](Case& c) {
       c = PagemapSource();
       c.fds[1] = UniqueFd(ReadEndOfPipe());
     },
     kInvalid,
     "descriptor 1 (PAGEMAP) is not a pagemap of a process but \"pipe:"},
    {"PagemapWithoutAddress",
     [](Case& c) {
       c = PagemapSource();
       c.region(1).set_host_address(0);
     },
     kInvalid, "Attach.regions[1].host_address is not given; a source"},
    {"TwoDirtyLogs",
     [](Case& c) {
       c.Add(Memfd(kPageSize, F_SEAL_SHRINK), v1::DESCRIPTOR_KIND_DIRTY_LOG);
     },
     kInvalid, "descriptor 2 is a second DIRTY_LOG"},
    {"DirtyLogNotSealed", Replace(1, [] { return Memfd(kPageSize).Release(); }),
     kPrecondition, "the memfd of the dirty log lacks F_SEAL_SHRINK"},
    {"DirtyLogIsPipe", Replace(1, ReadEndOfPipe), kInvalid,
     "descriptor 1 (DIRTY_LOG) is not shared memory"},
    {"DirtyLogIsReadOnly",
     [](Case& c) { c.fds[1] = UniqueFd(Reopened(c.fds[1].get(), O_RDONLY)); },
     kInvalid, "descriptor 1 (DIRTY_LOG) must be opened for reading and"},
    {"Userfaultfd",
     [](Case& c) { c.Add(Memfd(kPageSize), v1::DESCRIPTOR_KIND_USERFAULTFD); },
     kInvalid, "descriptor 2 is a USERFAULTFD; only a destination has one"},
};
INSTANTIATE_TEST_SUITE_P(ParseAttach, SourceTest, testing::ValuesIn(kSource),
                         RefusalName);

// Wrong at a destination.
class DestinationTest : public testing::TestWithParam<Refusal> {};

TEST_P(DestinationTest, IsRefused) {
  if (!HasUserfaultfd()) GTEST_SKIP() << CreateUserfaultfd().status();
  const size_t before = OpenFds();
  ExpectRefused(Destination(), VmmRole::kDestination, GetParam());
  EXPECT_EQ(OpenFds(), before);
}

template <uint64_t kFeatures>
int WithFeatures() {
  return UserfaultfdWith(kFeatures).Release();
}

const Refusal kDestination[] = {
    {"OtherRole", [](Case& c) { c.attach.set_role(v1::ROLE_SOURCE); }, kInvalid,
     "this is faultd, the destination; attach a VM with ROLE_SOURCE to the "
     "socket of pageserverd"},
    {"NoAddress", [](Case& c) { c.region(1).clear_host_address(); }, kInvalid,
     "regions[1].host_address is not given"},
    {"SealedMemory",
     [](Case& c) { ::fcntl(c.fds[0].get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE); },
     kPrecondition, "descriptor 0 is sealed against writing"},
    {"NoUserfaultfd",
     [](Case& c) {
       c.fds.pop_back();
       c.attach.mutable_descriptors()->RemoveLast();
     },
     kInvalid, "no descriptor of kind USERFAULTFD came"},
    {"TwoUserfaultfds",
     [](Case& c) {
       c.Add(UserfaultfdWith(0), v1::DESCRIPTOR_KIND_USERFAULTFD);
     },
     kInvalid, "descriptor 2 is a second USERFAULTFD"},
    {"DirtyLog",
     [](Case& c) {
       c.Add(Memfd(kPageSize, F_SEAL_SHRINK), v1::DESCRIPTOR_KIND_DIRTY_LOG);
     },
     kInvalid, "descriptor 2 is a DIRTY_LOG; only a source has one"},
    {"Pagemap", [](Case& c) { c.Add(Pagemap(), v1::DESCRIPTOR_KIND_PAGEMAP); },
     kInvalid, "descriptor 2 is a PAGEMAP; only a source has one"},
    {"UserfaultfdIsEventfd", Replace(1, [] { return ::eventfd(0, 0); }),
     kInvalid, "is not a userfaultfd but \"anon_inode:[eventfd]\""},
    {"UserfaultfdIsMemfd",
     Replace(1, [] { return Memfd(kPageSize).Release(); }), kInvalid,
     "is not a userfaultfd but \"/memfd:test"},
    {"ApiNotDone",
     Replace(1, [] { return RawUserfaultfd(O_NONBLOCK).Release(); }),
     kPrecondition, "UFFDIO_API was not done"},
    {"Blocking", Replace(1, [] { return UserfaultfdWith(0, 0).Release(); }),
     kPrecondition, "open it with O_NONBLOCK"},
    {"Sigbus", Replace(1, WithFeatures<UFFD_FEATURE_SIGBUS>), kPrecondition,
     "UFFD_FEATURE_SIGBUS"},
};
INSTANTIATE_TEST_SUITE_P(ParseAttach, DestinationTest,
                         testing::ValuesIn(kDestination), RefusalName);

TEST(ParseAttachTest, OtherEventsAreTaken) {
  for (const uint64_t feature :
       {UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EVENT_UNMAP,
        UFFD_FEATURE_EVENT_REMAP}) {
    if (!HasUserfaultfd()) GTEST_SKIP() << CreateUserfaultfd().status();
    Case attach = Destination();
    attach.fds[1] = UserfaultfdWith(feature);
    const absl::Status status = attach.Parse(VmmRole::kDestination).status();
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(ParseAttachTest, EventForkIsRefused) {
  UniqueFd fd = RawUserfaultfd(O_NONBLOCK);
  if (!fd.valid()) GTEST_SKIP() << CreateUserfaultfd().status();
  uffdio_api api = {UFFD_API, UFFD_FEATURE_EVENT_FORK, 0};
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    GTEST_SKIP() << "UFFD_FEATURE_EVENT_FORK wants CAP_SYS_PTRACE";
  }
  Case attach = Destination();
  attach.fds[1] = std::move(fd);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kDestination).status(), kPrecondition,
                 "has UFFD_FEATURE_EVENT_FORK"));
}

TEST(ParseAttachTest, OtherFeaturesAreFine) {
  if (!HasUserfaultfd()) GTEST_SKIP() << CreateUserfaultfd().status();
  Case attach = Destination();
  attach.fds[1] =
      UserfaultfdWith(UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MISSING_SHMEM);
  absl::Status status = attach.Parse(VmmRole::kDestination).status();
  EXPECT_TRUE(status.ok()) << status;
}

// A memfd of huge pages; needs none, since none is touched.
UniqueFd HugeMemfd(uint64_t size) {
  UniqueFd huge(
      ::memfd_create("huge", MFD_HUGETLB | MFD_ALLOW_SEALING | MFD_CLOEXEC));
  if (huge.valid() && ::ftruncate(huge.get(), static_cast<off_t>(size)) != 0) {
    huge.Reset();
  }
  return huge;
}

// The first region is of huge pages.
void MakeHuge(Case& attach, UniqueFd huge) {
  constexpr uint64_t kHuge = 2 * kMiB;
  attach.region(0).mutable_region()->set_length_bytes(kHuge);
  attach.region(0).mutable_region()->set_page_size_bytes(kHuge);
  attach.region(0).set_host_address(0x10000000);
  attach.region(1).mutable_region()->set_start_bytes(kHuge);
  attach.region(1).set_descriptor_index(2);
  attach.region(1).set_descriptor_offset_bytes(0);
  attach.fds[0] = std::move(huge);
  attach.Add(Memfd(kMiB), v1::DESCRIPTOR_KIND_MEMORY);
}

TEST(ParseAttachTest, TakesHugePages) {
  if (!HugeMemfd(2 * kMiB).valid()) GTEST_SKIP() << "no hugetlbfs";
  Case attach = Source();
  MakeHuge(attach, HugeMemfd(2 * kMiB));
  attach.slot(0).set_length_bytes(3 * kMiB);
  const auto source = attach.Parse(VmmRole::kSource);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->layout.regions()[0].page_size, kHugePageSize);
  EXPECT_EQ(source->layout.regions()[1].page_size, ByteCount(kPageSize));
  if (!HasUserfaultfd()) GTEST_SKIP() << CreateUserfaultfd().status();
  attach = Destination();
  MakeHuge(attach, HugeMemfd(2 * kMiB));
  EXPECT_TRUE(attach.Parse(VmmRole::kDestination).ok());
}

TEST(ParseAttachTest, HugePagesMustBeCalledSo) {
  if (!HugeMemfd(2 * kMiB).valid()) GTEST_SKIP() << "no hugetlbfs";
  Case attach = Source();
  attach.fds[0] = HugeMemfd(2 * kMiB);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "Attach.regions[0] was described with pages of 4KiB, but "
                 "those of descriptor 0 are of 2MiB"));
  attach = Source();
  MakeHuge(attach, Memfd(2 * kMiB));
  attach.slot(0).set_length_bytes(3 * kMiB);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "described with pages of 2MiB"));
}

TEST(ParseAttachTest, HugePagesAreAligned) {
  if (!HugeMemfd(2 * kMiB).valid()) GTEST_SKIP() << "no hugetlbfs";
  Case attach = Source();
  MakeHuge(attach, HugeMemfd(4 * kMiB));
  attach.slot(0).set_length_bytes(3 * kMiB);
  attach.region(0).set_host_address(0x10001000);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "host_address 0x10001000 is not a multiple of 2097152"));
  attach = Source();
  MakeHuge(attach, HugeMemfd(4 * kMiB));
  attach.slot(0).set_length_bytes(3 * kMiB);
  attach.region(0).set_descriptor_offset_bytes(kPageSize);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "descriptor_offset_bytes 4096 is not a multiple of 2097152"));
}

TEST(ParseAttachTest, ADirtyLogHasSmallPages) {
  if (!HugeMemfd(2 * kMiB).valid()) GTEST_SKIP() << "no hugetlbfs";
  Case attach = Source();
  attach.fds[1] = HugeMemfd(2 * kMiB);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kPrecondition,
                 "descriptor 1 (DIRTY_LOG) has huge pages"));
}

UniqueFd ProcessMemory() {
  return UniqueFd(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
}

void MakePrivate(Case& attach) {
  attach.region(1).set_private_memory(true);
  attach.region(1).set_descriptor_index(UINT32_MAX);
  attach.region(1).set_descriptor_offset_bytes(0);
}

TEST(ParseAttachTest, TakesPrivateMemory) {
  Case attach = PagemapSource();
  MakePrivate(attach);
  attach.Add(ProcessMemory(), v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
  const auto source = attach.Parse(VmmRole::kSource);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->memory_fd(1), source->process_memory.get());
  EXPECT_EQ(source->memory[1].fd_offset, 0x20000000u);
  EXPECT_NE(source->memory_fd(0), source->memory_fd(1));
  if (!HasUserfaultfd()) GTEST_SKIP() << CreateUserfaultfd().status();
  attach = Destination();
  MakePrivate(attach);
  const auto destination = attach.Parse(VmmRole::kDestination);
  ASSERT_TRUE(destination.ok()) << destination.status();
  EXPECT_EQ(destination->memory_fd(1), -1);
  EXPECT_EQ(destination->memory[1].fd_offset, 0u);
}

TEST(ParseAttachTest, ASourceSendsItsMemoryIfARegionIsPrivate) {
  Case attach = Source();
  MakePrivate(attach);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "no descriptor of kind PROCESS_MEMORY came"));
  attach = Source();
  attach.Add(ProcessMemory(), v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "a PROCESS_MEMORY came, but no region is private"));
  attach = Source();
  MakePrivate(attach);
  attach.Add(ProcessMemory(), v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
  attach.Add(ProcessMemory(), v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "descriptor 3 is a second PROCESS_MEMORY"));
  attach = Source();
  MakePrivate(attach);
  attach.Add(Pagemap(), v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kSource).status(), kInvalid,
                 "descriptor 2 (PROCESS_MEMORY) is not a mem of a process"));
  if (!HasUserfaultfd()) GTEST_SKIP() << CreateUserfaultfd().status();
  attach = Destination();
  attach.Add(ProcessMemory(), v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
  EXPECT_TRUE(Is(attach.Parse(VmmRole::kDestination).status(), kInvalid,
                 "descriptor 2 is a PROCESS_MEMORY; only a source has one"));
}

TEST(ParseAttachTest, PrivateMemoryHasAnAddressAndNoDescriptor) {
  const auto refusal = [](void (*change)(v1::AttachedRegion&)) {
    Case attach = Source();
    MakePrivate(attach);
    attach.Add(ProcessMemory(), v1::DESCRIPTOR_KIND_PROCESS_MEMORY);
    change(attach.region(1));
    return attach.Parse(VmmRole::kSource).status();
  };
  EXPECT_TRUE(Is(refusal([](auto& region) { region.set_descriptor_index(0); }),
                 kInvalid, "set descriptor_index to 4294967295"));
  EXPECT_TRUE(Is(refusal([](auto& region) {
                   region.set_descriptor_offset_bytes(kPageSize);
                 }),
                 kInvalid, "and descriptor_offset_bytes to 0"));
  EXPECT_TRUE(Is(refusal([](auto& region) { region.set_host_address(0); }),
                 kInvalid, "of a private region it must be"));
  EXPECT_TRUE(
      Is(refusal([](auto& region) { region.set_host_address(0x10000000); }),
         kInvalid, "overlap at"));
}

TEST(ParseAttachTest, TakesTheMostOfEverything) {
  Case attach = Source();
  attach.attach.clear_regions();
  attach.attach.clear_descriptors();
  attach.attach.clear_slots();
  attach.fds.clear();
  for (uint32_t i = 0; i < kMaxRegions; ++i) {
    attach.AddRegion(std::string(126, 'r') + std::to_string(i + 10), i * kMiB,
                     0x100000000 + i * kMiB);
    attach.region(static_cast<int>(i)).set_descriptor_index(i);
    attach.region(static_cast<int>(i)).set_descriptor_offset_bytes(0);
    attach.Add(Memfd(kMiB), v1::DESCRIPTOR_KIND_MEMORY);
  }
  for (uint32_t i = 0; i < kMaxSlots; ++i) {
    v1::MemorySlot& slot = *attach.attach.add_slots();
    slot.set_slot(i);
    slot.set_guest_physical_address(i * kMiB / 8);
    slot.set_ram_offset_bytes(i * kMiB / 8);
    slot.set_length_bytes(kMiB / 8);
  }
  attach.Add(Memfd(kPageSize, F_SEAL_SHRINK), v1::DESCRIPTOR_KIND_DIRTY_LOG);
  v1::VmmMessage message;
  *message.mutable_attach() = attach.attach;
  EXPECT_LE(message.ByteSizeLong(), kMaxPacketBytes);
  absl::StatusOr<Attachment> got = attach.Parse(VmmRole::kSource);
  EXPECT_TRUE(got.ok()) << got.status();
}

// Bytes of a valid Attach, a few of them changed, cut or put in, with some of
// the right descriptors and some wrong ones.
TEST(ParseAttachTest, HostileBytesAreAnsweredWithAStatus) {
  std::mt19937 random(20240607);
  const auto upto = [&random](size_t n) { return random() % n; };
  v1::Attach attach = Source().attach;
  const std::string valid = attach.SerializeAsString();
  const UniqueFd memory = Memfd(2 * kMiB);
  const UniqueFd log = Memfd(kPageSize, F_SEAL_SHRINK);
  const UniqueFd odd(ReadEndOfPipe());
  const size_t before = OpenFds();
  int taken = 0;
  for (int i = 0; i < 10000; ++i) {
    std::string bytes = valid;
    for (size_t edits = upto(4); edits > 0; --edits) {
      const size_t at = upto(bytes.size());
      switch (upto(3)) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, upto(3));
          break;
        default:
          bytes.insert(at, 1, static_cast<char>(random()));
          break;
      }
    }
    v1::Attach parsed;
    if (!parsed.ParseFromString(bytes)) continue;
    std::vector<UniqueFd> fds;
    fds.emplace_back(::dup(memory.get()));
    fds.emplace_back(::dup(upto(8) == 0 ? odd.get() : log.get()));
    if (upto(8) == 0) fds.emplace_back(::dup(odd.get()));
    absl::StatusOr<Attachment> got =
        ParseAttach(parsed, std::move(fds), VmmRole::kSource);
    if (got.ok()) {
      ++taken;
    } else {
      ASSERT_FALSE(got.status().message().empty());
    }
  }
  EXPECT_GT(taken, 0);
  EXPECT_EQ(OpenFds(), before);
}

}  // namespace
}  // namespace postcopy
