#include "cmd/faultreplay/qemu/qemu_machine.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cmd/faultreplay/cpu_time.h"
#include "cmd/faultreplay/qemu/guest_image.h"
#include "cmd/faultreplay/qemu/guest_layout.h"

namespace postcopy {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

constexpr absl::Duration kStart = absl::Seconds(30);
constexpr absl::Duration kAnswer = absl::Seconds(30);
constexpr absl::Duration kEnd = absl::Seconds(30);
// How often it is asked whether a process that does not connect has ended.
constexpr absl::Duration kLookForEnd = absl::Milliseconds(100);
constexpr size_t kTailLines = 8;

// By which a child opens it while this process lives.
std::string PathOf(const UniqueFd& fd) {
  return absl::StrCat("/proc/", ::getpid(), "/fd/", fd.get());
}

// Listens at an abstract address of the kernel's choice; `name` gets it.
absl::StatusOr<UniqueFd> ListenForMonitor(std::string* name) {
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  socklen_t length = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  // No more than the family: the kernel finds a name (unix(7), autobind).
  if (!listener.valid() ||
      ::bind(listener.get(), generic, sizeof(sa_family_t)) != 0 ||
      ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), generic, &length) != 0) {
    return absl::ErrnoToStatus(errno, "cannot listen for QEMU's monitor");
  }
  constexpr size_t kNameAt = offsetof(sockaddr_un, sun_path) + 1;
  name->assign(address.sun_path + 1, length - kNameAt);
  return listener;
}

// Invalid if whoever connects is another process.
UniqueFd AcceptFrom(int listener, pid_t pid) {
  UniqueFd connection(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  ucred peer = {};
  socklen_t length = sizeof(peer);
  if (!connection.valid() ||
      ::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) !=
          0 ||
      peer.pid != pid) {
    return UniqueFd();
  }
  return connection;
}

absl::StatusOr<UniqueFd> MemfdWith(const std::vector<uint8_t>& bytes) {
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("replay-firmware", ByteCount(bytes.size()), 0);
  if (!fd.ok()) return fd;
  if (::pwrite(fd->get(), bytes.data(), bytes.size(), 0) !=
      static_cast<ssize_t>(bytes.size())) {
    return absl::ErrnoToStatus(errno, "write to a memfd");
  }
  return fd;
}

std::string MemoryOption(absl::string_view id, const std::string& path,
                         ByteCount bytes) {
  return absl::StrCat("memory-backend-file,share=on,id=", id,
                      ",size=", bytes.value(), ",mem-path=", path);
}

std::vector<std::string> ArgumentsOf(const QemuMachineOptions& options,
                                     const std::string& firmware,
                                     const std::string& monitor) {
  const uint64_t bytes = (options.own_bytes + options.ram_bytes).value();
  std::vector<std::string> argv = {
      options.program, "-no-user-config", "-nodefaults",
      // No window, no devices that a migration would have to carry.
      "-display", "none", "-serial", "none", "-parallel", "none", "-machine",
      "pc,accel=kvm,hpet=off,usb=off", "-cpu", "kvm64", "-m",
      absl::StrCat("size=", bytes, "B"), "-object",
      MemoryOption("own", options.own_path, options.own_bytes), "-object",
      MemoryOption("ram", options.ram_path, options.ram_bytes), "-numa",
      "node,memdev=own", "-numa", "node,memdev=ram", "-bios", firmware,
      "-chardev", "null,id=nothing", "-device",
      absl::StrCat("isa-debugcon,chardev=nothing,iobase=", QEMU_GUEST_HOST_PORT,
                   ",readback=",
                   options.destination ? QEMU_GUEST_AT_DESTINATION
                                       : QEMU_GUEST_AT_SOURCE),
      // The guest's last act stops its machine, and says so in an event.
      "-action", "reboot=shutdown,shutdown=pause", "-chardev",
      absl::StrCat("socket,id=monitor,abstract=on,path=", monitor), "-mon",
      "chardev=monitor,mode=control"};
  if (options.destination) {
    argv.push_back("-incoming");
    argv.push_back("defer");
  }
  return argv;
}

}  // namespace

