#include "cmd/demovm/guest_ram.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <sys/mman.h>
#include <unistd.h>

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

bool IsHuge(RamKind kind) {
  return kind == RamKind::kHuge || kind == RamKind::kHugePrivate;
}

bool IsPrivate(RamKind kind) {
  return kind == RamKind::kPrivate || kind == RamKind::kHugePrivate;
}

// Of 2 MiB, whatever is the host's default.
constexpr int kHugePageShift = 21;
constexpr unsigned kMemfdHuge = MFD_HUGETLB | kHugePageShift << MFD_HUGE_SHIFT;
constexpr int kMapHuge = MAP_HUGETLB | kHugePageShift << MAP_HUGE_SHIFT;

absl::StatusOr<UniqueFd> NewMemory(absl::string_view name, ByteCount length,
                                   RamKind kind) {
  if (IsPrivate(kind)) return UniqueFd();
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  if (kind == RamKind::kShared) return CreateMemfd(name, length, kSeals);
  UniqueFd memfd(::memfd_create(std::string(name).c_str(),
                                MFD_CLOEXEC | MFD_ALLOW_SEALING | kMemfdHuge));
  if (!memfd.valid() ||
      ::ftruncate(memfd.get(), static_cast<off_t>(length.value())) != 0 ||
      ::fcntl(memfd.get(), F_ADD_SEALS, kSeals) != 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot make ", name, " of huge pages"));
  }
  return memfd;
}

int MapFlags(RamKind kind) {
  const int shared = IsPrivate(kind) ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  // Huge pages are reserved: without, a touch could be SIGBUS.
  return shared | (kind == RamKind::kHugePrivate ? kMapHuge : 0) |
         (IsHuge(kind) ? 0 : MAP_NORESERVE);
}

}  // namespace

std::optional<RamKind> ParseRamKind(absl::string_view name) {
  if (name == "shared") return RamKind::kShared;
  if (name == "private") return RamKind::kPrivate;
  if (name == "huge") return RamKind::kHuge;
  if (name == "huge-private") return RamKind::kHugePrivate;
  return std::nullopt;
}

absl::StatusOr<GuestRam> GuestRam::Create(ByteCount bytes, ByteCount low_max,
                                          RamKind kind) {
  if (!IsSizeUpTo(bytes, kGuestRamMax) || !IsSizeUpTo(low_max, kLowRamMax)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "guest RAM of ", ToString(bytes),
        ": give a multiple of 2MiB, from 2MiB to ", ToString(kGuestRamMax)));
  }
  const ByteCount low = std::min(bytes, low_max);
  const ByteCount high = bytes - low;
  const size_t span =
      kLargePageBytes +
      (high.empty() ? low.value() : kHighRamStart + high.value());
  // Reserve first, so that both blocks lie as the guest sees them.
  void* base = mmap(nullptr, span, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot reserve ", span,
                            " bytes of address space for guest RAM"));
  }
  GuestRam ram(static_cast<uint8_t*>(base), span, bytes);
  if (auto status = ram.AddBlock("ram-low", RamOffset(0), low, 0, kind);
      !status.ok()) {
    return status;
  }
  if (!high.empty()) {
    if (auto status = ram.AddBlock("ram-high", RamOffset(0) + low, high,
                                   kHighRamStart, kind);
        !status.ok()) {
      return status;
    }
  }
  return ram;
}

absl::Status GuestRam::AddBlock(absl::string_view name, RamOffset start,
                                ByteCount length, uint64_t guest_physical,
                                RamKind kind) {
  absl::StatusOr<UniqueFd> memfd = NewMemory(name, length, kind);
  if (!memfd.ok()) return memfd.status();
  void* host =
      mmap(base_ + guest_physical, length.value(), PROT_READ | PROT_WRITE,
           MapFlags(kind) | MAP_FIXED, memfd->get(), 0);
  if (host == MAP_FAILED && IsHuge(kind)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", name,
                     " of huge pages; raise vm.nr_hugepages on this host"));
  }
  if (host == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", name));
  }
  const ByteCount page_size(IsHuge(kind) ? kLargePageBytes : kPageSize);
  const SlotId id{.address_space = 0,
                  .slot = static_cast<uint16_t>(blocks_.size())};
  blocks_.push_back({.region = {.name = std::string(name),
                                .start = start,
                                .length = length,
                                .page_size = page_size},
                     .slot = {.id = id,
                              .guest_physical_address = guest_physical,
                              .start = start,
                              .length = length},
                     .memfd = *std::move(memfd),
                     .host = static_cast<uint8_t*>(host)});
  return absl::OkStatus();
}

GuestRam::GuestRam(uint8_t* reserved, size_t span, ByteCount bytes)
    : reserved_(reserved), span_(span), bytes_(bytes) {
  const uint64_t into = reinterpret_cast<uintptr_t>(reserved) % kLargePageBytes;
  base_ = into == 0 ? reserved : reserved + (kLargePageBytes - into);
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : reserved_(std::exchange(other.reserved_, nullptr)),
      span_(std::exchange(other.span_, 0)),
      base_(std::exchange(other.base_, nullptr)),
      bytes_(std::exchange(other.bytes_, ByteCount(0))),
      blocks_(std::exchange(other.blocks_, {})) {}

GuestRam& GuestRam::operator=(GuestRam&& other) noexcept {
  if (this == &other) return *this;
  Unmap();
  reserved_ = std::exchange(other.reserved_, nullptr);
  span_ = std::exchange(other.span_, 0);
  base_ = std::exchange(other.base_, nullptr);
  bytes_ = std::exchange(other.bytes_, ByteCount(0));
  blocks_ = std::exchange(other.blocks_, {});
  return *this;
}

GuestRam::~GuestRam() { Unmap(); }

void GuestRam::Unmap() {
  if (reserved_ != nullptr) munmap(reserved_, span_);
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
