#include "dirtytrack/dirty_log_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/ram_layout.h"

namespace postcopy::dirty_log_internal {
namespace {

using dirty_log_layout::Header;
using dirty_log_layout::kInCallersMemory;
using dirty_log_layout::kMagic;
using dirty_log_layout::kSlotsOffset;
using dirty_log_layout::kStateOffset;
using dirty_log_layout::kVersion;
using dirty_log_layout::kWritersOffset;
using dirty_log_layout::SlotRecord;
using dirty_log_layout::State;
using dirty_log_layout::WriterRecord;

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

uint64_t RoundUpToPage(uint64_t bytes) {
  return (bytes + kPageSize - 1) / kPageSize * kPageSize;
}

// Where a slot's bitmaps lie: at offsets in the memory, or, if these are
// kInCallersMemory, at `words`.
struct Placement {
  DirtyLogSlot slot;
  uint64_t bitmap_offset[2];
  std::array<std::atomic<uint64_t>*, 2> words = {};
};

// The whole memory's geometry: a function of the slots alone.
struct Plan {
  std::vector<Placement> slots;  // ascending by id
  uint64_t total_bytes;
};

absl::Status CheckLogSlots(absl::Span<const DirtyLogSlot> sorted) {
  if (sorted.empty() || sorted.size() > kMaxSlots) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a dirty log has 1 to ", kMaxSlots, " slots, not ", sorted.size()));
  }
  const PageCount max_pages = PagesIn(kMaxRamBytes);
  for (size_t i = 0; i < sorted.size(); ++i) {
    const auto& [id, pages] = sorted[i];
    if (pages.empty() || pages > max_pages) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToString(id), " has ", ToString(pages),
                       "; a dirty log covers 1 to ", max_pages.value()));
    }
    if (i > 0 && sorted[i - 1].id == id) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToString(id), " is listed twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCallerBitmaps(absl::Span<const DirtyLogSlot> slots,
                                absl::Span<const CallerBitmaps> bitmaps) {
  for (size_t i = 0; i < bitmaps.size(); ++i) {
    const CallerBitmaps& given = bitmaps[i];
    const auto same = [&](const auto& other) {
      return other.slot == given.slot;
    };
    const std::string name = ToString(given.slot);
    if (std::none_of(slots.begin(), slots.end(), [&](const DirtyLogSlot& slot) {
          return slot.id == given.slot;
        })) {
      return absl::InvalidArgumentError(
          absl::StrCat("bitmaps are given for ", name,
                       ", which is not among the slots of the dirty log"));
    }
    if (std::any_of(bitmaps.begin(), bitmaps.begin() + i, same)) {
      return absl::InvalidArgumentError(
          absl::StrCat("bitmaps are given twice for ", name));
    }
    const auto [a, b] = given.words;
    if (a == nullptr || b == nullptr || a == b) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the dirty log of ", name, " takes two bitmaps that are not one"));
    }
  }
  return absl::OkStatus();
}

// Lays out one slot whose bitmaps begin at `at`, if they are ours.
Placement Place(const DirtyLogSlot& slot, uint64_t* at,
                absl::Span<const CallerBitmaps> bitmaps) {
  for (const CallerBitmaps& given : bitmaps) {
    if (given.slot != slot.id) continue;
    return {slot, {kInCallersMemory, kInCallersMemory}, given.words};
  }
  const uint64_t bytes =
      RoundUpToPage(PageBitmapView::ByteSize(slot.pages).value());
  const Placement placement{slot, {*at, *at + bytes}};
  *at += 2 * bytes;
  return placement;
}

absl::StatusOr<Plan> MakePlan(absl::Span<const DirtyLogSlot> slots,
                              absl::Span<const CallerBitmaps> bitmaps) {
  std::vector<DirtyLogSlot> sorted(slots.begin(), slots.end());
  std::sort(
      sorted.begin(), sorted.end(),
      [](const DirtyLogSlot& a, const DirtyLogSlot& b) { return a.id < b.id; });
  if (absl::Status s = CheckLogSlots(sorted); !s.ok()) return s;
  absl::Status status = CheckCallerBitmaps(sorted, bitmaps);
  if (!status.ok()) return status;
  // No overflow: kMaxSlots * 2 * (kMaxRamBytes / kPageSize / 8) is 2^39.
  Plan plan;
  uint64_t at =
      RoundUpToPage(kSlotsOffset + sorted.size() * sizeof(SlotRecord));
  for (const DirtyLogSlot& slot : sorted) {
    plan.slots.push_back(Place(slot, &at, bitmaps));
  }
  plan.total_bytes = at;
  return plan;
}

