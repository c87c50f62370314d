// What compressing a run costs the source and the destination, and what it
// saves. The bytes per second are those of pages; `ratio` is pages to wire.
//
//   Compress/content/pages     content 0: noise, 1: numbers in text, 2: machine
//                              code (this program's)
//   Decompress/content/pages   the same (noise is never compressed)

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "benchmark/benchmark.h"
#include "dirtytrack/run_compression.h"

namespace postcopy {
namespace {

enum Content { kNoise, kText, kCode };

std::string Pages(int64_t content, uint64_t pages) {
  const size_t size = pages * kPageSize;
  std::string bytes;
  if (content == kNoise) {
    std::mt19937 random(1);
    while (bytes.size() < size) bytes.push_back(static_cast<char>(random()));
  } else if (content == kText) {
    for (uint64_t i = 0; bytes.size() < size; ++i) {
      bytes += "line " + std::to_string(i * i) + "\n";
    }
  } else {
    std::ifstream program("/proc/self/exe", std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(program), {});
    // The headers and the names of symbols come first.
    bytes.erase(0, bytes.size() / 4);
    if (bytes.size() < size) std::abort();
  }
  bytes.resize(size);
  return bytes;
}

void Finish(benchmark::State& state, size_t pages_size, size_t wire_size) {
  state.SetBytesProcessed(static_cast<int64_t>(pages_size) *
                          static_cast<int64_t>(state.iterations()));
  state.counters["ratio"] =
      static_cast<double>(pages_size) / static_cast<double>(wire_size);
}

void Compress(benchmark::State& state) {
  const auto compressor = *RunCompressor::Create();
  const std::string pages =
      Pages(state.range(0), static_cast<uint64_t>(state.range(1)));
  std::string data;
  for (auto _ : state) {
    data = pages;
    benchmark::DoNotOptimize(compressor->Compress(data));
  }
  Finish(state, pages.size(), data.size());
}
BENCHMARK(Compress)
    ->ArgsProduct({{kNoise, kText}, {1, 8, 64}})
    ->ArgsProduct({{kCode}, {1, 8}});

void Decompress(benchmark::State& state) {
  const auto pages = static_cast<uint64_t>(state.range(1));
  std::string data = Pages(state.range(0), pages);
  if (!(*RunCompressor::Create())->Compress(data)) std::abort();
  RunDecompressor decompressor;
  for (auto _ : state) {
    decompressor.Clear();
    const auto content = decompressor.Decompress(
        {reinterpret_cast<const uint8_t*>(data.data()), data.size()}, pages);
    if (!content.ok()) std::abort();
  }
  Finish(state, pages * kPageSize, data.size());
}
BENCHMARK(Decompress)
    ->ArgsProduct({{kText}, {1, 8, 64}})
    ->ArgsProduct({{kCode}, {1, 8}});

}  // namespace
}  // namespace postcopy
