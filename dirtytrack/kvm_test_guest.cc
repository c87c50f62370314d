#include "dirtytrack/kvm_test_guest.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/kvm_ring_source.h"

// Position-independent. For ever: rbx is the random number and the value, rbp
// the window's length in pages and r8 its start, rsi the number of views, rdi
// the address of view 0, r12 the number of writes, r13 the mask of those after
// which the window moves.
//
// And once: writes rsi to rcx pages from rdi on, then to rdx, where there is no
// memory: KVM_EXIT_MMIO.
asm(R"(
  .pushsection .rodata
  .globl kvm_test_guest_begin, kvm_test_guest_once, kvm_test_guest_end
kvm_test_guest_begin:
  movq %rbx, %rax
  shlq $13, %rax
  xorq %rax, %rbx
  movq %rbx, %rax
  shrq $7, %rax
  xorq %rax, %rbx
  movq %rbx, %rax
  shlq $17, %rax
  xorq %rax, %rbx
  movl %ebx, %eax
  movq %rbx, %rcx
  shrq $40, %rcx
  testb $63, %cl
  jz 1f
  imulq %rbp, %rax
  shrq $32, %rax
  addq %r8, %rax
  cmpq %rsi, %rax
  jb 2f
  subq %rsi, %rax
  jmp 2f
1:
  imulq %rsi, %rax
  shrq $32, %rax
2:
  shlq $12, %rax
  shrq $9, %rcx
  andl $0xff8, %ecx
  addq %rcx, %rax
  movq %rbx, (%rdi,%rax)
  incq %r12
  testq %r13, %r12
  jnz kvm_test_guest_begin
  incq %r8
  cmpq %rsi, %r8
  jb kvm_test_guest_begin
  xorl %r8d, %r8d
  jmp kvm_test_guest_begin
kvm_test_guest_once:
  movq %rsi, (%rdi)
  addq $4096, %rdi
  decq %rcx
  jnz kvm_test_guest_once
  movq %rsi, (%rdx)
3:
  jmp 3b
kvm_test_guest_end:
  .popsection
)");
extern "C" const uint8_t kvm_test_guest_begin[];
extern "C" const uint8_t kvm_test_guest_once[];
extern "C" const uint8_t kvm_test_guest_end[];

namespace postcopy {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;
// Guest physical, 8 GiB apart: each slot fits, and there is nothing between.
constexpr uint64_t kLowAddress = 8 * kGiB;
constexpr uint64_t kHighAddress = 16 * kGiB;
constexpr uint64_t kAgainAddress = 24 * kGiB;
constexpr uint64_t kNoMemoryAddress = 4 * kGiB;
// Guest virtual, the address of view 0.
constexpr uint64_t kViews = 4 * kGiB;
constexpr uint64_t kPagesMax = 2 * kGiB / kPageSize * 2;

// Present, writable, user, accessed, and dirty in a leaf: no walk writes them.
constexpr uint64_t kTableEntry = 0x27;
constexpr uint64_t kLeafEntry = 0x67;

// The kernel's struct kvm_cpuid2, whose C++ version has other ioctl numbers.
struct Cpuid {
  uint32_t entry_count = 256;
  uint32_t padding = 0;
  std::array<kvm_cpuid_entry2, 256> entries = {};
};
constexpr unsigned long kGetSupportedCpuid =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, 8);
constexpr unsigned long kSetCpuid = _IOC(_IOC_WRITE, KVMIO, 0x90, 8);

int KickSignal() { return SIGRTMIN + 5; }

void InstallKickHandler() {
  struct sigaction action = {};
  // Without SA_RESTART, so that the signal ends KVM_RUN.
  action.sa_handler = [](int) {};
  POSTCOPY_CHECK(sigaction(KickSignal(), &action, nullptr) == 0);
}

