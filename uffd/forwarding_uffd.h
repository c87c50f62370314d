// UffdOps that hands everything on, for tests to change one call of it.
// Test-only.
#ifndef UFFD_FORWARDING_UFFD_H_
#define UFFD_FORWARDING_UFFD_H_

#include "uffd/uffd_ops.h"

namespace postcopy {

class ForwardingUffd : public UffdOps {
 public:
  // `target` outlives the object.
  explicit ForwardingUffd(UffdOps* target) : target_(*target) {}

  uint64_t features() const override { return target_.features(); }
  UffdRegistration Register(HostAddress address, ByteCount length,
                            uint64_t modes) override {
    return target_.Register(address, length, modes);
  }
  UffdResult Unregister(HostAddress address, ByteCount length) override {
    return target_.Unregister(address, length);
  }
  UffdResult Copy(HostAddress address, const uint8_t* source, ByteCount length,
                  bool wake) override {
    return target_.Copy(address, source, length, wake);
  }
  UffdResult ZeroPage(HostAddress address, ByteCount length,
                      bool wake) override {
    return target_.ZeroPage(address, length, wake);
  }
  UffdResult Continue(HostAddress address, ByteCount length,
                      bool wake) override {
    return target_.Continue(address, length, wake);
  }
  UffdResult Unprotect(HostAddress address, ByteCount length) override {
    return target_.Unprotect(address, length);
  }
  UffdResult Wake(HostAddress address, ByteCount length) override {
    return target_.Wake(address, length);
  }
  UffdResult Poison(HostAddress address, ByteCount length) override {
    return target_.Poison(address, length);
  }
  UffdReadResult Read(absl::Span<uffd_msg> messages) override {
    return target_.Read(messages);
  }
  int poll_fd() const override { return target_.poll_fd(); }

 private:
  UffdOps& target_;
};

}  // namespace postcopy

#endif  // UFFD_FORWARDING_UFFD_H_
