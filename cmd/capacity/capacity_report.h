// What the simulator prints.
#ifndef CMD_CAPACITY_CAPACITY_REPORT_H_
#define CMD_CAPACITY_CAPACITY_REPORT_H_

#include <string>

#include "cmd/capacity/scenario.h"
#include "cmd/capacity/simulation.h"

namespace postcopy::capacity {

// One line for each figure.
std::string OutcomeTable(const Scenario& scenario, const Outcome& outcome);
// The same as one JSON object in one line.
std::string OutcomeJson(const Scenario& scenario, const Outcome& outcome);

}  // namespace postcopy::capacity

#endif  // CMD_CAPACITY_CAPACITY_REPORT_H_
