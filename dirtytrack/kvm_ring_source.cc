#include "dirtytrack/kvm_ring_source.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"

namespace postcopy {
namespace {

constexpr uint64_t kEntryBytes = 16;
static_assert(sizeof(kvm_dirty_gfn) == kEntryBytes);
constexpr uint64_t kRingOffset = KVM_DIRTY_LOG_PAGE_OFFSET * kPageSize;
static_assert(kRingOffset != 0, "no dirty rings on this architecture");

// Interruptions of KVM_RESET_DIRTY_RINGS in a row.
constexpr int kResetTriesMax = 1000;

// Keeps signals from this thread. From Linux 6.16 on a pending signal ends
// KVM_RESET_DIRTY_RINGS between two entries, and KVM forgets to protect those
// that it was gathering: up to 64 pages whose next writes nobody is told of.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    POSTCOPY_CHECK(pthread_sigmask(SIG_SETMASK, &all, &before_) == 0);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

bool IsRingSize(ByteCount bytes) {
  return std::has_single_bit(bytes.value()) && bytes.value() >= kPageSize;
}

absl::Status RingSizeError(ByteCount bytes) {
  return absl::InvalidArgumentError(
      absl::StrCat("a dirty ring of ", ToString(bytes),
                   ": give a power of two of at least 4KiB"));
}

// Acquire: KVM fills an entry in before it sets the flag. An entry that waits
// for its reset has the other flag, with or without this one.
bool IsDirty(kvm_dirty_gfn& gfn) {
  return (std::atomic_ref(gfn.flags).load(std::memory_order_acquire) &
          KVM_DIRTY_GFN_F_MASK) == KVM_DIRTY_GFN_F_DIRTY;
}

// What to enable, and how many bytes a ring has at most. On x86 both
// capabilities name the same thing.
struct RingCapability {
  uint32_t capability;
  uint64_t bytes_max;
};
absl::StatusOr<RingCapability> FindRingCapability(int vm) {
  for (uint32_t capability :
       {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING}) {
    const absl::StatusOr<int> max =
        CheckKvmExtension(vm, static_cast<int>(capability));
    if (!max.ok()) return max.status();
    if (*max > 0) {
      return RingCapability{capability, static_cast<uint64_t>(*max)};
    }
  }
  return absl::FailedPreconditionError(
      "this host's KVM has no dirty rings (KVM_CAP_DIRTY_LOG_RING); boot Linux "
      "5.11 or newer, or use KVM's dirty log");
}

}  // namespace

absl::Status EnableKvmDirtyRing(int vm, ByteCount bytes) {
  const absl::StatusOr<RingCapability> found = FindRingCapability(vm);
  if (!found.ok()) return found.status();
  if (!IsRingSize(bytes)) return RingSizeError(bytes);
  if (bytes.value() > found->bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a dirty ring of ", ToString(bytes), ": this host's KVM takes at most ",
        ToString(ByteCount(found->bytes_max))));
  }
  kvm_enable_cap enable = {};
  enable.cap = found->capability;
  enable.args[0] = bytes.value();
  if (ioctl(vm, KVM_ENABLE_CAP, &enable) == 0) return absl::OkStatus();
  if (errno != EINVAL) return KvmError(errno, "cannot enable dirty rings");
  return absl::InvalidArgumentError(absl::StrCat(
      "KVM refuses dirty rings of ", ToString(bytes),
      ": enable them once, before the first vCPU is created; where the "
      "processor logs pages itself (PML), with at least 16KiB"));
}

absl::StatusOr<KvmRingSource::Ring> KvmRingSource::Ring::Map(int vcpu,
                                                             ByteCount bytes) {
  // With the page behind the ring, to see that it is none of it: an index that
  // wraps too early would miss entries in silence.
  const size_t mapped = bytes.value() + kPageSize;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu,
                      kRingOffset);
  if (memory == MAP_FAILED) {
    const int error = errno;
    if (error == ENOMEM) {
      return absl::ResourceExhaustedError("no memory to map a dirty ring");
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "descriptor ", vcpu, " is no vCPU with a dirty ring: errno ", error));
  }
  uint8_t* const behind = static_cast<uint8_t*>(memory) + bytes.value();
  const bool has_ring = madvise(memory, bytes.value(), MADV_POPULATE_READ) == 0;
  const bool has_more = madvise(behind, kPageSize, MADV_POPULATE_READ) == 0;
  munmap(behind, kPageSize);
  Ring ring(static_cast<kvm_dirty_gfn*>(memory), bytes);
  if (has_ring && !has_more) return ring;
  return absl::InvalidArgumentError(absl::StrCat(
      "the vCPU of descriptor ", vcpu, " has no dirty ring of ",
      ToString(bytes),
      "; enable rings before vCPUs are created and give the same size here"));
}

