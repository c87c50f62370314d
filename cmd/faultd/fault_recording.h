// The trace of one VM's faults while it is recorded.
#ifndef CMD_FAULTD_FAULT_RECORDING_H_
#define CMD_FAULTD_FAULT_RECORDING_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/faultd/trace_window.h"
#include "cmd/log/log.h"
#include "cmd/trace/trace.h"
#include "cmd/trace/trace_file.h"
#include "uffd/fault_records.h"

namespace postcopy {

// Takes the rows of one FaultRecords and writes them. Its thread is the only
// one that takes them, and that writes the file.
class FaultRecording {
 public:
  struct Parts {
    TraceFile file;
    // For people.
    std::string path;
    TraceWindow window;
    std::shared_ptr<FaultRecorder::Totals> totals;
    Log* log = nullptr;
  };

  explicit FaultRecording(Parts parts) : parts_(std::move(parts)) {}
  // Takes what is left, writes it, and says in the log what there is.
  ~FaultRecording();

  // Starts the thread. Call once. RESOURCE_EXHAUSTED if there is none.
  absl::Status Start();

  FaultRecords& records() { return records_; }

 private:
  void Run();
  // Takes all rows that are there, and writes what waits no longer; or `all`.
  void Drain(bool all);
  void WriteReady(int64_t now_ns, bool all);
  void Append(absl::Span<const TraceEvent> events);
  // The file takes no more; the VM's faults are only counted.
  void CutShort(const absl::Status& why);
  uint64_t Dropped() const;
  // Brings the totals up to date.
  void Count();

  FaultRecords records_;
  // Of the thread.
  Parts parts_;
  uint64_t written_ = 0;
  uint64_t unwritten_ = 0;  // events that the file has no room for
  uint64_t counted_written_ = 0;
  uint64_t counted_dropped_ = 0;
  bool cut_short_ = false;
  int64_t wrote_ns_ = 0;

  std::mutex mutex_;
  std::condition_variable ending_;
  bool ends_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_FAULTD_FAULT_RECORDING_H_
