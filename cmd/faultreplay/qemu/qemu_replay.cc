#include "cmd/faultreplay/qemu/qemu_replay.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cmd/faultreplay/delay_proxy.h"
#include "cmd/faultreplay/faulting_memory.h"
#include "cmd/faultreplay/loopback.h"
#include "cmd/faultreplay/page_pattern.h"
#include "cmd/faultreplay/qemu/guest_image.h"
#include "cmd/faultreplay/qemu/qemu_machine.h"
#include "cmd/faultreplay/qemu/qmp_client.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

constexpr absl::Duration kReady = absl::Seconds(30);
constexpr absl::Duration kAnswer = absl::Seconds(30);
constexpr int64_t kAskReadyNanos = kNanosPerMilli;
// How often residency is looked at; less often where a look takes more than a
// hundredth of that.
constexpr int64_t kLookNanos = 20 * kNanosPerMilli;
constexpr int64_t kLookShare = 100;
// How long one machine is listened to before the other is.
constexpr int64_t kEventNanos = kNanosPerMilli;
// Of the moments between the migration's begin and postcopy's: next to nothing
// is to come before the guest runs.
constexpr uint64_t kPrecopyBytesPerSecond = 1 << 20;

// The time-stamp counter beside CLOCK_MONOTONIC. KVM has a guest's count as
// fast as the host's.
struct ClockPair {
  uint64_t ticks = __rdtsc();
  int64_t nanos = Clock::Monotonic()->NowNanos();
};

// Two memories that a guest of its own has, at one host.
struct GuestMemory {
  UniqueFd fd;
  SharedMapping mapping;
  std::string path;
};

// A memfd of zeros.
absl::StatusOr<GuestMemory> NewGuestMemory(ByteCount bytes) {
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("qemu-own", bytes, F_SEAL_SHRINK | F_SEAL_GROW);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(
      fd->get(), ByteCount(0), bytes, SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  const std::string path =
      absl::StrCat("/proc/", ::getpid(), "/fd/", fd->get());
  return GuestMemory{*std::move(fd), *std::move(mapping), path};
}

absl::Status CheckKvm() {
  const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (kvm.valid()) return absl::OkStatus();
  const int error = errno;
  return absl::FailedPreconditionError(absl::StrCat(
      "QEMU is measured with KVM only, and /dev/kvm cannot be opened: ",
      absl::ErrnoToStatus(error, "open").message(),
      "; load the module, or run as a user that may open it"));
}

class QemuReplay {
 public:
  QemuReplay(const TouchPlan& plan, const SourceMemory& source,
             const QemuReplayOptions& options)
      : plan_(plan),
        touches_(plan.threads[0]),
        source_ram_(source),
        options_(options) {}

  absl::StatusOr<RunResult> Run();

 private:
  absl::Status StartMachines();
  absl::StatusOr<std::unique_ptr<QemuMachine>> StartMachine(
      bool destination, const GuestMemory& own, const std::string& ram_path);
  absl::Status AwaitReady();
  absl::Status BindVcpu();
  absl::Status Configure(QemuMachine* machine);
  absl::Status Listen(std::string* address);
  absl::Status Migrate(const std::string& address);
  // Keeps what the events of both machines say until `done` holds. UNAVAILABLE
  // if QEMU has given the migration up.
  absl::Status Follow(const std::function<bool()>& done);
  absl::Status Keep(const QmpEvent& event, QemuMachine* machine);
  void Look();
  absl::Status CollectTouches();
  // Leaves the `asked` longest of all first touches.
  void DropWhatDidNotWait(uint64_t asked);
  void CheckPages();
  absl::Status CollectReport();
  // `status` with the ends of both logs.
  absl::Status Explain(const absl::Status& status) const;

  const TouchPlan& plan_;
  const std::vector<Touch>& touches_;
  const SourceMemory& source_ram_;
  const QemuReplayOptions& options_;
  std::optional<GuestMemory> source_own_;
  std::optional<GuestMemory> destination_own_;
  std::optional<FaultingMemory> ram_;
  std::unique_ptr<QemuMachine> source_;
  std::unique_ptr<QemuMachine> destination_;
  std::unique_ptr<DelayProxy> proxy_;

  ClockPair clock_before_;
  int64_t cpu_before_ns_ = 0;
  absl::Time deadline_;
  absl::Time begin_;
  // What events have said: source and destination.
  bool active_ = false;
  std::optional<absl::Time> stopped_;
  std::optional<absl::Time> over_;
  std::optional<absl::Time> resumed_;
  std::optional<absl::Time> all_here_;
  bool guest_ended_ = false;
  int64_t next_look_ns_ = 0;
  RunResult result_;
};

absl::StatusOr<std::unique_ptr<QemuMachine>> QemuReplay::StartMachine(
    bool destination, const GuestMemory& own, const std::string& ram_path) {
  return QemuMachine::Start({.program = options_.program,
                             .destination = destination,
                             .own_path = own.path,
                             .own_bytes = own.mapping.size(),
                             .ram_path = ram_path,
                             .ram_bytes = BytesIn(plan_.pages)});
}

absl::Status QemuReplay::StartMachines() {
  const ByteCount own_bytes = GuestOwnBytes(touches_.size());
  for (std::optional<GuestMemory>* own : {&source_own_, &destination_own_}) {
    absl::StatusOr<GuestMemory> memory = NewGuestMemory(own_bytes);
    if (!memory.ok()) return memory.status();
    own->emplace(*std::move(memory));
  }
  InstallGuest(touches_, source_own_->mapping.data());
  absl::StatusOr<FaultingMemory> ram = FaultingMemory::Create(plan_.pages);
  if (!ram.ok()) return ram.status();
  ram_.emplace(*std::move(ram));
  auto source = StartMachine(false, *source_own_, source_ram_.Path());
  if (!source.ok()) return source.status();
  source_ = *std::move(source);
  auto destination =
      StartMachine(true, *destination_own_,
                   absl::StrCat("/proc/", ::getpid(), "/fd/", ram_->fd()));
  if (!destination.ok()) return destination.status();
  destination_ = *std::move(destination);
  return absl::OkStatus();
}

absl::Status QemuReplay::AwaitReady() {
  const absl::Time deadline = absl::Now() + kReady;
  while (!GuestIsReady(source_own_->mapping.data())) {
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("the guest does not run under QEMU and this KVM: it is "
                       "not ready after ",
                       absl::FormatDuration(kReady)));
    }
    Clock::Monotonic()->SleepFor(kAskReadyNanos);
  }
  return absl::OkStatus();
}