KvmRingSource::Ring::~Ring() {
  if (entries_ != nullptr) munmap(entries_, bytes_.value());
}

size_t KvmRingSource::Ring::size() const {
  return bytes_.value() / kEntryBytes;
}

// KVM fills entries in order and keeps 64 of them free, so the dirty ones are
// one run, and its first stands behind one that is not dirty. An entry is
// looked at before the one in front of it: were both filled in between, the
// first would be found all the same.
std::optional<size_t> KvmRingSource::Ring::FindFirst() const {
  for (size_t i = 0; i < size(); ++i) {
    const size_t before = (i + size() - 1) & (size() - 1);
    if (IsDirty(entries_[i]) && !IsDirty(entries_[before])) return i;
  }
  return std::nullopt;
}

template <typename Entry>
size_t KvmRingSource::Ring::Harvest(Entry entry) {
  if (!next_.has_value()) next_ = FindFirst();
  if (!next_.has_value()) return 0;
  size_t harvested = 0;
  for (; harvested < size(); ++harvested) {
    kvm_dirty_gfn& gfn = entries_[*next_];
    if (!IsDirty(gfn)) break;
    // Each number is read once: what is checked is what is used.
    entry(std::atomic_ref(gfn.slot).load(std::memory_order_relaxed),
          std::atomic_ref(gfn.offset).load(std::memory_order_relaxed));
    // Release: KVM may fill the entry again only when it has been read.
    std::atomic_ref(gfn.flags).store(KVM_DIRTY_GFN_F_RESET,
                                     std::memory_order_release);
    next_ = (*next_ + 1) & (size() - 1);
  }
  return harvested;
}

absl::StatusOr<std::unique_ptr<KvmRingSource>> KvmRingSource::Create(
    const RamLayout& layout, Options options) {
  absl::StatusOr<KvmSlots> slots =
      KvmSlots::Create(layout, std::move(options.slots), options.vm);
  if (!slots.ok()) return slots.status();
  if (!IsRingSize(options.ring_bytes)) return RingSizeError(options.ring_bytes);
  if (options.vcpus.empty()) {
    return absl::InvalidArgumentError(
        "no vCPUs to read dirty rings of; give all of the VM's");
  }
  std::vector<Ring> rings;
  for (int vcpu : options.vcpus) {
    absl::StatusOr<Ring> ring = Ring::Map(vcpu, options.ring_bytes);
    if (!ring.ok()) return ring.status();
    rings.push_back(*std::move(ring));
  }
  absl::StatusOr<PageBitmap> pending = PageBitmap::Create(layout.pages());
  if (!pending.ok()) return pending.status();
  // Not make_unique: the constructor is private.
  return std::unique_ptr<KvmRingSource>(
      new KvmRingSource(*std::move(slots), std::move(rings),
                        std::move(options.kick), *std::move(pending)));
}

KvmRingSource::KvmRingSource(KvmSlots slots, std::vector<Ring> rings,
                             std::function<absl::Status()> kick,
                             PageBitmap pending)
    : kick_(std::move(kick)),
      numbered_([&slots] {
        std::vector<Numbered> numbered;
        for (const KvmSlot& slot : slots.slots()) {
          numbered.push_back({KvmSlotNumber(slot.slot.id), slot.slot.pages()});
        }
        std::sort(numbered.begin(), numbered.end(),
                  [](const Numbered& a, const Numbered& b) {
                    return a.number < b.number;
                  });
        return numbered;
      }()),
      slots_(std::move(slots)),
      rings_(std::move(rings)),
      pending_(std::move(pending)) {}

KvmRingSource::~KvmRingSource() { Stop().IgnoreError(); }

absl::Status KvmRingSource::Start() {
  std::lock_guard lock(mutex_);
  if (started_) {
    return absl::FailedPreconditionError("dirty tracking is already started");
  }
  reset_owed_ = true;  // who read the rings before may have left it so
  absl::Status s = HarvestAndReset(absl::MakeSpan(rings_));
  if (!s.ok()) return s;
  pending_.Reset();
  broken_ = absl::OkStatus();
  // Recording begins first: a vCPU may fill its ring before all slots are
  // logged. It waits in OnRingFull meanwhile, for the lock.
  started_ = true;
  s = slots_.StartLogging(/*manual_protect=*/0);
  started_ = s.ok();
  return s;
}

absl::Status KvmRingSource::Stop() {
  std::lock_guard lock(mutex_);
  started_ = false;
  absl::Status s = slots_.StopLogging();
  s.Update(HarvestAndReset(absl::MakeSpan(rings_)));
  return s;
}

