// Every fault of a VM, as it is read and as it ends, for somebody who writes
// them down.
#ifndef UFFD_FAULT_RECORDS_H_
#define UFFD_FAULT_RECORDS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "dirtytrack/types.h"
#include "uffd/post_box.h"

namespace postcopy {

// Rows that wait to be taken. At 100,000 faults per second, two rows each, they
// are full after 80 ms.
inline constexpr size_t kFaultRecordsMax = 16384;

// How a page was touched.
enum class FaultKind : uint8_t { kRead, kWrite, kMinor, kWriteProtect };

// What has happened to one fault. 56 bytes.
struct FaultRecord {
  // The first of its huge page, where there are such.
  PageIndex page;
  // When its message was read, by the VM's clock; with `page` it is the name of
  // the fault, which several threads may share.
  int64_t read_ns = 0;
  // By FaultStage; what is not known yet is 0. Only that of reading unless
  // `ended`.
  std::array<uint64_t, 4> stages_ns = {};
  // Of a fault that has not ended: the thread (0: not known), and how.
  uint32_t thread = 0;
  FaultKind kind = FaultKind::kRead;
  // The row of a fault of which a row without this came before.
  bool ended = false;

  friend bool operator==(const FaultRecord&, const FaultRecord&) = default;
};

// A queue of fixed size, 1 MiB, no allocation. Add() by any thread, without a
// lock and without waiting for anybody; Take() by one thread at a time. What
// there is no room for is counted and gone: faults are never held up.
//
// Faults come in the order in which they were read. One that a source answers
// has a second row when its page is in place; others, those that were answered
// here or given up, have one only.
class FaultRecords {
 public:
  FaultRecords() = default;
  FaultRecords(const FaultRecords&) = delete;
  FaultRecords& operator=(const FaultRecords&) = delete;

  void Add(const FaultRecord& record) {
    if (rows_.Post(record)) return;
    (record.ended ? lost_ends_ : lost_).fetch_add(1, std::memory_order_relaxed);
  }

  // The next row; nullopt if there is none yet.
  std::optional<FaultRecord> Take() { return rows_.Take(); }

  // Faults, and ends of faults, for which there was no room. Any thread.
  uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }
  uint64_t lost_ends() const {
    return lost_ends_.load(std::memory_order_relaxed);
  }

 private:
  PostBox<FaultRecord, kFaultRecordsMax> rows_;
  std::atomic<uint64_t> lost_{0};
  std::atomic<uint64_t> lost_ends_{0};
};

}  // namespace postcopy

#endif  // UFFD_FAULT_RECORDS_H_
