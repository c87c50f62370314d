// Traces of the faults of faultd's VMs, as files.
#ifndef CMD_FAULTD_FAULT_RECORDER_H_
#define CMD_FAULTD_FAULT_RECORDER_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/log/log.h"
#include "cmd/metrics/metric_families.h"
#include "cmd/trace/trace_file.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/fault_records.h"

namespace postcopy {

class FaultRecording;

// Events of one trace unless something else is asked for: some 25 MiB.
inline constexpr size_t kDefaultTraceEvents = 1 << 20;
// Traces in a directory, whoever wrote them: beyond it no VM is recorded.
inline constexpr size_t kTraceFilesMax = 256;
// VMs that are recorded at a time, those included that have gone and whose
// traces a slow disk has not taken yet: as many as a daemon has.
inline constexpr size_t kRecordingsMax = 512;
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
// daemon's user only, and no name that exists is written to. Thread-safe; only
// threads of its own, one for each VM, wait for the disk.
class FaultRecorder {
 public:
  struct Options {
    std::string directory;
    // Of one trace, 1 to kTraceEventsMax.
    size_t events_max = kDefaultTraceEvents;
    // At a time. Lower than the default only in tests.
    size_t recordings_max = kRecordingsMax;
    // Outlives all recordings. May be null.
    Log* log = nullptr;
  };

  // NOT_FOUND, PERMISSION_DENIED, INTERNAL if files cannot be made there.
  static absl::StatusOr<std::unique_ptr<FaultRecorder>> Create(Options options);

  // Ends all recordings.
  ~FaultRecorder() { Shutdown(); }

  // Begins a recording, which ends when the last reference is gone: what is
  // left is written then, and nobody waits for that. The file is made when
  // there is a fault, or `wanted`, which may be null, is true: a VM that is
  // turned away leaves none. Null, and the log says why, if there is no thread,
  // the VM is too large or recordings_max are under way; if it is the file that
  // cannot be made the log says so later. Such a VM goes on without.
  std::shared_ptr<FaultRecords> Record(
      const std::string& vm_name, PageCount pages,
      std::shared_ptr<const std::atomic<bool>> wanted = nullptr);

  // Ends all recordings, also of VMs that are still there, and returns when
  // their traces are written. Nothing is recorded from then on. Idempotent.
  void Shutdown();

  // Adds what was counted since the beginning. Any thread.
  void AddMetrics(MetricFamilies& families) const;

  // Of all recordings. Each is right at its own moment.
  struct Totals {
    std::atomic<uint64_t> recordings{0};  // begun, or tried
    std::atomic<uint64_t> failures{0};    // of these: not begun, or cut short
    std::atomic<uint64_t> events{0};      // written
    std::atomic<uint64_t> dropped{0};     // for which there was no room
  };
  const Totals& totals() const { return totals_; }

 private:
  struct Running {
    std::shared_ptr<FaultRecording> recording;
    std::thread thread;
  };

  FaultRecorder(Options options, UniqueFd directory)
      : options_(std::move(options)), directory_(std::move(directory)) {}

  absl::StatusOr<std::shared_ptr<FaultRecording>> Begin(
      const std::string& vm_name, PageCount pages,
      std::shared_ptr<const std::atomic<bool>> wanted);
  absl::Status StartLocked(const std::shared_ptr<FaultRecording>& recording);
  // By the thread of a recording, as its last act.
  void Ended(uint64_t id);
  // Waits for threads that have ended.
  void JoinEnded();

  // By the threads of recordings: makes a file with a trace without events.
  absl::StatusOr<std::pair<TraceFile, std::string>> Open(
      const std::string& vm_name, PageCount pages);
  // A new file, and its name.
  absl::StatusOr<std::pair<UniqueFd, std::string>> NewFile(
      const std::string& vm_name) const;
  absl::Status CheckRoom() const;

  const Options options_;
  const UniqueFd directory_;
  Totals totals_;

  // Held while a file is made, so that two do not both take the last place.
  std::mutex open_mutex_;

  std::mutex mutex_;
  std::condition_variable none_running_;
  // Guarded by mutex_.
  std::map<uint64_t, Running> running_;
  std::vector<std::thread> ended_;  // of which nothing is left but to join them
  uint64_t next_id_ = 0;
  bool closed_ = false;
};

}  // namespace postcopy

#endif  // CMD_FAULTD_FAULT_RECORDER_H_
