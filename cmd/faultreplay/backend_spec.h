// Which backends a replay runs against, as the command line names them.
#ifndef CMD_FAULTREPLAY_BACKEND_SPEC_H_
#define CMD_FAULTREPLAY_BACKEND_SPEC_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/faultreplay/backend.h"
#include "cmd/faultreplay/source_memory.h"
#include "cmd/faultreplay/touch_plan.h"
#include "dirtytrack/types.h"
#include "postcopy/v1/migration.pb.h"

namespace postcopy {

enum class BackendKind {
  kLocal,
  kTcp,
  kGrpcEcho,
  kGrpcStream,
  kService,
  kQemu
};

struct BackendSpec {
  // As it was written.
  std::string name;
  BackendKind kind = BackendKind::kLocal;
  // "delay=5ms": local: the handler sleeps so long before each answer; others:
  // half of it is added to each direction of the network.
  int64_t delay_ns = 0;
  // Service and QEMU: "limit=256MiB", bytes per second of what was not asked
  // for.
  ByteCount bandwidth;
  // QEMU only: its capability postcopy-preempt.
  bool preempt = false;
  // Service only: "after-precopy"; "idle", which leaves no bulk load worth the
  // name; an order.
  bool after_precopy = false;
  v1::PullOrder pull_order = v1::PULL_ORDER_ADAPTIVE;
};

// Backends of one comparison, at most.
inline constexpr size_t kBackendsMax = 8;

// Reads "local,service:linear:limit=64MiB": backends separated by commas, each
// a kind (local, tcp, grpc-echo, grpc-stream, service, qemu) and what makes it
// special, each after a colon. INVALID_ARGUMENT with a sentence.
absl::StatusOr<std::vector<BackendSpec>> ParseBackends(absl::string_view text);

// Paths of the programs that backends run.
struct ReplayPrograms {
  std::string faultreplay;
  std::string pageserverd;
  std::string faultd;
  std::string qemu;
};

// `source` outlives the backend. REQUIRES: `spec` is not QEMU, whose guest
// replays by itself (qemu_replay.h).
std::unique_ptr<Backend> NewBackend(const BackendSpec& spec,
                                    const TouchPlan& plan,
                                    const ReplayPrograms& programs,
                                    const SourceMemory* source);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_BACKEND_SPEC_H_
