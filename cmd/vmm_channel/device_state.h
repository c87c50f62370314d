// Device state on its way between VMM and daemon: a memfd, a length, a
// checksum.
#ifndef CMD_VMM_CHANNEL_DEVICE_STATE_H_
#define CMD_VMM_CHANNEL_DEVICE_STATE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// The largest device state, in bytes.
inline constexpr size_t kMaxDeviceStateBytes = 64 * 1024 * 1024;

// What the wire says about a memfd full of device state.
struct DeviceStateClaim {
  uint64_t length_bytes = 0;
  uint32_t crc32c = 0;
};

// Device state in a memfd that nobody can change any more.
struct DeviceStateFile {
  UniqueFd fd;
  DeviceStateClaim claim;
};

// Puts `state` into a sealed memfd. INVALID_ARGUMENT if it is longer than
// `bytes_max`, else what the kernel says.
absl::StatusOr<DeviceStateFile> WriteDeviceState(
    absl::string_view state, size_t bytes_max = kMaxDeviceStateBytes);

// Reads what `claim` says is in `fd`, which comes from another process: it may
// be no memory file, be cut off or changed at any moment. INVALID_ARGUMENT for
// the first and for more than `bytes_max`; DATA_LOSS if bytes are missing or
// the checksum does not fit. Memory is taken only for bytes that are there.
absl::StatusOr<std::string> ReadDeviceState(
    int fd, const DeviceStateClaim& claim,
    size_t bytes_max = kMaxDeviceStateBytes);

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_DEVICE_STATE_H_
