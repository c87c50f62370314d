// The other end of the floors that know no faults: a process that answers with
// pages, and does nothing else.
#ifndef CMD_FAULTREPLAY_ECHO_SERVER_H_
#define CMD_FAULTREPLAY_ECHO_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cmd/faultreplay/source_memory.h"

namespace postcopy {

enum class EchoKind {
  // 16 bytes ask, of which the first eight are the page's number; 4096 answer.
  kTcp,
  // UrgentRequest and UrgentResponse of the data plane's Urgent, with one page
  // each and no checksum computed; and Bulk, which brings all pages unasked.
  kGrpc,
};

// What a TCP client asks with.
struct EchoRequest {
  uint64_t page;
  uint64_t unused;
};

class EchoServer {
 public:
  virtual ~EchoServer() = default;
  virtual std::string address() const = 0;
};

// Serves at a port of the kernel's choice until it is destroyed. `memory`
// outlives it.
absl::StatusOr<std::unique_ptr<EchoServer>> NewEchoServer(
    EchoKind kind, const SourceMemory* memory);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_ECHO_SERVER_H_
