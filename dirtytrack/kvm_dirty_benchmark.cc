// What it costs to learn which pages a real guest of 4 GiB has written, and
// what that costs the guest. All in one run, so that the lines compare.
//
//   Obtain/<source>/<percent>  the time from "that part of RAM was written,
//                              evenly spread" to the pages in a bitmap, all
//                              protected again; `pages` of them
//   WriteRate/<source>         writes per second of two vCPUs within a window
//                              that moves, with a harvest every 20 ms
//
//   None       nothing is tracked
//   GetLog     KVM_GET_DIRTY_LOG, which protects again
//   GetClear   KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG, 4096 pages at a time
//   Ring       dirty rings of 1 MiB; with the time of those that were full
//   Scan       PAGEMAP_SCAN that takes at once
//   ScanClear  PAGEMAP_SCAN that looks, then takes 4096 pages at a time
//   LogRead    our own log: switch and drain. The reader's part alone: pages
//   are
//              marked, untimed, by a thread that writes none
//   LogFed     our own log as a VMM feeds it: GetClear merged into the log,
//   then
//              LogRead
//
// Needs /dev/kvm, 5 GiB of memory and, where a guest's first write to a page is
// slow, ten minutes. POSTCOPY_BENCHMARK_MIB=512 gives the guest less RAM.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/types/span.h"
#include "benchmark/benchmark.h"
#include "dirtytrack/check.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/kvm_log_source.h"
#include "dirtytrack/kvm_ring_source.h"
#include "dirtytrack/kvm_test_guest.h"
#include "dirtytrack/pagemap_scan_source.h"
#include "dirtytrack/write_tracking.h"

namespace postcopy {
namespace {

constexpr ByteCount kRingBytes{uint64_t{1} << 20};
constexpr PageCount kPartPages{4096};
constexpr SlotId kLogSlot{0, 0};

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << "\n";
  std::exit(1);
}

uint64_t RamPages() {
  const char* mib = std::getenv("POSTCOPY_BENCHMARK_MIB");
  return (mib == nullptr ? 4096 : std::strtoull(mib, nullptr, 10)) * 256;
}

// One guest at a time, all its RAM touched: two would not fit everywhere.
KvmTestGuest& Guest(bool ring) {
  static std::unique_ptr<KvmTestGuest> guest;
  static bool has_ring = false;
  if (guest != nullptr && has_ring == ring) return *guest;
  guest.reset();
  absl::StatusOr<std::unique_ptr<KvmTestGuest>> created = KvmTestGuest::Create(
      {.pages = RamPages(), .ring_bytes = ring ? kRingBytes : ByteCount(0)});
  Require(created.status());
  guest = *std::move(created);
  has_ring = ring;
  Require(guest->Write(0, 1, RamPages()));
  return *guest;
}

// A source of the given kind, and the time spent in it.
class Harvester {
 public:
  enum class Kind {
    kNone,
    kGetLog,
    kGetClear,
    kRing,
    kScan,
    kScanClear,
    kLogRead,
    kLogFed
  };

  explicit Harvester(Kind kind)
      : kind_(kind),
        guest_(Guest(kind == Kind::kRing)),
        into_(TouchedBitmap()),
        from_source_(TouchedBitmap()) {
    if (kind == Kind::kGetLog || kind == Kind::kGetClear ||
        kind == Kind::kLogFed) {
      source_ = *KvmLogSource::Create(
          guest_.layout(),
          {.vm = guest_.vm(),
           .slots = guest_.slots(),
           .mode = kind == Kind::kGetLog ? KvmLogMode::kGetDirtyLog
                                         : KvmLogMode::kManualProtect});
    } else if (kind == Kind::kRing) {
      MakeRing();
    } else if (kind == Kind::kScan || kind == Kind::kScanClear) {
      MakeScan();
    }
    if (kind == Kind::kLogRead || kind == Kind::kLogFed) {
      log_ = std::make_unique<DirtyLogSet>(
          *DirtyLogSet::Create({{kLogSlot, guest_.pages()}}));
      writer_ = std::make_unique<DirtyLogWriter>(*log_->NewWriter());
    }
    if (source_ != nullptr) Require(source_->Start());
  }
  ~Harvester() {
    Require(guest_.Pause());
    guest_.set_on_ring_full(nullptr);
  }

