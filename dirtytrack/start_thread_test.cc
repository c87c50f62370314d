#include "dirtytrack/start_thread.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>

#include "gtest/gtest.h"

namespace postcopy {
namespace {

TEST(StartThreadTest, Runs) {
  int ran = 0;
  absl::StatusOr<std::thread> thread = StartThread([&ran] { ++ran; });
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  EXPECT_EQ(ran, 1);
}

// From here on this process has as many threads as it may.
bool GiveUpThreads() {
  constexpr uint32_t kNoMore = SECCOMP_RET_ERRNO | EAGAIN;
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, kNoMore),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(filter), filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(StartThreadDeathTest, WhereThereIsNoneThatIsTold) {
  const auto start = [] {
    if (!GiveUpThreads()) ::_exit(2);
    const absl::Status status = StartThread([] {}).status();
    std::fputs(status.ToString().c_str(), stderr);
    ::_exit(absl::IsResourceExhausted(status) ? 0 : 1);
  };
  EXPECT_EXIT(start(), testing::ExitedWithCode(0), "raise TasksMax");
}

}  // namespace
}  // namespace postcopy
