// Four ways for one thread to wait for the messages of a userfaultfd and for an
// eventfd, as a fault loop does, each message answered at once from memory:
//
//   poll     poll() of both descriptors, then a read
//   epoll    epoll_wait() of both, then a read
//   uring    io_uring, multishot poll of both, then a read
//   linked   io_uring, a poll and behind it, linked, the read: one system call
//            for waiting and reading; the eventfd is polled as above
//
//   Fault/way/threads/cpus   `threads` threads touch 4 KiB pages one after the
//                            other. cpus:1 is all of this process on one CPU, 2
//                            is as the scheduler likes it. "fault" is how long
//                            one touch takes the thread that makes it.
//
// The descriptor is O_NONBLOCK, as poll() demands of a userfaultfd, and so a
// read by io_uring alone does not wait for anything.

#include <liburing.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "uffd/kernel_uffd.h"

namespace postcopy {
namespace {

constexpr uint64_t kPagesPerThread = 2000;
constexpr size_t kBatch = 64;

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::exit(1);
}

// Waits for messages or for the end.
class Waiter {
 public:
  virtual ~Waiter() = default;
  // How many messages were read into `messages`; 0: the end.
  virtual size_t Next(std::array<uffd_msg, kBatch>& messages) = 0;
};

size_t ReadOnce(int fd, std::array<uffd_msg, kBatch>& messages) {
  const ssize_t bytes = ::read(fd, messages.data(), sizeof(messages));
  return bytes > 0 ? static_cast<size_t>(bytes) / sizeof(uffd_msg) : 0;
}

class PollWaiter final : public Waiter {
 public:
  PollWaiter(int uffd, int end) : uffd_(uffd), end_(end) {}
  size_t Next(std::array<uffd_msg, kBatch>& messages) override {
    while (true) {
      std::array<pollfd, 2> fds = {{{end_, POLLIN, 0}, {uffd_, POLLIN, 0}}};
      if (::poll(fds.data(), fds.size(), -1) < 0) continue;
      if (fds[0].revents != 0) return 0;
      if (const size_t read = ReadOnce(uffd_, messages)) return read;
    }
  }

 private:
  const int uffd_;
  const int end_;
};

class EpollWaiter final : public Waiter {
 public:
  EpollWaiter(int uffd, int end) : uffd_(uffd), end_(end) {
    for (const int fd : {uffd, end}) {
      epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};
      if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        Die("epoll_ctl");
      }
    }
  }
  size_t Next(std::array<uffd_msg, kBatch>& messages) override {
    while (true) {
      std::array<epoll_event, 2> events;
      const int count = ::epoll_wait(epoll_.get(), events.data(), 2, -1);
      for (int i = 0; i < count; ++i) {
        if (events[i].data.fd == end_) return 0;
      }
      if (const size_t read = ReadOnce(uffd_, messages)) return read;
    }
  }

 private:
  const int uffd_;
  const int end_;
  const UniqueFd epoll_{::epoll_create1(EPOLL_CLOEXEC)};
};

class UringWaiter : public Waiter {
 public:
  UringWaiter(int uffd, int end) : uffd_(uffd) {
    io_uring_params params = {};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    if (::io_uring_queue_init_params(16, &ring_, &params) != 0) {
      Die("io_uring_queue_init");
    }
    PollForEver(end, kEnd);
  }
  ~UringWaiter() override { ::io_uring_queue_exit(&ring_); }

 protected:
  enum Tag : uint64_t { kEnd, kMessages, kPolled };

  void PollForEver(int fd, Tag tag) {
    io_uring_sqe* const sqe = ::io_uring_get_sqe(&ring_);
    ::io_uring_prep_poll_multishot(sqe, fd, POLLIN);
    ::io_uring_sqe_set_data64(sqe, tag);
  }
  struct Completion {
    uint64_t tag;
    int result;
    unsigned flags;
  };
  Completion Wait() {
    io_uring_cqe* cqe = nullptr;
    while (::io_uring_submit_and_wait(&ring_, 1) < 0 ||
           ::io_uring_peek_cqe(&ring_, &cqe) != 0) {
    }
    const Completion done = {cqe->user_data, cqe->res, cqe->flags};
    ::io_uring_cqe_seen(&ring_, cqe);
    return done;
  }

  const int uffd_;
  io_uring ring_;
};

class MultishotWaiter final : public UringWaiter {
 public:
  MultishotWaiter(int uffd, int end) : UringWaiter(uffd, end) {
    PollForEver(uffd, kMessages);
  }
  size_t Next(std::array<uffd_msg, kBatch>& messages) override {
    while (true) {
      const Completion done = Wait();
      if (done.tag == kEnd) return 0;
      if ((done.flags & IORING_CQE_F_MORE) == 0) PollForEver(uffd_, kMessages);
      if (const size_t read = ReadOnce(uffd_, messages)) return read;
    }
  }
};