absl::Status QemuReplay::BindVcpu() {
  if (options_.cpus.empty()) return absl::OkStatus();
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(options_.cpus[0]), &set);
  if (::sched_setaffinity(destination_->vcpu(), sizeof(set), &set) == 0) {
    return absl::OkStatus();
  }
  return absl::ErrnoToStatus(errno, "sched_setaffinity of QEMU's vCPU");
}

absl::Status QemuReplay::Configure(QemuMachine* machine) {
  std::vector<JsonObject> capabilities;
  const auto enable = [&](const char* name) {
    capabilities.push_back(
        JsonObject().Add("capability", name).Add("state", true));
  };
  enable("events");
  enable("postcopy-ram");
  if (options_.preempt) enable("postcopy-preempt");
  return machine->qmp()
      .Execute("migrate-set-capabilities",
               JsonObject().Add("capabilities", capabilities), kAnswer)
      .status();
}

absl::Status QemuReplay::Listen(std::string* address) {
  QmpClient& qmp = destination_->qmp();
  absl::Status status =
      qmp.Execute("migrate-incoming",
                  JsonObject().Add("uri", "tcp:127.0.0.1:0"), kAnswer)
          .status();
  if (!status.ok()) return status;
  const absl::StatusOr<Value> about =
      qmp.Execute("query-migrate", JsonObject(), kAnswer);
  if (!about.ok()) return about.status();
  const auto entry = about->struct_value().fields().find("socket-address");
  if (entry == about->struct_value().fields().end() ||
      entry->second.list_value().values().empty()) {
    return absl::InternalError("QEMU does not say where it listens");
  }
  *address = absl::StrCat(
      "127.0.0.1:",
      QmpString(entry->second.list_value().values(0).struct_value(), "port"));
  if (options_.delay_ns == 0) return absl::OkStatus();
  auto proxy = DelayProxy::Create(*address, options_.delay_ns);
  if (!proxy.ok()) return proxy.status();
  proxy_ = *std::move(proxy);
  *address = proxy_->address();
  return absl::OkStatus();
}

absl::Status QemuReplay::Migrate(const std::string& address) {
  QmpClient& qmp = source_->qmp();
  absl::Status status =
      qmp.Execute(
             "migrate-set-parameters",
             JsonObject()
                 .Add("max-bandwidth", kPrecopyBytesPerSecond)
                 .Add("max-postcopy-bandwidth", options_.bandwidth.value()),
             kAnswer)
          .status();
  if (!status.ok()) return status;
  cpu_before_ns_ = source_->CpuNanos() + destination_->CpuNanos();
  clock_before_ = ClockPair();
  begin_ = absl::Now();
  deadline_ = begin_ + options_.timeout;
  status = qmp.Execute("migrate",
                       JsonObject().Add("uri", absl::StrCat("tcp:", address)),
                       kAnswer)
               .status();
  if (!status.ok()) return status;
  // Earlier it refuses.
  status = Follow([this] { return active_; });
  if (!status.ok()) return status;
  return qmp.Execute("migrate-start-postcopy", JsonObject(), kAnswer).status();
}

