// What the tests of this folder share.
#ifndef CMD_VMM_CHANNEL_TEST_SUPPORT_H_
#define CMD_VMM_CHANNEL_TEST_SUPPORT_H_

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "cmd/vmm_channel/vmm_client.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"

namespace postcopy {

// A directory under /tmp, whose path is short enough for a socket in it.
class TempDir {
 public:
  TempDir() {
    char path[] = "/tmp/vmm_channel.XXXXXX";
    path_ = ::mkdtemp(path);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const {
    return path_ + "/" + name;
  }

 private:
  std::string path_;
};

// How many descriptors this process has open.
inline size_t OpenFds() {
  using Iterator = std::filesystem::directory_iterator;
  return static_cast<size_t>(
      std::distance(Iterator("/proc/self/fd"), Iterator()));
}

// Succeeds if `status` has that code and `part` in its message.
inline testing::AssertionResult Is(const absl::Status& status,
                                   absl::StatusCode code,
                                   absl::string_view part) {
  if (status.code() == code && absl::StrContains(status.message(), part)) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << status.ToString() << ", expected " << absl::StatusCodeToString(code)
         << " with \"" << std::string(part) << "\"";
}

inline UniqueFd Memfd(uint64_t bytes, int seals = 0) {
  absl::StatusOr<UniqueFd> fd = CreateMemfd("test", ByteCount(bytes), seals);
  EXPECT_TRUE(fd.ok()) << fd.status();
  return fd.ok() ? *std::move(fd) : UniqueFd();
}

// What happened, in order, such as which VMs came and went: "+a", "-a".
// Thread-safe.
class Journal {
 public:
  void Add(std::string entry) {
    std::lock_guard lock(mutex_);
    entries_.push_back(std::move(entry));
    changed_.notify_all();
  }
  // Waits until there are `count` entries.
  std::vector<std::string> Await(size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(30),
                                  [&] { return entries_.size() >= count; }));
    return entries_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> entries_;
};

// Both ends of a SEQPACKET connection.
inline std::pair<UniqueFd, UniqueFd> SocketPair() {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// Sends a packet that PacketSocket would not send, or bytes on a stream; what
// sendmsg(2) says. At most 253 descriptors, the kernel's limit.
inline ssize_t TrySendRaw(int socket, std::string bytes,
                          const std::vector<int>& fds) {
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(253 * sizeof(int))] = {};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
  }
  return ::sendmsg(socket, &header, MSG_NOSIGNAL);
}

// The same, which must not fail.
inline void SendRaw(int socket, const std::string& bytes,
                    const std::vector<int>& fds) {
  EXPECT_EQ(TrySendRaw(socket, bytes, fds), static_cast<ssize_t>(bytes.size()));
}

// A guest of 64 pages in one region, with all that a source needs.
struct SourceGuest {
  static constexpr uint64_t kBytes = 64 * kPageSize;

  explicit SourceGuest(std::string name)
      : memory(Memfd(kBytes)), dirty_log(Memfd(kPageSize, F_SEAL_SHRINK)) {
    guest.vm_name = std::move(name);
    guest.role = VmmRole::kSource;
    guest.regions = {
        {"ram", ByteCount(kBytes), memory.get(), 0, HostAddress(0)}};
    guest.slots = {{{0, 0}, 0, RamOffset(0), ByteCount(kBytes)}};
    guest.dirty_log_fd = dirty_log.get();
  }

  UniqueFd memory;
  UniqueFd dirty_log;
  GuestToAttach guest;
};

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_TEST_SUPPORT_H_
