#include "cmd/demo/demo.h"

#include <signal.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/demo/demo_report.h"
#include "cmd/postcopyctl/migrate.h"
#include "cmd/postcopyctl/names.h"
#include "cmd/postcopyctl/progress.h"
#include "cmd/postcopyctl/report.h"
#include "cmd/postcopyctl/units.h"
#include "cmd/postcopyctl/uptime.h"
#include "cmd/process/child_process.h"
#include "cmd/process/ready_line.h"
#include "cmd/security/client_security.h"
#include "cmd/security/dev_certificates.h"

namespace postcopy {
namespace {

constexpr char kVmName[] = "demo";
constexpr absl::Duration kDaemonReady = absl::Seconds(30);
constexpr absl::Duration kDaemonEnd = absl::Seconds(30);
// How often the user's wish to stop is looked at.
constexpr absl::Duration kTick = absl::Milliseconds(200);
constexpr size_t kTailLines = 12;

class Demo {
 public:
  Demo(const DemoOptions& options, const DemoAudience& audience)
      : options_(options),
        audience_(audience),
        printer_(audience.err, audience.terminal_width, "demo: ") {}

  absl::Status Run();

 private:
  absl::Status Perform();
  // Certificates for the daemons and for who drives them.
  absl::Status MakeCertificates();
  absl::Status StartDaemons();
  absl::Status StartDaemon(const std::string& name,
                           std::vector<std::string> argv,
                           std::optional<ChildProcess>* child);
  absl::Status StartVms();
  absl::Status MigrateGuest();
  // Proves that nothing is needed from the source any more.
  absl::Status EndSource();
  absl::Status RunOn();
  absl::Status CheckGuest();
  void PrintReport();
  void PrintLogs();

  // The log's name is the child's.
  absl::Status Start(const std::string& name, std::vector<std::string> argv,
                     std::vector<std::string> pipe_flags,
                     std::optional<ChildProcess>* child);
  absl::Status StartVm(const std::string& role, const std::string& socket,
                       std::optional<ChildProcess>* child);
  absl::StatusOr<std::string> AwaitLine(std::optional<ChildProcess>& child,
                                        absl::string_view pipe_flag,
                                        absl::Duration timeout);
  absl::Status End(std::optional<ChildProcess>& child, absl::Duration grace);
  std::string InDirectory(const std::string& name) const {
    return absl::StrCat(directory_, "/", name);
  }

  const DemoOptions& options_;
  const DemoAudience& audience_;
  ProgressPrinter printer_;
  std::string directory_;
  std::vector<std::string> logs_;

  // What both daemons are told of security, and how they are dialled.
  std::vector<std::string> daemon_flags_;
  ClientSecurity security_;

  std::string source_control_;
  std::string source_data_;
  std::string destination_control_;
  DemoReport report_;

