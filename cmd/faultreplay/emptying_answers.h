// Answers for who touches memory while it is being taken away.
#ifndef CMD_FAULTREPLAY_EMPTYING_ANSWERS_H_
#define CMD_FAULTREPLAY_EMPTYING_ANSWERS_H_

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cmd/faultreplay/recording_faultd.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// While a thread of the program empties its memory, the kernel reads that on
// its behalf (where the thread keeps its restartable sequences), and tells of
// what is emptied, both to the userfaultfd. A thread that reads that gives
// pages back from the snapshot, so that none is ever zeros, and takes no note
// of what is emptied: to whoever reads after it, that is just missing.
class EmptyingAnswers {
 public:
  // Neither descriptor is owned; both outlive the object.
  static absl::StatusOr<std::unique_ptr<EmptyingAnswers>> Start(
      int userfaultfd, int snapshot, std::vector<RecordedRegion> regions);
  // Reads no more; what it has read has been answered.
  ~EmptyingAnswers();

 private:
  EmptyingAnswers(int userfaultfd, int snapshot,
                  std::vector<RecordedRegion> regions, UniqueFd end)
      : userfaultfd_(userfaultfd),
        snapshot_(snapshot),
        regions_(std::move(regions)),
        end_(std::move(end)) {}

  void Run();
  // Nothing to read is not an error.
  void ReadOne();
  void GiveBack(uint64_t page) const;

  const int userfaultfd_;
  const int snapshot_;
  const std::vector<RecordedRegion> regions_;
  const UniqueFd end_;  // eventfd
  std::thread thread_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_EMPTYING_ANSWERS_H_
