#include "dirtytrack/kvm_log_source.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"

namespace postcopy {
namespace {

constexpr uint64_t kPerWord = PageBitmapView::kPagesPerWord;
static_assert(KvmLogSource::kClearPagesMax % kPerWord == 0);

uint64_t ManualProtect(KvmLogMode mode) {
  switch (mode) {
    case KvmLogMode::kGetDirtyLog:
      return 0;
    case KvmLogMode::kManualProtect:
      return KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    case KvmLogMode::kManualInitiallySet:
      return KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
  }
  POSTCOPY_CHECK(false);
}

// What both runs have; of no pages if that is nothing.
PageRun Intersection(PageRun a, PageRun b) {
  const PageIndex first = std::max(a.first, b.first);
  return {first, std::max(std::min(a.end(), b.end()), first) - first};
}

// The 64 bits from `first` on; what lies past the end is clear.
uint64_t BitsFrom(PageBitmapView bitmap, PageIndex first) {
  const size_t i = first.value() / kPerWord;
  const uint64_t shift = first.value() % kPerWord;
  const auto word = [&](size_t j) {
    return j < bitmap.word_count() ? bitmap.LoadWord(j) : 0;
  };
  // Shifting a word by its width is undefined.
  if (shift == 0) return word(i);
  return word(i) >> shift | word(i + 1) << (kPerWord - shift);
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvmLogSource>> KvmLogSource::Create(
    const RamLayout& layout, Options options) {
  absl::StatusOr<KvmSlots> slots =
      KvmSlots::Create(layout, std::move(options.slots), options.vm);
  if (!slots.ok()) return slots.status();
  PageCount largest;
  for (const KvmSlot& slot : slots->slots()) {
    largest = std::max(largest, slot.slot.pages().count);
  }
  absl::StatusOr<PageBitmap> restored = PageBitmap::Create(layout.pages());
  if (!restored.ok()) return restored.status();
  absl::StatusOr<PageBitmap> log = PageBitmap::Create(largest);
  if (!log.ok()) return log.status();
  // Not make_unique: the constructor is private.
  return std::unique_ptr<KvmLogSource>(new KvmLogSource(
      *std::move(slots), options.mode, *std::move(restored), *std::move(log)));
}

KvmLogSource::KvmLogSource(KvmSlots slots, KvmLogMode mode, PageBitmap restored,
                           PageBitmap log)
    : slots_(std::move(slots)),
      mode_(mode),
      restored_(std::move(restored)),
      log_(std::move(log)) {}

KvmLogSource::~KvmLogSource() { Stop().IgnoreError(); }

absl::Status KvmLogSource::Start() {
  if (started_) {
    return absl::FailedPreconditionError("dirty tracking is already started");
  }
  restored_.Reset();
  absl::Status status = slots_.StartLogging(ManualProtect(mode_));
  started_ = status.ok();
  return status;
}

absl::Status KvmLogSource::Stop() {
  started_ = false;
  return slots_.StopLogging();
}

absl::Status KvmLogSource::CheckUse(PageBitmapView bitmap) const {
  if (!started_) {
    return absl::FailedPreconditionError("dirty tracking is not started");
  }
  return slots_.CheckBitmap(bitmap);
}

absl::StatusOr<PageCount> KvmLogSource::Collect(PageBitmapView into) {
  if (absl::Status s = CheckUse(into); !s.ok()) return s;
  PageCount set = into.MoveFrom(restored_.view());
  for (const KvmSlot& slot : slots_.slots()) {
    const PageRun shown = slot.slot.pages();
    kvm_dirty_log log = {};
    log.slot = KvmSlotNumber(slot.slot.id);
    log.dirty_bitmap = log_.view().words();
    if (ioctl(slots_.vm(), KVM_GET_DIRTY_LOG, &log) != 0) {
      const int error = errno;
      // Without manual protection KVM takes the bits before it copies them.
      if (mode_ == KvmLogMode::kGetDirtyLog) restored_.view().SetRun(shown);
      return KvmError(error, absl::StrCat("cannot read the dirty log of ",
                                          ToString(slot.slot.id)));
    }
    set += into.MergeFrom(PageBitmapView(log_.view().words(), shown.count),
                          shown.first);
  }
  return set;
}

absl::Status KvmLogSource::Clear(PageBitmapView pages, PageRun run) {
  if (absl::Status s = CheckUse(pages); !s.ok()) return s;
  POSTCOPY_CHECK(run.end().value() <= slots_.ram_pages().value());
  if (mode_ != KvmLogMode::kGetDirtyLog) {
    for (const KvmSlot& slot : slots_.slots()) {
      const PageRun shown = Intersection(slot.slot.pages(), run);
      if (shown.count.empty()) continue;
      if (absl::Status s = ClearInSlot(slot, pages, shown); !s.ok()) return s;
    }
  }
  restored_.view().ClearRunWhere(pages, run);
  return absl::OkStatus();
}

absl::Status KvmLogSource::ClearInSlot(const KvmSlot& slot,
                                       PageBitmapView pages, PageRun run) {
  const PageIndex shown = slot.slot.pages().first;
  PageIndex at{(run.first - shown).value()};
  const PageIndex end{(run.end() - shown).value()};
  while (at < end) {
    const PageIndex base{at.value() / kPerWord * kPerWord};
    const PageIndex stop = std::min(end, base + PageCount(kClearPagesMax));
    absl::Status s = ClearPart(slot, pages, {at, stop - at});
    if (!s.ok()) return s;
    at = stop;
  }
  return absl::OkStatus();
}

absl::Status KvmLogSource::ClearPart(const KvmSlot& slot, PageBitmapView pages,
                                     PageRun run) {
  const PageRun shown = slot.slot.pages();
  // KVM's bits begin at a multiple of 64 of the slot's pages, which need not be
  // one of RAM's; those of other pages stay clear.
  clear_bits_.clear();
  size_t first_word = 0;
  ForEachWord(run, [&](size_t i, uint64_t mask) {
    const PageCount at(i * kPerWord);
    const uint64_t bits = BitsFrom(pages, shown.first + at) & mask;
    if (clear_bits_.empty() && bits == 0) return;
    if (clear_bits_.empty()) first_word = i;
    clear_bits_.push_back(bits);
  });
  while (!clear_bits_.empty() && clear_bits_.back() == 0) {
    clear_bits_.pop_back();
  }
  if (clear_bits_.empty()) return absl::OkStatus();
  kvm_clear_dirty_log clear = {};
  clear.slot = KvmSlotNumber(slot.slot.id);
  clear.first_page = first_word * kPerWord;
  // A multiple of 64, or up to the slot's end.
  clear.num_pages = static_cast<uint32_t>(
      std::min(clear_bits_.size() * kPerWord,
               shown.count.value() - first_word * kPerWord));
  clear.dirty_bitmap = clear_bits_.data();
  if (ioctl(slots_.vm(), KVM_CLEAR_DIRTY_LOG, &clear) == 0) {
    return absl::OkStatus();
  }
  return KvmError(errno, absl::StrCat("cannot clear the dirty log of ",
                                      ToString(slot.slot.id)));
}

absl::Status KvmLogSource::Restore(PageBitmapView unsent) {
  if (absl::Status s = CheckUse(unsent); !s.ok()) return s;
  restored_.view().MergeFrom(
      PageBitmapView(unsent.words(), slots_.ram_pages()));
  return absl::OkStatus();
}

}  // namespace postcopy
