// A guest of a replay, as a daemon sees it.
#ifndef CMD_FAULTREPLAY_REPLAY_VMM_H_
#define CMD_FAULTREPLAY_REPLAY_VMM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/vmm_library/postcopy_vmm.h"
#include "dirtytrack/types.h"

namespace postcopy {

// One region of RAM, attached to one daemon by libpostcopy_vmm; a thread
// answers the daemon.
class ReplayVmm {
 public:
  // Marks a page that the guest has written (source).
  using MarkPage = std::function<void(PageIndex)>;

  struct Options {
    std::string socket_path;
    std::string vm_name;
    // Else a destination.
    bool source = true;
    int memory_fd = -1;
    uint8_t* address = nullptr;
    ByteCount length;
    // Source: the guest is to be paused. By the thread.
    std::function<void(const MarkPage&)> on_pause = nullptr;
    // Destination: the guest runs. By the thread.
    std::function<void()> on_resume = nullptr;
  };

  // The error is that of postcopy_vmm_attach.
  static absl::StatusOr<std::unique_ptr<ReplayVmm>> Attach(Options options);

  // Detaches; who waits for a page of a destination goes on with zeros, once
  // the daemon has gone too.
  ~ReplayVmm() { Detach(); }
  void Detach();

 private:
  explicit ReplayVmm(Options options) : options_(std::move(options)) {}

  absl::Status Connect();
  postcopy_vmm_callbacks Callbacks();
  static int Pause(void* context, postcopy_vmm* handle);
  static int Resume(void* context, postcopy_vmm* handle);

  const Options options_;
  postcopy_vmm* handle_ = nullptr;
  postcopy_vmm_marker* marker_ = nullptr;
  std::thread serving_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_REPLAY_VMM_H_
