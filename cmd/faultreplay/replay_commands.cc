// run, compare, echo-server: replays.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cmd/daemon/daemon.h"
#include "cmd/faultreplay/command.h"
#include "cmd/faultreplay/echo_server.h"
#include "cmd/faultreplay/find_program.h"

namespace postcopy {
namespace {

constexpr char kFloors[] = "local,tcp,grpc-echo,service:idle";
// The last three have a limit that is well below what they could do.
constexpr char kBesideQemu[] =
    "qemu,qemu:preempt,service,"
    "qemu:limit=256MiB,qemu:preempt:limit=256MiB,service:limit=256MiB";
constexpr char kQemuProgram[] = "qemu-system-x86_64";

// Where recorded traces lie: among the files of a build, and of the package.
constexpr char kTracesInBuild[] = "cmd/faultreplay/testdata/";
constexpr char kTracesInstalled[] = "/usr/share/postcopy/traces/";

// Of this program.
std::string OwnPath() {
  char link[4096];
  const ssize_t length = ::readlink("/proc/self/exe", link, sizeof(link));
  return {link, length > 0 ? static_cast<size_t>(length) : 0};
}

// The trace named, or else made.
absl::StatusOr<Trace> ChooseTrace(const ReplayContext& context,
                                  size_t arguments_before) {
  if (context.arguments.size() == arguments_before) {
    return TraceFromFlags(context.flags);
  }
  if (context.arguments.size() == arguments_before + 1) {
    return ReadAnyTrace(context.arguments[arguments_before]);
  }
  return absl::InvalidArgumentError("one trace at a time");
}

// Ours in multiples of its floors.
std::vector<BudgetLine> FloorLines(const ReplayReport& report) {
  BackendSummary local, echo, service;
  for (const BackendRuns& runs : report.backends) {
    const BackendSummary summary = Summarize(runs);
    if (runs.name == "local") local = summary;
    if (runs.name == "grpc-echo") echo = summary;
    if (runs.name == "service:idle") service = summary;
  }
  std::vector<BudgetLine> lines;
  const double floor_us = local.p50_us + echo.p50_us;
  if (floor_us > 0) {
    lines.push_back({.what = "p50 of a fault / (grpc-echo p50 + local p50)",
                     .target = 1.25,
                     .measured = service.p50_us / floor_us});
  }
  if (service.p50_us > 0) {
    lines.push_back({.what = "p99 of a fault / its p50",
                     .target = 2,
                     .measured = service.p99_us / service.p50_us});
  }
  if (echo.waits_per_second > 0) {
    lines.push_back(
        {.what = "faults per second / pages per second of grpc-echo",
         .target = 0.8,
         .at_most = false,
         .measured = service.waits_per_second / echo.waits_per_second});
  }
  return lines;
}

// Ours in multiples of QEMU's. The order is that of kBesideQemu.
std::vector<BudgetLine> QemuLines(const ReplayReport& report) {
  std::vector<BackendSummary> all;
  for (const BackendRuns& runs : report.backends) {
    all.push_back(Summarize(runs));
  }
  std::vector<BudgetLine> lines;
  const auto add = [&](absl::string_view what, double ours, double theirs) {
    if (theirs <= 0) return;
    lines.push_back({.what = absl::StrCat(what, " / QEMU's, preempt or not"),
                     .target = 1,
                     .measured = ours / theirs});
  };
  for (size_t at = 0; at + 2 < all.size(); at += 3) {
    const BackendSummary& plain = all[at];
    const BackendSummary& preempt = all[at + 1];
    const BackendSummary& ours = all[at + 2];
    // Whichever of the two is better at it.
    const auto best = [&](double BackendSummary::* what) {
      return std::min(plain.*what, preempt.*what);
    };
    add(absl::StrCat(ours.name, ": whole migration"), ours.migration_ms,
        best(&BackendSummary::migration_ms));
    add(absl::StrCat(ours.name, ": p50 of a fault"), ours.p50_us,
        best(&BackendSummary::p50_us));
    add(absl::StrCat(ours.name, ": p99 of a fault"), ours.p99_us,
        best(&BackendSummary::p99_us));
    add(absl::StrCat(ours.name, ": time of all touches"), ours.duration_ms,
        best(&BackendSummary::duration_ms));
  }
  return lines;
}

struct Comparison {
  absl::string_view with;
  const char* title;
  const char* backends;
  bool await_whole;
  std::vector<BudgetLine> (*lines)(const ReplayReport& report);
};

constexpr Comparison kComparisons[] = {
    {"floors", "A fault beside its floors", kFloors, false, FloorLines},
    {"qemu", "Postcopy beside QEMU's own", kBesideQemu, true, QemuLines},
};

// Makes `path` that of QEMU, if it is not said where that is.
absl::Status FindQemu(std::string* path) {
  if (path->empty()) {
    const char* const directories = ::getenv("PATH");
    for (absl::string_view directory :
         absl::StrSplit(directories == nullptr ? "" : directories, ':')) {
      const std::string at = absl::StrCat(directory, "/", kQemuProgram);
      if (::access(at.c_str(), X_OK) != 0) continue;
      *path = at;
      return absl::OkStatus();
    }
  } else if (::access(path->c_str(), X_OK) == 0) {
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat(
      "QEMU is not installed: there is no ",
      path->empty() ? absl::StrCat(kQemuProgram, " in $PATH") : *path,
      "; on Debian, install qemu-system-x86, or name it with --qemu"));
}

// Finds what the backends run.
absl::Status FindPrograms(const std::vector<BackendSpec>& backends,
                          ReplayPrograms* programs) {
  if (programs->faultreplay.empty()) programs->faultreplay = "/proc/self/exe";
  absl::Status found;
  for (const BackendSpec& spec : backends) {
    if (spec.kind == BackendKind::kQemu) {
      found.Update(FindQemu(&programs->qemu));
    } else if (spec.kind == BackendKind::kService) {
      found.Update(FindDaemon("pageserverd", &programs->pageserverd));
      found.Update(FindDaemon("faultd", &programs->faultd));
    }
  }
  return found;
}

}  // namespace

absl::Status FindDaemon(const char* name, std::string* path) {
  return FindProgram(OwnPath(), name, path);
}

absl::StatusOr<std::string> FindRecordedTrace(const std::string& name) {
  const std::string built =
      absl::StrCat(OwnPath(), ".runfiles/postcopy/", kTracesInBuild, name);
  std::string installed = absl::StrCat(kTracesInstalled, name);
  if (::access(built.c_str(), R_OK) == 0) return built;
  if (::access(installed.c_str(), R_OK) == 0) return installed;
  return absl::NotFoundError(absl::StrCat(
      "the recorded trace ", name, " is at neither ", built, " nor ", installed,
      "; build with bazel, or install the package"));
}

absl::StatusOr<ExperimentOptions> ExperimentFromFlags(
    const ReplayContext& context) {
  const ReplayFlags& flags = context.flags;
  ExperimentOptions options;
  absl::StatusOr<std::vector<BackendSpec>> backends =
      ParseBackends(flags.backend);
  if (!backends.ok()) return backends.status();
  options.backends = *std::move(backends);
  if (flags.repeats == 0 || flags.repeats > kRepeatsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--repeats is from 1 to ", kRepeatsMax));
  }
  options.repeats = flags.repeats;
  if (flags.think != "none" && flags.think != "recorded") {
    return absl::InvalidArgumentError("--think is none or recorded");
  }
  options.think = flags.think == "recorded";
  absl::StatusOr<Placement> placement = ParsePlacement(flags.placement);
  if (!placement.ok()) return placement.status();
  options.programs = flags.programs;
  absl::Status found = FindPrograms(options.backends, &options.programs);
  if (!found.ok()) return found;
  absl::StatusOr<PlacedCpus> placed = Place(*placement);
  if (!placed.ok()) return placed.status();
  options.placed = *std::move(placed);
  options.timeout = flags.timeout;
  options.await_whole = flags.await_whole;
  if (flags.lose_page >= 0) {
    options.lost_page = PageIndex(static_cast<uint64_t>(flags.lose_page));
  }
  options.title = "Replay of page faults";
  options.command = context.command_line;
  std::ostream* const err = context.err;
  options.progress = [err](const std::string& what) {
    *err << "faultreplay: " << what << std::endl;
  };
  return options;
}

absl::Status PublishReport(const ReplayContext& context,
                           const ReplayReport& report,
                           absl::Span<const BudgetLine> budget) {
  const ReplayFlags& flags = context.flags;
  if (flags.output == "json") {
    *context.out << ReportJson(report);
  } else if (flags.output == "hdr") {
    *context.out << ReportHdr(report);
  } else {
    *context.out << ReportTable(report);
    if (!budget.empty()) *context.out << "\n" << BudgetTable(budget);
  }
  absl::Status status;
  const auto write = [&](const std::string& path, const std::string& text) {
    if (!path.empty()) status.Update(WriteTextFile(path, text));
  };
  write(flags.json, ReportsJson({report}, budget));
  write(flags.html, ReportsHtml({report}, budget));
  write(flags.hdr, ReportHdr(report));
  return status;
}

absl::Status RunRun(const ReplayContext& context) {
  absl::StatusOr<Trace> trace = ChooseTrace(context, 0);
  if (!trace.ok()) return trace.status();
  absl::StatusOr<ExperimentOptions> options = ExperimentFromFlags(context);
  if (!options.ok()) return options.status();
  absl::StatusOr<ReplayReport> report = RunExperiment(*trace, *options);
  if (!report.ok()) return report.status();
  return PublishReport(context, *report, {});
}

absl::Status RunCompare(const ReplayContext& context) {
  for (const Comparison& comparison : kComparisons) {
    if (context.arguments.empty() || context.arguments[0] != comparison.with) {
      continue;
    }
    absl::StatusOr<Trace> trace = ChooseTrace(context, 1);
    if (!trace.ok()) return trace.status();
    ReplayContext preset = context;
    preset.flags.backend = comparison.backends;
    absl::StatusOr<ExperimentOptions> options = ExperimentFromFlags(preset);
    if (!options.ok()) return options.status();
    options->title = comparison.title;
    options->await_whole = options->await_whole || comparison.await_whole;
    absl::StatusOr<ReplayReport> report = RunExperiment(*trace, *options);
    if (!report.ok()) return report.status();
    return PublishReport(context, *report, comparison.lines(*report));
  }
  return absl::InvalidArgumentError(
      "compare with what? There are: compare floors, compare qemu");
}

absl::Status RunEchoServer(const ReplayContext& context) {
  const ReplayFlags& flags = context.flags;
  if (flags.pages == 0 || flags.pages > kReplayPagesMax.value()) {
    return absl::InvalidArgumentError("echo-server is run by other commands");
  }
  absl::StatusOr<SourceMemory> memory =
      SourceMemory::Open(flags.memory, PageCount(flags.pages));
  if (!memory.ok()) return memory.status();
  absl::StatusOr<std::unique_ptr<EchoServer>> server = NewEchoServer(
      flags.backend == "tcp" ? EchoKind::kTcp : EchoKind::kGrpc, &*memory);
  if (!server.ok()) return server.status();
  const absl::Status ready =
      TellReady(flags.ready_fd, {{"address", (*server)->address()}});
  if (!ready.ok()) return ready;
  WaitForEnd();
  return absl::OkStatus();
}

}  // namespace postcopy