kvm_segment CodeSegment() {
  kvm_segment segment = {};
  segment.limit = 0xffffffff;
  segment.selector = 0x33;
  segment.type = 11;  // execute, read, accessed
  segment.present = 1;
  segment.dpl = 3;
  segment.s = 1;
  segment.l = 1;
  segment.g = 1;
  return segment;
}

kvm_segment DataSegment() {
  kvm_segment segment = CodeSegment();
  segment.selector = 0x2b;
  segment.type = 3;  // read, write, accessed
  segment.db = 1;
  segment.l = 0;
  return segment;
}

void SetUserMode(kvm_sregs& sregs) {
  sregs.cs = CodeSegment();
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = DataSegment();
  sregs.tr = {};
  sregs.tr.limit = 0x67;
  sregs.tr.selector = 0x40;
  sregs.tr.type = 11;  // busy 64-bit TSS
  sregs.tr.present = 1;
  sregs.ldt = {};
  sregs.ldt.unusable = 1;
  sregs.cr0 = 0x80010033;  // PG, WP, NE, ET, MP, PE
  sregs.cr3 = 0;
  sregs.cr4 = 0x620;   // OSXMMEXCPT, OSFXSR, PAE
  sregs.efer = 0x501;  // LMA, LME, SCE
}

absl::Status Missing(absl::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat(what, ": errno ", errno, " (", std::strerror(errno), ")"));
}

absl::StatusOr<uint8_t*> Memory(uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return absl::ErrnoToStatus(errno, "mmap");
  return static_cast<uint8_t*>(memory);
}

RamLayout MakeLayout(uint64_t pages) {
  POSTCOPY_CHECK(pages >= 64 && pages <= kPagesMax);
  return *RamLayout::Create({{"ram", RamOffset(0), BytesIn(PageCount(pages))}});
}

}  // namespace

struct KvmTestGuest::Vcpu {
  size_t index = 0;
  UniqueFd fd;
  kvm_run* run = nullptr;
  size_t run_bytes = 0;
  std::thread thread;
  // Guarded by mutex_.
  bool parked = true;
  uint64_t kicks_seen = 0;
};

KvmTestGuest::KvmTestGuest(Options options)
    : options_(options), layout_(MakeLayout(options.pages)) {}

absl::StatusOr<std::unique_ptr<KvmTestGuest>> KvmTestGuest::Create(
    Options options) {
  std::unique_ptr<KvmTestGuest> guest(new KvmTestGuest(options));
  if (absl::Status s = guest->Init(); !s.ok()) return s;
  return guest;
}

KvmTestGuest::~KvmTestGuest() {
  Pause().IgnoreError();
  {
    std::lock_guard lock(mutex_);
    quit_ = true;
    changed_.notify_all();
  }
  for (auto& vcpu : vcpus_) {
    if (vcpu->thread.joinable()) vcpu->thread.join();
    munmap(vcpu->run, vcpu->run_bytes);
  }
  if (ram_ != nullptr) munmap(ram_, layout_.bytes().value());
  if (boot_ != nullptr) munmap(boot_, boot_bytes_);
}

absl::Status KvmTestGuest::Init() {
  InstallKickHandler();
  UniqueFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm.valid()) return Missing("cannot open /dev/kvm");
  vm_.Reset(ioctl(kvm.get(), KVM_CREATE_VM, 0));
  if (!vm_.valid()) return Missing("cannot create a VM");
  if (ioctl(vm_.get(), KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0) {
    return Missing("no KVM_CAP_IMMEDIATE_EXIT");
  }
  if (!options_.ring_bytes.empty()) {
    absl::Status s = EnableKvmDirtyRing(vm_.get(), options_.ring_bytes);
    if (absl::IsFailedPrecondition(s)) {
      return absl::UnimplementedError(s.message());
    }
    if (!s.ok()) return s;
  }
  if (absl::Status s = AddMemory(); !s.ok()) return s;
  InstallTables();
  for (int i = 0; i < options_.vcpus; ++i) {
    if (absl::Status s = AddVcpu(kvm.get(), i); !s.ok()) return s;
  }
  for (auto& vcpu : vcpus_) {
    vcpu->thread = std::thread([this, &vcpu] { Run(*vcpu); });
  }
  return absl::OkStatus();
}