  // Killed in reverse order if something goes wrong: VMMs before daemons.
  std::optional<ChildProcess> pageserverd_;
  std::optional<ChildProcess> faultd_;
  std::optional<ChildProcess> source_vm_;
  std::optional<ChildProcess> destination_vm_;
};

absl::Status Demo::Run() {
  // Short: the path of a Unix socket has 107 bytes at most.
  std::string path = "/tmp/postcopy-demo-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, "mkdtemp in /tmp");
  }
  directory_ = path;
  absl::Status status = Perform();
  printer_.Finish();
  if (!status.ok()) PrintLogs();
  if (!status.ok() || options_.keep_logs) {
    *audience_.err << "demo: logs are in " << directory_ << std::endl;
    return status;
  }
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
  return status;
}

absl::Status Demo::Perform() {
  using Step = absl::Status (Demo::*)();
  static constexpr Step kSteps[] = {
      &Demo::MakeCertificates, &Demo::StartDaemons, &Demo::StartVms,
      &Demo::MigrateGuest,     &Demo::EndSource,    &Demo::RunOn,
      &Demo::CheckGuest};
  for (Step step : kSteps) {
    if (audience_.interrupted()) return absl::CancelledError("interrupted");
    absl::Status status = (this->*step)();
    if (!status.ok()) return status;
  }
  PrintReport();
  return Judge(report_);
}

absl::Status Demo::Start(const std::string& name, std::vector<std::string> argv,
                         std::vector<std::string> pipe_flags,
                         std::optional<ChildProcess>* child) {
  ChildOptions options;
  options.argv = std::move(argv);
  options.pipe_flags = std::move(pipe_flags);
  options.stdout_path = options.stderr_path = InDirectory(name + ".log");
  logs_.push_back(options.stderr_path);
  absl::StatusOr<ChildProcess> started = ChildProcess::Start(options);
  if (!started.ok()) return started.status();
  child->emplace(std::move(*started));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Demo::AwaitLine(std::optional<ChildProcess>& child,
                                            absl::string_view pipe_flag,
                                            absl::Duration timeout) {
  const absl::Duration end = Uptime() + timeout;
  for (;;) {
    absl::StatusOr<std::string> line = child->ReadLine(pipe_flag, kTick);
    if (!absl::IsDeadlineExceeded(line.status())) return line;
    if (Uptime() >= end) return line;
    if (audience_.interrupted()) return absl::CancelledError("interrupted");
  }
}

absl::Status Demo::End(std::optional<ChildProcess>& child,
                       absl::Duration grace) {
  absl::StatusOr<ExitStatus> ended = child->Terminate(grace);
  if (!ended.ok()) return ended.status();
  if (ended->ok()) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(child->name(), " ended with ", ended->ToString()));
}

absl::Status Demo::MakeCertificates() {
  const bool insecure = options_.security == "insecure";
  const std::string directory = InDirectory("tls");
  if (insecure) {
    daemon_flags_ = {"--insecure_control", "--insecure_data"};
  } else {
    absl::Status made =
        WriteDevCerts({.directory = directory, .hosts = {"127.0.0.1"}});
    if (!made.ok()) return made;
    daemon_flags_ = {"--tls_dir=" + directory};
  }
  auto security =
      ClientSecurity::FromFlags(insecure ? "" : directory, insecure);
  if (security.ok()) security_ = *std::move(security);
  return security.status();
}

absl::Status Demo::StartDaemon(const std::string& name,
                               std::vector<std::string> argv,
                               std::optional<ChildProcess>* child) {
  argv.emplace_back("--control_address=127.0.0.1:0");
  argv.emplace_back("--metrics_address=");
  argv.emplace_back("--log_level=warning");
  argv.push_back("--vmm_socket=" + InDirectory(name + ".sock"));
  argv.insert(argv.end(), daemon_flags_.begin(), daemon_flags_.end());
  return Start(name, std::move(argv), {"--ready_fd"}, child);
}

absl::Status Demo::StartDaemons() {
  absl::Status status =
      StartDaemon("pageserverd",
                  {options_.programs.pageserverd, "--data_address=127.0.0.1:0"},
                  &pageserverd_);
  if (!status.ok()) return status;
  status = StartDaemon("faultd", {options_.programs.faultd}, &faultd_);
  if (!status.ok()) return status;

  auto read = [](const absl::StatusOr<std::string>& line, absl::string_view key,
                 std::string* value) {
    if (!line.ok()) return line.status();
    absl::StatusOr<std::string> text = StringInJson(*line, key);
    if (text.ok()) *value = *text;
    return text.status();
  };
  absl::StatusOr<std::string> line =
      AwaitLine(pageserverd_, "--ready_fd", kDaemonReady);
  status = read(line, "control_address", &source_control_);
  status.Update(read(line, "data_address", &source_data_));
  if (!status.ok()) return status;
  line = AwaitLine(faultd_, "--ready_fd", kDaemonReady);
  return read(line, "control_address", &destination_control_);
}

absl::Status Demo::StartVm(const std::string& role, const std::string& socket,
                           std::optional<ChildProcess>* child) {
  std::vector<std::string> argv = {
      options_.programs.demovm,
      "--role=" + role,
      "--vmm_socket=" + InDirectory(socket),
      absl::StrCat("--name=", kVmName),
      "--ram=" + ToString(options_.ram),
      absl::StrCat("--vcpus=", options_.vcpus),
      "--guest=" + options_.guest,
      "--dirty_tracking=" + options_.dirty_tracking,
  };
  if (!options_.memory.empty()) argv.push_back("--memory=" + options_.memory);
  if (options_.minor_faults) argv.emplace_back("--minor_faults");
  if (!options_.write_rate.empty()) {
    absl::StatusOr<uint64_t> rate = WriteRateMib(options_.write_rate);
    if (!rate.ok()) return rate.status();
    argv.push_back(absl::StrCat("--write_rate_mib_per_s=", *rate));
  }
  return Start("demovm-" + role, std::move(argv), {"--ready_fd", "--report_fd"},
               child);
}

absl::Status Demo::StartVms() {
  printer_.OnMessage(absl::StrCat("starting a guest (", options_.guest,
                                  ") with ", ToString(options_.ram), " and ",
                                  options_.vcpus, " vCPUs"));
  absl::Status status = StartVm("source", "pageserverd.sock", &source_vm_);
  if (status.ok()) {
    status = StartVm("destination", "faultd.sock", &destination_vm_);
  }
  for (auto* vm : {&source_vm_, &destination_vm_}) {
    if (!status.ok()) return status;
    // Before it is ready, the source's guest fills its memory.
    status = AwaitLine(*vm, "--ready_fd", TimeForAllOf(options_.ram)).status();
  }
  return status;
}

absl::Status Demo::MigrateGuest() {
  MigrateOptions migrate;
  migrate.source_address = source_control_;
  migrate.destination_address = destination_control_;
  migrate.source_data_address = source_data_;
  migrate.security = security_;
  migrate.vm_name = kVmName;
  migrate.migration_id = RandomId(kVmName);
  migrate.bandwidth = options_.bandwidth.empty()
                          ? DefaultBandwidth(options_.ram)
                          : options_.bandwidth;
  // Many rounds of a large VM at a low limit take their time.
  migrate.timeout = 10 * TimeForAllOf(options_.ram);
  if (!ParsePolicy(options_.policy, &migrate.policy)) {
    return absl::InvalidArgumentError("unknown --policy");
  }
  printer_.OnMessage(absl::StrCat("migrating (", options_.policy, ", ",
                                  FormatRate(migrate.bandwidth.value()), ")"));
  MigrateResult result = Migrate(migrate, audience_.interrupted, &printer_);
  printer_.Finish();
  report_.guest = options_.guest;
  report_.ram = options_.ram;
  report_.vcpus = options_.vcpus;
  report_.migration = MergeReport(migrate, result);
  return result.status;
}

absl::Status Demo::EndSource() {
  absl::Status status = End(source_vm_, TimeForAllOf(options_.ram));
  if (status.ok()) status = End(pageserverd_, kDaemonEnd);
  if (status.ok()) {
    printer_.OnMessage(
        "the source is gone; the guest runs on at the destination");
  }
  return status;
}

absl::Status Demo::RunOn() {
  const absl::Duration end = Uptime() + options_.run_after;
  for (;;) {
    absl::Duration left = end - Uptime();
    if (left <= absl::ZeroDuration()) return absl::OkStatus();
    if (audience_.interrupted()) return absl::CancelledError("interrupted");
    // A VMM that ends here has lost its guest.
    absl::StatusOr<ExitStatus> ended =
        destination_vm_->Wait(std::min(left, kTick));
    if (ended.ok()) {
      return absl::InternalError(absl::StrCat(
          "the destination's VMM ended by itself: ", ended->ToString()));
    }
    if (!absl::IsDeadlineExceeded(ended.status())) return ended.status();
  }
}

absl::Status Demo::CheckGuest() {
  printer_.OnMessage("stopping the guest and checking every page of it");
  absl::Status status = destination_vm_->Signal(SIGTERM);
  if (!status.ok()) return status;
  absl::StatusOr<std::string> line =
      AwaitLine(destination_vm_, "--report_fd", TimeForAllOf(options_.ram));
  if (!line.ok()) return line.status();
  absl::StatusOr<VmVerdict> verdict = ParseVerdict(*line);
  if (!verdict.ok()) return verdict.status();
  report_.verdict = *verdict;
  status = End(destination_vm_, kDaemonEnd);
  // A corrupt guest makes demovm fail too; Judge() says that with numbers.
  if (!status.ok() && report_.corrupt_pages() == 0) return status;
  return End(faultd_, kDaemonEnd);
}

void Demo::PrintReport() {
  if (options_.output == "json") {
    *audience_.out << DemoReportJson(report_) << std::endl;
  } else {
    *audience_.out << DemoReportTable(report_) << std::flush;
  }
}

void Demo::PrintLogs() {
  for (const std::string& log : logs_) {
    std::string tail = TailOfFile(log, kTailLines);
    if (tail.empty()) continue;
    *audience_.err << "--- the last lines of " << log << "\n" << tail;
    if (tail.back() != '\n') *audience_.err << "\n";
  }
  *audience_.err << std::flush;
}

}  // namespace

absl::Status RunDemo(const DemoOptions& options, const DemoAudience& audience) {
  return Demo(options, audience).Run();
}

}  // namespace postcopy
