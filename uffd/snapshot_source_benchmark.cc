// What a page from a snapshot file costs, read in three ways: by io_uring
// through the page cache, by io_uring past it (O_DIRECT), and by pread() in a
// loop, which is what there would be without this source.
//
//   Faults/one_*/cold    one 4 KiB page at random, asked for and awaited
//   Faults/many_*/cold   64 such pages at once: 64 vCPUs that fault together
//   Bulk/*/cold          16 MiB in requests of 256 KiB, two outstanding
//
// cold is 1 where the page cache has nothing of the file, 0 where it has all.
// The file is made in $TEST_TMPDIR, or in /var/tmp: that must be a disk.

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "benchmark/benchmark.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/background_pull.h"
#include "uffd/page_source.h"
#include "uffd/snapshot_file.h"
#include "uffd/snapshot_source.h"

namespace postcopy {
namespace {

constexpr PageCount kFilePages{65536};  // 256 MiB
constexpr PageCount kBulkPages{4096};   // 16 MiB
constexpr uint64_t kFaultsAtOnce = kMaxUrgentPages;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::abort();
}

// A file of random bytes, removed when the program ends.
class File {
 public:
  File() {
    const char* const directory = std::getenv("TEST_TMPDIR");
    path_ = std::string(directory == nullptr ? "/var/tmp" : directory) +
            "/snapshot_benchmark.XXXXXX";
    fd_.Reset(::mkstemp(path_.data()));
    if (!fd_.valid()) Die("cannot make " + path_);
    std::mt19937_64 random(1);
    std::vector<uint64_t> words(1 << 17);
    for (uint64_t done = 0; done < BytesIn(kFilePages).value();
         done += words.size() * sizeof(uint64_t)) {
      for (uint64_t& word : words) word = random();
      if (::write(fd_.get(), words.data(), words.size() * 8) < 0) {
        Die("cannot write " + path_);
      }
    }
  }
  ~File() { ::unlink(path_.c_str()); }

  const std::string& path() const { return path_; }
  int fd() const { return fd_.get(); }

  void SetCached(bool cached) const {
    // Dirty pages would stay.
    ::fdatasync(fd_.get());
    ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
    std::vector<uint8_t> bytes(1 << 20);
    while (cached && ::read(fd_.get(), bytes.data(), bytes.size()) > 0) {
    }
    ::lseek(fd_.get(), 0, SEEK_SET);
  }

 private:
  std::string path_;
  UniqueFd fd_;
};

const File& TheFile() {
  static const File file;
  return file;
}

// Makes the page cache what the argument says, off the clock.
void Prepare(benchmark::State& state) {
  state.PauseTiming();
  if (state.range(0) == 1) TheFile().SetCached(false);
  state.ResumeTiming();
}

// One of the ways to read. Each call returns when everything is there.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual void Faults(absl::Span<const PageIndex> pages) = 0;
  virtual void Bulk(PageRun run) = 0;
};

class PreadReader final : public Reader {
 public:
  void Faults(absl::Span<const PageIndex> pages) override {
    for (const PageIndex page : pages) Read({page, PageCount(1)});
  }
  void Bulk(PageRun run) override {
    for (uint64_t i = 0; i < run.count.value(); i += kMaxBulkPages.value()) {
      Read({run.first + PageCount(i), kMaxBulkPages});
    }
  }

 private:
  void Read(PageRun run) {
    const size_t length = BytesIn(run.count).value();
    const auto offset = static_cast<off_t>(OffsetOf(run.first).value());
    if (::pread(fd_.get(), bytes_.data(), length, offset) !=
        static_cast<ssize_t>(length)) {
      Die("pread fails");
    }
  }

  const UniqueFd fd_{::open(TheFile().path().c_str(), O_RDONLY | O_CLOEXEC)};
  std::vector<uint8_t> bytes_ =
      std::vector<uint8_t>(BytesIn(kMaxBulkPages).value());
};

