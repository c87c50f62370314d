#include "cmd/faultreplay/local_backend.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cmd/faultreplay/cpu_time.h"
#include "cmd/faultreplay/faulting_memory.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/start_thread.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/kernel_uffd.h"

namespace postcopy {
namespace {

constexpr size_t kBatch = 64;

class LocalBackend final : public Backend {
 public:
  LocalBackend(const SourceMemory* source, int64_t delay_ns)
      : source_(*source), delay_ns_(delay_ns) {}
  ~LocalBackend() override { Stop(); }

  absl::Status Start() override;
  bool IsHere(PageIndex page) override { return memory_->IsHere(page); }
  PageCount CountHere() override { return memory_->CountHere(); }
  bool IsOver() override { return true; }
  const uint8_t* Touch(uint32_t, PageIndex page, bool write) override {
    return memory_->Touch(page, write);
  }
  void GiveUp() override { uffd_->Unregister(Base(), memory_->size()); }
  absl::Status Report(BackendReport* report) override;
  absl::Status Finish(BackendReport* report) override;

 private:
  HostAddress Base() const {
    return HostAddress(reinterpret_cast<uintptr_t>(memory_->data()));
  }
  void Serve();
  void Answer(const uffd_msg& message);
  void Stop();

  const SourceMemory& source_;
  const int64_t delay_ns_;
  std::optional<FaultingMemory> memory_;
  std::unique_ptr<KernelUffd> uffd_;
  UniqueFd end_;
  std::thread handler_;
  std::atomic<uint64_t> answered_{0};
  std::atomic<bool> failed_{false};
};

absl::Status LocalBackend::Start() {
  absl::StatusOr<FaultingMemory> memory =
      FaultingMemory::Create(source_.pages());
  if (!memory.ok()) return memory.status();
  memory_.emplace(*std::move(memory));
  absl::StatusOr<NewUserfaultfd> created = CreateUserfaultfd();
  if (!created.ok()) return created.status();
  auto uffd = KernelUffd::Adopt(std::move(created->fd));
  if (!uffd.ok()) return uffd.status();
  uffd_ = *std::move(uffd);
  const UffdRegistration registered =
      uffd_->Register(Base(), memory_->size(), UFFDIO_REGISTER_MODE_MISSING);
  if (!registered.ok()) {
    return absl::ErrnoToStatus(registered.error, "UFFDIO_REGISTER");
  }
  end_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (!end_.valid()) return absl::ErrnoToStatus(errno, "eventfd");
  absl::StatusOr<std::thread> handler = StartThread([this] { Serve(); });
  if (!handler.ok()) return handler.status();
  handler_ = *std::move(handler);
  return absl::OkStatus();
}

void LocalBackend::Serve() {
  std::array<uffd_msg, kBatch> messages;
  while (true) {
    std::array<pollfd, 2> fds = {
        {{end_.get(), POLLIN, 0}, {uffd_->poll_fd(), POLLIN, 0}}};
    if (::poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[0].revents != 0) return;
    const UffdReadResult read = uffd_->Read(absl::MakeSpan(messages));
    for (size_t i = 0; i < read.messages; ++i) Answer(messages[i]);
  }
}

void LocalBackend::Answer(const uffd_msg& message) {
  if (message.event != UFFD_EVENT_PAGEFAULT) return;
  Clock::Monotonic()->SleepFor(delay_ns_);
  const uint64_t offset =
      (message.arg.pagefault.address - Base().value()) / kPageSize * kPageSize;
  const PageIndex page = PageOf(RamOffset(offset));
  while (true) {
    const UffdResult copied =
        uffd_->Copy(Base() + ByteCount(offset), source_.PageAt(page),
                    ByteCount(kPageSize), true);
    if (copied.error == EAGAIN) continue;
    if (copied.error == EEXIST) {
      uffd_->Wake(Base() + ByteCount(offset), ByteCount(kPageSize));
    } else if (!copied.ok()) {
      failed_.store(true);
    } else {
      answered_.fetch_add(1, std::memory_order_relaxed);
    }
    return;
  }
}

absl::Status LocalBackend::Report(BackendReport* report) {
  report->cpu_ns = ThreadCpuNanos(handler_.native_handle());
  report->pages_moved = answered_.load();
  return absl::OkStatus();
}

absl::Status LocalBackend::Finish(BackendReport*) {
  Stop();
  if (!failed_.load()) return absl::OkStatus();
  return absl::InternalError("UFFDIO_COPY failed in the local handler");
}

void LocalBackend::Stop() {
  if (!handler_.joinable()) return;
  ::eventfd_write(end_.get(), 1);
  handler_.join();
}

}  // namespace

std::unique_ptr<Backend> NewLocalBackend(const SourceMemory* source,
                                         int64_t delay_ns) {
  return std::make_unique<LocalBackend>(source, delay_ns);
}

}  // namespace postcopy
