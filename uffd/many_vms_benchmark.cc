// Whether one VM's storm of faults, or its death, is felt by the others of the
// same process: what a touch of a missing page costs a calm VM, on the kernel's
// userfaultfd, with sources that answer at once from memory.
//
//   alone   one calm VM
//   calm    31 calm VMs
//   spin    31 calm VMs; and 16 threads that use the CPUs and fault nothing:
//           what the storm would cost if serving it cost nothing
//   storm   31 calm VMs; and one whose 16 threads fault without pause while its
//           background goes as fast as it can, from its start over and over
//   death   as storm; the VM of the storm is aborted in the middle of it
//
// Last, how fast the background of one VM is alone, with the share and without.
//
// A calm VM has one thread that touches a page every few milliseconds, and no
// background: every touch is a fault that goes to the source and back. The rows
// are interleaved in one run, so compare them with each other, never with
// another run. Everything shares the CPUs: VMs, their sources, the process that
// serves them. Arguments: [rounds] [milliseconds of a row] [bulk requests in
// flight; 0: no share] [nice value of threads that receive bulk] [of those that
// serve faults; below 0 needs CAP_SYS_NICE]

#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "uffd/bulk_share.h"
#include "uffd/destination_vm.h"
#include "uffd/kernel_guest.h"
#include "uffd/page_source.h"

namespace postcopy {
namespace {

constexpr size_t kCalmVms = 31;
constexpr size_t kStormThreads = 16;
constexpr PageCount kCalmPages{4096};
constexpr PageCount kStormPages{65536};  // 256 MiB
constexpr int64_t kPauseNanos = 3 * kNanosPerMilli;

// Nice values, see above.
int g_bulk_nice = 0;
int g_fault_nice = 0;

// Of the calling thread, and of those that it starts from then on.
void SetNice(int nice) {
  if (::setpriority(PRIO_PROCESS, 0, nice) != 0) {
    std::perror("setpriority");
    std::exit(1);
  }
}

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// Answers each lane in order, with a thread of its own, with what it likes: the
// same bytes in every page.
class MemorySource final : public PageSource {
 public:
  ~MemorySource() override { Stop(); }

  void Serve(DestinationVm* vm) {
    vm_ = vm;
    urgent_.thread = std::thread([this] {
      SetNice(g_fault_nice);
      Run(&urgent_);
    });
    bulk_.thread = std::thread([this] {
      SetNice(g_bulk_nice);
      Run(&bulk_);
    });
  }
  void Stop() {
    for (Lane* lane : {&urgent_, &bulk_}) {
      {
        const std::lock_guard<std::mutex> lock(lane->mutex);
        lane->stopping = true;
        lane->changed.notify_all();
      }
      if (lane->thread.joinable()) lane->thread.join();
    }
  }

  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override {
    std::vector<PageRun> runs;
    for (const PageIndex page : pages) runs.push_back({page, PageCount(1)});
    Push(&urgent_, std::move(runs));
    return absl::OkStatus();
  }
  absl::Status RequestBulk(PageRun run) override {
    Push(&bulk_, {run});
    return absl::OkStatus();
  }

 private:
  struct Lane {
    std::mutex mutex;
    std::condition_variable changed;
    bool stopping = false;
    std::deque<std::vector<PageRun>> requests;
    std::thread thread;
  };

  static void Push(Lane* lane, std::vector<PageRun> runs) {
    const std::lock_guard<std::mutex> lock(lane->mutex);
    lane->requests.push_back(std::move(runs));
    lane->changed.notify_one();
  }
  void Run(Lane* lane) {
    static const std::vector<uint8_t> bytes(BytesIn(kMaxBulkPages).value(), 7);
    while (true) {
      std::vector<PageRun> runs;
      {
        std::unique_lock<std::mutex> lock(lane->mutex);
        lane->changed.wait(
            lock, [lane] { return lane->stopping || !lane->requests.empty(); });
        if (lane->stopping) return;
        runs = std::move(lane->requests.front());
        lane->requests.pop_front();
      }
      std::vector<ReceivedRun> answer;
      for (const PageRun run : runs) {
        answer.push_back(
            {run, absl::MakeSpan(bytes).first(BytesIn(run.count).value())});
      }
      // Refused once the VM has been aborted.
      (lane == &urgent_ ? vm_->OnUrgentPagesStandingIn(answer)
                        : vm_->OnBulkPages(answer))
          .IgnoreError();
    }
  }

  DestinationVm* vm_ = nullptr;
  Lane urgent_;
  Lane bulk_;
};

// One life of a VM.
class Vm {
 public:
  Vm(PageCount pages, BulkShare* share) : pages_(pages) {
    std::string reason;
    guest_ = KernelGuest::Create(std::vector<PageCount>{pages}, &reason);
    if (guest_ == nullptr) Require(absl::UnavailableError(reason));
    auto vm = DestinationVm::Create(guest_->layout(), guest_->regions(),
                                    guest_->TakeOps(), Clock::Monotonic());
    Require(vm.status());
    vm_ = *std::move(vm);
    Require(vm_->DiscardStale(PageBitmap::Create(pages)->view()).status());
    source_.Serve(vm_.get());
    SetNice(g_fault_nice);
    Require(vm_->StartServing(
        &source_, 0, [this](const absl::Status&) { complete_.store(true); },
        share));
    if (g_fault_nice < 0) SetNice(0);
  }
  // Who still waits for a page gets zeros.
  ~Vm() {
    source_.Stop();
    vm_->Abort(/*release=*/true);
  }

