// Dirty pages from KVM's dirty rings, one for each vCPU.
#ifndef DIRTYTRACK_KVM_RING_SOURCE_H_
#define DIRTYTRACK_KVM_RING_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/kvm_slots.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"

struct kvm_dirty_gfn;  // NOLINT(readability-identifier-naming): the kernel's

namespace postcopy {

// Gives each vCPU of `vm` that is created from now on a dirty ring of `bytes`:
// 16 for each page that it can name. For ever: a VM with rings has no bitmaps.
//
// `bytes` is a power of two, at least a page and at most what KVM says (1 MiB);
// processors that log pages themselves (Intel's PML) want 16 KiB at least.
// INVALID_ARGUMENT for other sizes, and if the VM has rings or a vCPU already;
// FAILED_PRECONDITION if KVM has no rings or `vm` is no VM.
absl::Status EnableKvmDirtyRing(int vm, ByteCount bytes);

// Reads the rings of all vCPUs, in the process that created the VM: KVM serves
// no other. Of the same writes as KvmLogSource, and with the same duties.
//
// What an entry names is dirty here, in a bitmap; then KVM is told to protect
// the page again. Both happen under one lock, before anybody may read the page:
// a write after that makes a new entry. So Collect takes, and Clear has nothing
// to do for KVM.
//
// A ring that is full stops its vCPU: KVM_RUN returns KVM_EXIT_DIRTY_RING_FULL
// until somebody has harvested. The vCPU's thread calls OnRingFull and runs on.
//
// The cost is that of the dirty pages and not of RAM's size, but for a look at
// the bitmap's words in each Collect. OnRingFull is thread-safe against
// everything; the rest is for one thread at a time.
class KvmRingSource final : public DirtySource {
 public:
  struct Options {
    // What KVM_CREATE_VM returned. Duplicated: close yours when you like.
    int vm = -1;
    // All that show RAM; and no other slot of the VM is logged.
    std::vector<KvmSlot> slots;
    // What KVM_CREATE_VCPU returned: all of the VM's, and none is added later,
    // for what a vCPU writes is in its ring only. Needed by Create alone.
    std::vector<int> vcpus;
    // As given to EnableKvmDirtyRing.
    ByteCount ring_bytes;
    // Makes each vCPU that is in guest mode leave it, and returns when all have
    // left it since the call began (they may be back); or with the error that
    // Collect then returns. Called at the beginning of each Collect, without a
    // lock held, so that vCPU threads may be in OnRingFull.
    //
    // Processors that log written pages in a buffer of their own (PML) empty it
    // into the ring when the vCPU leaves guest mode and not before: without the
    // kick their last 512 pages are missing. Empty: no kick, for VMs whose
    // vCPUs are known to be stopped, or to have no such buffer.
    std::function<absl::Status()> kick;
  };

  // Maps the rings. INVALID_ARGUMENT as KvmSlots::Create, and unless each
  // vCPU has a ring of exactly `ring_bytes`; RESOURCE_EXHAUSTED for memory.
  static absl::StatusOr<std::unique_ptr<KvmRingSource>> Create(
      const RamLayout& layout, Options options);
  // Stops. REQUIRES: no thread is in OnRingFull, or will be.
  ~KvmRingSource() override;

  // Empties the rings of older entries, turns manual protection off (initially
  // set, KVM would not protect pages for the ring at all) and takes
  // KVM_SET_USER_MEMORY_REGION for each slot. Errors as KvmLogSource::Start.
  absl::Status Start() override;

  // DATA_LOSS if a ring named a page that no slot has, or KVM was interrupted
  // while it protected pages: what was written is unknown then, and stays so
  // until Stop and Start. On any error nothing is moved into `into`.
  absl::StatusOr<PageCount> Collect(PageBitmapView into) override;

  // Nothing to do for KVM; forgets pages that OnRingFull or Restore keep here.
  absl::Status Clear(PageBitmapView pages, PageRun run) override;

  absl::Status Restore(PageBitmapView unsent) override;

  // If it fails, some slots are still logged; call it again.
  absl::Status Stop() override;

  // vCPU `vcpu`, an index in Options::vcpus, has a full ring: empties it, so
  // that the vCPU can run. Not an error while tracking is off, nor if the ring
  // is not full. After DATA_LOSS (see Collect) the ring is empty too and the
  // vCPU can run; only tracking is broken. After any other error KVM_RUN will
  // return KVM_EXIT_DIRTY_RING_FULL again.
  // REQUIRES: vcpu < Options::vcpus.size().
  absl::Status OnRingFull(size_t vcpu);

  // How often OnRingFull was called. Often means that the rings are small for
  // the time between Collects: vCPUs lose time. Thread-safe.
  uint64_t ring_fulls() const;

 private:
  // One vCPU's ring, mapped.
  class Ring {
   public:
    static absl::StatusOr<Ring> Map(int vcpu, ByteCount bytes);
    Ring(Ring&& other) noexcept
        : entries_(std::exchange(other.entries_, nullptr)),
          bytes_(other.bytes_),
          next_(other.next_) {}
    ~Ring();

    // Calls entry(slot number, page of the slot) for each dirty entry, and
    // gives it back to KVM. Returns how many.
    template <typename Entry>
    size_t Harvest(Entry entry);

   private:
    Ring(kvm_dirty_gfn* entries, ByteCount bytes)
        : entries_(entries), bytes_(bytes) {}

    size_t size() const;
    // The first of the dirty entries; nullopt if there is none.
    std::optional<size_t> FindFirst() const;

    kvm_dirty_gfn* entries_;
    ByteCount bytes_;
    // The entry that KVM fills next, or has filled first. KVM does not say
    // where it is, which matters if the ring was read before this object read
    // it: unknown until there is a dirty entry.
    std::optional<size_t> next_;
  };

  // The RAM pages of the slot that the ring calls `number`.
  struct Numbered {
    uint32_t number;
    PageRun ram;
  };

  KvmRingSource(KvmSlots slots, std::vector<Ring> rings,
                std::function<absl::Status()> kick, PageBitmap pending);

  // All REQUIRE mutex_ to be held.
  absl::Status CheckUse(PageBitmapView bitmap) const;
  // Moves the entries of `rings` to pending_, or nowhere if tracking is off,
  // and makes KVM protect their pages. OK does not say that tracking is whole.
  absl::Status HarvestAndReset(absl::Span<Ring> rings);
  void Record(uint32_t slot, uint64_t page);
  // Returns OK when all that was harvested is KVM's again, protected or, after
  // an interruption, not: then broken_ says so.
  absl::Status ResetRings();

  const std::function<absl::Status()> kick_;
  const std::vector<Numbered> numbered_;  // ascending

  mutable std::mutex mutex_;  // guards what follows
  KvmSlots slots_;
  std::vector<Ring> rings_;
  bool started_ = false;
  // Entries are harvested that KVM has not protected again: their pages must
  // stay in pending_.
  bool reset_owed_ = false;
  uint64_t harvested_ = 0;  // since the last reset
  // Not OK: tracking is not exact any more.
  absl::Status broken_;
  PageBitmap pending_;  // RAM pages that the next Collect reports
  uint64_t ring_fulls_ = 0;
};

}  // namespace postcopy

#endif  // DIRTYTRACK_KVM_RING_SOURCE_H_
