#include "cmd/faultreplay/recording_faultd.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {
namespace {

constexpr absl::Duration kReady = absl::Seconds(30);
constexpr absl::Duration kEnd = absl::Seconds(30);
constexpr std::chrono::milliseconds kLook{20};
constexpr size_t kTailLines = 8;

std::string Handshake(const std::vector<RecordedRegion>& regions) {
  return absl::StrCat(
      "[",
      absl::StrJoin(regions, ",",
                    [](std::string* json, const RecordedRegion& region) {
                      absl::StrAppend(json, R"({"base_host_virt_addr":)",
                                      region.address.value(), R"(,"size":)",
                                      region.length.value(), R"(,"offset":)",
                                      region.offset, R"(,"page_size":)",
                                      kPageSize, "}");
                    }),
      "]");
}

// `text` and a descriptor, which goes with its first byte.
bool Send(int socket, const std::string& text, int descriptor) {
  iovec part = {.iov_base = const_cast<char*>(text.data()),
                .iov_len = text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  // Far less than what a socket takes at once.
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) ==
         static_cast<ssize_t>(text.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<RecordingFaultd>> RecordingFaultd::Start(
    Options options) {
  std::unique_ptr<RecordingFaultd> faultd(
      new RecordingFaultd(std::move(options)));
  RecordingFaultd* const self = faultd.get();
  if (::mkdir(self->In("traces").c_str(), 0700) != 0) {
    const std::string what = absl::StrCat("making ", self->In("traces"));
    return absl::ErrnoToStatus(errno, what);
  }
  absl::StatusOr<std::thread> thread = StartThread([self] { self->Run(); });
  if (!thread.ok()) return thread.status();
  self->thread_ = *std::move(thread);
  std::unique_lock<std::mutex> lock(self->mutex_);
  self->changed_.wait(lock, [self] { return self->decided_; });
  if (!self->status_.ok()) return self->status_;
  return faultd;
}

absl::StatusOr<ChildProcess> RecordingFaultd::StartProcess() {
  ChildOptions child;
  child.argv = {options_.program,
                "--control_address=unix:" + In("control"),
                "--vmm_socket=" + In("vmm"),
                "--metrics_address=",
                "--insecure_data",
                "--snapshot=" + In("snapshot"),
                "--firecracker_socket=" + In("memory"),
                "--trace_dir=" + In("traces"),
                absl::StrCat("--trace_events_max=", options_.events_max)};
  child.stdout_path = child.stderr_path = In("log");
  child.pipe_flags = {"--ready_fd"};
  absl::StatusOr<ChildProcess> process = ChildProcess::Start(child);
  if (!process.ok()) return process.status();
  const absl::Status ready = process->ReadLine("--ready_fd", kReady).status();
  if (ready.ok()) return process;
  return ready;
}

void RecordingFaultd::Run() {
  absl::StatusOr<ChildProcess> process = StartProcess();
  absl::Status status = process.status();
  if (status.ok()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      decided_ = true;
      changed_.notify_all();
    }
    status = Watch(*process);
  }
  if (!status.ok()) {
    status = absl::InternalError(absl::StrCat(
        "faultd: ", status.message(), "\n", TailOfFile(In("log"), kTailLines)));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  decided_ = true;
  status_ = status;
  changed_.notify_all();
}

absl::Status RecordingFaultd::Watch(ChildProcess& process) {
  const absl::Time deadline = absl::Now() + options_.deadline;
  bool told = false;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ends_) {
    changed_.wait_for(lock, kLook, [this] { return ends_; });
    lock.unlock();
    const absl::StatusOr<ExitStatus> ended = process.Wait(absl::ZeroDuration());
    if (ended.ok()) {
      options_.on_death();
      return absl::InternalError(
          absl::StrCat("it ended with ", ended->ToString()));
    }
    if (!told && absl::Now() >= deadline) {
      told = true;
      options_.on_deadline();
    }
    lock.lock();
  }
  lock.unlock();
  const absl::StatusOr<ExitStatus> ended = process.Terminate(kEnd);
  if (!ended.ok()) return ended.status();
  if (ended->ok()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("it ended with ", ended->ToString()));
}

absl::Status RecordingFaultd::Attach(
    int userfaultfd, const std::vector<RecordedRegion>& regions) {
  connection_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string path = In("memory");
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " is too long for a socket: set TMPDIR to a shorter path"));
  }
  std::copy(path.begin(), path.end(), address.sun_path);
  // The cast is how sockets' addresses are passed.
  if (::connect(connection_.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)) != 0 ||
      !Send(connection_.get(), Handshake(regions), userfaultfd)) {
    return absl::ErrnoToStatus(errno, "handing memory over to faultd");
  }
  return absl::OkStatus();
}

absl::Status RecordingFaultd::End() {
  connection_ = UniqueFd();
  if (thread_.joinable()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }
  return status_;
}

absl::StatusOr<std::string> RecordingFaultd::TracePath() const {
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(In("traces"), error)) {
    return entry.path().string();
  }
  return absl::InternalError(absl::StrCat("faultd has taken no memory:\n",
                                          TailOfFile(In("log"), kTailLines)));
}

}  // namespace postcopy
