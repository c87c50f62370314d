// What the dirty log costs its writers and its reader.
//
//   SwitchAlone/GiB      exchange of a dirty slot's bitmaps, no writer
//   SwitchDirty/GiB      the same with 64 idle writers
//   SwitchMarked/GiB     the same with 4 threads that mark all the time: the
//                        grace period, on as many CPUs as there are
//   SwitchClean/GiB      finding that nothing is dirty
//   SwitchAll/slots      one switch of that many dirty slots
//   LockedInstruction    the floor of marking: entering a section takes one
//   MarkDirty            a page whose bit is set already
//   MarkDirtyLocked      the same by a writer that cannot enter lightly
//   MarkOwnWords         several threads, none in another's words
//   MarkCleanInOrder     pages one after the other, all clean
//   MarkCleanAtRandom    pages in random order in 64 GiB, nearly all clean
//   MergeWords/percent   a harvested bitmap, time per word of 64 pages
//   Drain/percent        all of a 64 GiB slot with that part dirty
//   DrainClean           the same with nothing dirty
//   Harvest/percent      all runs of set bits of a 64 GiB slot, walked in place
//   HarvestClean/GiB     switch and walk of a clean slot

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "dirtytrack/dirty_log.h"

namespace postcopy {
namespace {

constexpr SlotId kSlot{0, 0};
constexpr uint64_t kPagesPerGiB = (uint64_t{1} << 30) / kPageSize;
constexpr PageCount k64GiB{64 * kPagesPerGiB};

DirtyLogSet MakeLog(PageCount pages) {
  return *DirtyLogSet::Create({{{kSlot, pages}}});
}

// Nothing is drained, so both bitmaps stay dirty.
void MakeBothDirty(DirtyLogSet& log) {
  DirtyLogWriter writer = *log.NewWriter();
  for (int i = 0; i < 2; ++i) {
    writer.Mark(kSlot, PageIndex(0));
    log.Switch(kSlot).IgnoreError();
  }
}

void TimeSwitches(benchmark::State& state, DirtyLogSet& log) {
  for (auto _ : state) {
    if (*log.Switch(kSlot) != SwitchResult::kSwitched) std::abort();
  }
}

void SwitchAlone(benchmark::State& state) {
  DirtyLogSet log = MakeLog(PageCount(state.range(0) * kPagesPerGiB));
  MakeBothDirty(log);
  TimeSwitches(state, log);
}
BENCHMARK(SwitchAlone)->Arg(1)->Arg(64)->Arg(1024);

void SwitchDirty(benchmark::State& state) {
  DirtyLogSet log = MakeLog(PageCount(state.range(0) * kPagesPerGiB));
  MakeBothDirty(log);
  std::vector<DirtyLogWriter> writers;
  for (size_t i = 0; i < kMaxDirtyLogWriters; ++i) {
    writers.push_back(*log.NewWriter());
  }
  TimeSwitches(state, log);
}
BENCHMARK(SwitchDirty)->Arg(1)->Arg(64)->Arg(1024);

void SwitchMarked(benchmark::State& state) {
  const uint64_t pages = state.range(0) * kPagesPerGiB;
  DirtyLogSet log = MakeLog(PageCount(pages));
  // So that no writer waits for memory inside its section.
  for (int i = 0; i < 2; ++i) {
    log.NewWriter()->MarkRun(kSlot, {PageIndex(0), PageCount(pages)});
    log.Switch(kSlot).IgnoreError();
  }
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      DirtyLogWriter writer = *log.NewWriter();
      for (uint64_t page = t * 4096; !stop; page = (page + 12289) % pages) {
        writer.Mark(kSlot, PageIndex(page));
      }
    });
  }
  TimeSwitches(state, log);
  stop = true;
  for (std::thread& thread : threads) thread.join();
}
BENCHMARK(SwitchMarked)->Arg(1)->Arg(64)->Arg(1024)->UseRealTime();

void SwitchClean(benchmark::State& state) {
  DirtyLogSet log = MakeLog(PageCount(state.range(0) * kPagesPerGiB));
  for (auto _ : state) {
    if (*log.Switch(kSlot) != SwitchResult::kClean) std::abort();
  }
}
BENCHMARK(SwitchClean)->Arg(1)->Arg(1024);

