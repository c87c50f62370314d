#include "cmd/faultreplay/qemu/guest_image.h"

#include <cstring>
#include <vector>

#include "cmd/faultreplay/qemu/guest_layout.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

constexpr size_t kTouches = 3;
constexpr uint64_t kResults = QEMU_GUEST_PLAN + kPageSize;

class GuestImageTest : public ::testing::Test {
 protected:
  // In words, so that it is aligned to them.
  uint8_t* own() { return reinterpret_cast<uint8_t*>(words_.data()); }
  uint64_t& WordAt(uint64_t address) { return words_[address / 8]; }

  std::vector<uint64_t> words_ =
      std::vector<uint64_t>(GuestOwnBytes(kTouches).value() / 8);
};

TEST(GuestFirmwareTest, TheResetVectorJumpsToItsLastPage) {
  const std::vector<uint8_t> firmware = GuestFirmware();
  ASSERT_EQ(firmware.size(), 0x10000u);
  const uint8_t* const vector = firmware.data() + 0xfff0;
  // A near jump: its target is relative to what follows.
  ASSERT_EQ(vector[0], 0xe9);
  int16_t distance;
  std::memcpy(&distance, vector + 1, sizeof(distance));
  EXPECT_EQ(static_cast<uint16_t>(0xfff3 + distance), 0xf000);
}

TEST(GuestOwnBytesTest, GrowsWithTheTouches) {
  EXPECT_EQ(GuestOwnBytes(1), ByteCount(2 << 20));
  // A plan of 4 and results of 16 bytes for each, behind the first MiB.
  EXPECT_EQ(GuestOwnBytes(kGuestTouchesMax), ByteCount(22 << 20));
  EXPECT_DEATH(GuestOwnBytes(kGuestTouchesMax + 1), "");
}

TEST_F(GuestImageTest, ThePlanIsWhatTheGuestReads) {
  const std::vector<Touch> touches = {
      {.page = PageIndex(5)},
      {.page = PageIndex(0), .write = true},
      {.page = PageIndex((uint64_t{3} << 18) - 1), .write = true}};
  InstallGuest(touches, own());
  EXPECT_EQ(WordAt(QEMU_GUEST_PARAMS + QEMU_GUEST_TOUCHES), kTouches);
  EXPECT_EQ(WordAt(QEMU_GUEST_PARAMS + QEMU_GUEST_RAM_ADDRESS), 2u << 20);
  EXPECT_EQ(WordAt(QEMU_GUEST_PARAMS + QEMU_GUEST_RESULTS_ADDRESS), kResults);
  uint32_t plan[kTouches];
  std::memcpy(plan, own() + QEMU_GUEST_PLAN, sizeof(plan));
  EXPECT_EQ(plan[0], 5u);
  EXPECT_EQ(plan[1], 0x8000'0000u);
  EXPECT_EQ(plan[2], 0x800b'ffffu);
}

TEST_F(GuestImageTest, EveryAddressIsItself) {
  InstallGuest({}, own());
  for (const uint64_t address :
       {uint64_t{0}, uint64_t{3} << 20, (uint64_t{3} << 30) + 12345,
        (uint64_t{4} << 30) - 1}) {
    uint64_t entry = WordAt(QEMU_GUEST_TABLES + (address >> 39) % 512 * 8);
    entry = WordAt((entry & ~0xfffu) + (address >> 30) % 512 * 8);
    entry = WordAt((entry & ~0xfffu) + (address >> 21) % 512 * 8);
    EXPECT_EQ(entry & ~uint64_t{0xfff}, address >> 21 << 21);
    EXPECT_EQ(entry & 0x87, 0x87u) << "large, user, writable, present";
  }
}

TEST_F(GuestImageTest, ReadyIsWhatTheGuestSays) {
  InstallGuest({}, own());
  EXPECT_FALSE(GuestIsReady(own()));
  WordAt(QEMU_GUEST_PARAMS + QEMU_GUEST_READY) = 1;
  EXPECT_TRUE(GuestIsReady(own()));
}

TEST_F(GuestImageTest, ResultsAreSinceTheBegin) {
  InstallGuest(std::vector<Touch>(kTouches), own());
  WordAt(QEMU_GUEST_PARAMS + QEMU_GUEST_BEGIN) = 1'000'000;
  WordAt(QEMU_GUEST_PARAMS + QEMU_GUEST_DONE) = kTouches;
  for (uint64_t i = 0; i < kTouches; ++i) {
    WordAt(kResults + i * QEMU_GUEST_RESULT_BYTES) = 1'000'000 + i * 100;
    WordAt(kResults + i * QEMU_GUEST_RESULT_BYTES + 8) = 7 + i;
  }
  WordAt(kResults + 2 * QEMU_GUEST_RESULT_BYTES + 8) |= uint64_t{1}
                                                        << QEMU_GUEST_WRONG_BIT;
  const auto results = ReadGuestResults(kTouches, own());
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(results->size(), kTouches);
  EXPECT_EQ((*results)[1].start_ticks, 100u);
  EXPECT_EQ((*results)[1].ticks, 8u);
  EXPECT_FALSE((*results)[1].wrong);
  EXPECT_EQ((*results)[2].ticks, 9u);
  EXPECT_TRUE((*results)[2].wrong);
}

TEST_F(GuestImageTest, AGuestThatEndedEarlyIsAnError) {
  WordAt(QEMU_GUEST_PARAMS + QEMU_GUEST_DONE) = kTouches - 1;
  const auto results = ReadGuestResults(kTouches, own());
  EXPECT_EQ(results.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(results.status().message()),
              HasSubstr("2 of 3 touches"));
}

}  // namespace
}  // namespace postcopy
