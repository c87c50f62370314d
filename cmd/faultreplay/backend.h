// What brings the pages of a replay.
#ifndef CMD_FAULTREPLAY_BACKEND_H_
#define CMD_FAULTREPLAY_BACKEND_H_

#include <cstdint>

#include "absl/status/status.h"
#include "cmd/faultreplay/run_result.h"
#include "dirtytrack/types.h"

namespace postcopy {

// One use: Start, then touches by several threads, then Report, then Finish.
class Backend {
 public:
  virtual ~Backend() = default;

  // When it returns, no page of RAM is there, but for what a migration has
  // brought before the guest began to run, and touches may begin.
  virtual absl::Status Start() = 0;

  // Whether a touch of `page` would not wait. Any thread.
  virtual bool IsHere(PageIndex page) = 0;

  // How many pages are there. One thread at a time.
  virtual PageCount CountHere() = 0;

  // No page comes any more but for touches: all are there, or what brought them
  // has ended. Cheap enough to be asked all the time. Any thread.
  virtual bool IsOver() = 0;

  // Reads a byte of `page`, and writes it back if `write`; waits until it is
  // there. Returns where its bytes are; null if they will not come. `thread` is
  // below the number of threads, and each has a number of its own.
  virtual const uint8_t* Touch(uint32_t thread, PageIndex page, bool write) = 0;

  // Ends all waits, now and later; what is missing reads as zeros. Any thread.
  virtual void GiveUp() = 0;

  // All touches of the trace are done.
  virtual absl::Status Report(BackendReport* report) = 0;

  // Every page has been touched. What still runs is ended, and what is known
  // only then is added to `report`; an error if something did not end as it
  // should.
  virtual absl::Status Finish(BackendReport* report) = 0;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_BACKEND_H_