  DestinationVm* operator->() const { return vm_.get(); }
  bool complete() const { return complete_.load(); }
  void Touch(uint64_t page) const {
    volatile const uint8_t* byte = guest_->at(PageIndex(page));
    static_cast<void>(*byte);
  }
  uint64_t pages() const { return pages_.value(); }

 private:
  const PageCount pages_;
  std::unique_ptr<KernelGuest> guest_;
  std::unique_ptr<DestinationVm> vm_;
  std::atomic<bool> complete_{false};
  MemorySource source_;
};

// Touches one page after the other, with a pause between; adds what each took.
void LiveCalmly(const Vm& vm, size_t seed, const std::atomic<bool>& stop,
                std::vector<int64_t>* nanos) {
  std::mt19937_64 random(seed);
  Clock& clock = *Clock::Monotonic();
  // Not all at once.
  clock.SleepFor(static_cast<int64_t>(random() % kPauseNanos));
  for (uint64_t page = 0; page < vm.pages() && !stop.load(); ++page) {
    const int64_t began_ns = clock.NowNanos();
    vm.Touch(page);
    nanos->push_back(clock.NowNanos() - began_ns);
    clock.SleepFor(kPauseNanos);
  }
}

class Spinners {
 public:
  Spinners() {
    for (std::thread& thread : threads_) {
      thread = std::thread([this] {
        while (!stop_.load(std::memory_order_relaxed)) {
        }
      });
    }
  }
  ~Spinners() {
    stop_.store(true);
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::array<std::thread, kStormThreads> threads_;
};

// VMs that fault without pause, one life after the other, until told to stop.
class Storm {
 public:
  // `dies`: a life ends by Abort in its middle.
  Storm(bool dies, BulkShare* share)
      : thread_([this, dies, share] {
          while (!stop_.load()) Live(dies, share);
        }) {}
  ~Storm() {
    stop_.store(true);
    thread_.join();
  }
  uint64_t lives() const { return lives_.load(); }
  uint64_t faults() const { return faults_.load(); }