  KvmTestGuest& guest() { return guest_; }

  // Writes every 100 / percent-th page.
  void Dirty(uint64_t percent) {
    const uint64_t pages = guest_.pages().value();
    const uint64_t step = 100 / percent;
    ++value_;
    if (kind_ == Kind::kLogRead) {
      for (uint64_t page = 0; page < pages; page += step) {
        writer_->Mark(kLogSlot, PageIndex(page));
      }
    } else if (step == 1) {
      Require(guest_.Write(0, value_, pages));
    } else {
      for (uint64_t page = 0; page < pages; page += step) {
        Require(guest_.Write(page, value_));
      }
    }
  }

  // Obtains the pages; returns how many.
  PageCount Harvest() {
    if (kind_ == Kind::kNone) return PageCount(0);
    if (log_ == nullptr) return HarvestSource(into_.view());
    if (source_ != nullptr) FeedLog();
    Require(log_->SwitchAll().status());
    return *log_->Drain(kLogSlot, into_.view(), PageIndex(0));
  }

  void Clean() { into_.view().ClearRun({PageIndex(0), guest_.pages()}); }

  // Seconds in OnRingFull since the last call. While the guest is paused.
  double TakeRingFullSeconds() {
    return std::exchange(ring_full_seconds_, 0.0);
  }

 private:
  // Of the guest's size, its memory touched, empty.
  PageBitmap TouchedBitmap() const {
    PageBitmap bitmap = *PageBitmap::Create(guest_.pages());
    bitmap.view().SetRun({PageIndex(0), guest_.pages()});
    bitmap.view().ClearRun({PageIndex(0), guest_.pages()});
    return bitmap;
  }

  // Obtains from source_, and has it track all of that again.
  PageCount HarvestSource(PageBitmapView into) {
    const absl::StatusOr<PageCount> set = source_->Collect(into);
    Require(set.status());
    const PageIndex end = PageIndex(guest_.pages().value());
    for (PageIndex at; at < end; at += std::min(kPartPages, end - at)) {
      Require(source_->Clear(into, {at, std::min(kPartPages, end - at)}));
    }
    return *set;
  }

  void FeedLog() {
    const PageBitmapView from = from_source_.view();
    HarvestSource(from);
    std::array<uint64_t, kPartPages.value() / 64> words;
    for (size_t first = 0; first < from.word_count(); first += words.size()) {
      const size_t count = std::min(words.size(), from.word_count() - first);
      for (size_t i = 0; i < count; ++i) words[i] = from.TakeWord(first + i);
      POSTCOPY_CHECK(writer_->MergeWords(
          kLogSlot, first, absl::MakeConstSpan(words.data(), count)));
    }
  }

  void MakeScan() {
    const HostAddress ram(reinterpret_cast<uint64_t>(guest_.ram()));
    absl::StatusOr<WriteTracking> tracking =
        WriteTracking::Create({{{ram, BytesIn(guest_.pages())}}});
    Require(tracking.status());
    tracking_ = *std::move(tracking);
    source_ = *PagemapScanSource::Create(
        guest_.layout(), {{.address = ram}}, tracking_->TakePagemap(),
        kind_ == Kind::kScan ? PagemapScanSource::Mode::kTakeAtOnce
                             : PagemapScanSource::Mode::kClearBeforeRead);
  }

