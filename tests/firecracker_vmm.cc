#include "tests/firecracker_vmm.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/userfaultfd.h"

namespace postcopy {
namespace {

bool SendWithDescriptor(int socket, const char* bytes, size_t size, int fd) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec part = {.iov_base = const_cast<char*>(bytes), .iov_len = size};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) ==
         static_cast<ssize_t>(size);
}

}  // namespace

FirecrackerVmm::FirecrackerVmm(std::vector<Region> regions,
                               UniqueFd userfaultfd)
    : regions_(std::move(regions)), userfaultfd_(std::move(userfaultfd)) {}

std::unique_ptr<FirecrackerVmm> FirecrackerVmm::Create(
    std::vector<Region> regions, std::string* reason) {
  absl::StatusOr<NewUserfaultfd> uffd =
      CreateUserfaultfd(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_THREAD_ID);
  if (!uffd.ok()) {
    *reason = std::string(uffd.status().message());
    return nullptr;
  }
  std::unique_ptr<FirecrackerVmm> vmm(
      new FirecrackerVmm(std::move(regions), std::move(uffd->fd)));
  for (const Region& region : vmm->regions_) {
    const int flags =
        MAP_PRIVATE | MAP_ANONYMOUS | (region.huge ? MAP_HUGETLB : 0);
    void* const memory =
        ::mmap(nullptr, region.bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
      *reason = absl::StrCat("no memory: ", std::strerror(errno),
                             " (huge pages: /proc/sys/vm/nr_hugepages)");
      return nullptr;
    }
    vmm->memory_.push_back(static_cast<uint8_t*>(memory));
    uffdio_register request = {};
    request.range = {.start = reinterpret_cast<uintptr_t>(memory),
                     .len = region.bytes};
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(vmm->userfaultfd_.get(), UFFDIO_REGISTER, &request) != 0) {
      *reason = absl::StrCat("UFFDIO_REGISTER: ", std::strerror(errno));
      return nullptr;
    }
  }
  return vmm;
}

FirecrackerVmm::~FirecrackerVmm() {
  for (size_t i = 0; i < memory_.size(); ++i) {
    ::munmap(memory_[i], regions_[i].bytes);
  }
}

std::string FirecrackerVmm::Handshake(const Dialect& dialect) const {
  std::string json = "[";
  for (size_t i = 0; i < regions_.size(); ++i) {
    absl::StrAppend(
        &json, i == 0 ? "" : ",",
        "{\"base_host_virt_addr\":", reinterpret_cast<uintptr_t>(memory_[i]),
        ",\"size\":", regions_[i].bytes,
        ",\"offset\":", regions_[i].file_offset,
        dialect.unknown_keys ? ",\"kind\":{\"of\":[1,\"]\"]}" : "",
        dialect.old_page_size_key ? ",\"page_size_kib\":" : ",\"page_size\":",
        regions_[i].huge ? 2 << 20 : 4096, "}");
  }
  return json + "]";
}

bool FirecrackerVmm::Connect(const std::string& socket_path,
                             const Dialect& dialect) {
  socket_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket_.valid()) return false;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof(address.sun_path)) return false;
  std::copy(socket_path.begin(), socket_path.end(), address.sun_path);
  if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)) != 0) {
    return false;
  }
  const std::string json = Handshake(dialect);
  const size_t piece = dialect.piece == 0 ? json.size() : dialect.piece;
  for (size_t at = 0; at < json.size(); at += piece) {
    const size_t size = std::min(piece, json.size() - at);
    const bool sent = at == 0
                          ? SendWithDescriptor(socket_.get(), json.data(), size,
                                               userfaultfd_.get())
                          : ::send(socket_.get(), json.data() + at, size,
                                   MSG_NOSIGNAL) == static_cast<ssize_t>(size);
    if (!sent) return false;
  }
  return true;
}

bool FirecrackerVmm::IsTurnedAway() const {
  char byte = 0;
  return ::recv(socket_.get(), &byte, 1, 0) <= 0;
}

bool FirecrackerVmm::IsPresent(size_t region, size_t offset) const {
  unsigned char present = 0;
  return ::mincore(memory_[region] + offset, 1, &present) == 0 &&
         (present & 1) != 0;
}

bool FirecrackerVmm::Inflate(size_t region, size_t offset, size_t bytes) const {
  return ::madvise(memory_[region] + offset, bytes, MADV_DONTNEED) == 0;
}

}  // namespace postcopy
