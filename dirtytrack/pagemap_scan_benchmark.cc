// What tracking writes in the kernel costs who asks and who writes.
//
//   CollectClean       asking when nothing was written
//   CollectAllDirty    looking when every page was written
//   TakeAllDirty       looking and protecting at once
//   ClearAllDirty/N    protecting in calls of N pages, all of them written
//   TakeEveryOther     as TakeAllDirty, with every second page written: as many
//                      runs as there can be
//   WriteTracked       the writer's first write to a protected page
//   WriteUntracked     the same to a page that is not protected
//
// The memory is 1 GiB, anonymous (memfd:0) or of a memfd (memfd:1), and present
// before anything is measured.

#include <fcntl.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>

#include "benchmark/benchmark.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/pagemap_scan_source.h"
#include "dirtytrack/write_tracking.h"

namespace postcopy {
namespace {

using Mode = PagemapScanSource::Mode;

constexpr ByteCount kGiB{uint64_t{1} << 30};
constexpr PageCount kPages = PagesIn(kGiB);

class Guest {
 public:
  Guest(bool memfd, Mode mode) : dirty_(*PageBitmap::Create(kPages)) {
    UniqueFd fd;
    if (memfd) fd = *CreateMemfd("ram", kGiB, 0);
    const int flags = memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    base_ = static_cast<volatile uint8_t*>(::mmap(
        nullptr, kGiB.value(), PROT_READ | PROT_WRITE, flags, fd.get(), 0));
    ::madvise(const_cast<uint8_t*>(base_), kGiB.value(), MADV_NOHUGEPAGE);
    Write(1);
    const HostRange range = {HostAddress(reinterpret_cast<uintptr_t>(base_)),
                             kGiB};
    absl::StatusOr<WriteTracking> tracking = WriteTracking::Create({&range, 1});
    if (!tracking.ok()) std::abort();
    tracking_.emplace(*std::move(tracking));
    source_ = *PagemapScanSource::Create(
        *RamLayout::Create({{"ram", RamOffset(0), kGiB}}), {{range.address}},
        tracking_->TakePagemap(), mode);
    if (!source_->Start().ok()) std::abort();
  }
  ~Guest() { ::munmap(const_cast<uint8_t*>(base_), kGiB.value()); }

  // Every `step`th page.
  void Write(uint64_t step) {
    for (uint64_t page = 0; page < kPages.value(); page += step) {
      base_[page * kPageSize] = 1;
    }
  }
  void Collect() {
    if (!source_->Collect(dirty_.view()).ok()) std::abort();
  }
  void Clear(PageCount at_once) {
    for (PageIndex at; at.value() < kPages.value(); at += at_once) {
      if (!source_->Clear(dirty_.view(), {at, at_once}).ok()) std::abort();
    }
  }

 private:
  PageBitmap dirty_;
  volatile uint8_t* base_;
  std::optional<WriteTracking> tracking_;
  std::unique_ptr<PagemapScanSource> source_;
};

void CollectClean(benchmark::State& state) {
  Guest guest(state.range(0), Mode::kTakeAtOnce);
  for (auto _ : state) guest.Collect();
}

void CollectAllDirty(benchmark::State& state) {
  Guest guest(state.range(0), Mode::kClearBeforeRead);
  guest.Write(1);
  for (auto _ : state) guest.Collect();
}

void Take(benchmark::State& state, uint64_t step) {
  Guest guest(state.range(0), Mode::kTakeAtOnce);
  for (auto _ : state) {
    state.PauseTiming();
    guest.Write(step);
    state.ResumeTiming();
    guest.Collect();
  }
}
void TakeAllDirty(benchmark::State& state) { Take(state, 1); }
void TakeEveryOther(benchmark::State& state) { Take(state, 2); }

void ClearAllDirty(benchmark::State& state) {
  Guest guest(state.range(0), Mode::kClearBeforeRead);
  for (auto _ : state) {
    state.PauseTiming();
    guest.Write(1);
    guest.Collect();
    state.ResumeTiming();
    guest.Clear(PageCount(state.range(1)));
  }
}

void WriteTracked(benchmark::State& state) {
  Guest guest(state.range(0), Mode::kTakeAtOnce);
  for (auto _ : state) {
    state.PauseTiming();
    guest.Collect();
    state.ResumeTiming();
    guest.Write(1);
  }
  state.SetItemsProcessed(state.iterations() * kPages.value());
}

void WriteUntracked(benchmark::State& state) {
  Guest guest(state.range(0), Mode::kTakeAtOnce);
  guest.Write(1);
  for (auto _ : state) guest.Write(1);
  state.SetItemsProcessed(state.iterations() * kPages.value());
}

BENCHMARK(CollectClean)->ArgName("memfd")->Arg(0)->Arg(1);
BENCHMARK(CollectAllDirty)->ArgName("memfd")->Arg(0)->Arg(1);
BENCHMARK(TakeAllDirty)->ArgName("memfd")->Arg(0)->Arg(1);
BENCHMARK(TakeEveryOther)->ArgName("memfd")->Arg(0)->Arg(1);
BENCHMARK(ClearAllDirty)
    ->ArgNames({"memfd", "pages"})
    ->ArgsProduct({{0, 1}, {64, 512}});
BENCHMARK(WriteTracked)->ArgName("memfd")->Arg(0)->Arg(1);
BENCHMARK(WriteUntracked)->ArgName("memfd")->Arg(0)->Arg(1);

}  // namespace
}  // namespace postcopy
