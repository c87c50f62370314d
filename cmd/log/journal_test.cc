// What arrives at a journal: a socket of the test's own where journald's would
// be, in a mount namespace of its own.

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cmd/log/log_sink.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr char kSocket[] = "/run/systemd/journal/socket";

// Why there is no empty /run of this process alone; empty: there is.
std::string HideRun() {
  if (::unshare(CLONE_NEWNS) != 0 ||
      ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("tmpfs", "/run", "tmpfs", 0, nullptr) != 0) {
    return absl::StrCat("no mount namespace of its own: ", strerror(errno));
  }
  ::mkdir("/run/systemd", 0755);
  ::mkdir("/run/systemd/journal", 0755);
  return "";
}

TEST(JournalTest, TakesSentenceSeverityAndFields) {
  const std::string why_not = HideRun();
  if (!why_not.empty()) GTEST_SKIP() << why_not;
  const UniqueFd journal(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, kSocket, sizeof kSocket);
  ASSERT_EQ(::bind(journal.get(), reinterpret_cast<sockaddr*>(&address),
                   sizeof address),
            0)
      << strerror(errno);

  ToJournal("faultd")({LogSeverity::kWarning,
                       "the source is lost",
                       {{kVmNameField, "vm-1"}, {kStateField, "PAUSED"}}});
  char text[4096] = {};
  ASSERT_GT(::recv(journal.get(), text, sizeof text - 1, MSG_DONTWAIT), 0)
      << strerror(errno);
  for (const char* line :
       {"MESSAGE=the source is lost\n", "PRIORITY=4\n",
        "SYSLOG_IDENTIFIER=faultd\n", "VM_NAME=vm-1\n", "STATE=PAUSED\n"}) {
    EXPECT_TRUE(absl::StrContains(text, line)) << line << text;
  }
}

}  // namespace
}  // namespace postcopy
