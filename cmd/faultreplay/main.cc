// faultreplay: replays traces of page faults and says how long each took. See
// --help.

#include <iostream>
#include <string>
#include <vector>

#include "cmd/daemon/daemon.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/faultreplay/cli.h"

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0),
                                           argv + argc);
  // As the daemons do, and before anything else of gRPC.
  postcopy::ChooseGrpcPolling();
  // The echo server is ended by a signal; so is everything else.
  if (!arguments.empty() && arguments[0] == "echo-server") {
    postcopy::BlockEndSignals();
  }
  return postcopy::RunFaultReplay(arguments, std::cout, std::cerr);
}
