// A guest of /dev/kvm that writes its RAM for ever, and the proof that a
// source of dirty pages tells of all of it. Test-only.
#ifndef DIRTYTRACK_KVM_TEST_GUEST_H_
#define DIRTYTRACK_KVM_TEST_GUEST_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dirtytrack/dirty_source.h"
#include "dirtytrack/kvm_slots.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

struct kvm_run;   // NOLINT(readability-identifier-naming): the kernel's
struct kvm_regs;  // NOLINT(readability-identifier-naming): the kernel's

namespace postcopy {

// Writes 64-bit values that never repeat to random words of random pages, one
// in 64 of them anywhere and the rest within a window of `window_pages` that
// moves on, so that there are clean pages. In user mode, which every KVM runs
// natively, and with no interrupts, stack or data.
//
//   slot 0:0  RAM pages [0, N / 2 + 17)
//   slot 0:1  RAM pages [N / 2 + 17, N)
//   slot 0:2  RAM pages [N / 4 + 5, N / 2 + 5) once more
//   slot 0:3  the program and its page tables; none of RAM, and never logged
//
// so no slot but the first begins or ends at a multiple of 64 pages of RAM or
// is that long. The guest sees "views": view v < N is RAM page v through the
// first or second slot; the views behind are those of slot 0:2 in order.
//
// One thread controls it.
class KvmTestGuest {
 public:
  struct Options {
    int vcpus = 2;
    uint64_t pages = 2048;
    uint64_t window_pages = 48;
    // The window moves by a page after so many writes; a power of two.
    uint64_t writes_per_move = 1024;
    // Not 0: enables dirty rings of this size.
    ByteCount ring_bytes;
  };

  // UNIMPLEMENTED, with the reason, where KVM or what this guest needs of it is
  // missing: the test is to be skipped.
  static absl::StatusOr<std::unique_ptr<KvmTestGuest>> Create(Options options);
  ~KvmTestGuest();

  const RamLayout& layout() const { return layout_; }
  const std::vector<KvmSlot>& slots() const { return slots_; }
  int vm() const { return vm_.get(); }
  std::vector<int> vcpus() const;
  uint8_t* ram() const { return ram_; }
  PageCount pages() const { return layout_.pages(); }
  uint64_t views() const {
    return pages().value() + slots_[2].slot.pages().count.value();
  }
  // The view that shows `page` through slot 0:2. REQUIRES: it does.
  uint64_t SecondViewOf(PageIndex page) const;

  // Called in a vCPU's thread (or Write's) when its ring is full.
  // REQUIRES: paused. The guest begins paused.
  void set_on_ring_full(std::function<absl::Status(size_t vcpu)> on_ring_full) {
    on_ring_full_ = std::move(on_ring_full);
  }

  // Lets the vCPUs write.
  void Resume();
  // Returns when no vCPU runs; with the error if one could not go on.
  absl::Status Pause();
  // Returns when each vCPU has left guest mode once. From any thread.
  absl::Status Kick();

  // Makes vCPU 0 write `value` to the first word of `count` views.
  // REQUIRES: paused.
  absl::Status Write(uint64_t view, uint64_t value, uint64_t count = 1);

  // Writes of all vCPUs so far. REQUIRES: paused.
  uint64_t writes() const;

 private:
  struct Vcpu;

  explicit KvmTestGuest(Options options);
  absl::Status Init();
  absl::Status AddMemory();
  absl::Status AddSlot(const KvmSlot& slot);
  void InstallTables();
  absl::Status AddVcpu(int kvm, int index);
  void Run(Vcpu& vcpu);
  // Handles one exit; true if it is the one that ends Write's program.
  absl::StatusOr<bool> RunOnce(Vcpu& vcpu);

  uint64_t tables() const { return (views() + 2 + 511) / 512; }
  uint64_t directories() const { return (tables() + 511) / 512; }
  uint64_t code_address() const;

  const Options options_;
  RamLayout layout_;
  std::vector<KvmSlot> slots_;
  UniqueFd vm_;
  uint8_t* ram_ = nullptr;
  uint8_t* boot_ = nullptr;
  size_t boot_bytes_ = 0;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::function<absl::Status(size_t)> on_ring_full_;

  std::mutex mutex_;  // guards what follows, and parts of Vcpu
  std::condition_variable changed_;
  bool paused_ = true;
  bool quit_ = false;
  uint64_t kicks_ = 0;
  absl::Status status_;
};

// What a destination would have: a copy of RAM, kept up to date by nothing but
// what a source says.
class ShadowRam {
 public:
  // REQUIRES: both outlive it.
  ShadowRam(const KvmTestGuest& guest, DirtySource& source);

  // Collect, and for each part of RAM, of at most `part_pages`: Clear, then
  // copy the pages that were reported. Returns how many were.
  absl::StatusOr<PageCount> Round(uint64_t part_pages);

  // The two steps of Round.
  absl::Status Collect();
  absl::Status Clear(PageRun run);
  void Copy(PageRun run);
  PageRun all() const { return {PageIndex(0), guest_.pages()}; }
  // What was reported and not copied.
  PageBitmapView reported() const { return reported_.view(); }

  // How many pages differ from the guest's. REQUIRES: the guest is paused.
  size_t Differences() const;

 private:
  const KvmTestGuest& guest_;
  DirtySource& source_;
  PageBitmap reported_;
  std::vector<uint8_t> bytes_;
};

// Lets `guest` write and a ShadowRam make `rounds` rounds against it, at a pace
// that leaves clean and dirty pages; every hundredth time, and in the end, the
// guest is paused and the shadow compared. DATA_LOSS if it differs;
// FAILED_PRECONDITION if the guest wrote so little that nothing is proved, or
// if the source reports pages of a guest that stands still, as one that reports
// all of them for ever would. REQUIRES: paused, and the source is started.
// Leaves the guest paused.
struct Proof {
  uint64_t copied_pages;
  uint64_t collects;
  uint64_t writes;
};
absl::StatusOr<Proof> ProveAllIsTold(KvmTestGuest& guest, DirtySource& source,
                                     int rounds);

}  // namespace postcopy

#endif  // DIRTYTRACK_KVM_TEST_GUEST_H_