void SwitchAll(benchmark::State& state) {
  std::vector<DirtyLogSlot> slots;
  const auto count = static_cast<uint16_t>(state.range(0));
  for (uint16_t i = 0; i < count; ++i) {
    slots.push_back({{0, i}, PageCount(kPagesPerGiB)});
  }
  DirtyLogSet log = *DirtyLogSet::Create(slots);
  DirtyLogWriter writer = *log.NewWriter();
  for (int i = 0; i < 2; ++i) {
    for (const DirtyLogSlot& slot : slots) writer.Mark(slot.id, PageIndex(0));
    log.SwitchAll().IgnoreError();
  }
  for (auto _ : state) {
    if (*log.SwitchAll() != SwitchResult::kSwitched) std::abort();
  }
}
BENCHMARK(SwitchAll)->Arg(1)->Arg(8)->Arg(512);

void LockedInstruction(benchmark::State& state) {
  std::atomic<uint64_t> sequence = 0;
  uint64_t next = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(sequence.exchange(++next));
  }
}
BENCHMARK(LockedInstruction);

void MarkDirty(benchmark::State& state) {
  const DirtyLogSet log = MakeLog(k64GiB);
  DirtyLogWriter writer = *log.NewWriter();
  for (auto _ : state) writer.Mark(kSlot, PageIndex(12345));
}
BENCHMARK(MarkDirty);

void MarkDirtyLocked(benchmark::State& state) {
  const DirtyLogSet log = MakeLog(k64GiB);
  DirtyLogWriter writer = *log.NewWriter(WriterEntry::kLocked);
  for (auto _ : state) writer.Mark(kSlot, PageIndex(12345));
}
BENCHMARK(MarkDirtyLocked);

void MarkOwnWords(benchmark::State& state) {
  static const DirtyLogSet* const log = new DirtyLogSet(MakeLog(k64GiB));
  DirtyLogWriter writer = *log->NewWriter();
  const uint64_t first = uint64_t{1} << 20 << state.thread_index();
  uint64_t page = 0;
  for (auto _ : state) {
    writer.Mark(kSlot, PageIndex(first + page));
    page = (page + 64) % (64 * 1024);
  }
}
BENCHMARK(MarkOwnWords)->Threads(1)->Threads(2)->Threads(4)->UseRealTime();

void Clean(DirtyLogSet& log) {
  const PageBitmap into = *PageBitmap::Create(k64GiB);
  log.Switch(kSlot).IgnoreError();
  log.Drain(kSlot, into.view(), PageIndex(0)).IgnoreError();
}

// Clears a log that is dirty throughout, off the clock.
void CleanUntimed(benchmark::State& state, DirtyLogSet& log) {
  state.PauseTiming();
  Clean(log);
  state.ResumeTiming();
}

// Touches the memory of both bitmaps.
void Populate(DirtyLogSet& log, DirtyLogWriter& writer) {
  for (int i = 0; i < 2; ++i) {
    writer.MarkRun(kSlot, {PageIndex(0), k64GiB});
    Clean(log);
  }
}

void MarkCleanInOrder(benchmark::State& state) {
  DirtyLogSet log = MakeLog(k64GiB);
  DirtyLogWriter writer = *log.NewWriter();
  Populate(log, writer);
  uint64_t page = 0;
  for (auto _ : state) {
    writer.Mark(kSlot, PageIndex(page));
    if (++page == k64GiB.value()) {
      CleanUntimed(state, log);
      page = 0;
    }
  }
}
BENCHMARK(MarkCleanInOrder);

void MarkCleanAtRandom(benchmark::State& state) {
  DirtyLogSet log = MakeLog(k64GiB);
  DirtyLogWriter writer = *log.NewWriter();
  Populate(log, writer);
  uint64_t page = 0;
  uint64_t marked = 0;
  for (auto _ : state) {
    // A full-period generator modulo a power of two: no page comes twice.
    page = (page * 6364136223846793005u + 1442695040888963407u) &
           (k64GiB.value() - 1);
    writer.Mark(kSlot, PageIndex(page));
    if (++marked == k64GiB.value()) {
      CleanUntimed(state, log);
      marked = 0;
    }
  }
}
BENCHMARK(MarkCleanAtRandom);