absl::Status KvmTestGuest::AddMemory() {
  absl::StatusOr<uint8_t*> ram = Memory(layout_.bytes().value());
  if (!ram.ok()) return ram.status();
  ram_ = *ram;
  const uint64_t n = options_.pages;
  const struct {
    uint64_t first, pages, address;
  } shown[] = {{0, n / 2 + 17, kLowAddress},
               {n / 2 + 17, n - n / 2 - 17, kHighAddress},
               {n / 4 + 5, n / 4, kAgainAddress}};
  for (const auto& s : shown) {
    const RamOffset start = OffsetOf(PageIndex(s.first));
    slots_.push_back({.slot = {{0, static_cast<uint16_t>(slots_.size())},
                               s.address,
                               start,
                               BytesIn(PageCount(s.pages))},
                      .host = HostAddress(reinterpret_cast<uint64_t>(ram_)) +
                              ByteCount(start.value())});
  }
  boot_bytes_ = code_address() + kPageSize;
  absl::StatusOr<uint8_t*> boot = Memory(boot_bytes_);
  if (!boot.ok()) return boot.status();
  boot_ = *boot;
  for (const KvmSlot& slot : slots_) {
    if (absl::Status s = AddSlot(slot); !s.ok()) return s;
  }
  return AddSlot({.slot = {{0, 3}, 0, RamOffset(0), ByteCount(boot_bytes_)},
                  .host = HostAddress(reinterpret_cast<uint64_t>(boot_))});
}

absl::Status KvmTestGuest::AddSlot(const KvmSlot& slot) {
  const kvm_userspace_memory_region region{
      .slot = KvmSlotNumber(slot.slot.id),
      .flags = slot.flags,
      .guest_phys_addr = slot.slot.guest_physical_address,
      .memory_size = slot.slot.length.value(),
      .userspace_addr = slot.host.value()};
  if (ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) == 0) {
    return absl::OkStatus();
  }
  return absl::ErrnoToStatus(errno, "KVM_SET_USER_MEMORY_REGION");
}

// The root, the page of directory pointers, directories, tables, the program.
uint64_t KvmTestGuest::code_address() const {
  return (2 + directories() + tables()) * kPageSize;
}

void KvmTestGuest::InstallTables() {
  const uint64_t directory = 2 * kPageSize;
  const uint64_t table = directory + directories() * kPageSize;
  const auto set = [this](uint64_t page, uint64_t index, uint64_t entry) {
    std::memcpy(boot_ + page + index * sizeof(entry), &entry, sizeof(entry));
  };
  set(0, 0, kPageSize | kTableEntry);
  for (uint64_t i = 0; i < directories(); ++i) {
    set(kPageSize, kViews / kGiB + i,
        (directory + i * kPageSize) | kTableEntry);
  }
  for (uint64_t i = 0; i < tables(); ++i) {
    set(directory, i, (table + i * kPageSize) | kTableEntry);
  }
  // In the order of the views: RAM once, and the part that is shown again.
  uint64_t view = 0;
  for (const KvmSlot& slot : slots_) {
    for (uint64_t i = 0; i < slot.slot.pages().count.value(); ++i) {
      set(table, view++,
          (slot.slot.guest_physical_address + i * kPageSize) | kLeafEntry);
    }
  }
  POSTCOPY_CHECK(view == views());
  set(table, view++, code_address() | kLeafEntry);
  set(table, view++, kNoMemoryAddress | kLeafEntry);
  std::memcpy(boot_ + code_address(), kvm_test_guest_begin,
              kvm_test_guest_end - kvm_test_guest_begin);
}