absl::Status QemuReplay::Keep(const QmpEvent& event, QemuMachine* machine) {
  const bool source = machine == source_.get();
  if (event.name == "STOP" && source) stopped_ = event.time;
  if (event.name == "RESUME" && !source) resumed_ = event.time;
  if (event.name == "SHUTDOWN" && !source) guest_ended_ = true;
  if (event.name != "MIGRATION") return absl::OkStatus();
  const std::string status = QmpString(event.data, "status");
  if (status == "active" && source) active_ = true;
  if (status == "completed") (source ? over_ : all_here_) = event.time;
  for (const char* lost : {"failed", "cancelled", "postcopy-paused"}) {
    if (status != lost) continue;
    return absl::UnavailableError(
        absl::StrCat("QEMU has given its migration up: ", status));
  }
  return absl::OkStatus();
}

absl::Status QemuReplay::Follow(const std::function<bool()>& done) {
  while (!done()) {
    if (absl::Now() > deadline_) {
      return absl::DeadlineExceededError(
          absl::StrCat("QEMU's migration is not over after ",
                       absl::FormatDuration(options_.timeout)));
    }
    for (QemuMachine* machine : {source_.get(), destination_.get()}) {
      const absl::StatusOr<QmpEvent> event =
          machine->qmp().NextEvent(absl::Nanoseconds(kEventNanos));
      if (event.ok()) {
        absl::Status kept = Keep(*event, machine);
        if (!kept.ok()) return kept;
      } else if (!absl::IsDeadlineExceeded(event.status())) {
        return event.status();
      }
    }
    Look();
  }
  return absl::OkStatus();
}

void QemuReplay::Look() {
  const int64_t now = Clock::Monotonic()->NowNanos();
  if (now < next_look_ns_) return;
  const uint64_t pages = ram_->CountHere().value();
  // On the clock of the events, until it is known when the guest ran.
  result_.residency.push_back({absl::ToUnixNanos(absl::Now()), pages});
  const int64_t took_ns = Clock::Monotonic()->NowNanos() - now;
  next_look_ns_ = now + took_ns + std::max(kLookNanos, took_ns * kLookShare);
}

absl::Status QemuReplay::CollectTouches() {
  const ClockPair clock_after;
  const double nanos_per_tick =
      static_cast<double>(clock_after.nanos - clock_before_.nanos) /
      static_cast<double>(clock_after.ticks - clock_before_.ticks);
  const auto nanos = [&](uint64_t ticks) {
    return static_cast<int64_t>(static_cast<double>(ticks) * nanos_per_tick);
  };
  const absl::StatusOr<std::vector<GuestTouch>> made =
      ReadGuestResults(touches_.size(), destination_own_->mapping.data());
  if (!made.ok()) return made.status();
  std::vector<bool> seen(plan_.pages.value());
  for (size_t i = 0; i < touches_.size(); ++i) {
    const GuestTouch& touch = (*made)[i];
    const uint64_t page = touches_[i].page.value();
    ++result_.touches;
    result_.duration_ns = nanos(touch.start_ticks + touch.ticks);
    if (touch.wrong && (result_.wrong == 0 || page < result_.first_wrong)) {
      result_.first_wrong = page;
    }
    result_.wrong += touch.wrong ? 1 : 0;
    if (seen[page]) continue;
    seen[page] = true;
    result_.waits.push_back({nanos(touch.start_ticks), nanos(touch.ticks)});
  }
  result_.first_touches = result_.waits.size();
  return absl::OkStatus();
}

void QemuReplay::DropWhatDidNotWait(uint64_t asked) {
  std::vector<Wait>& waits = result_.waits;
  const size_t kept = std::min<size_t>(asked, waits.size());
  std::nth_element(
      waits.begin(), waits.begin() + static_cast<ptrdiff_t>(kept), waits.end(),
      [](const Wait& a, const Wait& b) { return a.latency_ns > b.latency_ns; });
  result_.avoided = waits.size() - kept;
  waits.resize(kept);
  std::sort(waits.begin(), waits.end(), [](const Wait& a, const Wait& b) {
    return a.start_ns < b.start_ns;
  });
}

void QemuReplay::CheckPages() {
  uint64_t wrong = 0;
  uint64_t first_wrong = 0;
  for (PageIndex page(0); page.value() < plan_.pages.value();
       page += PageCount(1)) {
    // A page that did not come is not to come into being by a look at it.
    if (!ram_->IsHere(page)) continue;
    ++result_.checked;
    if (HoldsPage(page, ram_->data() + OffsetOf(page).value())) continue;
    if (wrong++ == 0) first_wrong = page.value();
  }
  // The guest has counted some of them already.
  if (wrong > 0) {
    result_.wrong = wrong;
    result_.first_wrong = first_wrong;
  }
}

