#include "dirtytrack/tracked_child.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/write_tracking.h"

namespace postcopy {

// Without locks, and zero when new.
struct TrackedChild::Shared {
  std::atomic<uint64_t> asked;     // commands given
  std::atomic<uint64_t> answered;  // commands obeyed
  std::atomic<Command> command;
  std::atomic<uint64_t> argument;
  std::atomic<uint64_t> writes;
};

namespace {

constexpr uint64_t kWordsPerPage = kPageSize / sizeof(uint64_t);

// What the child says first, with the pagemap if all is well.
struct Hello {
  int status_code;
  uint64_t address;
  char message[512];
};

bool IsHuge(TrackedChild::Memory memory) {
  return memory == TrackedChild::Memory::kHugeAnonymous ||
         memory == TrackedChild::Memory::kHugeMemfd;
}

bool IsMemfd(TrackedChild::Memory memory) {
  return memory == TrackedChild::Memory::kMemfd ||
         memory == TrackedChild::Memory::kHugeMemfd;
}

absl::Status NoMemory(TrackedChild::Memory memory) {
  return absl::UnavailableError(
      absl::StrCat("no ", IsHuge(memory) ? "huge pages" : "memory", ": ",
                   ::strerrordesc_np(errno)));
}

void Send(int socket, const Hello& hello, int fd) {
  iovec data = {.iov_base = const_cast<Hello*>(&hello),
                .iov_len = sizeof(hello)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  POSTCOPY_CHECK(::sendmsg(socket, &message, MSG_NOSIGNAL) == sizeof(hello));
}

UniqueFd Receive(int socket, Hello* hello) {
  iovec data = {.iov_base = hello, .iov_len = sizeof(*hello)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {.msg_iov = &data,
                    .msg_iovlen = 1,
                    .msg_control = control,
                    .msg_controllen = sizeof(control)};
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL) !=
      sizeof(*hello)) {
    *hello = {.status_code = static_cast<int>(absl::StatusCode::kInternal),
              .address = 0,
              .message = "the child died"};
    return UniqueFd();
  }
  int fd = -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr) std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  return UniqueFd(fd);
}

Hello HelloOf(const absl::Status& status, void* address) {
  Hello hello = {.status_code = static_cast<int>(status.code()),
                 .address = reinterpret_cast<uintptr_t>(address)};
  const std::string message(status.message());
  std::strncpy(hello.message, message.c_str(), sizeof(hello.message) - 1);
  return hello;
}

// Mostly nothing, or up to about 30 us; with huge pages, of which a round
// copies much for few writes, always, and up to about 250 us: so writes fall
// into all parts of a round.
void Dawdle(std::mt19937_64& random, bool huge) {
  if (!huge && random() % 4 != 0) return;
  for (std::atomic<uint64_t> i = random() % (huge ? 32768 : 4096); i > 0; --i) {
  }
}

}  // namespace

void TrackedChild::Unmap::operator()(Shared* shared) const {
  ::munmap(shared, sizeof(Shared));
}

TrackedChild::TrackedChild(std::unique_ptr<Shared, Unmap> shared)
    : shared_(std::move(shared)) {}

TrackedChild::~TrackedChild() { Kill(); }

