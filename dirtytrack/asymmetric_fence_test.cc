#include "dirtytrack/asymmetric_fence.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <iterator>
#include <thread>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

// Dekker's handshake: never do both sides miss each other's store.
TEST(AsymmetricFenceTest, OneOfTwoSeesTheOther) {
  if (!RegisterForHeavyFence()) GTEST_SKIP() << "membarrier(2) is refused";
  constexpr int kRounds = 20000;
  std::atomic<int> light = 0;
  std::atomic<int> heavy = 0;
  std::atomic<int> round = 0;
  std::atomic<int> seen_by_light = 0;
  std::atomic<int> light_done = 0;
  std::thread often([&] {
    for (int i = 1; i <= kRounds; ++i) {
      while (round.load(std::memory_order_acquire) < i) {
        std::this_thread::yield();
      }
      light.store(i, std::memory_order_relaxed);
      LightFence();
      seen_by_light.store(heavy.load(std::memory_order_relaxed),
                          std::memory_order_relaxed);
      light_done.store(i, std::memory_order_release);
    }
  });
  for (int i = 1; i <= kRounds; ++i) {
    round.store(i, std::memory_order_release);
    heavy.store(i, std::memory_order_relaxed);
    ASSERT_TRUE(HeavyFence().ok());
    const int seen_by_heavy = light.load(std::memory_order_relaxed);
    while (light_done.load(std::memory_order_acquire) < i) {
      std::this_thread::yield();
    }
    EXPECT_TRUE(seen_by_heavy == i || seen_by_light.load() == i) << i;
  }
  often.join();
}

// From here on the kernel refuses membarrier(2) to this process.
bool GiveUpMembarrier() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(filter), filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

void RefusedFence() {
  const bool given_up = GiveUpMembarrier();
  const absl::Status status = HeavyFence();
  const bool told =
      status.code() == absl::StatusCode::kFailedPrecondition &&
      absl::StrContains(status.message(), "SystemCallFilter=membarrier");
  std::exit(given_up && told && !RegisterForHeavyFence() ? 0 : 1);
}

TEST(AsymmetricFenceDeathTest, ARefusalSaysWhatToPermit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(RefusedFence(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace postcopy
