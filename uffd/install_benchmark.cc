// What it costs to make pages of a memfd visible to the guest, in the two ways
// that InstallStrategy has for it, and what each leaves for later. Compare rows
// of one run. A page is 4 KiB; times are for each.
//
//   Install/minor/run/stale
//                       pages that are missing, in answers of `run` pages;
//                       stale: old bytes are in their place, or were
//   Touch/minor/ahead   the guest's first touch of a page that was precopied;
//                       ahead: MapAhead has been there before it
//   MapAhead            that, for each page
//   Discard/minor       a stale page of a switch-over, every second one is
//   stale
//
// minor is 1 where the VMM has asked for minor faults: stale bytes are replaced
// by pwrite and UFFDIO_CONTINUE. Else they were punched out.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/map_ahead.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{16384};  // 64 MiB
constexpr PageRun kAll{PageIndex(0), kPages};

// One life of a VM.
class Vm {
 public:
  explicit Vm(bool minor) {
    std::string reason;
    const MemoryKind kind = minor ? MemoryKind::kMinor : MemoryKind::kMemfd;
    guest_ = KernelGuest::Create({GuestRegion{kind, kPages}}, 0, &reason);
    if (guest_ == nullptr) {
      std::fprintf(stderr, "%s\n", reason.c_str());
      std::exit(1);
    }
    vm_ = *DestinationVm::Create(guest_->layout(), guest_->regions(),
                                 guest_->TakeOps(), Clock::Monotonic());
  }
  ~Vm() { vm_->Abort(); }

  void Precopy() {
    static const std::vector<uint8_t> bytes = PatternOf(kAll);
    if (!vm_->StorePrecopied({ReceivedRun{kAll, bytes}}).ok()) std::exit(1);
  }
  void Discard(const PageBitmap& stale) {
    if (!vm_->DiscardStale(stale.view()).ok()) std::exit(1);
  }
  void Serve() {
    Discard(*PageBitmap::Create(kPages));
    StartServing();
  }
  // With old bytes of all pages.
  void ServeStale() {
    Precopy();
    const PageBitmap all = *PageBitmap::Create(kPages);
    all.view().SetRun(kAll);
    Discard(all);
    StartServing();
  }
  DestinationVm* operator->() const { return vm_.get(); }
  const KernelGuest& guest() const { return *guest_; }

 private:
  void StartServing() {
    if (!vm_->StartServing(&idle_, 0, [](const absl::Status&) {}).ok()) {
      std::exit(1);
    }
  }

  std::unique_ptr<KernelGuest> guest_;
  std::unique_ptr<DestinationVm> vm_;
  FakePageSource idle_;
};

void SetTimePerPage(benchmark::State& state, PageCount pages) {
  state.counters["page"] =
      benchmark::Counter(static_cast<double>(pages.value()),
                         benchmark::Counter::kIsIterationInvariantRate |
                             benchmark::Counter::kInvert);
}

void BM_Install(benchmark::State& state) {
  const PageCount run(state.range(1));
  const std::vector<uint8_t> bytes = PatternOf({PageIndex(0), run});
  for (auto _ : state) {
    state.PauseTiming();
    auto vm = std::make_unique<Vm>(state.range(0) != 0);
    if (state.range(2) != 0) {
      vm->ServeStale();
    } else {
      vm->Serve();
    }
    state.ResumeTiming();
    for (PageIndex page(0); page < kAll.end(); page += run) {
      if (!(*vm)->OnBulkPages({ReceivedRun{{page, run}, bytes}}).ok()) {
        std::exit(1);
      }
    }
    state.PauseTiming();
    vm.reset();
    state.ResumeTiming();
  }
  SetTimePerPage(state, kPages);
}
BENCHMARK(BM_Install)
    ->Name("Install")
    ->ArgNames({"minor", "run", "stale"})
    ->ArgsProduct({{0, 1}, {1, 64}, {0, 1}})
    ->Unit(benchmark::kMillisecond);

void BM_Touch(benchmark::State& state) {
  const bool ahead = state.range(1) != 0;
  for (auto _ : state) {
    state.PauseTiming();
    auto vm = std::make_unique<Vm>(state.range(0) != 0);
    vm->Precopy();
    vm->Serve();
    // From the end, where MapAhead comes last, or when it is done.
    while (ahead && (*vm)->counters().mapped_ahead < kPages) {
      std::this_thread::yield();
    }
    uint64_t touched = 0;
    state.ResumeTiming();
    for (uint64_t page = kPages.value(); page-- > 0;) {
      touched += *vm->guest().at(PageIndex(page));
    }
    benchmark::DoNotOptimize(touched);
    state.PauseTiming();
    vm.reset();
    state.ResumeTiming();
  }
  SetTimePerPage(state, kPages);
}
BENCHMARK(BM_Touch)
    ->Name("Touch")
    ->ArgNames({"minor", "ahead"})
    ->Args({0, 0})
    ->Args({1, 0})
    ->Args({1, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void BM_MapAhead(benchmark::State& state) {
  for (auto _ : state) {
    state.PauseTiming();
    auto vm = std::make_unique<Vm>(true);
    vm->Precopy();
    state.ResumeTiming();
    vm->Serve();
    while ((*vm)->counters().mapped_ahead < kPages) std::this_thread::yield();
    state.PauseTiming();
    vm.reset();
    state.ResumeTiming();
  }
  SetTimePerPage(state, kPages);
}
BENCHMARK(BM_MapAhead)
    ->Name("MapAhead")
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void BM_Discard(benchmark::State& state) {
  const PageBitmap stale = *PageBitmap::Create(kPages);
  for (uint64_t page = 0; page < kPages.value(); page += 2) {
    stale.view().SetRun({PageIndex(page), PageCount(1)});
  }
  for (auto _ : state) {
    state.PauseTiming();
    auto vm = std::make_unique<Vm>(state.range(0) != 0);
    vm->Precopy();
    state.ResumeTiming();
    vm->Discard(stale);
    state.PauseTiming();
    vm.reset();
    state.ResumeTiming();
  }
  SetTimePerPage(state, PageCount(kPages.value() / 2));
}
BENCHMARK(BM_Discard)
    ->Name("Discard")
    ->ArgName("minor")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace postcopy
