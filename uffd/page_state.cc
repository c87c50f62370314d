#include "uffd/page_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/ram_layout.h"

namespace postcopy {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr uint64_t kReceivedOffset = kPageSize;

// Where each part lies, in bytes.
uint64_t BitmapStride(PageCount pages) {
  const uint64_t bytes = PageBitmapView::ByteSize(pages).value();
  return (bytes + kPageSize - 1) / kPageSize * kPageSize;
}
uint64_t ZeroOffset(PageCount pages) {
  return kReceivedOffset + BitmapStride(pages);
}
ByteCount FileBytes(PageCount pages) {
  return ByteCount(ZeroOffset(pages) + BitmapStride(pages));
}

PageStateHeader HeaderFor(PageCount pages) {
  return {.magic = kPageStateMagic,
          .version = kPageStateVersion,
          .header_bytes = sizeof(PageStateHeader),
          .page_size = kPageSize,
          .page_count = pages.value()};
}

absl::Status CheckPages(PageCount pages) {
  if (!pages.empty() && pages <= PagesIn(kMaxRamBytes)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("cannot keep the state of ", ToString(pages)));
}

absl::Status CheckHeader(const PageStateHeader& header, PageCount pages) {
  if (header.magic != kPageStateMagic) {
    return absl::InvalidArgumentError("the memfd holds no page state");
  }
  const PageStateHeader wanted = HeaderFor(pages);
  if (std::memcmp(&header, &wanted, sizeof(header)) == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "the page state is of version ", header.version, " and ",
      ToString(PageCount(header.page_count)), ", wanted is version ",
      kPageStateVersion, " and ", ToString(pages)));
}

// Before the mapping: its size is what the header must speak of.
absl::Status CheckHeaderOf(int fd, PageCount pages) {
  const absl::Status sealed =
      RequireSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW, "the page state");
  if (!sealed.ok()) return absl::InvalidArgumentError(sealed.message());
  PageStateHeader header = {};
  if (::pread(fd, &header, sizeof(header), 0) != sizeof(header)) {
    return absl::InvalidArgumentError("the page state is cut short");
  }
  return CheckHeader(header, pages);
}

PageBitmapView BitmapAt(const SharedMapping& mapping, uint64_t offset,
                        PageCount pages) {
  // Lock-free atomics of the size of their value may lie in shared memory:
  // page_bitmap.h asserts both. The mapping is page-aligned and zero-filled.
  return PageBitmapView(
      reinterpret_cast<std::atomic<uint64_t>*>(mapping.data() + offset), pages);
}

// The first run of set bits at or after `from`, of at most `max`, in `words`
// words that `word_at` gives.
template <typename WordAt>
std::optional<PageRun> NextRunOf(const WordAt& word_at, size_t words,
                                 PageIndex from, PageCount max) {
  constexpr uint64_t kPerWord = PageBitmapView::kPagesPerWord;
  uint64_t valid = ~uint64_t{0} << (from.value() % kPerWord);
  for (size_t i = from.value() / kPerWord; i < words; ++i) {
    const uint64_t word = word_at(i) & valid;
    valid = ~uint64_t{0};
    if (word == 0) continue;
    const int first = std::countr_zero(word);
    uint64_t count = std::countr_one(word >> first);
    // On into the next words, as long as it reaches to the end of this one.
    for (uint64_t end = first + count; end % kPerWord == 0 &&
                                       i + end / kPerWord < words &&
                                       count < max.value();) {
      const int more = std::countr_one(word_at(i + end / kPerWord));
      if (more == 0) break;
      count += more;
      end += more;
    }
    return PageRun{PageIndex(i * kPerWord + first),
                   std::min(PageCount(count), max)};
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PageState>> PageState::Create(PageCount pages) {
  absl::Status status = CheckPages(pages);
  if (!status.ok()) return status;
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("postcopy-page-state", FileBytes(pages), kSeals);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(fd->get(), ByteCount(0), FileBytes(pages),
                         SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  const PageStateHeader header = HeaderFor(pages);
  std::memcpy(mapping->data(), &header, sizeof(header));
  return std::unique_ptr<PageState>(
      new PageState(*std::move(fd), *std::move(mapping), pages));
}

absl::StatusOr<std::unique_ptr<PageState>> PageState::Open(int fd,
                                                           PageCount pages) {
  absl::Status status = CheckPages(pages);
  if (status.ok()) status = CheckHeaderOf(fd, pages);
  if (!status.ok()) return status;
  UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own.valid()) {
    return absl::ResourceExhaustedError(
        "no descriptor is left for the page state: raise LimitNOFILE");
  }
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(own.get(), ByteCount(0), FileBytes(pages),
                         SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  std::unique_ptr<PageState> state(
      new PageState(std::move(own), *std::move(mapping), pages));
  state->CountBits();
  return state;
}

PageState::PageState(UniqueFd fd, SharedMapping mapping, PageCount pages)
    : fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      received_(BitmapAt(mapping_, kReceivedOffset, pages)),
      zero_(BitmapAt(mapping_, ZeroOffset(pages), pages)),
      missing_(pages.value()) {}

void PageState::CountBits() {
  missing_.store(received_.pages().value() - received_.Count().value());
  zero_pages_.store(zero_.Count().value());
}

PageCount PageState::MarkReceived(PageRun run, bool is_zero) {
  // The kind first: who sees the page received must see the right one.
  if (is_zero) {
    zero_pages_.fetch_add(zero_.SetRun(run).value(), std::memory_order_relaxed);
  } else {
    zero_pages_.fetch_sub(zero_.ClearRun(run).value(),
                          std::memory_order_relaxed);
  }
  const PageCount added = received_.SetRun(run);
  missing_.fetch_sub(added.value(), std::memory_order_acq_rel);
  return added;
}

std::optional<PageRun> PageState::NextContentRun(PageIndex from,
                                                 PageCount max) const {
  return NextRunOf(
      [this](size_t i) { return received_.LoadWord(i) & ~zero_.LoadWord(i); },
      received_.word_count(), from, max);
}

std::optional<PageRun> PageState::NextReceivedRun(PageBitmapView among,
                                                  PageIndex from) const {
  return NextRunOf(
      [&](size_t i) { return among.LoadWord(i) & received_.LoadWord(i); },
      among.word_count(), from, PageCount(UINT64_MAX));
}

PageCount PageState::MarkMissing(PageRun run) {
  const PageCount removed = received_.ClearRun(run);
  missing_.fetch_add(removed.value(), std::memory_order_acq_rel);
  zero_pages_.fetch_sub(zero_.ClearRun(run).value(), std::memory_order_relaxed);
  return removed;
}

}  // namespace postcopy
