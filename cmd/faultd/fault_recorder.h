// Traces of the faults of faultd's VMs, as files.
#ifndef CMD_FAULTD_FAULT_RECORDER_H_
#define CMD_FAULTD_FAULT_RECORDER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/fault_records.h"

namespace postcopy {

// Events of one trace unless something else is asked for: some 25 MiB.
inline constexpr size_t kDefaultTraceEvents = 1 << 20;
// Traces in a directory, whoever wrote them: beyond it no VM is recorded.
inline constexpr size_t kTraceFilesMax = 256;
// Bytes of a VM's name that are kept in the name of its file.
inline constexpr size_t kTraceNameBytesMax = 64;
// How often the rows of a VM are taken, and how often, unless there are many,
// some are written.
inline constexpr int64_t kTraceDrainNanos = 10 * kNanosPerMilli;
inline constexpr int64_t kTraceWriteNanos = kNanosPerSecond;

// INVALID_ARGUMENT unless 1 <= events <= kTraceEventsMax.
absl::Status CheckTraceEvents(size_t events);

// The name of a trace's file up to its time: letters, digits, "_", "-" and "."
// of `vm_name`, all else as "_"; never empty, never beginning with ".".
std::string TraceStem(const std::string& vm_name);

// Records each VM into a file of its own in one directory. The file is a whole
// trace whenever it is looked at (cmd/trace/trace_file.h), readable by the
// daemon's user only, and no name that exists is written to. Thread-safe.
class FaultRecorder {
 public:
  struct Options {
    std::string directory;
    // Of one trace, 1 to kTraceEventsMax.
    size_t events_max = kDefaultTraceEvents;
    // Outlives all recordings. May be null.
    Log* log = nullptr;
  };

  // NOT_FOUND, PERMISSION_DENIED, INTERNAL if files cannot be made there.
  static absl::StatusOr<std::unique_ptr<FaultRecorder>> Create(Options options);

  // Begins a recording, which ends when the last reference is gone: that writes
  // what is left. A thread of its own does so. Null, and the log says why, if
  // there is no room for a file, or no thread, or the VM is too large: such a
  // VM goes on without. May outlive this.
  std::shared_ptr<FaultRecords> Record(const std::string& vm_name,
                                       PageCount pages);

  // Adds what was counted since the beginning. Any thread.
  void AddMetrics(MetricFamilies& families) const;

  // Of all recordings. Each is right at its own moment.
  struct Totals {
    std::atomic<uint64_t> recordings{0};  // begun, or tried
    std::atomic<uint64_t> failures{0};    // of these: not begun, or cut short
    std::atomic<uint64_t> events{0};      // written
    std::atomic<uint64_t> dropped{0};     // for which there was no room
  };
  const Totals& totals() const { return *totals_; }

 private:
  FaultRecorder(Options options, UniqueFd directory)
      : options_(std::move(options)), directory_(std::move(directory)) {}

  absl::StatusOr<std::shared_ptr<FaultRecords>> Begin(
      const std::string& vm_name, PageCount pages);
  // A new file, and its path for people.
  absl::StatusOr<std::pair<UniqueFd, std::string>> NewFile(
      const std::string& vm_name) const;
  absl::Status CheckRoom() const;

  const Options options_;
  const UniqueFd directory_;
  const std::shared_ptr<Totals> totals_ = std::make_shared<Totals>();
};

}  // namespace postcopy

#endif  // CMD_FAULTD_FAULT_RECORDER_H_
