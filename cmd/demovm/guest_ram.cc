#include "cmd/demovm/guest_ram.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"

namespace postcopy::demovm {
namespace {

// The guest's page tables map nothing smaller.
constexpr uint64_t kLargePageBytes = uint64_t{2} << 20;

bool IsSizeUpTo(ByteCount bytes, ByteCount max) {
  return !bytes.empty() && bytes.value() % kLargePageBytes == 0 && bytes <= max;
}

}  // namespace

absl::StatusOr<GuestRam> GuestRam::Create(ByteCount bytes, ByteCount low_max) {
  if (!IsSizeUpTo(bytes, kGuestRamMax) || !IsSizeUpTo(low_max, kLowRamMax)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "guest RAM of ", ToString(bytes),
        ": give a multiple of 2MiB, from 2MiB to ", ToString(kGuestRamMax)));
  }
  const ByteCount low = std::min(bytes, low_max);
  const ByteCount high = bytes - low;
  const size_t span = high.empty() ? low.value() : kHighRamStart + high.value();
  // Reserve first, so that both blocks lie as the guest sees them.
  void* base = mmap(nullptr, span, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot reserve ", span,
                            " bytes of address space for guest RAM"));
  }
  GuestRam ram(static_cast<uint8_t*>(base), span, bytes);
  if (auto status = ram.AddBlock("ram-low", RamOffset(0), low, 0);
      !status.ok()) {
    return status;
  }
  if (!high.empty()) {
    if (auto status =
            ram.AddBlock("ram-high", RamOffset(0) + low, high, kHighRamStart);
        !status.ok()) {
      return status;
    }
  }
  return ram;
}

absl::Status GuestRam::AddBlock(absl::string_view name, RamOffset start,
                                ByteCount length, uint64_t guest_physical) {
  absl::StatusOr<UniqueFd> memfd =
      CreateMemfd(name, length, F_SEAL_SHRINK | F_SEAL_GROW);
  if (!memfd.ok()) return memfd.status();
  void* host =
      mmap(base_ + guest_physical, length.value(), PROT_READ | PROT_WRITE,
           MAP_SHARED | MAP_NORESERVE | MAP_FIXED, memfd->get(), 0);
  if (host == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", name));
  }
  const SlotId id{.address_space = 0,
                  .slot = static_cast<uint16_t>(blocks_.size())};
  blocks_.push_back(
      {.region = {.name = std::string(name), .start = start, .length = length},
       .slot = {.id = id,
                .guest_physical_address = guest_physical,
                .start = start,
                .length = length},
       .memfd = *std::move(memfd),
       .host = static_cast<uint8_t*>(host)});
  return absl::OkStatus();
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      span_(std::exchange(other.span_, 0)),
      bytes_(std::exchange(other.bytes_, ByteCount(0))),
      blocks_(std::exchange(other.blocks_, {})) {}

GuestRam& GuestRam::operator=(GuestRam&& other) noexcept {
  if (this == &other) return *this;
  Unmap();
  base_ = std::exchange(other.base_, nullptr);
  span_ = std::exchange(other.span_, 0);
  bytes_ = std::exchange(other.bytes_, ByteCount(0));
  blocks_ = std::exchange(other.blocks_, {});
  return *this;
}

GuestRam::~GuestRam() { Unmap(); }

void GuestRam::Unmap() {
  if (base_ != nullptr) munmap(base_, span_);
}

std::vector<Region> GuestRam::regions() const {
  std::vector<Region> regions;
  for (const RamBlock& block : blocks_) regions.push_back(block.region);
  return regions;
}

std::vector<Slot> GuestRam::slots() const {
  std::vector<Slot> slots;
  for (const RamBlock& block : blocks_) slots.push_back(block.slot);
  return slots;
}

uint8_t* GuestRam::PageAddress(PageIndex page) const {
  for (const RamBlock& block : blocks_) {
    if (block.slot.pages().Contains(page)) {
      return block.host + (OffsetOf(page) - block.region.start).value();
    }
  }
  POSTCOPY_CHECK(false && "page beyond the guest's RAM");
  return nullptr;
}

}  // namespace postcopy::demovm
