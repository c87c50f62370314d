#include "cmd/vmm_channel/device_state.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cmd/vmm_channel/test_support.h"

namespace postcopy {
namespace {

using absl::StatusCode;

TEST(DeviceStateTest, ComesBackAsItWas) {
  for (const std::string& state :
       {std::string(), std::string("x"), std::string(1 << 20, '\0'),
        std::string(123457, 'y')}) {
    absl::StatusOr<DeviceStateFile> file = WriteDeviceState(state);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->claim.length_bytes, state.size());
    absl::StatusOr<std::string> read =
        ReadDeviceState(file->fd.get(), file->claim);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == state);
  }
}

TEST(DeviceStateTest, IsSealed) {
  absl::StatusOr<DeviceStateFile> file = WriteDeviceState("state");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(::fcntl(file->fd.get(), F_GET_SEALS),
            F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
}

TEST(DeviceStateTest, HasALimit) {
  EXPECT_TRUE(WriteDeviceState("1234", 4).ok());
  EXPECT_TRUE(Is(WriteDeviceState("12345", 4).status(),
                 StatusCode::kInvalidArgument, "5 bytes; at most 4"));
  absl::StatusOr<DeviceStateFile> file = WriteDeviceState("12345");
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(ReadDeviceState(file->fd.get(), file->claim, 5).ok());
  EXPECT_TRUE(Is(ReadDeviceState(file->fd.get(), file->claim, 4).status(),
                 StatusCode::kInvalidArgument, "5 bytes; at most 4"));
}

TEST(DeviceStateTest, LimitIs64MiB) {
  static_assert(kMaxDeviceStateBytes == 64 << 20);
  std::string state(kMaxDeviceStateBytes, 'x');
  absl::StatusOr<DeviceStateFile> file = WriteDeviceState(state);
  ASSERT_TRUE(file.ok()) << file.status();
  absl::StatusOr<std::string> read =
      ReadDeviceState(file->fd.get(), file->claim);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(*read == state);
  state += 'x';
  EXPECT_TRUE(Is(WriteDeviceState(state).status(), StatusCode::kInvalidArgument,
                 "at most 67108864"));
  file->claim.length_bytes = UINT64_MAX;
  EXPECT_TRUE(Is(ReadDeviceState(file->fd.get(), file->claim).status(),
                 StatusCode::kInvalidArgument, "at most 67108864"));
}

TEST(DeviceStateTest, DamageIsSeen) {
  absl::StatusOr<DeviceStateFile> file = WriteDeviceState("state");
  ASSERT_TRUE(file.ok());
  DeviceStateClaim claim = file->claim;
  claim.crc32c ^= 1;
  EXPECT_TRUE(Is(ReadDeviceState(file->fd.get(), claim).status(),
                 StatusCode::kDataLoss, "CRC-32C"));
  claim = file->claim;
  ++claim.length_bytes;
  EXPECT_TRUE(Is(ReadDeviceState(file->fd.get(), claim).status(),
                 StatusCode::kDataLoss, "has 5 bytes, not the 6"));
}

TEST(DeviceStateTest, OnlyMemfdsAreRead) {
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const UniqueFd in(pipe[0]), out(pipe[1]);
  EXPECT_TRUE(Is(ReadDeviceState(in.get(), {1, 0}).status(),
                 StatusCode::kInvalidArgument, "is no memfd"));
  const UniqueFd write_only = Memfd(kPageSize);
  const UniqueFd reopened(::open(
      ("/proc/self/fd/" + std::to_string(write_only.get())).c_str(), O_WRONLY));
  EXPECT_TRUE(Is(ReadDeviceState(reopened.get(), {1, 0}).status(),
                 StatusCode::kInvalidArgument, "reading the device state"));
}

}  // namespace
}  // namespace postcopy