 private:
  void Live(bool dies, BulkShare* share) {
    auto vm = std::make_unique<Vm>(kStormPages, share);
    std::atomic<bool> over{false};
    std::vector<std::thread> vcpus;
    for (size_t i = 0; i < kStormThreads; ++i) {
      vcpus.emplace_back([&, i] {
        // Each page once, so that it does not spin over what is there.
        for (uint64_t page = i; page < vm->pages() && !over.load();
             page += kStormThreads) {
          vm->Touch(page * 4099 % vm->pages());
        }
      });
    }
    Require((*vm)->StartBackground());
    while (!vm->complete() && !stop_.load()) {
      Clock::Monotonic()->SleepFor(kNanosPerMilli);
      const PageCount missing = (*vm)->counters().missing;
      if (dies && missing.value() < vm->pages() / 2) break;
    }
    faults_.fetch_add((*vm)->counters().faults);
    lives_.fetch_add(1);
    over.store(true);
    // As when a VMM is killed: its threads wait no longer for anything.
    if (dies) (*vm)->Abort(/*release=*/true);
    for (std::thread& vcpu : vcpus) vcpu.join();
  }

  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> lives_{0};
  std::atomic<uint64_t> faults_{0};
  std::thread thread_;
};

enum class Load { kNone, kSpin, kStorm, kDeath };

struct Row {
  const char* name;
  size_t calm_vms;
  Load load;
  size_t touches = 0;
  std::vector<int64_t> p50s;
  std::vector<int64_t> p99s;
  uint64_t lives = 0;
  uint64_t faults = 0;
};

int64_t Percentile(std::vector<int64_t> nanos, int percent) {
  if (nanos.empty()) return 0;
  const size_t at = std::min(nanos.size() - 1, nanos.size() * percent / 100);
  std::nth_element(nanos.begin(), nanos.begin() + static_cast<ptrdiff_t>(at),
                   nanos.end());
  return nanos[at];
}

void Measure(Row* row, int64_t millis, BulkShare* share) {
  std::deque<Vm> vms;
  for (size_t i = 0; i < row->calm_vms; ++i) {
    vms.emplace_back(kCalmPages, share);
  }
  std::vector<std::vector<int64_t>> nanos(vms.size());
  std::atomic<bool> stop{false};
  std::unique_ptr<Storm> storm;
  std::unique_ptr<Spinners> spinners;
  if (row->load == Load::kSpin) spinners = std::make_unique<Spinners>();
  if (row->load == Load::kStorm || row->load == Load::kDeath) {
    storm = std::make_unique<Storm>(row->load == Load::kDeath, share);
  }
  std::vector<std::thread> guests;
  for (size_t i = 0; i < vms.size(); ++i) {
    nanos[i].reserve(kCalmPages.value());
    guests.emplace_back([&, i] { LiveCalmly(vms[i], i, stop, &nanos[i]); });
  }
  Clock::Monotonic()->SleepFor(millis * kNanosPerMilli);
  stop.store(true);
  for (std::thread& guest : guests) guest.join();
  if (storm != nullptr) {
    row->lives += storm->lives();
    row->faults += storm->faults();
  }
  std::vector<int64_t> all;
  for (const auto& of_one : nanos) {
    all.insert(all.end(), of_one.begin(), of_one.end());
  }
  row->p50s.push_back(Percentile(all, 50));
  row->p99s.push_back(Percentile(all, 99));
  row->touches += all.size();
}

// The median of the rounds: a neighbour of this machine spoils one, not all.
double MedianMicros(const std::vector<int64_t>& of_rounds) {
  return static_cast<double>(Percentile(of_rounds, 50)) / kNanosPerMicro;
}

void Print(const Row& row, const Row& alone, const Row& calm) {
  const double p99 = MedianMicros(row.p99s);
  const auto [least, most] =
      std::minmax_element(row.p99s.begin(), row.p99s.end());
  std::printf("%-6s %8zu %9.1f %9.1f %9.1f..%-9.1f %7.2f %7.2f %6lu %8lu\n",
              row.name, row.touches, MedianMicros(row.p50s), p99,
              static_cast<double>(*least) / kNanosPerMicro,
              static_cast<double>(*most) / kNanosPerMicro,
              p99 / MedianMicros(alone.p99s), p99 / MedianMicros(calm.p99s),
              row.lives, row.faults);
}

// MiB per second.
int64_t PullAlone(BulkShare* share) {
  Vm vm(kStormPages, share);
  const int64_t began_ns = Clock::Monotonic()->NowNanos();
  Require(vm->StartBackground());
  while (!vm.complete()) {
    Clock::Monotonic()->SleepFor(kNanosPerMilli / 10);
  }
  const int64_t ns = Clock::Monotonic()->NowNanos() - began_ns;
  return static_cast<int64_t>(BytesIn(kStormPages).value() >> 20) *
         kNanosPerSecond / ns;
}

void PrintPullAlone(int rounds, BulkShare* share) {
  std::vector<int64_t> with;
  std::vector<int64_t> without;
  for (int round = 0; round < rounds; ++round) {
    without.push_back(PullAlone(nullptr));
    with.push_back(PullAlone(share));
  }
  std::printf("background of one VM alone: median %ld MiB/s, no share %ld\n",
              Percentile(with, 50), Percentile(without, 50));
}

void PrintPlacement() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  const int got = ::sched_getaffinity(0, sizeof(cpus), &cpus);
  double load[1] = {0};
  ::getloadavg(load, 1);
  std::printf("%d CPUs, threads free on them, load %.1f before\n",
              got == 0 ? CPU_COUNT(&cpus) : -1, load[0]);
}

int Main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 5;
  const int64_t millis = argc > 2 ? std::atoi(argv[2]) : 2000;
  const size_t requests =
      argc > 3 ? static_cast<size_t>(std::atoi(argv[3])) : kDefaultBulkRequests;
  if (argc > 4) g_bulk_nice = std::atoi(argv[4]);
  if (argc > 5) g_fault_nice = std::atoi(argv[5]);
  std::unique_ptr<BulkShare> share;
  if (requests != 0) {
    Require(CheckBulkRequests(requests));
    share = std::make_unique<BulkShare>(requests, Clock::Monotonic());
  }
  PrintPlacement();
  std::printf(
      "%d rounds of %ld ms a row, %zu bulk requests in flight, bulk at nice "
      "%d, faults at nice %d\n",
      rounds, millis, requests, g_bulk_nice, g_fault_nice);
  std::array<Row, 5> rows = {
      Row{"alone", 1, Load::kNone}, Row{"calm", kCalmVms, Load::kNone},
      Row{"spin", kCalmVms, Load::kSpin}, Row{"storm", kCalmVms, Load::kStorm},
      Row{"death", kCalmVms, Load::kDeath}};
  for (int round = 0; round < rounds; ++round) {
    for (Row& row : rows) Measure(&row, millis, share.get());
  }
  std::printf("%-6s %8s %9s %9s %20s %7s %7s %6s %8s\n", "row", "touches",
              "p50 us", "p99 us", "p99 of the rounds", "/alone", "/calm",
              "lives", "faults");
  for (const Row& row : rows) Print(row, rows[0], rows[1]);
  PrintPullAlone(rounds, share.get());
  return 0;
}

}  // namespace
}  // namespace postcopy

int main(int argc, char** argv) { return postcopy::Main(argc, argv); }
