#include "uffd/install_strategy.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

class CopyStrategy final : public InstallStrategy {
 public:
  UffdResult Data(UffdOps& ops, HostAddress address, const uint8_t* source,
                  ByteCount length) const override {
    return ops.Copy(address, source, length, /*wake=*/true);
  }
  UffdResult Zero(UffdOps& ops, HostAddress address,
                  ByteCount length) const override {
    return ops.ZeroPage(address, length, /*wake=*/true);
  }
  absl::string_view name() const override {
    return "UFFDIO_COPY, UFFDIO_ZEROPAGE";
  }
};

// Never written, so that it costs page tables and no memory.
class HugeCopyStrategy final : public InstallStrategy {
 public:
  HugeCopyStrategy(const uint8_t* zeros, ByteCount page_size)
      : zeros_(zeros), page_size_(page_size) {}
  ~HugeCopyStrategy() override {
    ::munmap(const_cast<uint8_t*>(zeros_), page_size_.value());
  }

  UffdResult Data(UffdOps& ops, HostAddress address, const uint8_t* source,
                  ByteCount length) const override {
    return ops.Copy(address, source, length, /*wake=*/true);
  }
  UffdResult Zero(UffdOps& ops, HostAddress address,
                  ByteCount length) const override {
    // A VMM that has cut a huge page in two has put small ones there.
    if (length < page_size_) return {.error = EINVAL, .done = ByteCount(0)};
    return ops.Copy(address, zeros_, page_size_, /*wake=*/true);
  }
  absl::string_view name() const override {
    return "UFFDIO_COPY, also of zeros";
  }

 private:
  const uint8_t* const zeros_;  // page_size_ of them
  const ByteCount page_size_;
};

absl::StatusOr<std::unique_ptr<InstallStrategy>> NewHugeCopy(
    ByteCount page_size) {
  void* const zeros = ::mmap(nullptr, page_size.value(), PROT_READ,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (zeros == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no address space for a page of zeros: ", ::strerrordesc_np(errno)));
  }
  return std::make_unique<HugeCopyStrategy>(static_cast<const uint8_t*>(zeros),
                                            page_size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<InstallStrategy>> ChooseInstallStrategy(
    ByteCount page_size, const UffdRegistration& registration) {
  const bool copies =
      registration.Can(_UFFDIO_COPY) && registration.Can(_UFFDIO_WAKE);
  const bool huge = page_size != ByteCount(kPageSize);
  // No kernel has ZEROPAGE for hugetlbfs.
  if (copies && huge && !registration.Can(_UFFDIO_ZEROPAGE)) {
    return NewHugeCopy(page_size);
  }
  if (copies && huge) {
    return absl::UnimplementedError(absl::StrCat(
        "it was described with pages of ", ToString(page_size),
        ", but is no hugetlbfs: the VMM must say which pages it has"));
  }
  if (copies && registration.Can(_UFFDIO_ZEROPAGE)) {
    return std::make_unique<CopyStrategy>();
  }
  if (copies) {
    return absl::UnimplementedError(
        absl::StrCat("it is of huge pages, but was described with pages of ",
                     ToString(page_size),
                     ": the VMM must say which they are, or use others"));
  }
  return absl::UnimplementedError(
      "the kernel cannot copy pages into it: the VMM must use anonymous "
      "memory, "
      "a memfd or hugetlbfs");
}

}  // namespace postcopy