absl::Status KvmTestGuest::AddVcpu(int kvm, int index) {
  auto vcpu = std::make_unique<Vcpu>();
  vcpu->index = static_cast<size_t>(index);
  vcpu->fd.Reset(ioctl(vm_.get(), KVM_CREATE_VCPU, index));
  if (!vcpu->fd.valid()) return Missing("cannot create a vCPU");
  const int run_bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  vcpu->run_bytes = static_cast<size_t>(run_bytes);
  void* run = mmap(nullptr, vcpu->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                   vcpu->fd.get(), 0);
  if (run == MAP_FAILED) return absl::ErrnoToStatus(errno, "mmap of a vCPU");
  vcpu->run = static_cast<kvm_run*>(run);
  const int fd = vcpu->fd.get();
  vcpus_.push_back(std::move(vcpu));
  Cpuid cpuid;
  kvm_sregs sregs;
  if (ioctl(kvm, kGetSupportedCpuid, &cpuid) != 0 ||
      ioctl(fd, kSetCpuid, &cpuid) != 0 ||
      ioctl(fd, KVM_GET_SREGS, &sregs) != 0) {
    return absl::ErrnoToStatus(errno, "cannot set up a vCPU");
  }
  SetUserMode(sregs);
  kvm_regs regs = {};
  regs.rip = kViews + views() * kPageSize;
  regs.rflags = 0x3202;  // IOPL 3, IF
  regs.rbx = 0x9e3779b97f4a7c15u * (static_cast<uint64_t>(index) + 1);
  regs.rdi = kViews;
  regs.rsi = views();
  regs.rbp = options_.window_pages;
  regs.r8 = views() / static_cast<uint64_t>(options_.vcpus) *
            static_cast<uint64_t>(index);
  regs.r13 = options_.writes_per_move - 1;
  if (ioctl(fd, KVM_SET_SREGS, &sregs) != 0 ||
      ioctl(fd, KVM_SET_REGS, &regs) != 0) {
    return Missing("KVM takes no 64-bit user mode");
  }
  return absl::OkStatus();
}

std::vector<int> KvmTestGuest::vcpus() const {
  std::vector<int> fds;
  for (const auto& vcpu : vcpus_) fds.push_back(vcpu->fd.get());
  return fds;
}

uint64_t KvmTestGuest::SecondViewOf(PageIndex page) const {
  const PageRun again = slots_[2].slot.pages();
  POSTCOPY_CHECK(again.Contains(page));
  return pages().value() + (page - again.first).value();
}

absl::StatusOr<bool> KvmTestGuest::RunOnce(Vcpu& vcpu) {
  if (ioctl(vcpu.fd.get(), KVM_RUN, 0) != 0) {
    if (errno == EINTR || errno == EAGAIN) return false;
    return absl::ErrnoToStatus(errno, "KVM_RUN");
  }
  switch (vcpu.run->exit_reason) {
    case KVM_EXIT_INTR:
      return false;
    case KVM_EXIT_DIRTY_RING_FULL: {
      if (!on_ring_full_) return absl::InternalError("a ring is full");
      absl::Status s = on_ring_full_(vcpu.index);
      if (!s.ok()) return s;
      return false;
    }
    case KVM_EXIT_MMIO:
      if (vcpu.run->mmio.is_write &&
          vcpu.run->mmio.phys_addr == kNoMemoryAddress) {
        return true;
      }
      break;
    default:
      break;
  }
  kvm_regs regs = {};
  ioctl(vcpu.fd.get(), KVM_GET_REGS, &regs);
  return absl::InternalError(
      absl::StrCat("vCPU ", vcpu.index, " left the guest for reason ",
                   vcpu.run->exit_reason, " at 0x", absl::Hex(regs.rip)));
}

