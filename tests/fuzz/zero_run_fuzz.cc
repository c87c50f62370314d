// Runs of zeros and of data, anywhere and of any length, into a DestinationVm
// on a simulated kernel, beside a model that says which pages are then here
// and with what bytes.
//
// Input: one byte of Preparation, then actions until it ends (Life::Act); a
// run is as ReadRun reads it.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/check.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "tests/fuzz/byte_reader.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;
using Touch = SimulatedUffd::Touch;

// The regions: one that ends inside a word of a bitmap, the smallest there is,
// one that crosses a word.
constexpr std::array<uint64_t, 3> kRegionPages = {100, 1, 155};
constexpr uint64_t kPages = 256;
// Where the VMM has mapped them: not in order, and the first two touch.
constexpr std::array<HostAddress, 3> kAddresses = {
    HostAddress(0x200000000), HostAddress(0x200000000 + 100 * kPageSize),
    HostAddress(0x100000000)};

constexpr size_t kRunsMax = 4;
constexpr size_t kActionsMax = 64;
constexpr int kVcpus = 4;
// For what must happen.
constexpr std::chrono::seconds kPatience(10);

// What all runs of data take their bytes from, each from a place of its own.
constexpr size_t kBytesSpare = 256;
const std::vector<uint8_t>& Bytes() {
  static const std::vector<uint8_t>& bytes = *[] {
    auto* made =
        new std::vector<uint8_t>((kPages + 1) * kPageSize + kBytesSpare);
    std::mt19937_64 random(1);
    for (uint8_t& byte : *made) byte = static_cast<uint8_t>(random());
    return made;
  }();
  return bytes;
}

// One byte says how the rest is meant:
//   0x01  data, not zeros
//   0x02  any numbers, of eight bytes each; else two bytes of page and one of
//         count, in or close to the layout
//   0x04  data of a length that is wrong, by how much says a byte
// Data begins with the byte of Bytes() that another byte says.
ReceivedRun ReadRun(ByteReader& input) {
  const uint8_t kind = input.Byte();
  ReceivedRun run;
  if ((kind & 2) != 0) {
    run.pages = {PageIndex(input.EightBytes()), PageCount(input.EightBytes())};
    // What the decoder lets through.
    run.pages.first = PageIndex(run.pages.first.value() / kPageSize);
    run.pages.count = PageCount(
        run.pages.count.value() % (kMaxRamBytes.value() / kPageSize) + 1);
  } else {
    run.pages.first = PageIndex(input.TwoBytes() % (kPages + 8));
    run.pages.count = PageCount(input.Byte());
  }
  if ((kind & 1) == 0) return run;
  const size_t from = input.Byte();
  size_t size = std::min(run.pages.count.value(), kPages) * kPageSize;
  if ((kind & 4) != 0) size += input.Byte() * 16 + 1;
  run.data = absl::MakeConstSpan(Bytes()).subspan(
      from, std::min(size, Bytes().size() - from));
  return run;
}

std::vector<ReceivedRun> ReadRuns(ByteReader& input) {
  std::vector<ReceivedRun> runs(input.Byte() % (kRunsMax + 1));
  for (ReceivedRun& run : runs) run = ReadRun(input);
  return runs;
}

bool InLayout(PageRun run) {
  return !run.count.empty() && run.first.value() < kPages &&
         run.count.value() <= kPages - run.first.value();
}

absl::StatusCode Verdict(const ReceivedRun& run) {
  if (run.pages.count.empty()) return absl::StatusCode::kInvalidArgument;
  if (!InLayout(run.pages)) return absl::StatusCode::kOutOfRange;
  const uint64_t wanted = run.pages.count.value() * kPageSize;
  return run.data.empty() || run.data.size() == wanted
             ? absl::StatusCode::kOk
             : absl::StatusCode::kInvalidArgument;
}

// What must be said of `runs`: the verdict on the first that is wrong.
absl::StatusCode Verdict(absl::Span<const ReceivedRun> runs) {
  for (const ReceivedRun& run : runs) {
    const absl::StatusCode code = Verdict(run);
    if (code != absl::StatusCode::kOk) return code;
  }
  return absl::StatusCode::kOk;
}

// A page as it must be. `content` is null for zeros; the first of kPageSize
// bytes else.
struct Page {
  bool received = false;
  const uint8_t* content = nullptr;
};