absl::StatusOr<std::unique_ptr<QemuMachine>> QemuMachine::Start(
    const QemuMachineOptions& options) {
  // The constructor is private.
  std::unique_ptr<QemuMachine> machine(new QemuMachine);
  absl::Status status = machine->Launch(options);
  if (status.ok()) return machine;
  return machine->Explain(status);
}

absl::Status QemuMachine::Launch(const QemuMachineOptions& options) {
  absl::StatusOr<UniqueFd> firmware = MemfdWith(GuestFirmware());
  if (!firmware.ok()) return firmware.status();
  firmware_ = *std::move(firmware);
  absl::StatusOr<UniqueFd> log = CreateMemfd("qemu-log", ByteCount(0), 0);
  if (!log.ok()) return log.status();
  log_ = *std::move(log);
  std::string monitor;
  absl::StatusOr<UniqueFd> listener = ListenForMonitor(&monitor);
  if (!listener.ok()) return listener.status();
  ChildOptions child;
  child.argv = ArgumentsOf(options, PathOf(firmware_), monitor);
  child.stdout_path = child.stderr_path = PathOf(log_);
  absl::StatusOr<ChildProcess> process = ChildProcess::Start(child);
  if (!process.ok()) return process.status();
  process_.emplace(*std::move(process));
  absl::Status status = Connect(listener->get());
  return status.ok() ? Introduce() : status;
}

absl::Status QemuMachine::Connect(int listener) {
  const absl::Time deadline = absl::Now() + kStart;
  while (absl::Now() < deadline) {
    pollfd ready = {.fd = listener, .events = POLLIN, .revents = 0};
    const int count = ::poll(
        &ready, 1, static_cast<int>(absl::ToInt64Milliseconds(kLookForEnd)));
    if (count > 0) {
      UniqueFd connection = AcceptFrom(listener, pid());
      if (!connection.valid()) continue;
      qmp_.emplace(std::move(connection));
      return qmp_->Negotiate(kAnswer);
    }
    const absl::StatusOr<ExitStatus> ended =
        process_->Wait(absl::ZeroDuration());
    if (ended.ok()) {
      return absl::UnavailableError(
          absl::StrCat("QEMU cannot be started: ", ended->ToString()));
    }
  }
  return absl::DeadlineExceededError(
      absl::StrCat("QEMU is not there after ", absl::FormatDuration(kStart)));
}

absl::Status QemuMachine::Introduce() {
  const absl::StatusOr<Value> about =
      qmp_->Execute("query-version", JsonObject(), kAnswer);
  if (!about.ok()) return about.status();
  const Struct version = QmpObject(about->struct_value(), "qemu");
  version_ = absl::StrCat(QmpNumber(version, "major"), ".",
                          QmpNumber(version, "minor"), ".",
                          QmpNumber(version, "micro"));
  const absl::StatusOr<Value> cpus =
      qmp_->Execute("query-cpus-fast", JsonObject(), kAnswer);
  if (!cpus.ok()) return cpus.status();
  if (cpus->list_value().values_size() != 1) {
    return absl::InternalError("QEMU has not exactly one vCPU");
  }
  vcpu_ = static_cast<pid_t>(
      QmpNumber(cpus->list_value().values(0).struct_value(), "thread-id"));
  return absl::OkStatus();
}

int64_t QemuMachine::CpuNanos() const {
  return ProcessCpuNanos(pid()) - TaskCpuNanos(pid(), vcpu_);
}

absl::Status QemuMachine::Explain(const absl::Status& status) const {
  const std::string tail =
      log_.valid() ? TailOfFile(PathOf(log_), kTailLines) : "";
  if (tail.empty()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(status.message(), "\n", tail));
}

absl::Status QemuMachine::Quit() {
  // It may close the monitor before its answer is read.
  qmp_->Execute("quit", JsonObject(), kAnswer).IgnoreError();
  const absl::StatusOr<ExitStatus> ended = process_->Wait(kEnd);
  if (!ended.ok()) return ended.status();
  if (ended->ok()) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("QEMU ended with ", ended->ToString()));
}

}  // namespace postcopy