class SourceReader final : public Reader {
 public:
  explicit SourceReader(SnapshotAccess access) {
    const auto receive = [this](absl::Span<const ReceivedRun> runs) {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const ReceivedRun& run : runs) received_ += run.pages.count.value();
      changed_.notify_all();
      return absl::OkStatus();
    };
    auto source = SnapshotSource::Create(
        TheFile().path(), {{{PageIndex(0), kFilePages}, 0}},
        {receive, receive,
         [](const absl::Status& status) { Die(status.ToString()); }},
        {.access = access});
    if (!source.ok()) Die(source.status().ToString());
    source_ = *std::move(source);
  }
  ~SourceReader() override { source_->Stop(); }

  void Faults(absl::Span<const PageIndex> pages) override {
    if (!source_->RequestUrgent(pages).ok()) Die("RequestUrgent fails");
    asked_ += pages.size();
    Await(asked_);
  }

  void Bulk(PageRun run) override {
    constexpr uint64_t kAhead =
        (kMaxBulkOutstanding - 1) * kMaxBulkPages.value();
    for (uint64_t i = 0; i < run.count.value(); i += kMaxBulkPages.value()) {
      const PageRun part = {run.first + PageCount(i), kMaxBulkPages};
      if (!source_->RequestBulk(part).ok()) Die("RequestBulk fails");
      asked_ += part.count.value();
      Await(asked_ - kAhead);
    }
    Await(asked_);
  }

 private:
  void Await(uint64_t pages) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return received_ >= pages; });
  }

  uint64_t asked_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t received_ = 0;
  std::unique_ptr<SnapshotSource> source_;
};

std::unique_ptr<Reader> MakeReader(const std::string& way) {
  if (way == "pread") return std::make_unique<PreadReader>();
  return std::make_unique<SourceReader>(
      way == "direct" ? SnapshotAccess::kDirect : SnapshotAccess::kBuffered);
}

void Faults(benchmark::State& state, const std::string& way, uint64_t count) {
  TheFile().SetCached(state.range(0) == 0);
  const std::unique_ptr<Reader> reader = MakeReader(way);
  std::mt19937_64 random(7);
  uint64_t rounds = 0;
  for (auto _ : state) {
    // Few enough pages are read in between for a random one to be cold.
    if (rounds++ * count % 1024 == 0) Prepare(state);
    std::vector<PageIndex> pages;
    for (uint64_t i = 0; i < count; ++i) {
      pages.emplace_back(random() % kFilePages.value());
    }
    reader->Faults(pages);
  }
  state.SetItemsProcessed(static_cast<int64_t>(rounds * count));
}

void Bulk(benchmark::State& state, const std::string& way) {
  TheFile().SetCached(state.range(0) == 0);
  const std::unique_ptr<Reader> reader = MakeReader(way);
  uint64_t first = 0;
  for (auto _ : state) {
    if (first == 0) Prepare(state);
    reader->Bulk({PageIndex(first), kBulkPages});
    first = (first + kBulkPages.value()) % kFilePages.value();
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(BytesIn(kBulkPages).value()));
}

// In real time: what takes long is done by the source's threads or the disk.
#define POSTCOPY_COLD_AND_WARM \
  Arg(1)->Arg(0)->UseRealTime()->Unit(benchmark::kMicrosecond)

BENCHMARK_CAPTURE(Faults, one_pread, "pread", 1)->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Faults, one_buffered, "buffered", 1)->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Faults, one_direct, "direct", 1)->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Faults, many_pread, "pread", kFaultsAtOnce)
    ->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Faults, many_buffered, "buffered", kFaultsAtOnce)
    ->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Faults, many_direct, "direct", kFaultsAtOnce)
    ->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Bulk, pread, "pread")->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Bulk, buffered, "buffered")->POSTCOPY_COLD_AND_WARM;
BENCHMARK_CAPTURE(Bulk, direct, "direct")->POSTCOPY_COLD_AND_WARM;

}  // namespace
}  // namespace postcopy
