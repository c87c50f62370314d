// What it costs to ask, before a faulted page is read, whether the read may
// wait for a disk: ratios within one run.
//
//   bazel run -c opt //pageserver:urgent_read_benchmark
//
// Read: pread alone, of one page of a memfd or of 64. Ask: MayWait alone.
// AskAndRead: both, as a source does for a destination that takes pages in any
// order.

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "dirtytrack/memfd.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "pageserver/guest_memory.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{16384};

std::unique_ptr<GuestMemory> NewMemory() {
  const UniqueFd fd = *CreateMemfd("ram", BytesIn(kPages), 0);
  const std::vector<uint8_t> page(kPageSize, 1);
  for (uint64_t i = 0; i < kPages.value(); ++i) {
    POSTCOPY_CHECK(::pwrite(fd.get(), page.data(), page.size(),
                            static_cast<off_t>(i * kPageSize)) ==
                   static_cast<ssize_t>(kPageSize));
  }
  return *GuestMemory::Create(
      *RamLayout::Create(
          {{.name = "ram", .start = RamOffset(0), .length = BytesIn(kPages)}}),
      {{.fd = fd.get(), .offset = 0}});
}

void Run(benchmark::State& state, bool ask, bool read) {
  const std::unique_ptr<GuestMemory> memory = NewMemory();
  const PageCount count(static_cast<uint64_t>(state.range(0)));
  std::vector<uint8_t> bytes(BytesIn(count).value());
  uint64_t at = 0;
  for (auto _ : state) {
    const PageRun run{PageIndex(at), count};
    if (ask) benchmark::DoNotOptimize(memory->MayWait(run));
    if (read) memory->Read(run, absl::MakeSpan(bytes)).IgnoreError();
    at = (at + 64 * 7919) % kPages.value();
  }
}

void Read(benchmark::State& state) { Run(state, false, true); }
void Ask(benchmark::State& state) { Run(state, true, false); }
void AskAndRead(benchmark::State& state) { Run(state, true, true); }

BENCHMARK(Read)->Arg(1)->Arg(64);
BENCHMARK(Ask)->Arg(1)->Arg(64);
BENCHMARK(AskAndRead)->Arg(1)->Arg(64);

}  // namespace
}  // namespace postcopy
