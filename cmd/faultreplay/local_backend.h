// The floor of all faults: a handler in this process answers from memory.
#ifndef CMD_FAULTREPLAY_LOCAL_BACKEND_H_
#define CMD_FAULTREPLAY_LOCAL_BACKEND_H_

#include <cstdint>
#include <memory>

#include "cmd/faultreplay/backend.h"
#include "cmd/faultreplay/source_memory.h"

namespace postcopy {

// `delay_ns`: how long the handler sleeps before each answer; to see that it
// shows. `source` outlives the backend.
std::unique_ptr<Backend> NewLocalBackend(const SourceMemory* source,
                                         int64_t delay_ns);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_LOCAL_BACKEND_H_
