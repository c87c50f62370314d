#include "dirtytrack/dirty_log.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/ram_layout.h"

namespace postcopy {
namespace {

using dirty_log_internal::Memory;
using dirty_log_internal::SlotMemory;
using dirty_log_layout::Header;
using dirty_log_layout::kMagic;
using dirty_log_layout::kSlotsOffset;
using dirty_log_layout::kVersion;
using dirty_log_layout::kWritersOffset;
using dirty_log_layout::SlotRecord;
using dirty_log_layout::WriterRecord;

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

// How the reader waits for a writer: a section is normally over within the
// spins; the yields let a preempted writer go on; then it is worth sleeping.
constexpr int kGraceSpins = 1000;
constexpr int kGraceYields = 100;
constexpr int64_t kGraceSleepNanos = 50 * kNanosPerMicro;

// Words marked in one section, so that a large merge does not hold up a
// switch: some microseconds.
constexpr size_t kWordsPerSection = 1024;

uint64_t RoundUpToPage(uint64_t bytes) {
  return (bytes + kPageSize - 1) / kPageSize * kPageSize;
}

void PauseCpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where a slot's bitmaps lie.
struct Placement {
  DirtyLogSlot slot;
  uint64_t bitmap_offset[2];
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

absl::StatusOr<Plan> MakePlan(absl::Span<const DirtyLogSlot> slots) {
  std::vector<DirtyLogSlot> sorted(slots.begin(), slots.end());
  std::sort(
      sorted.begin(), sorted.end(),
      [](const DirtyLogSlot& a, const DirtyLogSlot& b) { return a.id < b.id; });
  if (absl::Status s = CheckLogSlots(sorted); !s.ok()) return s;
  // No overflow: kMaxSlots * 2 * (kMaxRamBytes / kPageSize / 8) is 2^39.
  Plan plan;
  uint64_t at =
      RoundUpToPage(kSlotsOffset + sorted.size() * sizeof(SlotRecord));
  for (const DirtyLogSlot& slot : sorted) {
    const uint64_t bytes =
        RoundUpToPage(PageBitmapView::ByteSize(slot.pages).value());
    plan.slots.push_back({slot, {at, at + bytes}});
    at += 2 * bytes;
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

std::shared_ptr<const Memory> MemoryFor(const Plan& plan,
                                        SharedMapping mapping) {
  uint8_t* data = mapping.data();
  auto* records = reinterpret_cast<SlotRecord*>(data + kSlotsOffset);
  const auto view = [&](uint64_t offset, PageCount pages) {
    return PageBitmapView(
        reinterpret_cast<std::atomic<uint64_t>*>(data + offset), pages);
  };
  Memory memory;
  memory.writers = reinterpret_cast<WriterRecord*>(data + kWritersOffset);
  for (size_t i = 0; i < plan.slots.size(); ++i) {
    const auto& [slot, offset] = plan.slots[i];
    memory.slots.push_back(
        {slot,
         &records[i],
         {view(offset[0], slot.pages), view(offset[1], slot.pages)}});
  }
  memory.mapping = std::move(mapping);
  return std::make_shared<const Memory>(std::move(memory));
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

absl::Status CheckDescriptor(int fd, uint64_t expected_bytes) {
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
  if (size->value() != expected_bytes) {
    return Mismatch("a memfd of bytes:", size->value(), expected_bytes);
  }
  return absl::OkStatus();
}

absl::Status StuckWriter(size_t index, const WriterRecord& record) {
  return absl::UnavailableError(absl::StrCat(
      "the dirty log cannot be switched: writer ", index, " (process ",
      record.owner_pid.load(std::memory_order_relaxed),
      " by its own count) has been marking pages for more than ",
      kGracePeriodMaxNanos / kNanosPerMilli,
      " ms without a pause; no dirty page is lost; see whether that process "
      "is stopped, then try again"));
}

}  // namespace

std::ostream& operator<<(std::ostream& out, SwitchResult result) {
  return out << (result == SwitchResult::kSwitched ? "kSwitched" : "kClean");
}

size_t Memory::Find(SlotId id) const {
  const auto found = std::lower_bound(
      slots.begin(), slots.end(), id,
      [](const SlotMemory& a, SlotId b) { return a.slot.id < b; });
  if (found == slots.end() || found->slot.id != id) return slots.size();
  return static_cast<size_t>(found - slots.begin());
}

// ---------------------------------------------------------------- the writer

DirtyLogWriter::DirtyLogWriter(std::shared_ptr<const Memory> memory,
                               WriterRecord* record)
    : memory_(std::move(memory)), record_(record) {
  // Even, whatever the record's last owner or a hostile one left there.
  sequence_ =
      (record_->sequence.load(std::memory_order_relaxed) + 1) & ~uint64_t{1};
  record_->sequence.store(sequence_, std::memory_order_seq_cst);
}

DirtyLogWriter& DirtyLogWriter::operator=(DirtyLogWriter&& other) noexcept {
  if (this != &other) {
    Release();
    memory_ = std::move(other.memory_);
    record_ = other.record_;
    sequence_ = other.sequence_;
    last_slot_ = other.last_slot_;
  }
  return *this;
}

void DirtyLogWriter::Release() {
  if (memory_ == nullptr) return;
  record_->owner_pid.store(0, std::memory_order_release);
  memory_.reset();
}

void DirtyLogWriter::Enter() {
  // This exchange and the reader's store to `active` are two halves of
  // Dekker's handshake: in the one order of all sequentially consistent
  // operations either this comes first, and the reader sees the odd number, or
  // the store does, and the next load of `active` sees it. It also keeps the
  // page's bytes, written before, ahead of the look at the page's bit: where
  // that bit is set already nothing else would.
  record_->sequence.exchange(++sequence_, std::memory_order_seq_cst);
}

void DirtyLogWriter::Leave() {
  record_->sequence.store(++sequence_, std::memory_order_release);
}

const SlotMemory* DirtyLogWriter::Find(SlotId id) {
  if (memory_->slots[last_slot_].slot.id != id) {
    const size_t i = memory_->Find(id);
    if (i == memory_->slots.size()) return nullptr;
    last_slot_ = i;
  }
  return &memory_->slots[last_slot_];
}

void DirtyLogWriter::Set(const SlotMemory& slot, size_t i, uint64_t bits) {
  const uint32_t active =
      slot.record->active.load(std::memory_order_seq_cst) & 1;
  slot.bitmaps[active].OrWord(i, bits);
  // Even if no bit changed: the writer that set it may not have come here yet.
  std::atomic<uint32_t>& dirty = slot.record->dirty[active];
  if (dirty.load(std::memory_order_relaxed) == 0) {
    dirty.store(1, std::memory_order_release);
  }
}

bool DirtyLogWriter::Mark(SlotId slot, PageIndex page) {
  const SlotMemory* memory = Find(slot);
  if (memory == nullptr || page.value() >= memory->slot.pages.value()) {
    return false;
  }
  constexpr uint64_t kPerWord = PageBitmapView::kPagesPerWord;
  Enter();
  Set(*memory, page.value() / kPerWord,
      uint64_t{1} << (page.value() % kPerWord));
  Leave();
  return true;
}

bool DirtyLogWriter::MarkRun(SlotId slot, PageRun run) {
  const SlotMemory* memory = Find(slot);
  if (memory == nullptr || run.first.value() > memory->slot.pages.value() ||
      run.count.value() > memory->slot.pages.value() - run.first.value()) {
    return false;
  }
  constexpr uint64_t kPagesPerSection =
      kWordsPerSection * PageBitmapView::kPagesPerWord;
  for (uint64_t page = run.first.value(); page < run.end().value();) {
    const uint64_t end = std::min(run.end().value(), page + kPagesPerSection);
    Enter();
    ForEachWord({PageIndex(page), PageCount(end - page)},
                [&](size_t i, uint64_t bits) { Set(*memory, i, bits); });
    Leave();
    page = end;
  }
  return true;
}

bool DirtyLogWriter::MergeWords(SlotId slot, size_t first_word,
                                absl::Span<const uint64_t> words) {
  const SlotMemory* memory = Find(slot);
  if (memory == nullptr) return false;
  const size_t word_count = PageBitmapView::WordCount(memory->slot.pages);
  if (first_word > word_count || words.size() > word_count - first_word) {
    return false;
  }
  for (size_t begin = 0; begin < words.size(); begin += kWordsPerSection) {
    const size_t end = std::min(words.size(), begin + kWordsPerSection);
    Enter();
    for (size_t i = begin; i < end; ++i) {
      if (words[i] != 0) Set(*memory, first_word + i, words[i]);
    }
    Leave();
  }
  return true;
}

// ------------------------------------------------------------------- the set

DirtyLogSet::DirtyLogSet(UniqueFd fd, std::shared_ptr<const Memory> memory,
                         bool settled, Clock* clock)
    : fd_(std::move(fd)),
      memory_(std::move(memory)),
      clock_(clock),
      reader_(memory_->slots.size()),
      settled_(settled) {
  for (size_t i = 0; i < reader_.size(); ++i) {
    const SlotMemory& slot = memory_->slots[i];
    slots_.push_back(slot.slot);
    reader_[i].active = slot.record->active.load(std::memory_order_seq_cst) & 1;
  }
}

absl::StatusOr<DirtyLogSet> DirtyLogSet::Create(
    absl::Span<const DirtyLogSlot> slots, Clock* clock) {
  absl::StatusOr<Plan> plan = MakePlan(slots);
  if (!plan.ok()) return plan.status();
  const ByteCount bytes(plan->total_bytes);
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("postcopy-dirty-log", bytes, kSeals);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(
      fd->get(), ByteCount(0), bytes, SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  Format(*plan, mapping->data());
  return DirtyLogSet(*std::move(fd), MemoryFor(*plan, *std::move(mapping)),
                     /*settled=*/true, clock);
}

absl::StatusOr<DirtyLogSet> DirtyLogSet::Open(
    UniqueFd fd, absl::Span<const DirtyLogSlot> expected, Clock* clock) {
  absl::StatusOr<Plan> plan = MakePlan(expected);
  if (!plan.ok()) return plan.status();
  absl::Status status = CheckDescriptor(fd.get(), plan->total_bytes);
  if (!status.ok()) return status;
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(fd.get(), ByteCount(0), ByteCount(plan->total_bytes),
                         SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  if (absl::Status s = CheckMemory(*plan, *mapping); !s.ok()) return s;
  return DirtyLogSet(std::move(fd), MemoryFor(*plan, *std::move(mapping)),
                     /*settled=*/false, clock);
}

absl::StatusOr<DirtyLogWriter> DirtyLogSet::NewWriter() const {
  const uint32_t pid = static_cast<uint32_t>(::getpid());
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    WriterRecord& record = memory_->writers[i];
    uint32_t free = 0;
    if (record.owner_pid.compare_exchange_strong(free, pid,
                                                 std::memory_order_acq_rel)) {
      return DirtyLogWriter(memory_, &record);
    }
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("all ", kMaxDirtyLogWriters,
                   " writers of the dirty log are taken; let fewer threads "
                   "mark pages"));
}

absl::StatusOr<size_t> DirtyLogSet::Find(SlotId slot) const {
  const size_t i = memory_->Find(slot);
  if (i < memory_->slots.size()) return i;
  return absl::NotFoundError(
      absl::StrCat("there is no dirty log for ", ToString(slot)));
}

absl::StatusOr<size_t> DirtyLogSet::FindSettled(SlotId slot) const {
  absl::StatusOr<size_t> i = Find(slot);
  if (i.ok() && (!settled_ || reader_[*i].pending)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the retired dirty log of ", ToString(slot), " may still be written ",
        "to; complete the switch first"));
  }
  return i;
}

bool DirtyLogSet::Flip(size_t i) {
  ReaderState& state = reader_[i];
  if (state.pending) return true;
  SlotRecord* record = memory_->slots[i].record;
  if (record->dirty[state.active].load(std::memory_order_acquire) == 0) {
    return false;
  }
  state.active ^= 1;
  state.pending = true;
  // See DirtyLogWriter::Enter. Also hands the drained bitmap to the writers.
  record->active.store(state.active, std::memory_order_seq_cst);
  return true;
}

absl::Status DirtyLogSet::AwaitWriters() const {
  // One deadline for all of them, and no look at the clock if none is inside.
  int64_t deadline = -1;
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    const WriterRecord& record = memory_->writers[i];
    const uint64_t entered = record.sequence.load(std::memory_order_seq_cst);
    if (entered % 2 == 0) continue;
    if (deadline < 0) deadline = clock_->NowNanos() + kGracePeriodMaxNanos;
    for (int tries = 0;
         record.sequence.load(std::memory_order_acquire) == entered; ++tries) {
      if (tries < kGraceSpins) {
        PauseCpu();
      } else if (tries < kGraceSpins + kGraceYields) {
        std::this_thread::yield();
      } else if (clock_->NowNanos() < deadline) {
        clock_->SleepFor(kGraceSleepNanos);
      } else {
        return StuckWriter(i, record);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status DirtyLogSet::SettleAdopted() {
  if (settled_) return absl::OkStatus();
  absl::Status status = AwaitWriters();
  settled_ = status.ok();
  return status;
}

absl::StatusOr<SwitchResult> DirtyLogSet::Switch(SlotId slot) {
  absl::StatusOr<size_t> i = Find(slot);
  if (!i.ok()) return i.status();
  if (absl::Status s = SettleAdopted(); !s.ok()) return s;
  if (!Flip(*i)) return SwitchResult::kClean;
  if (absl::Status s = AwaitWriters(); !s.ok()) return s;
  reader_[*i].pending = false;
  return SwitchResult::kSwitched;
}

absl::StatusOr<SwitchResult> DirtyLogSet::SwitchAll() {
  if (absl::Status s = SettleAdopted(); !s.ok()) return s;
  bool any = false;
  for (size_t i = 0; i < reader_.size(); ++i) any |= Flip(i);
  if (!any) return SwitchResult::kClean;
  if (absl::Status s = Settle(); !s.ok()) return s;
  return SwitchResult::kSwitched;
}

absl::Status DirtyLogSet::Settle() {
  const bool any =
      !settled_ || std::any_of(reader_.begin(), reader_.end(),
                               [](const ReaderState& s) { return s.pending; });
  if (!any) return absl::OkStatus();
  if (absl::Status s = AwaitWriters(); !s.ok()) return s;
  for (ReaderState& state : reader_) state.pending = false;
  settled_ = true;
  return absl::OkStatus();
}

absl::StatusOr<PageBitmapView> DirtyLogSet::Retired(SlotId slot) const {
  absl::StatusOr<size_t> i = FindSettled(slot);
  if (!i.ok()) return i.status();
  return memory_->slots[*i].bitmaps[reader_[*i].active ^ 1];
}

absl::StatusOr<PageCount> DirtyLogSet::Drain(SlotId slot, PageBitmapView into,
                                             PageIndex at) {
  absl::StatusOr<size_t> i = FindSettled(slot);
  if (!i.ok()) return i.status();
  const SlotMemory& memory = memory_->slots[*i];
  const uint64_t room = into.pages().value();
  if (at.value() > room || memory.slot.pages.value() > room - at.value()) {
    return absl::OutOfRangeError(absl::StrCat(
        ToString(slot), " with ", ToString(memory.slot.pages), " at ",
        ToString(at), " does not fit in a bitmap of ", ToString(into.pages())));
  }
  const uint32_t retired = reader_[*i].active ^ 1;
  std::atomic<uint32_t>& dirty = memory.record->dirty[retired];
  if (dirty.load(std::memory_order_acquire) == 0) return PageCount(0);
  const PageCount set = into.MoveFrom(memory.bitmaps[retired], at);
  // Last: whoever adopts the log after a crash in between sees it dirty.
  dirty.store(0, std::memory_order_release);
  return set;
}

}  // namespace postcopy
