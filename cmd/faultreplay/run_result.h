// What one replay against one backend has shown.
#ifndef CMD_FAULTREPLAY_RUN_RESULT_H_
#define CMD_FAULTREPLAY_RUN_RESULT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cmd/faultreplay/samples.h"

namespace postcopy {

// One stage of the faults, as the destination daemon measured it.
struct StageTime {
  std::string name;
  uint64_t count = 0;
  uint64_t p50_us = 0;
  uint64_t p99_us = 0;
  uint64_t total_us = 0;
};

// How many pages were there at some time since the replay began.
struct ResidencyPoint {
  int64_t time_ns = 0;
  uint64_t pages = 0;
};

// What a backend knows of itself when all touches are done. 0: not known.
struct BackendReport {
  std::vector<StageTime> stages;
  // CPU time of what answers: daemons, server, handler thread; not of who
  // touches.
  int64_t cpu_ns = 0;
  // Pages that came, for whatever reason.
  uint64_t pages_moved = 0;
  // Private memory (RssAnon) of the daemons with no VM, and what was added.
  uint64_t rss_base_bytes = 0;
  uint64_t rss_added_bytes = 0;
  // From the order to migrate until all was over, and from the moment in which
  // the guest stopped at the source until it ran at the destination.
  int64_t migration_ns = 0;
  int64_t downtime_ns = 0;
  // What a reader must know of how it was measured; empty: nothing.
  std::string note;
};

struct RunResult {
  // Touches of the trace; those that were the first of their page and thread;
  // of these, those whose page was not there.
  uint64_t touches = 0;
  uint64_t first_touches = 0;
  uint64_t pages_total = 0;
  // Of those whose page was not there, by start.
  std::vector<Wait> waits;
  // Pages that were there when they were first touched.
  uint64_t avoided = 0;
  // Pages that had come when the last touch was done, but were never touched.
  uint64_t unused = 0;
  // Every page is looked at: when it is touched, and once more in the end.
  uint64_t checked = 0;
  uint64_t wrong = 0;
  // The lowest wrong page; only if there are any.
  uint64_t first_wrong = 0;
  // From the first touch until the last was done, and until every page of RAM
  // was there.
  int64_t duration_ns = 0;
  int64_t whole_ns = 0;
  std::vector<ResidencyPoint> residency;
  BackendReport backend;
};

// All repeats of one backend.
struct BackendRuns {
  std::string name;
  std::vector<RunResult> runs;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_RUN_RESULT_H_