// Which pages are here; by the simplest means.
class Model {
 public:
  void Replace(absl::Span<const ReceivedRun> runs) {
    for (const ReceivedRun& run : runs) Take(run, /*replace=*/true);
  }
  void Install(absl::Span<const ReceivedRun> runs) {
    for (const ReceivedRun& run : runs) Take(run, /*replace=*/false);
  }
  // Returns how many pages had been received.
  uint64_t Discard(PageRun run) {
    uint64_t discarded = 0;
    for (uint64_t i = run.first.value(); i < run.end().value(); ++i) {
      if (pages_[i].received) ++discarded;
      pages_[i] = Page();
    }
    return discarded;
  }
  const Page& page(uint64_t i) const { return pages_[i]; }
  uint64_t missing() const {
    return static_cast<uint64_t>(
        std::count_if(pages_.begin(), pages_.end(),
                      [](const Page& page) { return !page.received; }));
  }

 private:
  void Take(const ReceivedRun& run, bool replace) {
    const uint8_t* content = run.data.empty() ? nullptr : run.data.data();
    for (uint64_t i = 0; i < run.pages.count.value(); ++i) {
      Page& page = pages_[run.pages.first.value() + i];
      if (replace || !page.received) page = {true, content};
      if (content != nullptr) content += kPageSize;
    }
  }

  std::array<Page, kPages> pages_;
};

// One VM, from its creation to its end.
class Life {
 public:
  Life() {
    std::vector<PageCount> sizes;
    std::vector<DestinationRegion> regions;
    uint64_t offset = 0;
    for (size_t i = 0; i < kRegionPages.size(); ++i) {
      const PageCount pages(kRegionPages[i]);
      uffd_.Map(kAddresses[i], BytesIn(pages), fd_.get(), offset);
      sizes.push_back(pages);
      regions.push_back({kAddresses[i], fd_.get(), offset});
      offset += BytesIn(pages).value();
    }
    vm_ = *DestinationVm::Create(LayoutOf(sizes), regions, Share(&uffd_),
                                 &clock_);
    state_ = *PageState::Open(vm_->state_fd(), PageCount(kPages));
  }

  // Preparation: the VMM writes to this many pages before anything comes.
  void Prepare(ByteReader& input) {
    const uint64_t writes = input.Byte() % 4;
    for (uint64_t i = 0; i < writes; ++i) {
      const off_t page = input.Byte();
      POSTCOPY_CHECK(::pwrite(fd_.get(), Bytes().data(), kPageSize,
                              page * static_cast<off_t>(kPageSize)) ==
                     static_cast<ssize_t>(kPageSize));
    }
  }

  void Act(ByteReader& input) {
    switch (input.Byte() % 12) {
      case 0:
      case 1:
        return StorePrecopied(input);
      case 2:
        return DiscardStale(input);
      case 3:
        return StartServing(input);
      case 4:
      case 5:
        return OnUrgentPages(input);
      case 6:
      case 7:
        return OnBulkPages(input);
      case 8:
        return TouchPage(input);
      case 9:
        return Disturb(input);
      case 10:
        return StartBackground();
      default:
        return Reconnect();
    }
  }

  void End() {
    if (stage_ == Stage::kServing) AwaitTouches();
    CheckPages();
    CheckCounters();
    const absl::Status status = vm_->Finish();
    if (stage_ != Stage::kServing || model_.missing() > 0) {
      POSTCOPY_CHECK(absl::IsFailedPrecondition(status));
      vm_->Abort(/*release=*/true);
    } else {
      POSTCOPY_CHECK(status.ok());
    }
    POSTCOPY_CHECK(!failed_.load());
  }

 private:
  enum class Stage { kPrecopy, kDiscarded, kServing };

  // Calls again what the kernel had no memory for: Disturb says so a few times
  // at most.
  template <typename Function>
  absl::Status Persist(const Function& call) {
    absl::Status status = call();
    for (int i = 0; i < 8 && absl::IsResourceExhausted(status); ++i) {
      status = call();
    }
    return status;
  }

  void StorePrecopied(ByteReader& input) {
    const std::vector<ReceivedRun> runs = ReadRuns(input);
    const absl::Status status = vm_->StorePrecopied(runs);
    if (stage_ == Stage::kServing) {
      POSTCOPY_CHECK(absl::IsFailedPrecondition(status));
      return;
    }
    POSTCOPY_CHECK(status.code() == Verdict(runs));
    if (!status.ok()) return;
    model_.Replace(runs);
    stage_ = Stage::kPrecopy;
  }

