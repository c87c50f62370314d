// UffdOps on the kernel's userfaultfd.
#ifndef UFFD_KERNEL_UFFD_H_
#define UFFD_KERNEL_UFFD_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "dirtytrack/unique_fd.h"
#include "dirtytrack/userfaultfd.h"
#include "uffd/uffd_ops.h"

namespace postcopy {

// Thread-safe.
class KernelUffd final : public UffdOps {
 public:
  // Takes over a userfaultfd that a VMM created and sent. INVALID_ARGUMENT,
  // with what its author should change, if `fd` is something else, UFFDIO_API
  // was not done, or it was done with a feature that this service cannot
  // serve: EVENT_FORK, and SIGBUS. Makes it non-blocking, for every holder, as
  // poll() requires. Reads /proc/self.
  static absl::StatusOr<std::unique_ptr<KernelUffd>> Adopt(UniqueFd fd);

  uint64_t features() const override { return features_; }
  UffdRegistration Register(HostAddress address, ByteCount length,
                            uint64_t modes) override;
  UffdResult Unregister(HostAddress address, ByteCount length) override;
  UffdResult Copy(HostAddress address, const uint8_t* source, ByteCount length,
                  bool wake) override;
  UffdResult ZeroPage(HostAddress address, ByteCount length,
                      bool wake) override;
  UffdResult Continue(HostAddress address, ByteCount length,
                      bool wake) override;
  UffdResult Unprotect(HostAddress address, ByteCount length) override;
  UffdResult Wake(HostAddress address, ByteCount length) override;
  UffdResult Poison(HostAddress address, ByteCount length) override;
  UffdReadResult Read(absl::Span<uffd_msg> messages) override;
  int poll_fd() const override { return fd_.get(); }

 private:
  KernelUffd(UniqueFd fd, uint64_t features)
      : fd_(std::move(fd)), features_(features) {}

  const UniqueFd fd_;
  const uint64_t features_;
};

}  // namespace postcopy

#endif  // UFFD_KERNEL_UFFD_H_
