// The real thing: both daemons as processes of their own, a migration, gRPC.
#ifndef CMD_FAULTREPLAY_SERVICE_BACKEND_H_
#define CMD_FAULTREPLAY_SERVICE_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cmd/faultreplay/backend.h"
#include "cmd/faultreplay/source_memory.h"
#include "dirtytrack/types.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

// What is left of the bulk load where none is wanted: the least that the
// daemons take as a limit.
inline constexpr ByteCount kIdleBandwidth{1 << 20};

struct ServiceOptions {
  // Paths of the daemons, and flags added to what they are called with.
  std::string pageserverd;
  std::string faultd;
  std::vector<std::string> faultd_flags;
  // True: rounds of precopy bring all, then the pages in `touched` are written
  // once more, and are what is missing. False: all pages are missing.
  bool after_precopy = false;
  // A bool for each page: those that the trace touches.
  std::vector<bool> touched;
  v1::PullOrder pull_order = v1::PULL_ORDER_ADAPTIVE;
  // Bytes per second of the bulk lane; 0: no limit.
  ByteCount bandwidth;
  // Added to each direction between the daemons, by a proxy; 0: none.
  int64_t delay_ns = 0;
};

// `source` outlives the backend, which writes to it if `after_precopy` and
// leaves it as it was.
std::unique_ptr<Backend> NewServiceBackend(const SourceMemory* source,
                                           ServiceOptions options);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_SERVICE_BACKEND_H_
