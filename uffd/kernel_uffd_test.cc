#include "uffd/kernel_uffd.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"
#include "uffd/uffd_abi.h"

namespace postcopy {
namespace {

constexpr uint64_t kMissing = UFFDIO_REGISTER_MODE_MISSING;
constexpr uint64_t kPages = 8;

HostAddress AddressOf(const uint8_t* pointer) {
  return HostAddress(reinterpret_cast<uintptr_t>(pointer));
}

ByteCount Pages(uint64_t count) { return BytesIn(PageCount(count)); }

class KernelUffdTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<NewUserfaultfd> created = CreateUserfaultfd();
    if (!created.ok()) GTEST_SKIP() << created.status();
    RecordProperty("origin", std::string(created->origin));
    uffd_ = *KernelUffd::Adopt(std::move(created->fd));
    memory_ = *SharedMapping::Map(memfd_.get(), ByteCount(0), Pages(kPages),
                                  SharedMapping::Access::kReadWrite);
    ASSERT_TRUE(uffd_->Register(at(0), Pages(kPages), kMissing).ok());
  }

  HostAddress at(uint64_t page) const {
    return AddressOf(memory_.data() + page * kPageSize);
  }

  UniqueFd memfd_ = *CreateMemfd("ram", Pages(kPages), 0);
  SharedMapping memory_;
  std::unique_ptr<KernelUffd> uffd_;
  std::vector<uint8_t> source_ =
      std::vector<uint8_t>(kPages * kPageSize + 1, 0x5a);
};

TEST_F(KernelUffdTest, AnswersAFault) {
  std::thread guest([&] { EXPECT_EQ(memory_.data()[3 * kPageSize], 0x5a); });
  pollfd waited = {.fd = uffd_->poll_fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&waited, 1, -1), 1);
  EXPECT_EQ(waited.revents, POLLIN);
  std::array<uffd_msg, 4> messages;
  const UffdReadResult read = uffd_->Read(absl::MakeSpan(messages));
  EXPECT_EQ(read.error, 0);
  ASSERT_EQ(read.messages, 1u);
  EXPECT_EQ(messages[0].event, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(messages[0].arg.pagefault.address, at(3).value());
  EXPECT_EQ(uffd_->Read(absl::MakeSpan(messages)).error, EAGAIN);
  const UffdResult copied =
      uffd_->Copy(at(3), source_.data() + 1, Pages(1), true);  // unaligned
  EXPECT_EQ(copied.error, 0);
  EXPECT_EQ(copied.done, Pages(1));
  guest.join();
}

TEST_F(KernelUffdTest, CopyStopsAtAPageThatIsThere) {
  ASSERT_EQ(::pwrite(memfd_.get(), "old", 3, 2 * kPageSize), 3);
  UffdResult result = uffd_->Copy(at(0), source_.data(), Pages(4), true);
  EXPECT_EQ(result.error, EAGAIN);
  EXPECT_EQ(result.done, Pages(2));
  result = uffd_->Copy(at(2), source_.data(), Pages(2), true);
  EXPECT_EQ(result.error, EEXIST);
  EXPECT_EQ(result.done, ByteCount(0));
  result = uffd_->ZeroPage(at(2), Pages(2), true);
  EXPECT_EQ(result.error, EEXIST);
  result = uffd_->ZeroPage(at(3), Pages(1), true);
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.done, Pages(1));
  EXPECT_EQ(memory_.data()[2 * kPageSize], 'o');
  EXPECT_EQ(memory_.data()[3 * kPageSize], 0);
}

TEST_F(KernelUffdTest, AVmaThatWasSplitTakesNoRunAcross) {
  ASSERT_EQ(::madvise(memory_.data(), 2 * kPageSize, MADV_DONTFORK), 0);
  EXPECT_EQ(uffd_->Copy(at(0), source_.data(), Pages(4), true).error, ENOENT);
  EXPECT_TRUE(uffd_->Copy(at(1), source_.data(), Pages(1), true).ok());
}

// Runs `child` in a child process; returns how that ended, as of waitpid(2).
template <typename Function>
int InAChild(Function child) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    // Nothing of a sanitizer's is to report the signal that is expected.
    ::signal(SIGSEGV, SIG_DFL);
    child();
    ::_exit(0);
  }
  int status = -1;
  ::waitpid(pid, &status, 0);
  return status;
}

