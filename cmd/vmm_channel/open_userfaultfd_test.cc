#include "cmd/vmm_channel/open_userfaultfd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "cmd/vmm_channel/test_support.h"

namespace postcopy {
namespace {

// A sandbox may have no user but root.
bool UidIsMapped(uid_t uid) {
  std::ifstream map("/proc/self/uid_map");
  uint64_t inside, outside, count;
  while (map >> inside >> outside >> count) {
    if (uid >= inside && uid - inside < count) return true;
  }
  return false;
}

TEST(OpenUserfaultfdTest, GivesWhatADaemonCanUse) {
  absl::StatusOr<UserfaultFd> opened = OpenUserfaultfd();
  if (!opened.ok()) GTEST_SKIP() << opened.status();
  const int fd = opened->fd.get();
  EXPECT_TRUE(opened->how == "/dev/userfaultfd" ||
              opened->how == "the userfaultfd system call");
  EXPECT_NE(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(::fcntl(fd, F_GETFD), FD_CLOEXEC);
  // poll() says POLLERR unless the API is done.
  pollfd entry{fd, POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 0);

  const UniqueFd memory = Memfd(kPageSize);
  void* page = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED,
                      memory.get(), 0);
  ASSERT_NE(page, MAP_FAILED);
  uffdio_register request = {};
  request.range = {reinterpret_cast<uintptr_t>(page), kPageSize};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  EXPECT_EQ(::ioctl(fd, UFFDIO_REGISTER, &request), 0);
  ::munmap(page, kPageSize);
}

TEST(OpenUserfaultfdTest, RefusalSaysWhatToPermit) {
  // In a child, which gives up what this process may do.
  constexpr uid_t kNobody = 65534;
  const auto open_as_nobody = [] {
    if (::setresuid(kNobody, kNobody, kNobody) != 0) {
      std::fputs("cannot become nobody", stderr);
      std::exit(2);
    }
    const absl::StatusOr<UserfaultFd> opened = OpenUserfaultfd();
    std::fputs(opened.status().ToString().c_str(), stderr);
    std::exit(opened.ok() ? 1 : 0);
  };
  if (::geteuid() != 0 || !UidIsMapped(kNobody)) {
    GTEST_SKIP() << "only root can give up its rights";
  }
  EXPECT_EXIT(open_as_nobody(), testing::ExitedWithCode(0),
              "PERMISSION_DENIED: .*group and mode.*CAP_SYS_PTRACE.*"
              "vm.unprivileged_userfaultfd");
}

}  // namespace
}  // namespace postcopy
