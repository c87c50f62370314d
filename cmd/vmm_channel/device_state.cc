#include "cmd/vmm_channel/device_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/types.h"

namespace postcopy {
namespace {

uint32_t Checksum(absl::string_view bytes) {
  return Crc32c(absl::MakeConstSpan(
      reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
}

absl::Status WriteAll(int fd, absl::string_view bytes) {
  off_t offset = 0;
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("writing the device state: ", std::strerror(errno)));
    }
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += written;
  }
  return absl::OkStatus();
}

absl::Status TooLarge(uint64_t length, size_t bytes_max) {
  return absl::InvalidArgumentError(absl::StrCat("the device state has ",
                                                 length, " bytes; at most ",
                                                 bytes_max, " are allowed"));
}

absl::Status CutOff(uint64_t is, uint64_t claimed) {
  return absl::DataLossError(absl::StrCat("the device state's memfd has ", is,
                                          " bytes, not the ", claimed,
                                          " it is said to have"));
}

// Reads exactly `length` bytes.
absl::StatusOr<std::string> ReadAll(int fd, size_t length) {
  std::string bytes(length, '\0');
  size_t done = 0;
  while (done < length) {
    const ssize_t got = ::pread(fd, bytes.data() + done, length - done,
                                static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("reading the device state: ", std::strerror(errno)));
    }
    if (got == 0) return CutOff(done, length);
    done += static_cast<size_t>(got);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<DeviceStateFile> WriteDeviceState(absl::string_view state,
                                                 size_t bytes_max) {
  if (state.size() > bytes_max) return TooLarge(state.size(), bytes_max);
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("device-state", ByteCount(state.size()), /*seals=*/0);
  if (!fd.ok()) return fd.status();
  if (absl::Status status = WriteAll(fd->get(), state); !status.ok()) {
    return status;
  }
  constexpr int kSeals =
      F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
  if (::fcntl(fd->get(), F_ADD_SEALS, kSeals) != 0) {
    return absl::InternalError(
        absl::StrCat("sealing the device state: ", std::strerror(errno)));
  }
  return DeviceStateFile{*std::move(fd), {state.size(), Checksum(state)}};
}

absl::StatusOr<std::string> ReadDeviceState(int fd,
                                            const DeviceStateClaim& claim,
                                            size_t bytes_max) {
  if (claim.length_bytes > bytes_max) {
    return TooLarge(claim.length_bytes, bytes_max);
  }
  // Only memory files answer this; reading anything else could block.
  if (::fcntl(fd, F_GET_SEALS) < 0) {
    return absl::InvalidArgumentError(
        "the device state's descriptor is no memfd; put the state in one");
  }
  absl::StatusOr<ByteCount> size = FileSize(fd);
  if (!size.ok()) return size.status();
  if (size->value() < claim.length_bytes) {
    return CutOff(size->value(), claim.length_bytes);
  }
  absl::StatusOr<std::string> state = ReadAll(fd, claim.length_bytes);
  if (!state.ok()) return state.status();
  if (const uint32_t crc = Checksum(*state); crc != claim.crc32c) {
    return absl::DataLossError(absl::StrCat(
        "the device state's CRC-32C is 0x", absl::Hex(crc, absl::kZeroPad8),
        ", not 0x", absl::Hex(claim.crc32c, absl::kZeroPad8),
        " as it is said to be"));
  }
  return state;
}

}  // namespace postcopy