Header HeaderFor(const Plan& plan) {
  return {.magic = kMagic,
          .version = kVersion,
          .writer_count = kMaxDirtyLogWriters,
          .slot_count = static_cast<uint32_t>(plan.slots.size()),
          .reserved = 0,
          .writers_offset = kWritersOffset,
          .slots_offset = kSlotsOffset,
          .total_bytes = plan.total_bytes};
}

// Fills a new log's records in; zero is right for all that is not set here.
void Format(const Plan& plan, uint8_t* data) {
  auto* records = reinterpret_cast<SlotRecord*>(data + kSlotsOffset);
  for (size_t i = 0; i < plan.slots.size(); ++i) {
    const Placement& placement = plan.slots[i];
    records[i].address_space = placement.slot.id.address_space;
    records[i].slot = placement.slot.id.slot;
    records[i].pages = placement.slot.pages.value();
    records[i].bitmap_offset[0] = placement.bitmap_offset[0];
    records[i].bitmap_offset[1] = placement.bitmap_offset[1];
  }
  const Header header = HeaderFor(plan);
  std::memcpy(data, &header, sizeof(header));
}

std::shared_ptr<const Memory> MemoryFor(const Plan& plan, int fd,
                                        SharedMapping mapping) {
  uint8_t* data = mapping.data();
  auto* records = reinterpret_cast<SlotRecord*>(data + kSlotsOffset);
  const auto view = [&](const Placement& placement, int i) {
    std::atomic<uint64_t>* words = placement.words[i];
    if (words == nullptr) {
      words = reinterpret_cast<std::atomic<uint64_t>*>(
          data + placement.bitmap_offset[i]);
    }
    return PageBitmapView(words, placement.slot.pages);
  };
  auto memory = std::make_shared<Memory>();
  memory->state = reinterpret_cast<State*>(data + kStateOffset);
  memory->writers = reinterpret_cast<WriterRecord*>(data + kWritersOffset);
  for (size_t i = 0; i < plan.slots.size(); ++i) {
    const Placement& placement = plan.slots[i];
    memory->slots.push_back(
        {placement.slot,
         &records[i],
         {view(placement, 0), view(placement, 1)},
         {placement.bitmap_offset[0], placement.bitmap_offset[1]}});
  }
  memory->mapping = std::move(mapping);
  // Without locks writers work all the same; only their death goes unnoticed.
  if (auto locks = LivenessLocks::Open(fd); locks.ok()) {
    memory->locks = *std::move(locks);
  }
  memory->pid = ::getpid();
  return memory;
}

absl::Status Mismatch(absl::string_view what, uint64_t found,
                      uint64_t expected) {
  return absl::FailedPreconditionError(absl::StrCat(
      "the memory passed as dirty log has ", what, " ", found, ", expected ",
      expected, "; who made it has to use the same layout and slots"));
}

absl::Status CheckHeader(const Header& found, const Header& expected) {
  if (found.magic != expected.magic) {
    return absl::FailedPreconditionError(
        "the memory passed as dirty log is not one: it does not begin with "
        "\"DIRTYLOG\"");
  }
  struct Field {
    const char* name;
    uint64_t found;
    uint64_t expected;
  };
  const Field fields[] = {
      {"version", found.version, expected.version},
      {"writer count", found.writer_count, expected.writer_count},
      {"slot count", found.slot_count, expected.slot_count},
      {"reserved field", found.reserved, expected.reserved},
      {"writers offset", found.writers_offset, expected.writers_offset},
      {"slots offset", found.slots_offset, expected.slots_offset},
      {"total size", found.total_bytes, expected.total_bytes},
  };
  for (const Field& field : fields) {
    if (field.found != field.expected) {
      return Mismatch(field.name, field.found, field.expected);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSlotRecord(const SlotRecord& found,
                             const Placement& expected) {
  const SlotId id{found.address_space, found.slot};
  if (id != expected.slot.id) {
    return absl::FailedPreconditionError(
        absl::StrCat("the memory passed as dirty log holds ", ToString(id),
                     " where ", ToString(expected.slot.id),
                     " is expected; who made it has to use the same slots"));
  }
  const std::string name = ToString(id);
  if (found.pages != expected.slot.pages.value()) {
    return Mismatch(absl::StrCat("for ", name, " a page count of"), found.pages,
                    expected.slot.pages.value());
  }
  if (found.bitmap_offset[0] == kInCallersMemory) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the bitmaps of ", name,
        " are in the memory of the process that made "
        "the dirty log; to share them it has to make the log without "
        "bitmaps of its own"));
  }
  for (int i = 0; i < 2; ++i) {
    if (found.bitmap_offset[i] != expected.bitmap_offset[i]) {
      return Mismatch(absl::StrCat("for ", name, " bitmap ", i, " at offset"),
                      found.bitmap_offset[i], expected.bitmap_offset[i]);
    }
  }
  return absl::OkStatus();
}

