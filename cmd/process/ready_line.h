// What a daemon says when it is ready.
#ifndef CMD_PROCESS_READY_LINE_H_
#define CMD_PROCESS_READY_LINE_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace postcopy {

// The string under `key` in a JSON object, as the daemons write them when they
// are ready.
absl::StatusOr<std::string> StringInJson(const std::string& json,
                                         absl::string_view key);

}  // namespace postcopy

#endif  // CMD_PROCESS_READY_LINE_H_
