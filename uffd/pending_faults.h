// Faulted pages that were asked for and are not installed yet.
#ifndef UFFD_PENDING_FAULTS_H_
#define UFFD_PENDING_FAULTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

#include "absl/types/span.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Faulted pages of one VM that wait for the source. Beyond it the kernel queues
// faults: a guest has one per vCPU, more only with asynchronous page faults and
// I/O threads.
inline constexpr size_t kMaxOutstandingFaults = 1024;

// A fixed table, 48 KiB, no allocation. Thread-safe; its lock is shared by the
// fault loop and the urgent lane's receiver, and held for one probe of a hash
// table, or for one copy in CopyTo().
class PendingFaults {
 public:
  enum class AddResult { kNew, kDuplicate, kFull };

  PendingFaults();

  // Adds `page`, first read at `now_ns`. kDuplicate leaves the earlier time,
  // and is remembered.
  // kFull: there are kMaxOutstandingFaults others.
  AddResult Add(PageIndex page, int64_t now_ns);

  // What was pending.
  struct Fault {
    int64_t first_read_ns = 0;
    // It was read again meanwhile.
    bool duplicated = false;

    friend bool operator==(const Fault&, const Fault&) = default;
  };
  // Removes `page`; nullopt if it is not there.
  std::optional<Fault> Take(PageIndex page);

  // How many pages can be added.
  size_t Room() const;
  size_t size() const { return kMaxOutstandingFaults - Room(); }

  // Copies the pages to `pages`, in no order; returns how many there are.
  // REQUIRES: pages.size() >= kMaxOutstandingFaults.
  size_t CopyTo(absl::Span<PageIndex> pages) const;

 private:
  // Twice the capacity, so that probes stay short; a power of two.
  static constexpr size_t kSlots = 2 * kMaxOutstandingFaults;

  struct Slot {
    bool used = false;
    PageIndex page;
    Fault fault;
  };

  static size_t HomeOf(PageIndex page);
  // The slot of `page`, or the free one where it would go.
  size_t Find(PageIndex page) const;
  // Frees `slot` and closes the gap in its chain.
  void Erase(size_t slot);

  mutable std::mutex mutex_;
  size_t size_ = 0;
  std::array<Slot, kSlots> slots_;
};

}  // namespace postcopy

#endif  // UFFD_PENDING_FAULTS_H_