  void DiscardStale(ByteReader& input) {
    const PageBitmap stale = *PageBitmap::Create(PageCount(kPages));
    uint64_t wanted = 0;
    const bool serving = stage_ == Stage::kServing;
    for (const ReceivedRun& run : ReadRuns(input)) {
      if (!InLayout(run.pages)) continue;
      stale.view().SetRun(run.pages);
      if (!serving) wanted += model_.Discard(run.pages);
    }
    const absl::StatusOr<PageCount> discarded = vm_->DiscardStale(stale.view());
    if (serving) {
      POSTCOPY_CHECK(absl::IsFailedPrecondition(discarded.status()));
      return;
    }
    POSTCOPY_CHECK(discarded.ok() && discarded->value() == wanted);
    stage_ = Stage::kDiscarded;
  }

  void StartServing(ByteReader& input) {
    const uint64_t limit = input.Byte() == 0 ? 0 : input.EightBytes();
    const absl::Status status =
        vm_->StartServing(&source_, limit, [this](const absl::Status& end) {
          if (!end.ok()) failed_.store(true);
        });
    POSTCOPY_CHECK(status.ok() == (stage_ == Stage::kDiscarded));
    if (status.ok()) stage_ = Stage::kServing;
  }

  void OnUrgentPages(ByteReader& input) {
    const std::vector<ReceivedRun> runs = ReadRuns(input);
    absl::StatusCode wanted = Verdict(runs);
    uint64_t pages = 0;
    for (const ReceivedRun& run : runs) pages += run.pages.count.value();
    if (runs.empty() ||
        (wanted == absl::StatusCode::kOk && pages > kMaxUrgentPages)) {
      wanted = absl::StatusCode::kInvalidArgument;
    }
    CheckTaken(Persist([&] { return vm_->OnUrgentPages(runs); }), wanted, runs);
  }

  void OnBulkPages(ByteReader& input) {
    const std::vector<ReceivedRun> runs = ReadRuns(input);
    const absl::StatusCode wanted =
        runs.empty() ? absl::StatusCode::kInvalidArgument : Verdict(runs);
    CheckTaken(Persist([&] { return vm_->OnBulkPages(runs); }), wanted, runs);
  }

  void CheckTaken(const absl::Status& status, absl::StatusCode wanted,
                  absl::Span<const ReceivedRun> runs) {
    if (stage_ != Stage::kServing) {
      POSTCOPY_CHECK(absl::IsFailedPrecondition(status));
      return;
    }
    POSTCOPY_CHECK(status.code() == wanted);
    if (status.ok()) model_.Install(runs);
  }

  void TouchPage(ByteReader& input) {
    const int vcpu = input.Byte() % kVcpus;
    const uint64_t page = input.Byte();
    if (stage_ != Stage::kServing || uffd_.IsWaiting(vcpu)) return;
    const Touch touch = uffd_.TouchPage(vcpu, AddressOf(page));
    touched_[static_cast<size_t>(vcpu)] = page;
    const Page& wanted = model_.page(page);
    // Zeros are filled in when they are touched.
    const bool there = wanted.received && wanted.content != nullptr;
    POSTCOPY_CHECK(touch == Touch::kPresent ||
                   (touch == Touch::kWaiting && !there));
    POSTCOPY_CHECK(wanted.received || touch == Touch::kWaiting);
  }

  void Disturb(ByteReader& input) {
    const uint8_t choice = input.Byte();
    const int times = 1 + choice / 4 % 3;
    switch (choice % 4) {
      case 0:
        return uffd_.FailNext(Call::kCopy, EAGAIN, times);
      case 1:
        return uffd_.FailNext(Call::kZeroPage, EAGAIN, times);
      case 2:
        return uffd_.FailNext(Call::kCopy, ENOMEM, times);
      default:
        return uffd_.StopNextAfter(PageCount(static_cast<uint64_t>(times)));
    }
  }

  void StartBackground() {
    POSTCOPY_CHECK(vm_->StartBackground().ok() == (stage_ == Stage::kServing));
  }

  void Reconnect() {
    vm_->OnSourceLost();
    POSTCOPY_CHECK(vm_->OnSourceBack(&source_).ok() ==
                   (stage_ == Stage::kServing));
  }

