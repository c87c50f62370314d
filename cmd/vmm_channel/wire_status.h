// Statuses and texts that another process has sent.
#ifndef CMD_VMM_CHANNEL_WIRE_STATUS_H_
#define CMD_VMM_CHANNEL_WIRE_STATUS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace postcopy {

// `text` made fit to be shown, logged and sent on: at most 1024 bytes, what is
// not printable ASCII replaced by '?'.
std::string Printable(absl::string_view text);

// The status with canonical code `code` and the printable `message`; UNKNOWN
// if there is no such code.
absl::Status StatusFromWire(uint32_t code, absl::string_view message);

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_WIRE_STATUS_H_
