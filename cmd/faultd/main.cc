// faultd: the destination daemon. Receives precopied pages, resolves missing
// page faults by fetching them, pulls the rest in the background. Also the
// page-fault handler of VMs that Firecracker restores from a snapshot.

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/flags/usage.h"
#include "cmd/config/flag_config.h"
#include "cmd/daemon/daemon.h"
#include "cmd/daemon/freed_memory.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/daemon/observation_flags.h"
#include "cmd/daemon/serve.h"
#include "cmd/daemon/serve_metrics.h"
#include "cmd/faultd/destination_daemon.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/faultd/faultd_flags.h"
#include "cmd/faultd/snapshot_service.h"
#include "cmd/log/daemon_log.h"
#include "cmd/log/log.h"
#include "cmd/systemd/service_manager.h"
#include "dirtytrack/clock.h"
#include "postcopy/v1/config.pb.h"
#include "uffd/bulk_share.h"

int main(int argc, char** argv) {
  using namespace postcopy;  // NOLINT: main is outside it
  absl::SetProgramUsageMessage("the destination daemon of live migration");
  const v1::FaultdConfig type;
  FlagConfig config(&type, FaultdChecks());
  const std::optional<int> ended = config.Load(argc, argv);
  if (ended.has_value()) return *ended;
  KeepFreedMemory();
  ChooseGrpcPolling();
  BlockDaemonSignals();

  DaemonLog log(ChooseLogSink("faultd"), LogLevelFlag());
  auto options = FaultdOptionsFromFlags(&log);
  if (!options.ok()) return FailWith(options.status(), 1);
  auto sockets = TakePassedSockets();
  if (!sockets.ok()) return FailWith(sockets.status(), 1);
  std::unique_ptr<FaultRecorder> recorder;
  if (options->traces.has_value()) {
    auto created = FaultRecorder::Create(*std::move(options->traces));
    if (!created.ok()) return FailWith(created.status(), 1);
    recorder = *std::move(created);
  }
  options->destination.recorder = recorder.get();
  BulkShare share(options->bulk_requests, Clock::Monotonic());
  options->destination.bulk_share = &share;
  options->destination.inherited_vmm_socket =
      TakeSocket(*sockets, kVmmSocketName);
  auto daemon = DestinationDaemon::Create(options->destination);
  if (!daemon.ok()) return FailWith(daemon.status(), 1);
  std::unique_ptr<SnapshotService> snapshots;
  if (options->snapshot.has_value()) {
    options->snapshot->bulk_share = &share;
    options->snapshot->recorder = recorder.get();
    options->snapshot->dialling = (*daemon)->security().dialling();
    options->snapshot->inherited_socket =
        TakeSocket(*sockets, kFirecrackerSocketName);
    auto created = SnapshotService::Create(*std::move(options->snapshot));
    if (!created.ok()) return FailWith(created.status(), 1);
    snapshots = *std::move(created);
  }
  const std::string unused = DescribeUnused(*sockets);
  if (!unused.empty()) WriteTo(&log, LogSeverity::kWarning, unused);
  const auto metrics =
      ServeMetrics(FaultdMetricsAddress(), &log, [&](MetricFamilies& families) {
        (*daemon)->AddMetrics(families);
        if (snapshots != nullptr) snapshots->AddMetrics(families);
        if (recorder != nullptr) recorder->AddMetrics(families);
      });
  const std::string metrics_address = metrics ? metrics->address() : "";
  const absl::Status ready = TellReady(
      FaultdReadyFd(), {{"control_address", (*daemon)->control_address()},
                        {"metrics_address", metrics_address}});
  if (!ready.ok()) return FailWith(ready, 1);
  WriteTo(&log, LogSeverity::kNotice, "ready",
          {{"CONTROL_ADDRESS", (*daemon)->control_address()},
           {"METRICS_ADDRESS", metrics_address}});
  Serve({.log =
             [&](const std::string& sentence) {
               WriteTo(&log, LogSeverity::kNotice, sentence);
             },
         .load =
             [&] {
               DaemonLoad load = (*daemon)->Load();
               if (snapshots != nullptr) load += snapshots->Load();
               return load;
             },
         .stop_taking =
             [&] {
               if (snapshots != nullptr) snapshots->StopTaking();
               (*daemon)->StopTaking();
             },
         .shows_life =
             [&] {
               // Both are asked, so that both are asked again.
               const bool alive =
                   snapshots == nullptr || snapshots->ShowsLife();
               return (*daemon)->ShowsLife() && alive;
             },
         .drain_timeout = FaultdDrainTimeout,
         .reload = [&] { return ReloadConfig(config, {"drain_timeout"}); }});
  WriteTo(&log, LogSeverity::kNotice, "stopping");
  if (snapshots != nullptr) snapshots->Shutdown();
  (*daemon)->Shutdown();
  return 0;
}
