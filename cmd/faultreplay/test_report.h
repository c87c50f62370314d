// A report for tests, made by hand.
#ifndef CMD_FAULTREPLAY_TEST_REPORT_H_
#define CMD_FAULTREPLAY_TEST_REPORT_H_

#include <cstdint>
#include <string>

#include "cmd/faultreplay/report.h"

namespace postcopy {

// Waits of 1, 2, ... `waits` times `step_ns`, one behind the other.
inline RunResult RunOf(int waits, int64_t step_ns) {
  RunResult run;
  run.pages_total = run.checked = 1000;
  run.touches = run.first_touches = static_cast<uint64_t>(waits) + 7;
  run.avoided = 7;
  run.unused = 3;
  int64_t at_ns = 0;
  for (int i = 1; i <= waits; ++i) {
    run.waits.push_back({.start_ns = at_ns, .latency_ns = i * step_ns});
    at_ns += i * step_ns;
  }
  run.duration_ns = run.whole_ns = at_ns;
  run.residency = {{0, 0}, {at_ns / 2, 500}, {at_ns, 1000}};
  run.backend.cpu_ns = 1'000'000;
  run.backend.pages_moved = 262144;  // 1 GiB
  return run;
}

inline ReplayReport TestReport() {
  ReplayReport report = {.title = "A <test> & more",
                         .command = "faultreplay run",
                         .machine = "a machine",
                         .placement = "all of it on CPU 0",
                         .trace = "synth uniform",
                         .noise = {{12'300, 0.01}, {4'000, 0.02}}};
  report.backends.push_back(
      {.name = "local", .runs = {RunOf(100, 1000), RunOf(100, 3000)}});
  report.backends.push_back({.name = "service", .runs = {RunOf(100, 5000)}});
  report.backends[1].runs[0].backend.stages = {
      {.name = "reading", .count = 100, .p50_us = 1, .total_us = 100},
      {.name = "answering",
       .count = 100,
       .p50_us = 60,
       .p99_us = 90,
       .total_us = 6000}};
  return report;
}

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_TEST_REPORT_H_