void KvmTestGuest::Run(Vcpu& vcpu) {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      vcpu.parked = true;
      vcpu.kicks_seen = kicks_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return quit_ || !paused_; });
      if (quit_) return;
      vcpu.parked = false;
      // Whoever kicks from here on sets it again, and KVM_RUN returns at once.
      vcpu.kicks_seen = kicks_;
      std::atomic_ref(vcpu.run->immediate_exit).store(0);
    }
    const absl::StatusOr<bool> done = RunOnce(vcpu);
    if (done.ok() && !*done) continue;
    std::lock_guard lock(mutex_);
    status_.Update(done.ok() ? absl::InternalError("a vCPU lost its way")
                             : done.status());
    paused_ = true;
    for (auto& other : vcpus_) {
      std::atomic_ref(other->run->immediate_exit).store(1);
      pthread_kill(other->thread.native_handle(), KickSignal());
    }
  }
}

void KvmTestGuest::Resume() {
  std::lock_guard lock(mutex_);
  if (!status_.ok()) return;
  paused_ = false;
  changed_.notify_all();
}

absl::Status KvmTestGuest::Pause() {
  std::unique_lock lock(mutex_);
  paused_ = true;
  for (auto& vcpu : vcpus_) {
    if (!vcpu->thread.joinable()) continue;
    std::atomic_ref(vcpu->run->immediate_exit).store(1);
    pthread_kill(vcpu->thread.native_handle(), KickSignal());
  }
  changed_.wait(lock, [this] {
    return std::all_of(vcpus_.begin(), vcpus_.end(), [](const auto& vcpu) {
      return vcpu->parked || !vcpu->thread.joinable();
    });
  });
  return status_;
}

absl::Status KvmTestGuest::Kick() {
  std::unique_lock lock(mutex_);
  const uint64_t kick = ++kicks_;
  for (auto& vcpu : vcpus_) {
    if (vcpu->parked) continue;
    std::atomic_ref(vcpu->run->immediate_exit).store(1);
    pthread_kill(vcpu->thread.native_handle(), KickSignal());
  }
  changed_.wait(lock, [this, kick] {
    return std::all_of(vcpus_.begin(), vcpus_.end(), [&](const auto& vcpu) {
      return vcpu->parked || vcpu->kicks_seen >= kick;
    });
  });
  return status_;
}

absl::Status KvmTestGuest::Write(uint64_t view, uint64_t value,
                                 uint64_t count) {
  POSTCOPY_CHECK(count > 0 && view + count <= views());
  Vcpu& vcpu = *vcpus_[0];
  kvm_regs before;
  if (ioctl(vcpu.fd.get(), KVM_GET_REGS, &before) != 0) {
    return absl::ErrnoToStatus(errno, "KVM_GET_REGS");
  }
  kvm_regs regs = before;
  regs.rip = kViews + views() * kPageSize +
             static_cast<uint64_t>(kvm_test_guest_once - kvm_test_guest_begin);
  regs.rdi = kViews + view * kPageSize;
  regs.rsi = value;
  regs.rcx = count;
  regs.rdx = kViews + (views() + 1) * kPageSize;
  ioctl(vcpu.fd.get(), KVM_SET_REGS, &regs);
  std::atomic_ref(vcpu.run->immediate_exit).store(0);
  while (true) {
    const absl::StatusOr<bool> done = RunOnce(vcpu);
    if (!done.ok()) return done.status();
    if (*done) break;
  }
  // Only the next KVM_RUN finishes the access that ended this one.
  std::atomic_ref(vcpu.run->immediate_exit).store(1);
  if (ioctl(vcpu.fd.get(), KVM_RUN, 0) == 0 || errno != EINTR) {
    return absl::InternalError("KVM_RUN does not heed immediate_exit");
  }
  if (ioctl(vcpu.fd.get(), KVM_SET_REGS, &before) != 0) {
    return absl::ErrnoToStatus(errno, "KVM_SET_REGS");
  }
  return absl::OkStatus();
}