// Bits of one word, each set with a chance of `percent`.
uint64_t RandomWord(std::mt19937_64& random, int64_t percent) {
  uint64_t word = 0;
  for (int bit = 0; bit < 64; ++bit) {
    word |= uint64_t{random() % 100 < static_cast<uint64_t>(percent)} << bit;
  }
  return word;
}

std::vector<uint64_t> RandomWords(PageCount pages, int64_t percent) {
  std::mt19937_64 random(percent);
  std::vector<uint64_t> words(PageBitmap::WordCount(pages));
  for (uint64_t& word : words) word = RandomWord(random, percent);
  return words;
}

void MergeWords(benchmark::State& state) {
  DirtyLogSet log = MakeLog(k64GiB);
  DirtyLogWriter writer = *log.NewWriter();
  const std::vector<uint64_t> words = RandomWords(k64GiB, state.range(0));
  Populate(log, writer);
  for (auto _ : state) {
    CleanUntimed(state, log);
    writer.MergeWords(kSlot, 0, words);
  }
  state.SetItemsProcessed(state.iterations() * words.size());
}
BENCHMARK(MergeWords)->Arg(0)->Arg(1)->Arg(100)->Unit(benchmark::kMicrosecond);

void Drain(benchmark::State& state) {
  DirtyLogSet log = MakeLog(k64GiB);
  DirtyLogWriter writer = *log.NewWriter();
  const std::vector<uint64_t> words = RandomWords(k64GiB, state.range(0));
  const PageBitmap into = *PageBitmap::Create(k64GiB);
  into.view().SetRun({PageIndex(0), k64GiB});  // touches its memory
  Populate(log, writer);
  for (auto _ : state) {
    state.PauseTiming();
    into.view().ClearRun({PageIndex(0), k64GiB});
    writer.MergeWords(kSlot, 0, words);
    log.Switch(kSlot).IgnoreError();
    state.ResumeTiming();
    benchmark::DoNotOptimize(log.Drain(kSlot, into.view(), PageIndex(0)));
  }
}
// Few, because each takes long to prepare.
BENCHMARK(Drain)->Arg(1)->Arg(100)->Iterations(30)->Unit(
    benchmark::kMicrosecond);

void DrainClean(benchmark::State& state) {
  DirtyLogSet log = MakeLog(k64GiB);
  const PageBitmap into = *PageBitmap::Create(k64GiB);
  for (auto _ : state) {
    benchmark::DoNotOptimize(log.Drain(kSlot, into.view(), PageIndex(0)));
  }
}
BENCHMARK(DrainClean);

// What a reader does that looks in place: finds every run.
uint64_t Walk(PageBitmapView bitmap) {
  uint64_t runs = 0;
  PageIndex at;
  while (auto run = bitmap.NextSetRun(at)) {
    ++runs;
    at = run->end();
  }
  return runs;
}

void Harvest(benchmark::State& state) {
  DirtyLogSet log = MakeLog(k64GiB);
  DirtyLogWriter writer = *log.NewWriter();
  writer.MergeWords(kSlot, 0, RandomWords(k64GiB, state.range(0)));
  log.Switch(kSlot).IgnoreError();
  uint64_t runs = 0;
  for (auto _ : state) runs = Walk(*log.Retired(kSlot));
  state.counters["runs"] = static_cast<double>(runs);
}
BENCHMARK(Harvest)->Arg(1)->Arg(100)->Unit(benchmark::kMicrosecond);

void HarvestClean(benchmark::State& state) {
  DirtyLogSet log = MakeLog(PageCount(state.range(0) * kPagesPerGiB));
  for (auto _ : state) {
    if (*log.Switch(kSlot) == SwitchResult::kSwitched) {
      Walk(*log.Retired(kSlot));
    }
  }
}
BENCHMARK(HarvestClean)->Arg(1)->Arg(64)->Arg(1024);

}  // namespace
}  // namespace postcopy
