#include "cmd/faultreplay/qemu/guest_image.h"

#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cmd/faultreplay/qemu/guest_layout.h"
#include "dirtytrack/check.h"

extern "C" const uint8_t qemu_guest_rom[];
extern "C" const uint8_t qemu_guest_code[];
extern "C" const uint8_t qemu_guest_code_end[];

namespace postcopy {
namespace {

constexpr uint64_t kLargePageBytes = uint64_t{2} << 20;
constexpr uint64_t kEntriesPerTable = kPageSize / sizeof(uint64_t);

// Page-table entries (Intel SDM 3A, 4.5): present, writable, user, and already
// accessed (and dirty, where it is a leaf), so that no walk writes them.
constexpr uint64_t kTableEntry = 0x27;
constexpr uint64_t kLeafEntry = 0xe7;

// Segment descriptors (SDM 3A, 3.4.5) of all memory: accessed, for level 0 and
// for level 3.
constexpr uint64_t kCode32 = 0x00cf'9b00'0000'ffff;
constexpr uint64_t kData = 0x00cf'9300'0000'ffff;
constexpr uint64_t kCode64 = 0x00af'9b00'0000'ffff;
constexpr uint64_t kUserData = 0x00cf'f300'0000'ffff;
constexpr uint64_t kUserCode64 = 0x00af'fb00'0000'ffff;
// A free 64-bit task state of one page; the upper half of its address is 0.
constexpr uint64_t kTaskState =
    0x0000'8900'0000'0fff | uint64_t{QEMU_GUEST_TASK_STATE} << 16;
constexpr uint64_t kLevelBits = 3;
constexpr uint16_t kDescriptorsLimit = QEMU_GUEST_TASK + 16 - 1;

// A task state's bitmap of ports (SDM 3A, 8.7) may follow it at once: a 0 for
// each that level 3 may use.
constexpr uint64_t kTaskBitmapOffsetAt = 102;
constexpr uint16_t kTaskBitmapOffset = 104;

uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

uint64_t ResultsAddress(size_t touches) {
  return QEMU_GUEST_PLAN + RoundUp(touches * sizeof(uint32_t), kPageSize);
}

template <typename T>
void Put(uint8_t* own, uint64_t address, T value) {
  std::memcpy(own + address, &value, sizeof(value));
}

uint64_t Word(const uint8_t* own, uint64_t address) {
  uint64_t word;
  std::memcpy(&word, own + address, sizeof(word));
  return word;
}

// Every address below 4 GiB is itself, in large pages.
void InstallTables(uint8_t* own) {
  constexpr uint64_t kPointers = QEMU_GUEST_TABLES + kPageSize;
  Put(own, QEMU_GUEST_TABLES, kPointers | kTableEntry);
  for (uint64_t i = 0; i < QEMU_GUEST_DIRECTORY_COUNT; ++i) {
    Put(own, kPointers + i * sizeof(uint64_t),
        (QEMU_GUEST_DIRECTORIES + i * kPageSize) | kTableEntry);
  }
  // The directories lie one after another: one table of all large pages.
  for (uint64_t i = 0; i < QEMU_GUEST_DIRECTORY_COUNT * kEntriesPerTable; ++i) {
    Put(own, QEMU_GUEST_DIRECTORIES + i * sizeof(uint64_t),
        i * kLargePageBytes | kLeafEntry);
  }
}

void InstallSegments(uint8_t* own) {
  const auto put = [own](uint64_t selector, uint64_t descriptor) {
    Put(own, QEMU_GUEST_DESCRIPTORS + (selector & ~kLevelBits), descriptor);
  };
  put(QEMU_GUEST_CODE32, kCode32);
  put(QEMU_GUEST_DATA, kData);
  put(QEMU_GUEST_CODE64, kCode64);
  put(QEMU_GUEST_USER_DATA, kUserData);
  put(QEMU_GUEST_USER_CODE, kUserCode64);
  put(QEMU_GUEST_TASK, kTaskState);
  Put(own, QEMU_GUEST_DESCRIPTORS_POINTER, kDescriptorsLimit);
  Put(own, QEMU_GUEST_DESCRIPTORS_POINTER + sizeof(kDescriptorsLimit),
      uint32_t{QEMU_GUEST_DESCRIPTORS});
  Put(own, QEMU_GUEST_TASK_STATE + kTaskBitmapOffsetAt, kTaskBitmapOffset);
}

}  // namespace

ByteCount GuestOwnBytes(size_t touches) {
  POSTCOPY_CHECK(touches <= kGuestTouchesMax);
  return ByteCount(
      RoundUp(ResultsAddress(touches) + touches * QEMU_GUEST_RESULT_BYTES,
              kLargePageBytes));
}

std::vector<uint8_t> GuestFirmware() {
  std::vector<uint8_t> firmware(QEMU_GUEST_ROM_BYTES);
  std::memcpy(firmware.data() + firmware.size() - kPageSize, qemu_guest_rom,
              kPageSize);
  return firmware;
}

void InstallGuest(absl::Span<const Touch> touches, uint8_t* own) {
  InstallTables(own);
  InstallSegments(own);
  const auto code_bytes =
      static_cast<size_t>(qemu_guest_code_end - qemu_guest_code);
  POSTCOPY_CHECK(code_bytes <= QEMU_GUEST_STACK_END - QEMU_GUEST_CODE);
  std::memcpy(own + QEMU_GUEST_CODE, qemu_guest_code, code_bytes);
  Put(own, QEMU_GUEST_PARAMS + QEMU_GUEST_TOUCHES, uint64_t{touches.size()});
  Put(own, QEMU_GUEST_PARAMS + QEMU_GUEST_RAM_ADDRESS,
      GuestOwnBytes(touches.size()).value());
  Put(own, QEMU_GUEST_PARAMS + QEMU_GUEST_RESULTS_ADDRESS,
      ResultsAddress(touches.size()));
  for (size_t i = 0; i < touches.size(); ++i) {
    const uint32_t write = touches[i].write ? 1u << QEMU_GUEST_WRITE_BIT : 0;
    Put(own, QEMU_GUEST_PLAN + i * sizeof(uint32_t),
        static_cast<uint32_t>(touches[i].page.value()) | write);
  }
}

bool GuestIsReady(const uint8_t* own) {
  // The guest, another thread, writes it.
  return __atomic_load_n(reinterpret_cast<const uint64_t*>(
                             own + QEMU_GUEST_PARAMS + QEMU_GUEST_READY),
                         __ATOMIC_ACQUIRE) != 0;
}

absl::StatusOr<std::vector<GuestTouch>> ReadGuestResults(size_t touches,
                                                         const uint8_t* own) {
  const uint64_t done = Word(own, QEMU_GUEST_PARAMS + QEMU_GUEST_DONE);
  if (done != touches) {
    return absl::InternalError(absl::StrCat("the guest ended after ", done,
                                            " of ", touches, " touches"));
  }
  const uint64_t begin = Word(own, QEMU_GUEST_PARAMS + QEMU_GUEST_BEGIN);
  std::vector<GuestTouch> results(touches);
  for (size_t i = 0; i < touches; ++i) {
    const uint64_t at = ResultsAddress(touches) + i * QEMU_GUEST_RESULT_BYTES;
    const uint64_t ticks = Word(own, at + sizeof(uint64_t));
    constexpr uint64_t kWrong = uint64_t{1} << QEMU_GUEST_WRONG_BIT;
    results[i] = {.start_ticks = Word(own, at) - begin,
                  .ticks = ticks & ~kWrong,
                  .wrong = (ticks & kWrong) != 0};
  }
  return results;
}

}  // namespace postcopy
