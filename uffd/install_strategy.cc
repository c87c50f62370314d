#include "uffd/install_strategy.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

UffdResult Error(int error) { return {.error = error, .done = ByteCount(0)}; }

// Holes become pages once; the kernel sees to it.
class CopyStrategy : public InstallStrategy {
 public:
  UffdResult Data(UffdOps& ops, const Piece& piece,
                  const uint8_t* source) const override {
    return ops.Copy(piece.address, source, piece.bytes(), /*wake=*/true);
  }
  UffdResult Zero(UffdOps& ops, const Piece& piece) const override {
    return ops.ZeroPage(piece.address, piece.bytes(), /*wake=*/true);
  }
  // What is there is in sight.
  UffdResult Reveal(UffdOps& ops, const Piece& piece) const override {
    return ops.Wake(piece.address, piece.bytes());
  }
  bool replaces() const override { return false; }
  absl::string_view name() const override {
    return "UFFDIO_COPY, UFFDIO_ZEROPAGE";
  }
};

// The zeros are never written, so that they cost page tables and no memory.
class HugeCopyStrategy final : public CopyStrategy {
 public:
  HugeCopyStrategy(const uint8_t* zeros, ByteCount page_size)
      : zeros_(zeros), page_size_(page_size) {}
  ~HugeCopyStrategy() override {
    ::munmap(const_cast<uint8_t*>(zeros_), page_size_.value());
  }

  UffdResult Zero(UffdOps& ops, const Piece& piece) const override {
    // A VMM that has cut a huge page in two has put small ones there.
    if (piece.bytes() < page_size_) return Error(EINVAL);
    return ops.Copy(piece.address, zeros_, page_size_, /*wake=*/true);
  }
  absl::string_view name() const override {
    return "UFFDIO_COPY, also of zeros";
  }

 private:
  const uint8_t* const zeros_;  // page_size_ of them
  const ByteCount page_size_;
};

// Holes are filled as above: that is cheaper, and the memory is charged to the
// VMM. Where there are stale bytes, fresh ones go into the file, behind the
// guest's back, and into sight when they are there: by pwrite() and not through
// a mapping, which would end this process when the VMM shortens the file.
class ContinueStrategy final : public InstallStrategy {
 public:
  UffdResult Data(UffdOps& ops, const Piece& piece,
                  const uint8_t* source) const override {
    const UffdResult copied =
        ops.Copy(piece.address, source, piece.bytes(), /*wake=*/true);
    if (copied.error != EEXIST) return copied;
    ByteCount written;
    if (const int error = piece.Write(source, &written)) return Error(error);
    return ops.Continue(piece.address, piece.bytes(), /*wake=*/true);
  }
  UffdResult Zero(UffdOps& ops, const Piece& piece) const override {
    return ops.ZeroPage(piece.address, piece.bytes(), /*wake=*/true);
  }
  UffdResult Reveal(UffdOps& ops, const Piece& piece) const override {
    return ops.Continue(piece.address, piece.bytes(), /*wake=*/true);
  }
  bool replaces() const override { return true; }
  absl::string_view name() const override {
    return "UFFDIO_COPY, or pwrite and UFFDIO_CONTINUE; UFFDIO_ZEROPAGE";
  }
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

uint64_t RegisterModes(const DestinationRam::Piece& region, uint64_t features) {
  uint64_t modes = UFFDIO_REGISTER_MODE_MISSING;
  if (region.has_file() && (features & UFFD_FEATURE_MINOR_SHMEM) != 0) {
    modes |= UFFDIO_REGISTER_MODE_MINOR;
  }
  if ((features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) != 0) {
    modes |= UFFDIO_REGISTER_MODE_WP;
  }
  return modes;
}

absl::StatusOr<std::unique_ptr<InstallStrategy>> ChooseInstallStrategy(
    const DestinationRam::Piece& region, const UffdRegistration& registration) {
  const ByteCount page_size = BytesIn(region.unit);
  const bool copies =
      registration.Can(_UFFDIO_COPY) && registration.Can(_UFFDIO_WAKE);
  const bool zeros = registration.Can(_UFFDIO_ZEROPAGE);
  const bool huge = page_size != ByteCount(kPageSize);
  // No kernel has ZEROPAGE for hugetlbfs.
  if (copies && huge && !zeros) return NewHugeCopy(page_size);
  if (copies && huge) {
    return absl::UnimplementedError(absl::StrCat(
        "it was described with pages of ", ToString(page_size),
        ", but is no hugetlbfs: the VMM must say which pages it has"));
  }
  if (copies && zeros && region.has_file() &&
      registration.Can(_UFFDIO_CONTINUE)) {
    return std::make_unique<ContinueStrategy>();
  }
  if (copies && zeros) return std::make_unique<CopyStrategy>();
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