void TrackedChild::RunChild(Shared* shared, int socket, int memfd,
                            Memory memory, ByteCount bytes, bool tracked,
                            pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // it died before the call
  int flags = IsMemfd(memory) ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  if (IsHuge(memory)) flags |= MAP_HUGETLB;
  void* base =
      ::mmap(nullptr, bytes.value(), PROT_READ | PROT_WRITE, flags, memfd, 0);
  if (base == MAP_FAILED) {
    Send(socket, HelloOf(NoMemory(memory), nullptr), -1);
    ::_exit(1);
  }
  std::optional<WriteTracking> tracking;
  UniqueFd pagemap;
  if (tracked) {
    const HostRange range = {HostAddress(reinterpret_cast<uintptr_t>(base)),
                             bytes};
    absl::StatusOr<WriteTracking> made = WriteTracking::Create({&range, 1});
    if (!made.ok()) {
      Send(socket, HelloOf(made.status(), nullptr), -1);
      ::_exit(1);
    }
    tracking = *std::move(made);
    pagemap = tracking->TakePagemap();
  } else {
    pagemap.Reset(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  }
  Send(socket, HelloOf(absl::OkStatus(), base), pagemap.get());
  pagemap.Reset();

  std::mt19937_64 random(1);
  auto* words = static_cast<volatile uint64_t*>(base);
  const uint64_t word_count = bytes.value() / sizeof(uint64_t);
  uint64_t obeyed = 0;
  uint64_t writes = 0;
  uint64_t limit = 0;
  const auto write = [&](uint64_t word) {
    words[word] = ++writes;
    shared->writes = writes;
  };
  while (true) {
    if (const uint64_t asked = shared->asked; asked != obeyed) {
      const uint64_t argument = shared->argument;
      switch (shared->command.load()) {
        case Command::kRun:
          limit = writes + argument;
          break;
        case Command::kPause:
          limit = writes;
          break;
        case Command::kPoke:
          write(argument * kWordsPerPage + random() % kWordsPerPage);
          limit = writes;
          break;
        case Command::kEndTracking:
          tracking.reset();
          break;
      }
      obeyed = asked;
      shared->answered = obeyed;
    }
    if (writes == limit) {
      ::sched_yield();
      continue;
    }
    Dawdle(random, IsHuge(memory));
    write(random() % word_count);
  }
}

absl::StatusOr<std::unique_ptr<TrackedChild>> TrackedChild::Start(
    Memory memory, ByteCount bytes, bool tracked) {
  void* shared = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return NoMemory(Memory::kAnonymous);
  std::unique_ptr<TrackedChild> child(new TrackedChild(
      std::unique_ptr<Shared, Unmap>(static_cast<Shared*>(shared))));
  if (IsMemfd(memory)) {
    child->memfd_.Reset(::memfd_create(
        "tracked-child", MFD_CLOEXEC | (IsHuge(memory) ? MFD_HUGETLB : 0)));
    if (!child->memfd_.valid() ||
        ::ftruncate(child->memfd_.get(), static_cast<off_t>(bytes.value())) !=
            0) {
      return NoMemory(memory);
    }
  }
  int sockets[2];
  POSTCOPY_CHECK(
      ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
  const UniqueFd ours(sockets[0]);
  UniqueFd theirs(sockets[1]);
  const pid_t parent = ::getpid();
  child->pid_ = ::fork();
  POSTCOPY_CHECK(child->pid_ >= 0);
  if (child->pid_ == 0) {
    RunChild(child->shared_.get(), theirs.get(), child->memfd_.get(), memory,
             bytes, tracked, parent);
  }
  theirs.Reset();  // or nobody would hear of the child's death
  Hello hello;
  child->pagemap_ = Receive(ours.get(), &hello);
  child->address_ = HostAddress(hello.address);
  absl::Status status(static_cast<absl::StatusCode>(hello.status_code),
                      hello.message);
  if (!status.ok()) return status;
  return child;
}

void TrackedChild::Do(Command command, uint64_t argument) {
  POSTCOPY_CHECK(pid_ > 0);
  shared_->command = command;
  shared_->argument = argument;
  const uint64_t asked = ++shared_->asked;
  while (shared_->answered != asked) {
    ::sched_yield();
    // A child that died will never answer.
    POSTCOPY_CHECK(::waitpid(pid_, nullptr, WNOHANG) == 0);
  }
}

void TrackedChild::Allow(uint64_t writes) { Do(Command::kRun, writes); }
uint64_t TrackedChild::writes() const { return shared_->writes; }
void TrackedChild::Pause() { Do(Command::kPause, 0); }
void TrackedChild::Poke(PageIndex page) { Do(Command::kPoke, page.value()); }
void TrackedChild::EndTracking() { Do(Command::kEndTracking, 0); }

void TrackedChild::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

absl::Status TrackedChild::Read(PageRun run, uint8_t* into) const {
  const uint64_t offset = OffsetOf(run.first).value();
  const size_t length = BytesIn(run.count).value();
  ssize_t read = 0;
  if (memfd_.valid()) {
    read = ::pread(memfd_.get(), into, length, static_cast<off_t>(offset));
  } else {
    const iovec local = {.iov_base = into, .iov_len = length};
    const iovec remote = {
        .iov_base = reinterpret_cast<void*>(address_.value() + offset),
        .iov_len = length};
    read = ::process_vm_readv(pid_, &local, 1, &remote, 1, 0);
  }
  if (read == static_cast<ssize_t>(length)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot read the child's ",
                                          ToString(run), ": ",
                                          ::strerrordesc_np(errno)));
}

namespace {

constexpr char kHugePages[] = "/proc/sys/vm/nr_hugepages";
constexpr char kFreeHugePages[] =
    "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

uint64_t ReadNumber(const char* path) {
  uint64_t number = 0;
  std::ifstream(path) >> number;
  return number;
}

}  // namespace

ReservedHugePages::ReservedHugePages(uint64_t pages)
    : before_(ReadNumber(kHugePages)) {
  const uint64_t free = ReadNumber(kFreeHugePages);
  if (free >= pages) return;
  std::ofstream file(kHugePages);
  file << before_ + pages - free << std::flush;
  changed_ = file.good();
}

ReservedHugePages::~ReservedHugePages() {
  if (changed_) std::ofstream(kHugePages) << before_;
}

}  // namespace postcopy