// Why docs/attaching.md wants MADV_DONTFORK: a child's mapping is not
// registered, and what it touches of a shared file is there for the parent too,
// which never faults at it again.
TEST_F(KernelUffdTest, AChildThatInheritsTheMemoryMakesZerosOfIt) {
  const int status = InAChild([this] {
    *static_cast<volatile uint8_t*>(memory_.data() + 3 * kPageSize);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(memory_.data()[3 * kPageSize], 0);
  std::array<uffd_msg, 4> messages;
  EXPECT_EQ(uffd_->Read(absl::MakeSpan(messages)).error, EAGAIN);
}

TEST_F(KernelUffdTest, DontForkKeepsChildrenOutOfTheMemory) {
  ASSERT_EQ(::madvise(memory_.data(), memory_.size().value(), MADV_DONTFORK),
            0);
  const int status = InAChild([this] {
    *static_cast<volatile uint8_t*>(memory_.data() + 3 * kPageSize);
  });
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(::lseek(memfd_.get(), 0, SEEK_DATA), -1);  // all of it a hole
  // The parent's is served as before.
  EXPECT_TRUE(uffd_->Copy(at(3), source_.data(), Pages(1), true).ok());
}

// Memory registered for pages that are in the file as well.
class MinorUffdTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<NewUserfaultfd> created =
        CreateUserfaultfd(UFFD_FEATURE_MINOR_SHMEM);
    if (!created.ok()) GTEST_SKIP() << created.status();
    uffd_ = *KernelUffd::Adopt(std::move(created->fd));
    memory_ = *SharedMapping::Map(memfd_.get(), ByteCount(0), Pages(kPages),
                                  SharedMapping::Access::kReadWrite);
    const UffdRegistration registered = uffd_->Register(
        at(0), Pages(kPages), kMissing | UFFDIO_REGISTER_MODE_MINOR);
    ASSERT_TRUE(registered.ok());
    EXPECT_TRUE(registered.Can(_UFFDIO_CONTINUE));
  }

  HostAddress at(uint64_t page) const {
    return AddressOf(memory_.data() + page * kPageSize);
  }
  void Write(uint64_t page) {
    const std::vector<uint8_t> bytes(kPageSize, 0x5a);
    ASSERT_EQ(::pwrite(memfd_.get(), bytes.data(), kPageSize,
                       static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(kPageSize));
  }

  UniqueFd memfd_ = *CreateMemfd("ram", Pages(kPages), 0);
  SharedMapping memory_;
  std::unique_ptr<KernelUffd> uffd_;
};

TEST_F(MinorUffdTest, APageOfTheFileFaultsUntilItIsContinued) {
  Write(3);
  std::thread guest([&] { EXPECT_EQ(memory_.data()[3 * kPageSize], 0x5a); });
  std::array<uffd_msg, 4> messages;
  while (uffd_->Read(absl::MakeSpan(messages)).messages == 0) {
  }
  EXPECT_EQ(messages[0].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR,
            UFFD_PAGEFAULT_FLAG_MINOR);
  const UffdResult shown = uffd_->Continue(at(3), Pages(1), true);
  EXPECT_TRUE(shown.ok());
  EXPECT_EQ(shown.done, Pages(1));
  guest.join();
}

TEST_F(MinorUffdTest, ContinueStopsWhereNothingIsToBeShown) {
  for (const uint64_t page : {0, 1, 2, 4}) Write(page);
  EXPECT_TRUE(uffd_->Continue(at(2), Pages(1), true).ok());
  UffdResult result = uffd_->Continue(at(0), Pages(4), true);
  EXPECT_EQ(result.error, EAGAIN);
  EXPECT_EQ(result.done, Pages(2));
  EXPECT_EQ(uffd_->Continue(at(2), Pages(2), true).error, EEXIST);
  EXPECT_EQ(uffd_->Continue(at(3), Pages(2), true).error, EFAULT);
  EXPECT_EQ(uffd_->Continue(at(4), Pages(2), false).done, Pages(1));
}

// What the guest cannot see can be poisoned, whatever is in the file; and what
// was poisoned can come all the same.
TEST_F(MinorUffdTest, PoisonsWhatIsNotInSight) {
  Write(1);
  const UffdResult poisoned = uffd_->Poison(at(1), Pages(1));
  if (poisoned.error == EINVAL) GTEST_SKIP() << "Linux before 6.6";
  EXPECT_TRUE(poisoned.ok());
  EXPECT_TRUE(uffd_->Continue(at(1), Pages(1), true).ok());
  EXPECT_EQ(memory_.data()[kPageSize], 0x5a);
}

TEST_F(KernelUffdTest, UnprotectNeedsARegistrationForIt) {
  EXPECT_EQ(uffd_->Unprotect(at(0), Pages(1)).error, ENOENT);
}

TEST_F(KernelUffdTest, WakeMakesThreadsFaultAgain) {
  std::thread guest([&] { EXPECT_EQ(memory_.data()[0], 0); });
  std::array<uffd_msg, 4> messages;
  while (uffd_->Read(absl::MakeSpan(messages)).messages == 0) {
  }
  EXPECT_TRUE(uffd_->Wake(at(0), Pages(kPages)).ok());
  while (uffd_->Read(absl::MakeSpan(messages)).messages == 0) {
  }
  EXPECT_EQ(messages[0].arg.pagefault.address, at(0).value());
  EXPECT_TRUE(uffd_->ZeroPage(at(0), Pages(1), true).ok());
  guest.join();
}

TEST_F(KernelUffdTest, ReadDoesNotWaitForAVmmThatMadeItBlocking) {
  ASSERT_EQ(::fcntl(uffd_->poll_fd(), F_SETFL, O_RDWR), 0);
  std::array<uffd_msg, 4> messages;
  EXPECT_EQ(uffd_->Read(absl::MakeSpan(messages)).error, EAGAIN);
}

TEST_F(KernelUffdTest, PoisonedPagesGiveErrors) {
  EXPECT_TRUE(uffd_->Poison(at(1), Pages(1)).ok());
  EXPECT_EQ(uffd_->Poison(at(1), Pages(1)).error, EEXIST);
  EXPECT_EQ(::write(memfd_.get(), memory_.data() + kPageSize, 1), -1);
  EXPECT_EQ(errno, EFAULT);
}

TEST_F(KernelUffdTest, UnregisterEndsIt) {
  EXPECT_TRUE(uffd_->Unregister(at(0), Pages(kPages)).ok());
  EXPECT_EQ(memory_.data()[0], 0);
  EXPECT_EQ(uffd_->Copy(at(1), source_.data(), Pages(1), true).error, ENOENT);
}

// UFFDIO_UNREGISTER alone leaves a thread waiting for ever in about one round
// of a hundred (Linux 6.18): one that faults while it runs.
TEST_F(KernelUffdTest, UnregisterLeavesNoThreadWaiting) {
  constexpr int kRounds = 1000;
  std::atomic<int> begun{0};
  std::atomic<int> done{0};
  std::thread guest([&] {
    for (int round = 1; round <= kRounds; ++round) {
      while (begun.load() < round) std::this_thread::yield();
      EXPECT_EQ(memory_.data()[0], 0);
      done.store(round);
    }
  });
  for (int round = 1; round <= kRounds; ++round) {
    ASSERT_EQ(
        ::fallocate(memfd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                    kPages * kPageSize),
        0);
    ASSERT_TRUE(uffd_->Register(at(0), Pages(kPages), kMissing).ok());
    begun.store(round);
    // The fault comes at another moment of the call each time.
    for (int i = 0; i < round * 7 % 3000; ++i) done.load();
    ASSERT_TRUE(uffd_->Unregister(at(0), Pages(kPages)).ok());
    while (done.load() < round) std::this_thread::yield();
  }
  guest.join();
}

TEST_F(KernelUffdTest, RegistersOnlyWhatIsMapped) {
  const SharedMapping gone =
      *SharedMapping::Map(memfd_.get(), ByteCount(0), Pages(kPages),
                          SharedMapping::Access::kReadWrite);
  const HostAddress address = AddressOf(gone.data());
  ASSERT_EQ(::munmap(gone.data(), kPages * kPageSize), 0);
  EXPECT_EQ(uffd_->Register(address, Pages(kPages), kMissing).error, EINVAL);
  // The object still unmaps: give it something to unmap.
  ASSERT_NE(::mmap(gone.data(), kPages * kPageSize, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
            MAP_FAILED);
}

// From here on this process may neither open a file nor make a userfaultfd, as
// on a host that grants neither.
bool GiveUpUserfaultfd() {
  constexpr uint32_t kNoFile = SECCOMP_RET_ERRNO | EACCES;
  constexpr uint32_t kNoCall = SECCOMP_RET_ERRNO | EPERM;
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, kNoCall),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, kNoFile),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(filter), filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// The operator is told each of the things that would help.
TEST(CreateUserfaultfdDeathTest, RefusalSaysWhatToPermit) {
  const auto create = [] {
    if (!GiveUpUserfaultfd()) ::_exit(2);
    const absl::StatusOr<NewUserfaultfd> created = CreateUserfaultfd();
    std::fputs(created.status().ToString().c_str(), stderr);
    // Without what runs at a proper exit, and would open files.
    ::_exit(absl::IsPermissionDenied(created.status()) ? 0 : 1);
  };
  EXPECT_EXIT(create(), testing::ExitedWithCode(0),
              "PERMISSION_DENIED: .*/dev/userfaultfd, or CAP_SYS_PTRACE, or "
              "set vm.unprivileged_userfaultfd=1");
}

TEST(KernelUffdAdoptTest, RefusesOtherDescriptors) {
  const auto code = [](UniqueFd fd) {
    return KernelUffd::Adopt(std::move(fd)).status().code();
  };
  EXPECT_EQ(code(UniqueFd()), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(UniqueFd(::eventfd(0, EFD_CLOEXEC))),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(*CreateMemfd("m", ByteCount(1), 0)),
            absl::StatusCode::kInvalidArgument);
}

TEST(KernelUffdAdoptTest, RefusesWhatCannotBeServed) {
  int refused = 0;
  for (const uint64_t feature :
       {UFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_SIGBUS}) {
    absl::StatusOr<NewUserfaultfd> uffd = CreateUserfaultfd(feature);
    if (!uffd.ok()) continue;  // FORK takes CAP_SYS_PTRACE
    const auto adopted = KernelUffd::Adopt(std::move(uffd->fd));
    EXPECT_EQ(adopted.status().code(), absl::StatusCode::kInvalidArgument);
    const absl::string_view advice = feature == UFFD_FEATURE_EVENT_FORK
                                         ? "madvise(MADV_DONTFORK)"
                                         : "would kill the VMM";
    EXPECT_NE(adopted.status().message().find(std::string(advice)),
              absl::string_view::npos)
        << adopted.status();
    ++refused;
  }
  if (refused == 0) GTEST_SKIP() << "no userfaultfd";
}

TEST(KernelUffdAdoptTest, KnowsWhetherItTellsOfRemovals) {
  for (const uint64_t feature :
       {UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMOVE,
        UFFD_FEATURE_EVENT_UNMAP}) {
    absl::StatusOr<NewUserfaultfd> uffd = CreateUserfaultfd(feature);
    if (!uffd.ok()) GTEST_SKIP() << uffd.status();
    const auto adopted = KernelUffd::Adopt(std::move(uffd->fd));
    ASSERT_TRUE(adopted.ok()) << adopted.status();
    EXPECT_TRUE((*adopted)->tells_of_removals());
  }
  absl::StatusOr<NewUserfaultfd> plain = CreateUserfaultfd();
  EXPECT_FALSE((*KernelUffd::Adopt(std::move(plain->fd)))->tells_of_removals());
}

TEST(KernelUffdAdoptTest, TakesOtherFeaturesAndMakesItNonBlocking) {
  absl::StatusOr<NewUserfaultfd> uffd =
      CreateUserfaultfd(kUffdFeaturePoison | UFFD_FEATURE_THREAD_ID);
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  const int flags = ::fcntl(uffd->fd.get(), F_GETFL);
  ASSERT_EQ(::fcntl(uffd->fd.get(), F_SETFL, flags & ~O_NONBLOCK), 0);
  const auto adopted = KernelUffd::Adopt(std::move(uffd->fd));
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_TRUE(::fcntl((*adopted)->poll_fd(), F_GETFL) & O_NONBLOCK);
}

TEST(KernelUffdAdoptTest, RefusesOneWithoutApi) {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) GTEST_SKIP() << "no /dev/userfaultfd";
  UniqueFd fd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC));
  const auto adopted = KernelUffd::Adopt(std::move(fd));
  EXPECT_EQ(adopted.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(adopted.status().message().find("UFFDIO_API"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace postcopy
