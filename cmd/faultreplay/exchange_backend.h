// The floors of the network: a touch is a request and its answer, and there are
// no faults.
#ifndef CMD_FAULTREPLAY_EXCHANGE_BACKEND_H_
#define CMD_FAULTREPLAY_EXCHANGE_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>

#include "cmd/faultreplay/backend.h"
#include "cmd/faultreplay/echo_server.h"
#include "cmd/faultreplay/source_memory.h"

namespace postcopy {

struct ExchangeOptions {
  EchoKind kind = EchoKind::kTcp;
  // gRPC: all pages come one after the other, unasked, and a touch waits for
  // its turn: the floor of the bulk lane.
  bool stream = false;
  // Path of faultreplay, which is the server too, as another process.
  std::string program;
  // Added to each direction, by a proxy; 0: none.
  int64_t delay_ns = 0;
  // Who touches.
  uint32_t threads = 1;
};

// Over TCP each thread has a connection of its own. Over gRPC all share one
// stream, with any number of requests on their way; a single thread reads its
// answers itself, several have them read by one more. `source` outlives the
// backend.
std::unique_ptr<Backend> NewExchangeBackend(const SourceMemory* source,
                                            ExchangeOptions options);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_EXCHANGE_BACKEND_H_
