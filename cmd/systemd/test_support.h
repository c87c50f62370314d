// A service manager that only listens.
#ifndef CMD_SYSTEMD_TEST_SUPPORT_H_
#define CMD_SYSTEMD_TEST_SUPPORT_H_

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Sets NOTIFY_SOCKET for this process as long as it lives.
class NotifySocket {
 public:
  NotifySocket() {
    // An abstract name, unique as this process is.
    const std::string name = "@postcopy-notify-" + std::to_string(::getpid());
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    address.sun_path[0] = '\0';
    socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address),
                     static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) +
                                            name.size())),
              0);
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
  }
  ~NotifySocket() { ::unsetenv("NOTIFY_SOCKET"); }

  // The next message; empty if none comes within a minute.
  std::string Next() {
    pollfd waited = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&waited, 1, 60'000) != 1) return "";
    std::string text(4096, '\0');
    const ssize_t got = ::recv(socket_.get(), text.data(), text.size(), 0);
    text.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return text;
  }

  // Passes over others until one begins with `start`.
  std::string Await(const std::string& start) {
    for (;;) {
      std::string text = Next();
      if (text.empty() || text.compare(0, start.size(), start) == 0) {
        return text;
      }
    }
  }

 private:
  UniqueFd socket_;
};

}  // namespace postcopy

#endif  // CMD_SYSTEMD_TEST_SUPPORT_H_