  // Nobody waits for a page that is here.
  void AwaitTouches() {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (int vcpu = 0; vcpu < kVcpus; ++vcpu) {
      const std::optional<uint64_t> page = touched_[static_cast<size_t>(vcpu)];
      if (!page.has_value()) continue;
      while (uffd_.IsWaiting(vcpu) && model_.page(*page).received) {
        POSTCOPY_CHECK(std::chrono::steady_clock::now() < deadline);
        std::this_thread::yield();
      }
      POSTCOPY_CHECK(uffd_.IsWaiting(vcpu) == !model_.page(*page).received);
    }
  }

  void CheckPages() const {
    static std::vector<uint8_t>& ram =
        *new std::vector<uint8_t>(kPages * kPageSize);
    static const std::vector<uint8_t>& zeros =
        *new std::vector<uint8_t>(kPageSize);
    POSTCOPY_CHECK(::pread(fd_.get(), ram.data(), ram.size(), 0) ==
                   static_cast<ssize_t>(ram.size()));
    for (uint64_t i = 0; i < kPages; ++i) {
      const Page& wanted = model_.page(i);
      POSTCOPY_CHECK(state_->IsReceived(PageIndex(i)) == wanted.received);
      // Before the discard the VMM's own bytes may lie in a missing page.
      if (!wanted.received && stage_ == Stage::kPrecopy) continue;
      const bool is_zero = wanted.content == nullptr;
      if (wanted.received) {
        POSTCOPY_CHECK(state_->IsZero(PageIndex(i)) == is_zero);
      } else {
        POSTCOPY_CHECK(IsHole(i));
      }
      POSTCOPY_CHECK(std::memcmp(ram.data() + i * kPageSize,
                                 is_zero ? zeros.data() : wanted.content,
                                 kPageSize) == 0);
    }
  }

  bool IsHole(uint64_t page) const {
    const auto at = static_cast<off_t>(page * kPageSize);
    const off_t data = ::lseek(fd_.get(), at, SEEK_DATA);
    return data < 0 || data > at;
  }

  void CheckCounters() const {
    const DestinationCounters now = vm_->counters();
    POSTCOPY_CHECK(now.missing.value() == model_.missing());
    POSTCOPY_CHECK(now.total + now.discarded ==
                   now.missing + now.precopied + now.faulted + now.background);
    POSTCOPY_CHECK(now.lost_pages == 0 && now.unmapped_pages == 0);
    POSTCOPY_CHECK(now.foreign_faults == 0 && now.unexpected_events == 0);
    uint64_t zero = 0;
    for (uint64_t i = 0; i < kPages; ++i) {
      const Page& page = model_.page(i);
      if (page.received && page.content == nullptr) ++zero;
    }
    POSTCOPY_CHECK(now.zero.value() == zero);
  }

  static HostAddress AddressOf(uint64_t page) {
    size_t region = 0;
    while (page >= kRegionPages[region]) page -= kRegionPages[region++];
    return kAddresses[region] + BytesIn(PageCount(page));
  }

  const UniqueFd fd_ = *CreateMemfd("ram", BytesIn(PageCount(kPages)), 0);
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  FakePageSource source_;
  std::atomic<bool> failed_{false};
  Stage stage_ = Stage::kPrecopy;
  Model model_;
  // The page that each thread of the guest touched last.
  std::array<std::optional<uint64_t>, kVcpus> touched_;
  std::unique_ptr<DestinationVm> vm_;
  // A second view of the VM's own.
  std::unique_ptr<PageState> state_;
};

// RamLayout::Check, with any two numbers.
void FuzzLayout(ByteReader input) {
  static const RamLayout& layout = *new RamLayout(
      LayoutOf({PageCount(kRegionPages[0]), PageCount(kRegionPages[1]),
                PageCount(kRegionPages[2])}));
  const PageIndex first(input.EightBytes());
  const PageCount count(input.EightBytes());
  POSTCOPY_CHECK(layout.Check(first, count).ok() ==
                 (!count.empty() && first.value() < kPages &&
                  count.value() <= kPages - first.value()));
}

void Fuzz(ByteReader input) {
  // A copy: the life below begins with the same bytes.
  FuzzLayout(input);
  Life life;
  life.Prepare(input);
  for (size_t i = 0; i < kActionsMax && !input.empty(); ++i) life.Act(input);
  life.End();
}

}  // namespace
}  // namespace postcopy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  postcopy::Fuzz(postcopy::ByteReader({data, size}));
  return 0;
}
