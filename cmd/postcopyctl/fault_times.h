// Where the time of a destination's faults went, as it is printed.
#ifndef CMD_POSTCOPYCTL_FAULT_TIMES_H_
#define CMD_POSTCOPYCTL_FAULT_TIMES_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "cmd/postcopyctl/json_writer.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// Threads that a table shows: those that waited longest. JSON has all.
inline constexpr size_t kThreadsShown = 8;

// "name", "value" for a table: a row for each stage, the time for which anybody
// waited, and a row for each of kThreadsShown threads. Empty if nobody waited.
std::vector<std::pair<std::string, std::string>> FaultTimesRows(
    const v1::FaultTimes& times);

// {"reading":{"count":...,"p50":...,"p90":...,"p99":...,"max":...,
// "total":...},...}, in microseconds. Stages of unknown kind are left out.
JsonObject FaultStagesJson(const v1::FaultTimes& times);
// {"thread_id":...,"faults":...,"wait_us":...,"wait_max_us":...}
JsonObject FaultingThreadJson(const v1::FaultingThread& thread);
std::vector<JsonObject> FaultingThreadsJson(const v1::FaultTimes& times);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_FAULT_TIMES_H_