absl::Status KvmRingSource::CheckUse(PageBitmapView bitmap) const {
  if (!started_) {
    return absl::FailedPreconditionError("dirty tracking is not started");
  }
  return slots_.CheckBitmap(bitmap);
}

void KvmRingSource::Record(uint32_t slot, uint64_t page) {
  const auto found = std::lower_bound(
      numbered_.begin(), numbered_.end(), slot,
      [](const Numbered& a, uint32_t number) { return a.number < number; });
  if (found != numbered_.end() && found->number == slot &&
      page < found->ram.count.value()) {
    pending_.view().TestAndSet(found->ram.first + PageCount(page));
    return;
  }
  broken_.Update(absl::DataLossError(absl::StrCat(
      "a dirty ring says that page 0x", absl::Hex(page), " of ",
      ToString(SlotId{static_cast<uint16_t>(slot >> 16),
                      static_cast<uint16_t>(slot)}),
      " was written, which the VM's description does not have; describe every "
      "slot that is logged, let nobody else write the rings, then stop and "
      "start tracking")));
}

absl::Status KvmRingSource::ResetRings() {
  const SignalsBlocked blocked;
  uint64_t reset = 0;
  bool interrupted = false;
  for (int i = 0; i < kResetTriesMax; ++i) {
    const int count = ioctl(slots_.vm(), KVM_RESET_DIRTY_RINGS, 0);
    if (count < 0 && errno != EINTR) {
      return KvmError(errno, "cannot reset dirty rings");
    }
    if (count > 0) reset += static_cast<uint64_t>(count);
    if (reset < harvested_ && count != 0) {
      interrupted = true;
      continue;
    }
    if (started_ && (interrupted || reset < harvested_)) {
      broken_.Update(absl::DataLossError(absl::StrCat(
          "KVM was interrupted when it had protected the pages of ", reset,
          " of ", harvested_,
          " entries of dirty rings, and may have forgotten some; stop and "
          "start tracking")));
    }
    harvested_ = 0;
    reset_owed_ = false;
    return absl::OkStatus();
  }
  return absl::UnavailableError("KVM is always interrupted at dirty rings");
}

absl::Status KvmRingSource::HarvestAndReset(absl::Span<Ring> rings) {
  for (Ring& ring : rings) {
    const size_t harvested = ring.Harvest([this](uint32_t slot, uint64_t page) {
      if (started_) Record(slot, page);
    });
    harvested_ += harvested;
    if (harvested != 0) reset_owed_ = true;
  }
  return reset_owed_ ? ResetRings() : absl::OkStatus();
}

absl::StatusOr<PageCount> KvmRingSource::Collect(PageBitmapView into) {
  {
    std::lock_guard lock(mutex_);
    if (absl::Status s = CheckUse(into); !s.ok()) return s;
  }
  if (kick_) {
    if (absl::Status s = kick_(); !s.ok()) return s;
  }
  std::lock_guard lock(mutex_);
  absl::Status s = HarvestAndReset(absl::MakeSpan(rings_));
  // Before the reset nothing may be reported: who then read a page would miss
  // writes to it until the reset.
  if (!s.ok()) return s;
  if (!broken_.ok()) return broken_;
  return into.MoveFrom(pending_.view());
}

absl::Status KvmRingSource::Clear(PageBitmapView pages, PageRun run) {
  std::lock_guard lock(mutex_);
  if (absl::Status s = CheckUse(pages); !s.ok()) return s;
  POSTCOPY_CHECK(run.end().value() <= slots_.ram_pages().value());
  if (reset_owed_) return absl::OkStatus();
  pending_.view().ClearRunWhere(pages, run);
  return absl::OkStatus();
}

absl::Status KvmRingSource::Restore(PageBitmapView unsent) {
  std::lock_guard lock(mutex_);
  if (absl::Status s = CheckUse(unsent); !s.ok()) return s;
  pending_.view().MergeFrom(PageBitmapView(unsent.words(), slots_.ram_pages()));
  return absl::OkStatus();
}

absl::Status KvmRingSource::OnRingFull(size_t vcpu) {
  std::lock_guard lock(mutex_);
  POSTCOPY_CHECK(vcpu < rings_.size());
  ++ring_fulls_;
  absl::Status s = HarvestAndReset(absl::MakeSpan(rings_).subspan(vcpu, 1));
  s.Update(broken_);
  return s;
}

uint64_t KvmRingSource::ring_fulls() const {
  std::lock_guard lock(mutex_);
  return ring_fulls_;
}

}  // namespace postcopy
