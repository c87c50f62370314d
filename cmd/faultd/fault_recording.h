// The trace of one VM's faults while it is recorded.
#ifndef CMD_FAULTD_FAULT_RECORDING_H_
#define CMD_FAULTD_FAULT_RECORDING_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/faultd/trace_window.h"
#include "cmd/log/log.h"
#include "cmd/trace/trace.h"
#include "cmd/trace/trace_file.h"
#include "uffd/fault_records.h"

namespace postcopy {

// Takes the rows of one FaultRecords and writes them. All of it but records()
// and End() is of the thread that runs Run(): the only one that takes rows and
// that waits for the disk.
class FaultRecording {
 public:
  struct Opened {
    TraceFile file;
    // For people.
    std::string path;
  };
  struct Parts {
    std::string vm_name;
    // Makes the file, when there is something to write; called once.
    std::function<absl::StatusOr<Opened>()> open;
    // Whether there is to be one also if the VM has no fault; may be null.
    std::shared_ptr<const std::atomic<bool>> wanted;
    TraceWindow window;
    // Both outlive this; `log` may be null.
    FaultRecorder::Totals* totals = nullptr;
    Log* log = nullptr;
  };

  explicit FaultRecording(Parts parts) : parts_(std::move(parts)) {}

  // Until End(); then takes what is left, writes it, and says in the log what
  // there is. Call once.
  void Run();
  // Has Run() return. Does not wait for that. Idempotent, any thread.
  void End();

  FaultRecords& records() { return records_; }

 private:
  // Takes all rows that are there, and writes what waits no longer; or `all`.
  void Drain(bool all);
  void WriteReady(int64_t now_ns, bool all);
  // Makes the file, unless that has been tried.
  void Open();
  void Append(absl::Span<const TraceEvent> events);
  // The file takes no more; the VM's faults are only counted.
  void CutShort(const absl::Status& why);
  // Says in the file how many events it does not have.
  void SayDropped();
  void TellEnd() const;
  uint64_t Dropped() const;
  // Brings the totals up to date.
  void Count();

  FaultRecords records_;
  // Of the thread.
  Parts parts_;
  bool any_ = false;    // there was a fault
  bool tried_ = false;  // to open the file
  std::optional<Opened> opened_;
  uint64_t written_ = 0;
  uint64_t taken_back_ = 0;  // of these, so that the file's end fits
  uint64_t unwritten_ = 0;   // events that the file has no room for
  uint64_t counted_written_ = 0;
  uint64_t counted_dropped_ = 0;
  bool cut_short_ = false;
  int64_t wrote_ns_ = 0;

  std::mutex mutex_;
  std::condition_variable ending_;
  bool ends_ = false;  // guarded by mutex_
};

}  // namespace postcopy

#endif  // CMD_FAULTD_FAULT_RECORDING_H_
