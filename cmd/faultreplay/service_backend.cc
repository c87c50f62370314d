#include "cmd/faultreplay/service_backend.h"

#include <signal.h>
#include <stdlib.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/cpu_time.h"
#include "cmd/faultreplay/delay_proxy.h"
#include "cmd/faultreplay/faulting_memory.h"
#include "cmd/faultreplay/page_pattern.h"
#include "cmd/faultreplay/replay_vmm.h"
#include "cmd/postcopyctl/daemon_client.h"
#include "cmd/postcopyctl/migrate.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/process/child_process.h"
#include "cmd/process/ready_line.h"
#include "cmd/security/client_security.h"
#include "dirtytrack/clock.h"

namespace postcopy {
namespace {

constexpr char kVmName[] = "replay";
constexpr absl::Duration kDaemonReady = absl::Seconds(30);
constexpr absl::Duration kDaemonEnd = absl::Seconds(30);
constexpr size_t kTailLines = 8;

// Nobody looks.
class Unobserved final : public MigrateObserver {
 public:
  void OnView(const MigrationView&, absl::Duration) override {}
  void OnMessage(absl::string_view) override {}
};

// A daemon as a process, and what its private memory was without a VM.
struct DaemonProcess {
  std::optional<ChildProcess> process;
  std::string log;
  uint64_t rss_base_bytes = 0;
  int64_t cpu_before_ns = 0;
};

class ServiceBackend final : public Backend {
 public:
  ServiceBackend(const SourceMemory* source, ServiceOptions options)
      : source_(*source), options_(std::move(options)) {}
  ~ServiceBackend() override { End(); }

  absl::Status Start() override;
  bool IsHere(PageIndex page) override { return memory_->IsHere(page); }
  PageCount CountHere() override { return memory_->CountHere(); }
  bool IsOver() override {
    const std::lock_guard lock(mutex_);
    return result_.has_value();
  }
  const uint8_t* Touch(uint32_t, PageIndex page, bool write) override {
    return memory_->Touch(page, write);
  }
  void GiveUp() override;
  absl::Status Report(BackendReport* report) override;
  absl::Status Finish(BackendReport* report) override;

 private:
  absl::Status StartDaemons();
  absl::Status StartDaemon(DaemonProcess* daemon, const std::string& name,
                           std::vector<std::string> argv);
  absl::Status ReadAddress(DaemonProcess* daemon, absl::string_view key,
                           std::string* line, std::string* address);
  absl::Status AttachVmms();
  absl::Status StartMigration();
  // The guest writes its pages for the last time.
  void WriteFinal(const ReplayVmm::MarkPage& mark) const;
  void End();
  // `status` with the ends of the daemons' logs.
  absl::Status Explain(const absl::Status& status) const;
  std::string InDirectory(const std::string& name) const {
    return absl::StrCat(directory_, "/", name);
  }

