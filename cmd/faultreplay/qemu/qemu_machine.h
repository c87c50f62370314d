// One QEMU with the guest that touches pages, as a process of its own.
#ifndef CMD_FAULTREPLAY_QEMU_QEMU_MACHINE_H_
#define CMD_FAULTREPLAY_QEMU_QEMU_MACHINE_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/qemu/qmp_client.h"
#include "cmd/process/child_process.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

struct QemuMachineOptions {
  // Path of qemu-system-x86_64.
  std::string program;
  // Waits for a migration; else it runs at once.
  bool destination = false;
  // The guest's own memory and its RAM, which QEMU opens by the paths and maps
  // shared.
  std::string own_path;
  ByteCount own_bytes;
  std::string ram_path;
  ByteCount ram_bytes;
};

// Nothing of it is in the file system: its firmware and its log are memfds, its
// monitor is an abstract socket that only the process itself may answer at.
// Ends with its owner, or with the thread that started it. Not thread-safe.
class QemuMachine {
 public:
  // When it returns, the monitor answers. An error has the end of QEMU's log.
  static absl::StatusOr<std::unique_ptr<QemuMachine>> Start(
      const QemuMachineOptions& options);

  QmpClient& qmp() { return *qmp_; }
  pid_t pid() const { return process_->pid(); }
  // The thread of its only vCPU.
  pid_t vcpu() const { return vcpu_; }
  // "7.2.22".
  const std::string& version() const { return version_; }

  // CPU time of all threads but the vCPU's, in nanoseconds.
  int64_t CpuNanos() const;

  // `status` with the end of QEMU's log.
  absl::Status Explain(const absl::Status& status) const;

  // Ends QEMU as an operator would; an error if it does not end well.
  absl::Status Quit();

 private:
  QemuMachine() = default;
  absl::Status Launch(const QemuMachineOptions& options);
  absl::Status Connect(int listener);
  absl::Status Introduce();

  UniqueFd firmware_;
  UniqueFd log_;
  std::optional<ChildProcess> process_;
  std::optional<QmpClient> qmp_;
  pid_t vcpu_ = 0;
  std::string version_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_QEMU_QEMU_MACHINE_H_