class LinkedWaiter final : public UringWaiter {
 public:
  using UringWaiter::UringWaiter;
  size_t Next(std::array<uffd_msg, kBatch>& messages) override {
    while (true) {
      if (!asked_) Ask(messages);
      const Completion done = Wait();
      if (done.tag == kEnd) return 0;
      if (done.tag == kPolled) continue;
      asked_ = false;
      if (done.result > 0) {
        return static_cast<size_t>(done.result) / sizeof(uffd_msg);
      }
    }
  }

 private:
  void Ask(std::array<uffd_msg, kBatch>& messages) {
    io_uring_sqe* const poll = ::io_uring_get_sqe(&ring_);
    ::io_uring_prep_poll_add(poll, uffd_, POLLIN);
    ::io_uring_sqe_set_data64(poll, kPolled);
    poll->flags |= IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe* const read = ::io_uring_get_sqe(&ring_);
    ::io_uring_prep_read(read, uffd_, messages.data(), sizeof(messages), 0);
    ::io_uring_sqe_set_data64(read, kMessages);
    asked_ = true;
  }

  bool asked_ = false;
};

enum Way : int64_t { kPoll, kEpoll, kUring, kLinked };

std::unique_ptr<Waiter> NewWaiter(int64_t way, int uffd, int end) {
  switch (way) {
    case kPoll:
      return std::make_unique<PollWaiter>(uffd, end);
    case kEpoll:
      return std::make_unique<EpollWaiter>(uffd, end);
    case kUring:
      return std::make_unique<MultishotWaiter>(uffd, end);
    default:
      return std::make_unique<LinkedWaiter>(uffd, end);
  }
}

void Serve(int64_t way, KernelUffd& ops, int end) {
  static const std::vector<uint8_t> page(kPageSize, 1);
  // Made by the thread that uses it, as SINGLE_ISSUER demands.
  const std::unique_ptr<Waiter> waiter = NewWaiter(way, ops.poll_fd(), end);
  std::array<uffd_msg, kBatch> messages;
  while (const size_t count = waiter->Next(messages)) {
    for (size_t i = 0; i < count; ++i) {
      const uint64_t address =
          messages[i].arg.pagefault.address / kPageSize * kPageSize;
      ops.Copy(HostAddress(address), page.data(), ByteCount(kPageSize), true);
    }
  }
}

void BM_Fault(benchmark::State& state) {
  const auto threads = static_cast<uint64_t>(state.range(1));
  cpu_set_t all;
  ::sched_getaffinity(0, sizeof(all), &all);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  if (state.range(2) == 1) ::sched_setaffinity(0, sizeof(one), &one);
  const size_t length = threads * kPagesPerThread * kPageSize;
  auto* const memory =
      static_cast<uint8_t*>(::mmap(nullptr, length, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) Die("mmap");
  auto created = CreateUserfaultfd();
  if (!created.ok()) {
    state.SkipWithError(std::string(created.status().message()).c_str());
    return;
  }
  const auto ops = *KernelUffd::Adopt(std::move(created->fd));
  const HostAddress address(reinterpret_cast<uintptr_t>(memory));
  if (!ops->Register(address, ByteCount(length), UFFDIO_REGISTER_MODE_MISSING)
           .ok()) {
    Die("register");
  }
  const UniqueFd end(::eventfd(0, EFD_CLOEXEC));
  std::thread server([&] { Serve(state.range(0), *ops, end.get()); });
  for (auto _ : state) {
    state.PauseTiming();
    ::madvise(memory, length, MADV_DONTNEED);
    std::atomic<bool> go{false};
    std::vector<std::thread> guests;
    for (uint64_t thread = 0; thread < threads; ++thread) {
      guests.emplace_back([&, thread] {
        while (!go.load()) std::this_thread::yield();
        for (uint64_t i = 0; i < kPagesPerThread; ++i) {
          benchmark::DoNotOptimize(*static_cast<volatile uint8_t*>(
              memory + (thread * kPagesPerThread + i) * kPageSize));
        }
      });
    }
    state.ResumeTiming();
    go.store(true);
    for (std::thread& guest : guests) guest.join();
  }
  ::eventfd_write(end.get(), 1);
  server.join();
  ::munmap(memory, length);
  ::sched_setaffinity(0, sizeof(all), &all);
  state.counters["fault"] =
      benchmark::Counter(static_cast<double>(kPagesPerThread),
                         benchmark::Counter::kIsIterationInvariantRate |
                             benchmark::Counter::kInvert);
}
BENCHMARK(BM_Fault)
    ->Name("Fault")
    ->ArgNames({"way", "threads", "cpus"})
    ->ArgsProduct({{kPoll, kEpoll, kUring, kLinked}, {1, 16}, {1, 2}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace postcopy
