// pageserverd: the source daemon. Reads guest RAM, runs precopy, hands over,
// serves missing pages.

#include <optional>
#include <string>

#include "absl/flags/usage.h"
#include "cmd/config/flag_config.h"
#include "cmd/daemon/daemon.h"
#include "cmd/daemon/freed_memory.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/daemon/observation_flags.h"
#include "cmd/daemon/serve.h"
#include "cmd/daemon/serve_metrics.h"
#include "cmd/log/daemon_log.h"
#include "cmd/log/log.h"
#include "cmd/pageserverd/pageserverd_flags.h"
#include "cmd/pageserverd/source_daemon.h"
#include "cmd/systemd/service_manager.h"
#include "postcopy/v1/config.pb.h"

int main(int argc, char** argv) {
  using namespace postcopy;  // NOLINT: main is outside it
  absl::SetProgramUsageMessage("the source daemon of live migration");
  const v1::PageserverdConfig type;
  FlagConfig config(&type, PageserverdChecks());
  const std::optional<int> ended = config.Load(argc, argv);
  if (ended.has_value()) return *ended;
  KeepFreedMemory();
  ChooseGrpcPolling();
  BlockDaemonSignals();

  DaemonLog log(ChooseLogSink("pageserverd"), LogLevelFlag());
  auto options = PageserverdOptions(&log);
  if (!options.ok()) return FailWith(options.status(), 1);
  auto sockets = TakePassedSockets();
  if (!sockets.ok()) return FailWith(sockets.status(), 1);
  options->inherited_vmm_socket = TakeSocket(*sockets, kVmmSocketName);
  const std::string unused = DescribeUnused(*sockets);
  if (!unused.empty()) WriteTo(&log, LogSeverity::kWarning, unused);
  auto daemon = SourceDaemon::Create(*options);
  if (!daemon.ok()) return FailWith(daemon.status(), 1);
  const auto metrics = ServeMetrics(
      PageserverdMetricsAddress(), &log,
      [&](MetricFamilies& families) { (*daemon)->AddMetrics(families); });
  const std::string metrics_address = metrics ? metrics->address() : "";
  const absl::Status ready = TellReady(
      PageserverdReadyFd(), {{"control_address", (*daemon)->control_address()},
                             {"data_address", (*daemon)->data_address()},
                             {"metrics_address", metrics_address}});
  if (!ready.ok()) return FailWith(ready, 1);
  WriteTo(&log, LogSeverity::kNotice, "ready",
          {{"CONTROL_ADDRESS", (*daemon)->control_address()},
           {"DATA_ADDRESS", (*daemon)->data_address()},
           {"METRICS_ADDRESS", metrics_address}});
  Serve({.log =
             [&](const std::string& sentence) {
               WriteTo(&log, LogSeverity::kNotice, sentence);
             },
         .load = [&] { return (*daemon)->Load(); },
         .stop_taking = [&] { (*daemon)->StopTaking(); },
         .shows_life = [&] { return (*daemon)->ShowsLife(); },
         .drain_timeout = PageserverdDrainTimeout,
         .reload = [&] { return ReloadConfig(config, {"drain_timeout"}); }});
  WriteTo(&log, LogSeverity::kNotice, "stopping");
  (*daemon)->Shutdown();
  return 0;
}