  const SourceMemory& source_;
  const ServiceOptions options_;
  std::string directory_;
  DaemonProcess pageserverd_;
  DaemonProcess faultd_;
  std::unique_ptr<DelayProxy> proxy_;
  std::string source_control_;
  std::string source_data_;
  std::string destination_control_;
  std::optional<FaultingMemory> memory_;
  std::unique_ptr<ReplayVmm> source_vmm_;
  std::unique_ptr<ReplayVmm> destination_vmm_;
  MigrateOptions migrate_;
  std::atomic<bool> given_up_{false};
  std::thread migration_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool resumed_ = false;
  // Of the guest, and of the migration.
  int64_t paused_ns_ = 0;
  int64_t resumed_ns_ = 0;
  int64_t begin_ns_ = 0;
  int64_t over_ns_ = 0;
  std::optional<MigrateResult> result_;
};

absl::Status ServiceBackend::Start() {
  std::string path = "/tmp/faultreplay-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, "mkdtemp in /tmp");
  }
  directory_ = path;
  absl::StatusOr<FaultingMemory> memory =
      FaultingMemory::Create(source_.pages());
  if (!memory.ok()) return memory.status();
  memory_.emplace(*std::move(memory));
  absl::Status status = StartDaemons();
  if (status.ok()) status = AttachVmms();
  if (status.ok()) status = StartMigration();
  return status.ok() ? status : Explain(status);
}

absl::Status ServiceBackend::StartDaemon(DaemonProcess* daemon,
                                         const std::string& name,
                                         std::vector<std::string> argv) {
  ChildOptions child;
  child.argv = std::move(argv);
  child.argv.push_back("--control_address=127.0.0.1:0");
  // Loopback only, and the floors are in plaintext too.
  child.argv.push_back("--insecure_control");
  child.argv.push_back("--insecure_data");
  child.argv.push_back("--vmm_socket=" + InDirectory(name + ".sock"));
  child.pipe_flags = {"--ready_fd"};
  child.stdout_path = child.stderr_path = daemon->log =
      InDirectory(name + ".log");
  absl::StatusOr<ChildProcess> process = ChildProcess::Start(child);
  if (process.ok()) daemon->process.emplace(*std::move(process));
  return process.status();
}

absl::Status ServiceBackend::StartDaemons() {
  absl::Status status =
      StartDaemon(&pageserverd_, "pageserverd",
                  {options_.pageserverd, "--data_address=127.0.0.1:0"});
  if (!status.ok()) return status;
  std::vector<std::string> argv = {options_.faultd};
  argv.insert(argv.end(), options_.faultd_flags.begin(),
              options_.faultd_flags.end());
  status = StartDaemon(&faultd_, "faultd", std::move(argv));
  if (!status.ok()) return status;
  std::string line;
  status =
      ReadAddress(&pageserverd_, "control_address", &line, &source_control_);
  if (status.ok()) {
    status = ReadAddress(&pageserverd_, "data_address", &line, &source_data_);
  }
  line.clear();
  if (status.ok()) {
    status =
        ReadAddress(&faultd_, "control_address", &line, &destination_control_);
  }
  for (DaemonProcess* daemon : {&pageserverd_, &faultd_}) {
    daemon->rss_base_bytes = PrivateRssBytes(daemon->process->pid());
  }
  if (!status.ok() || options_.delay_ns == 0) return status;
  auto proxy = DelayProxy::Create(source_data_, options_.delay_ns);
  if (!proxy.ok()) return proxy.status();
  proxy_ = *std::move(proxy);
  source_data_ = proxy_->address();
  return absl::OkStatus();
}

absl::Status ServiceBackend::ReadAddress(DaemonProcess* daemon,
                                         absl::string_view key,
                                         std::string* line,
                                         std::string* address) {
  if (line->empty()) {
    absl::StatusOr<std::string> read =
        daemon->process->ReadLine("--ready_fd", kDaemonReady);
    if (!read.ok()) return read.status();
    *line = *read;
  }
  absl::StatusOr<std::string> text = StringInJson(*line, key);
  if (text.ok()) *address = *text;
  return text.status();
}

absl::Status ServiceBackend::AttachVmms() {
  if (options_.after_precopy) {
    for (PageIndex page(0); page.value() < source_.pages().value();
         page += PageCount(1)) {
      if (options_.touched[page.value()]) {
        source_.Write(page, PageVersion::kStale);
      }
    }
  }
  auto source =
      ReplayVmm::Attach({.socket_path = InDirectory("pageserverd.sock"),
                         .vm_name = kVmName,
                         .source = true,
                         .memory_fd = source_.fd(),
                         .address = source_.PageAt(PageIndex(0)),
                         .length = memory_->size(),
                         .on_pause = [this](const ReplayVmm::MarkPage& mark) {
                           WriteFinal(mark);
                           const std::lock_guard lock(mutex_);
                           paused_ns_ = Clock::Monotonic()->NowNanos();
                         }});
  if (!source.ok()) return source.status();
  source_vmm_ = *std::move(source);
  auto destination =
      ReplayVmm::Attach({.socket_path = InDirectory("faultd.sock"),
                         .vm_name = kVmName,
                         .source = false,
                         .memory_fd = memory_->fd(),
                         .address = memory_->data(),
                         .length = memory_->size(),
                         .on_resume = [this] {
                           const std::lock_guard lock(mutex_);
                           resumed_ns_ = Clock::Monotonic()->NowNanos();
                           resumed_ = true;
                           changed_.notify_all();
                         }});
  if (!destination.ok()) return destination.status();
  destination_vmm_ = *std::move(destination);
  return absl::OkStatus();
}

void ServiceBackend::WriteFinal(const ReplayVmm::MarkPage& mark) const {
  if (!options_.after_precopy) return;
  for (PageIndex page(0); page.value() < source_.pages().value();
       page += PageCount(1)) {
    if (!options_.touched[page.value()]) continue;
    source_.Write(page, PageVersion::kFinal);
    mark(page);
  }
}

absl::Status ServiceBackend::StartMigration() {
  migrate_.source_address = source_control_;
  migrate_.destination_address = destination_control_;
  migrate_.source_data_address = source_data_;
  migrate_.security = ClientSecurity::Plaintext();
  migrate_.vm_name = kVmName;
  migrate_.migration_id = RandomId(kVmName);
  migrate_.policy = options_.after_precopy
                        ? v1::MIGRATION_POLICY_PRECOPY_THEN_POSTCOPY
                        : v1::MIGRATION_POLICY_POSTCOPY_ONLY;
  migrate_.bandwidth = options_.bandwidth;
  migrate_.pull_order = options_.pull_order;
  migration_ = std::thread([this] {
    Unobserved nobody;
    const int64_t begin_ns = Clock::Monotonic()->NowNanos();
    MigrateResult result =
        Migrate(migrate_, [this] { return given_up_.load(); }, &nobody);
    const std::lock_guard lock(mutex_);
    begin_ns_ = begin_ns;
    over_ns_ = Clock::Monotonic()->NowNanos();
    result_ = std::move(result);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return resumed_ || result_.has_value(); });
  if (!resumed_) return result_->status;
  for (DaemonProcess* daemon : {&pageserverd_, &faultd_}) {
    daemon->cpu_before_ns = ProcessCpuNanos(daemon->process->pid());
  }
  return absl::OkStatus();
}

void ServiceBackend::GiveUp() {
  given_up_.store(true);
  for (DaemonProcess* daemon : {&faultd_, &pageserverd_}) {
    if (daemon->process.has_value()) {
      daemon->process->Signal(SIGKILL).IgnoreError();
    }
  }
  // The daemon's copy of the userfaultfd goes with its process, the VMM's here.
  faultd_.process.reset();
  destination_vmm_.reset();
}

absl::Status ServiceBackend::Report(BackendReport* report) {
  DaemonClient client(v1::ROLE_DESTINATION, destination_control_,
                      ClientSecurity::Plaintext());
  absl::StatusOr<v1::Migration> now = client.Get(migrate_.migration_id);
  if (!now.ok()) return Explain(now.status());
  for (const v1::FaultStage& stage : now->fault_times().stages()) {
    report->stages.push_back({.name = FaultStageName(stage.kind()),
                              .count = stage.count(),
                              .p50_us = stage.p50_us(),
                              .p99_us = stage.p99_us(),
                              .total_us = stage.total_us()});
  }
  report->pages_moved = now->pages().faulted() + now->pages().background();
  for (DaemonProcess* daemon : {&pageserverd_, &faultd_}) {
    const pid_t pid = daemon->process->pid();
    report->cpu_ns += ProcessCpuNanos(pid) - daemon->cpu_before_ns;
    report->rss_base_bytes += daemon->rss_base_bytes;
    const uint64_t rss = PrivateRssBytes(pid);
    report->rss_added_bytes +=
        rss > daemon->rss_base_bytes ? rss - daemon->rss_base_bytes : 0;
  }
  return absl::OkStatus();
}

absl::Status ServiceBackend::Finish(BackendReport* report) {
  if (migration_.joinable()) migration_.join();
  absl::Status status = result_->status;
  report->migration_ns = over_ns_ - begin_ns_;
  report->downtime_ns = resumed_ns_ - paused_ns_;
  destination_vmm_.reset();
  source_vmm_.reset();
  for (DaemonProcess* daemon : {&faultd_, &pageserverd_}) {
    if (!daemon->process.has_value()) continue;
    absl::StatusOr<ExitStatus> ended = daemon->process->Terminate(kDaemonEnd);
    status.Update(ended.status());
    if (ended.ok() && !ended->ok()) {
      status.Update(absl::InternalError(absl::StrCat(
          daemon->process->name(), " ended with ", ended->ToString())));
    }
  }
  if (!status.ok()) status = Explain(status);
  End();
  return status;
}

void ServiceBackend::End() {
  given_up_.store(true);
  faultd_.process.reset();
  pageserverd_.process.reset();
  destination_vmm_.reset();
  source_vmm_.reset();
  if (migration_.joinable()) migration_.join();
  proxy_.reset();
  std::error_code ignored;
  if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
}

absl::Status ServiceBackend::Explain(const absl::Status& status) const {
  std::string message(status.message());
  for (const DaemonProcess* daemon : {&pageserverd_, &faultd_}) {
    const std::string tail = TailOfFile(daemon->log, kTailLines);
    if (!tail.empty()) absl::StrAppend(&message, "\n", tail);
  }
  return absl::Status(status.code(), message);
}

}  // namespace

std::unique_ptr<Backend> NewServiceBackend(const SourceMemory* source,
                                           ServiceOptions options) {
  return std::make_unique<ServiceBackend>(source, std::move(options));
}

}  // namespace postcopy
