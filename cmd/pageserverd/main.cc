// pageserverd: the source daemon. Reads guest RAM, runs precopy, hands over,
// serves missing pages.

#include <cstdio>
#include <optional>

#include "absl/flags/usage.h"
#include "cmd/config/flag_config.h"
#include "cmd/daemon/daemon.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/pageserverd/pageserverd_flags.h"
#include "cmd/pageserverd/source_daemon.h"
#include "postcopy/v1/config.pb.h"

int main(int argc, char** argv) {
  using namespace postcopy;  // NOLINT: main is outside it
  absl::SetProgramUsageMessage("the source daemon of live migration");
  const v1::PageserverdConfig type;
  FlagConfig config(&type, PageserverdChecks());
  const std::optional<int> ended = config.Load(argc, argv);
  if (ended.has_value()) return *ended;
  ChooseGrpcPolling();
  BlockEndSignals();

  const auto options = PageserverdOptions();
  if (!options.ok()) return FailWith(options.status(), 1);
  auto daemon = SourceDaemon::Create(*options);
  if (!daemon.ok()) return FailWith(daemon.status(), 1);
  const absl::Status ready = TellReady(
      PageserverdReadyFd(), {{"control_address", (*daemon)->control_address()},
                             {"data_address", (*daemon)->data_address()}});
  if (!ready.ok()) return FailWith(ready, 1);
  std::fprintf(stderr, "pageserverd: control plane %s, data plane %s\n",
               (*daemon)->control_address().c_str(),
               (*daemon)->data_address().c_str());
  WaitForEnd();
  (*daemon)->Shutdown();
  return 0;
}
