// A faultd that records one program.
#ifndef CMD_FAULTREPLAY_RECORDING_FAULTD_H_
#define CMD_FAULTREPLAY_RECORDING_FAULTD_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/process/child_process.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Memory of the program, and where its content lies in the snapshot.
struct RecordedRegion {
  HostAddress address;
  ByteCount length;
  uint64_t offset = 0;
};

// A faultd as a process, with a thread of its own, whose child it is: the other
// children of this process are somebody else's to wait for.
class RecordingFaultd {
 public:
  struct Options {
    std::string program;
    // Holds "snapshot"; what is made there is the caller's to remove.
    std::string directory;
    size_t events_max = 0;
    // After so long on_deadline is called, once.
    absl::Duration deadline;
    // Both by the thread; on_death when faultd has ended without being told.
    std::function<void()> on_deadline;
    std::function<void()> on_death;
  };

  // It serves when this returns.
  static absl::StatusOr<std::unique_ptr<RecordingFaultd>> Start(
      Options options);
  ~RecordingFaultd() { End().IgnoreError(); }

  // Hands it `regions`, which are registered with `userfaultfd`, as Firecracker
  // does. If it does not take them, they stay missing.
  absl::Status Attach(int userfaultfd,
                      const std::vector<RecordedRegion>& regions);

  // The program has ended, and so does faultd: its trace is whole. The error
  // has the end of its log. Idempotent.
  absl::Status End();
  // The trace's path. REQUIRES: End has returned OK.
  absl::StatusOr<std::string> TracePath() const;

 private:
  explicit RecordingFaultd(Options options) : options_(std::move(options)) {}

  void Run();
  absl::StatusOr<ChildProcess> StartProcess();
  // Until it is to end, or has ended.
  absl::Status Watch(ChildProcess& process);
  std::string In(const std::string& name) const {
    return options_.directory + "/" + name;
  }

  const Options options_;
  UniqueFd connection_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool decided_ = false;  // it serves, or has failed
  bool ends_ = false;
  absl::Status status_;
  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_RECORDING_FAULTD_H_
