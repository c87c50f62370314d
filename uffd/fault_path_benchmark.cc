// What the fault path's own bookkeeping costs: reading messages, the table of
// pending faults, asking, taking off what has come, times. The kernel, the
// source and the installing of bytes cost nothing here.
//
//   FaultPath/pages:P/threads:T   P pages by one read and one answer, touched
//                                 by T threads in turn; time is per page
//   RecordedFaultPath/...         the same, and each fault is told to
//                                 FaultRecords, which a thread takes them from
//
//   bazel run -c opt //uffd:fault_path_benchmark

#include <linux/userfaultfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "benchmark/benchmark.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/types.h"
#include "uffd/destination_ram.h"
#include "uffd/fault_loop.h"
#include "uffd/fault_records.h"
#include "uffd/install_gate.h"
#include "uffd/install_strategy.h"
#include "uffd/installer.h"
#include "uffd/kernel_guest.h"
#include "uffd/memory_changes.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"
#include "uffd/pull_order.h"
#include "uffd/simulated_uffd.h"
#include "uffd/uffd_ops.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{1 << 20};
constexpr HostAddress kBase{0x100000000};

// Its messages cost nothing, and whatever is done to it succeeds.
class QuietUffd final : public UffdOps {
 public:
  // The next read gives faults of `pages`, by `threads` threads in turn.
  void Fault(absl::Span<const PageIndex> pages, uint32_t threads) {
    for (size_t i = 0; i < pages.size(); ++i) {
      messages_[i] = {};
      messages_[i].event = UFFD_EVENT_PAGEFAULT;
      messages_[i].arg.pagefault.address =
          (kBase + BytesIn(PageCount(pages[i].value()))).value();
      messages_[i].arg.pagefault.feat.ptid = 1000 + i % threads;
    }
    count_ = pages.size();
  }

  uint64_t features() const override { return UFFD_FEATURE_THREAD_ID; }
  UffdRegistration Register(HostAddress, ByteCount, uint64_t) override {
    return {.error = 0,
            .ioctls = uint64_t{1} << _UFFDIO_COPY |
                      uint64_t{1} << _UFFDIO_WAKE |
                      uint64_t{1} << _UFFDIO_ZEROPAGE};
  }
  UffdResult Unregister(HostAddress, ByteCount) override { return {}; }
  UffdResult Copy(HostAddress, const uint8_t*, ByteCount length,
                  bool) override {
    return {.error = 0, .done = length};
  }
  UffdResult ZeroPage(HostAddress, ByteCount length, bool) override {
    return {.error = 0, .done = length};
  }
  UffdResult Continue(HostAddress, ByteCount length, bool) override {
    return {.error = 0, .done = length};
  }
  UffdResult Unprotect(HostAddress, ByteCount) override { return {}; }
  UffdResult Wake(HostAddress, ByteCount) override { return {}; }
  UffdResult Poison(HostAddress, ByteCount) override { return {}; }
  UffdReadResult Read(absl::Span<uffd_msg> messages) override {
    if (count_ == 0) return {.error = EAGAIN, .messages = 0};
    std::copy_n(messages_.begin(), count_, messages.begin());
    return {.error = 0, .messages = std::exchange(count_, 0)};
  }
  int poll_fd() const override { return -1; }

 private:
  std::array<uffd_msg, kMaxFaultBatch> messages_;
  size_t count_ = 0;
};

class QuietSource final : public PageSource {
 public:
  absl::Status RequestUrgent(absl::Span<const PageIndex>) override {
    return absl::OkStatus();
  }
  absl::Status RequestBulk(PageRun) override { return absl::OkStatus(); }
};

DestinationRam Ram() {
  return *DestinationRam::Create(LayoutOf({kPages}), {{.host_address = kBase}});
}

// The parts around a FaultLoop.
struct Vm {
  QuietUffd uffd;
  QuietSource source;
  DestinationRam ram = Ram();
  std::unique_ptr<PageState> state = *PageState::Create(kPages);
  InstallGate gate{/*needed=*/false};
  const InstallStrategies strategies = StrategiesFor(ram, uffd);
  MemoryChanges changes{&ram, state.get(), &strategies};
  Installer installer{&ram, &uffd, state.get(), &gate, &strategies};
  AfterFaultOrder order;
  std::unique_ptr<FaultLoop> loop;

  explicit Vm(FaultRecords* records) {
    loop = *FaultLoop::Create({.ram = &ram,
                               .ops = &uffd,
                               .state = state.get(),
                               .gate = &gate,
                               .changes = &changes,
                               .installer = &installer,
                               .order = &order,
                               .clock = Clock::Monotonic(),
                               .records = records,
                               .on_given_up = [] {},
                               .on_end = [](const absl::Status&) {}});
    if (!loop->SetSource(&source).ok()) std::abort();
  }
};

void Run(benchmark::State& state, FaultRecords* records) {
  const auto vm = std::make_unique<Vm>(records);
  Clock* const clock = Clock::Monotonic();
  std::vector<PageIndex> pages(static_cast<size_t>(state.range(0)));
  uint64_t next = 0;
  for (auto _ : state) {
    for (PageIndex& page : pages) {
      next = (next + 7919) % kPages.value();
      page = PageIndex(next);
    }
    vm->uffd.Fault(pages, static_cast<uint32_t>(state.range(1)));
    // As after poll(), which is not part of ServeOnce().
    benchmark::DoNotOptimize(clock->NowNanos());
    if (!vm->loop->ServeOnce().ok()) std::abort();
    const int64_t answered_ns = clock->NowNanos();
    const int64_t now_ns = clock->NowNanos();
    for (const PageIndex page : pages) {
      vm->loop->Resolve(page, answered_ns, now_ns);
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

void BM_FaultPath(benchmark::State& state) { Run(state, nullptr); }

void BM_RecordedFaultPath(benchmark::State& state) {
  const auto records = std::make_unique<FaultRecords>();
  std::atomic<bool> done{false};
  std::thread writer([&] {
    while (!done.load()) {
      while (records->Take().has_value()) {
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  Run(state, records.get());
  done.store(true);
  writer.join();
  // Rows for which there was no room cost less.
  state.counters["lost"] = static_cast<double>(records->lost());
}

BENCHMARK(BM_RecordedFaultPath)
    ->Name("RecordedFaultPath")
    ->ArgNames({"pages", "threads"})
    ->ArgsProduct({{1, 8, 64}, {1, 64}});
BENCHMARK(BM_FaultPath)
    ->Name("FaultPath")
    ->ArgNames({"pages", "threads"})
    ->ArgsProduct({{1, 8, 64}, {1, 64}});

}  // namespace
}  // namespace postcopy