// Checks that the memory says what `plan` says. It is only compared with, so
// that nothing depends on it staying as it is.
absl::Status CheckMemory(const Plan& plan, const SharedMapping& mapping) {
  Header header;
  std::memcpy(&header, mapping.data(), sizeof(header));
  absl::Status status = CheckHeader(header, HeaderFor(plan));
  const auto* records =
      reinterpret_cast<const SlotRecord*>(mapping.data() + kSlotsOffset);
  for (size_t i = 0; status.ok() && i < plan.slots.size(); ++i) {
    status = CheckSlotRecord(records[i], plan.slots[i]);
  }
  return status;
}

absl::Status CheckDescriptor(int fd, const Plan& plan) {
  absl::Status status = RequireSeals(fd, F_SEAL_SHRINK, "the dirty log");
  if (!status.ok()) return status;
  // Huge pages can run out at an access, which is SIGBUS, seal or no seal.
  struct statfs info;
  if (::fstatfs(fd, &info) != 0 || info.f_type == HUGETLBFS_MAGIC) {
    return absl::FailedPreconditionError(
        "the memfd of the dirty log is in huge pages; create it without "
        "MFD_HUGETLB");
  }
  absl::StatusOr<ByteCount> size = FileSize(fd);
  if (!size.ok()) return size.status();
  if (size->value() != plan.total_bytes) {
    return Mismatch("a memfd of bytes:", size->value(), plan.total_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

size_t Memory::Find(SlotId id) const {
  const auto found = std::lower_bound(
      slots.begin(), slots.end(), id,
      [](const SlotMemory& a, SlotId b) { return a.slot.id < b; });
  if (found == slots.end() || found->slot.id != id) return slots.size();
  return static_cast<size_t>(found - slots.begin());
}

uint64_t LockOffset(size_t i) {
  return kWritersOffset + i * sizeof(WriterRecord);
}

absl::StatusOr<OpenMemory> CreateMemory(
    absl::Span<const DirtyLogSlot> slots,
    absl::Span<const CallerBitmaps> bitmaps) {
  absl::StatusOr<Plan> plan = MakePlan(slots, bitmaps);
  if (!plan.ok()) return plan.status();
  const ByteCount bytes(plan->total_bytes);
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("postcopy-dirty-log", bytes, kSeals);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(
      fd->get(), ByteCount(0), bytes, SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  Format(*plan, mapping->data());
  auto memory = MemoryFor(*plan, fd->get(), *std::move(mapping));
  return OpenMemory{*std::move(fd), std::move(memory)};
}

absl::StatusOr<OpenMemory> OpenMemoryOf(
    UniqueFd fd, absl::Span<const DirtyLogSlot> expected) {
  absl::StatusOr<Plan> plan = MakePlan(expected, {});
  if (!plan.ok()) return plan.status();
  absl::Status status = CheckDescriptor(fd.get(), *plan);
  if (!status.ok()) return status;
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(fd.get(), ByteCount(0), ByteCount(plan->total_bytes),
                         SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  if (absl::Status s = CheckMemory(*plan, *mapping); !s.ok()) return s;
  auto memory = MemoryFor(*plan, fd.get(), *std::move(mapping));
  return OpenMemory{std::move(fd), std::move(memory)};
}

}  // namespace postcopy::dirty_log_internal