uint64_t KvmTestGuest::writes() const {
  uint64_t writes = 0;
  for (const auto& vcpu : vcpus_) {
    kvm_regs regs = {};
    ioctl(vcpu->fd.get(), KVM_GET_REGS, &regs);
    writes += regs.r12;
  }
  return writes;
}

ShadowRam::ShadowRam(const KvmTestGuest& guest, DirtySource& source)
    : guest_(guest),
      source_(source),
      reported_(*PageBitmap::Create(guest.pages())),
      bytes_(guest.layout().bytes().value()) {}

absl::Status ShadowRam::Collect() {
  const PageCount before = reported().Count();
  const absl::StatusOr<PageCount> set = source_.Collect(reported());
  if (!set.ok()) return set.status();
  if (before + *set != reported().Count()) {
    return absl::InternalError("Collect has counted wrongly");
  }
  return absl::OkStatus();
}

absl::Status ShadowRam::Clear(PageRun run) {
  return source_.Clear(reported(), run);
}

void ShadowRam::Copy(PageRun run) {
  PageIndex at = run.first;
  while (auto found = reported().NextSetRun(at)) {
    if (found->first >= run.end()) break;
    const PageIndex end = std::min(found->end(), run.end());
    std::memcpy(&bytes_[OffsetOf(found->first).value()],
                guest_.ram() + OffsetOf(found->first).value(),
                BytesIn(end - found->first).value());
    at = end;
  }
  reported().ClearRun(run);
}

absl::StatusOr<PageCount> ShadowRam::Round(uint64_t part_pages) {
  if (absl::Status s = Collect(); !s.ok()) return s;
  const PageCount count = reported().Count();
  const PageIndex end = all().end();
  for (PageIndex at; at < end;) {
    const PageIndex stop = std::min(end, at + PageCount(part_pages));
    if (absl::Status s = Clear({at, stop - at}); !s.ok()) return s;
    Copy({at, stop - at});
    at = stop;
  }
  return count;
}

size_t ShadowRam::Differences() const {
  size_t differences = 0;
  for (size_t at = 0; at < bytes_.size(); at += kPageSize) {
    if (std::memcmp(&bytes_[at], guest_.ram() + at, kPageSize) != 0) {
      ++differences;
    }
  }
  return differences;
}

absl::StatusOr<Proof> ProveAllIsTold(KvmTestGuest& guest, DirtySource& source,
                                     int rounds) {
  ShadowRam shadow(guest, source);
  std::mt19937_64 random(1);
  Proof proof = {};
  guest.Resume();
  for (int round = 1; round <= rounds; ++round) {
    // Rounds without a pause starve the vCPUs, which then write hardly a page.
    if (random() % 2 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
    }
    const bool compare = round % 100 == 0 || round == rounds;
    if (compare) {
      if (absl::Status s = guest.Pause(); !s.ok()) return s;
    }
    const absl::StatusOr<PageCount> count = shadow.Round(1 + random() % 700);
    if (!count.ok()) return count.status();
    proof.copied_pages += count->value();
    ++proof.collects;
    if (!compare) continue;
    if (const size_t differ = shadow.Differences(); differ != 0) {
      return absl::DataLossError(absl::StrCat(
          differ, " pages differ from the guest's in round ", round));
    }
    if (absl::Status s = shadow.Collect(); !s.ok()) return s;
    ++proof.collects;
    if (const PageCount more = shadow.reported().Count(); more.value() != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(more.value(), " pages are reported again in round ",
                       round, " of a guest that stands still"));
    }
    if (round != rounds) guest.Resume();
  }
  proof.writes = guest.writes();
  if (proof.copied_pages < static_cast<uint64_t>(rounds)) {
    return absl::FailedPreconditionError(absl::StrCat(
        proof.copied_pages, " pages were reported in ", rounds, " rounds"));
  }
  return proof;
}

}  // namespace postcopy