  void MakeRing() {
    auto source = KvmRingSource::Create(
        guest_.layout(), {.vm = guest_.vm(),
                          .slots = guest_.slots(),
                          .vcpus = guest_.vcpus(),
                          .ring_bytes = kRingBytes,
                          .kick = [this] { return guest_.Kick(); }});
    Require(source.status());
    KvmRingSource* const ring = source->get();
    source_ = *std::move(source);
    guest_.set_on_ring_full([this, ring](size_t vcpu) {
      const auto start = Clock::now();
      absl::Status s = ring->OnRingFull(vcpu);
      // Of vCPU 0 alone: the other may be in here too, and Write uses the one.
      if (vcpu == 0) ring_full_seconds_ += SecondsSince(start);
      return s;
    });
  }

  const Kind kind_;
  KvmTestGuest& guest_;
  PageBitmap into_;
  PageBitmap from_source_;  // on its way into log_
  std::optional<WriteTracking> tracking_;
  std::unique_ptr<DirtySource> source_;
  std::unique_ptr<DirtyLogSet> log_;
  std::unique_ptr<DirtyLogWriter> writer_;
  uint64_t value_ = 1;
  double ring_full_seconds_ = 0;
};

using Kind = Harvester::Kind;

void Obtain(benchmark::State& state, Kind kind) {
  Harvester harvester(kind);
  const auto percent = static_cast<uint64_t>(state.range(0));
  // What Start left to be done is not of this round.
  harvester.Harvest();
  uint64_t pages = 0;
  for (auto _ : state) {
    harvester.Clean();
    harvester.TakeRingFullSeconds();
    harvester.Dirty(percent);
    const double full = harvester.TakeRingFullSeconds();
    const auto start = Clock::now();
    pages += harvester.Harvest().value();
    state.SetIterationTime(full + SecondsSince(start));
  }
  state.counters["pages"] = benchmark::Counter(
      static_cast<double>(pages), benchmark::Counter::kAvgIterations);
}

void WriteRate(benchmark::State& state, Kind kind) {
  Harvester harvester(kind);
  harvester.Harvest();
  const uint64_t before = harvester.guest().writes();
  double seconds = 0;
  uint64_t pages = 0;
  for (auto _ : state) {
    const auto start = Clock::now();
    harvester.guest().Resume();
    for (int i = 0; i < 100; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      harvester.Clean();
      pages += harvester.Harvest().value();
    }
    Require(harvester.guest().Pause());
    seconds += SecondsSince(start);
    state.SetIterationTime(SecondsSince(start));
  }
  state.counters["writes_per_second"] =
      static_cast<double>(harvester.guest().writes() - before) / seconds;
  state.counters["pages_per_harvest"] =
      static_cast<double>(pages) / (100.0 * state.iterations());
}

// Few, because the guest needs long to write all its RAM.
#define OBTAIN(name, kind)              \
  BENCHMARK_CAPTURE(Obtain, name, kind) \
      ->Arg(1)                          \
      ->Arg(100)                        \
      ->Iterations(3)                   \
      ->UseManualTime()                 \
      ->Unit(benchmark::kMicrosecond)
#define WRITE_RATE(name, kind)             \
  BENCHMARK_CAPTURE(WriteRate, name, kind) \
      ->Iterations(1)                      \
      ->UseManualTime()                    \
      ->Unit(benchmark::kMillisecond)

// Those that share a guest stand together.
OBTAIN(LogRead, Kind::kLogRead);
OBTAIN(LogFed, Kind::kLogFed);
OBTAIN(GetLog, Kind::kGetLog);
OBTAIN(GetClear, Kind::kGetClear);
OBTAIN(Scan, Kind::kScan);
OBTAIN(ScanClear, Kind::kScanClear);
WRITE_RATE(None, Kind::kNone);
WRITE_RATE(GetLog, Kind::kGetLog);
WRITE_RATE(GetClear, Kind::kGetClear);
WRITE_RATE(LogFed, Kind::kLogFed);
WRITE_RATE(Scan, Kind::kScan);
WRITE_RATE(ScanClear, Kind::kScanClear);
OBTAIN(Ring, Kind::kRing);
WRITE_RATE(Ring, Kind::kRing);

}  // namespace
}  // namespace postcopy