absl::Status QemuReplay::CollectReport() {
  const absl::StatusOr<Value> about =
      source_->qmp().Execute("query-migrate", JsonObject(), kAnswer);
  if (!about.ok()) return about.status();
  const auto asked = static_cast<uint64_t>(
      QmpNumber(QmpObject(about->struct_value(), "ram"), "postcopy-requests"));
  DropWhatDidNotWait(asked);
  result_.pages_total = plan_.pages.value();
  if (!stopped_.has_value() || !resumed_.has_value()) {
    return absl::InternalError("QEMU did not say when the guest moved");
  }
  result_.whole_ns = absl::ToInt64Nanoseconds(*all_here_ - *resumed_);
  for (ResidencyPoint& point : result_.residency) {
    point.time_ns -= absl::ToUnixNanos(*resumed_);
  }
  std::erase_if(result_.residency,
                [](const ResidencyPoint& point) { return point.time_ns < 0; });
  BackendReport& report = result_.backend;
  report.cpu_ns =
      source_->CpuNanos() + destination_->CpuNanos() - cpu_before_ns_;
  report.pages_moved = plan_.pages.value();
  report.migration_ns =
      absl::ToInt64Nanoseconds(std::max(*over_, *all_here_) - begin_);
  report.downtime_ns = absl::ToInt64Nanoseconds(*resumed_ - *stopped_);
  report.note = absl::StrCat(
      "QEMU ", source_->version(), " with KVM; touched by a vCPU, by its TSC; ",
      asked, " pages were asked for: as many touches, the longest, are faults");
  return absl::OkStatus();
}

absl::Status QemuReplay::Explain(const absl::Status& status) const {
  absl::Status explained = status;
  for (const QemuMachine* machine : {source_.get(), destination_.get()}) {
    if (machine != nullptr) explained = machine->Explain(explained);
  }
  return explained;
}

absl::StatusOr<RunResult> QemuReplay::Run() {
  absl::Status status = StartMachines();
  if (status.ok()) status = AwaitReady();
  if (status.ok()) status = BindVcpu();
  if (status.ok()) status = Configure(source_.get());
  if (status.ok()) status = Configure(destination_.get());
  std::string address;
  if (status.ok()) status = Listen(&address);
  if (status.ok()) status = Migrate(address);
  if (status.ok()) {
    status = Follow([this] {
      return over_.has_value() && all_here_.has_value() && guest_ended_;
    });
  }
  if (status.ok()) status = CollectTouches();
  if (status.ok()) status = CollectReport();
  if (!status.ok()) return Explain(status);
  CheckPages();
  status = destination_->Quit();
  status.Update(source_->Quit());
  if (!status.ok()) return Explain(status);
  return std::move(result_);
}

}  // namespace

absl::Status CheckQemuPlan(const TouchPlan& plan) {
  if (plan.threads.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("QEMU's guest has one vCPU: a trace of ",
                     plan.threads.size(), " threads cannot be replayed there"));
  }
  const std::vector<Touch>& touches = plan.threads[0];
  if (touches.size() > kGuestTouchesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("QEMU's guest makes at most ", kGuestTouchesMax,
                     " touches, not ", touches.size()));
  }
  if (std::any_of(touches.begin(), touches.end(),
                  [](const Touch& touch) { return touch.think_ns > 0; })) {
    return absl::InvalidArgumentError(
        "QEMU's guest does not pause between touches: use --think=none");
  }
  const ByteCount own = GuestOwnBytes(touches.size());
  if (BytesIn(plan.pages) > kGuestMemoryMax - own) {
    return absl::InvalidArgumentError(absl::StrCat(
        "QEMU's guest has at most ", ToString(kGuestMemoryMax - own),
        " of RAM for so many touches, not ", ToString(BytesIn(plan.pages))));
  }
  return absl::OkStatus();
}

absl::StatusOr<RunResult> RunQemuReplay(const TouchPlan& plan,
                                        const SourceMemory& source,
                                        const QemuReplayOptions& options) {
  absl::Status status = CheckQemuPlan(plan);
  if (status.ok()) status = CheckKvm();
  if (!status.ok()) return status;
  absl::StatusOr<RunResult> result = absl::UnknownError("not tried");
  for (int attempt = 0; attempt < kQemuAttemptsMax; ++attempt) {
    result = QemuReplay(plan, source, options).Run();
    if (!absl::IsUnavailable(result.status())) {
      if (result.ok() && attempt > 0) {
        absl::StrAppend(&result->backend.note, "; ", attempt,
                        " migrations that QEMU gave up do not count");
      }
      return result;
    }
  }
  return result;
}

}  // namespace postcopy
