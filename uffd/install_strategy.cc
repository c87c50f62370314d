#include "uffd/install_strategy.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/memfd.h"

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

// Precopied pages wait in a file of this process, in which a hole says that
// nothing waits: the page is in place, or was given up. So a page is punched
// out behind its copy, never before it.
class StagedStrategy final : public InstallStrategy {
 public:
  // `pages` is the mapping of all of the region's file.
  StagedStrategy(std::unique_ptr<InstallStrategy> strategy, SharedMapping pages)
      : strategy_(std::move(strategy)), pages_(std::move(pages)) {}

  UffdResult Data(UffdOps& ops, const Piece& piece,
                  const uint8_t* source) const override {
    return strategy_->Data(ops, piece, source);
  }
  UffdResult Zero(UffdOps& ops, const Piece& piece) const override {
    return strategy_->Zero(ops, piece);
  }
  UffdResult Reveal(UffdOps& ops, const Piece& piece) const override {
    const PageCount unit = std::min(piece.unit, piece.pages.count);
    Piece waiting = piece;
    waiting.pages.count = Waiting(piece, unit);
    if (waiting.pages.count.empty()) return Error(EEXIST);
    const UffdResult copied =
        ops.Copy(piece.address, pages_.data() + piece.file_offset,
                 waiting.bytes(), /*wake=*/true);
    waiting.pages.count = PagesIn(copied.done);
    // What is in place all the same is newer.
    if (copied.done.empty() && copied.error == EEXIST) {
      waiting.pages.count = unit;
    }
    if (waiting.pages.count.empty()) return copied;
    const int error = waiting.PunchHole();
    return error == 0 ? copied : Error(error);
  }
  bool replaces() const override { return false; }
  bool staged() const override { return true; }
  absl::string_view name() const override { return strategy_->name(); }

 private:
  // How many pages of `piece` wait, from its first on.
  static PageCount Waiting(const Piece& piece, PageCount unit) {
    const auto unit_bytes = static_cast<off_t>(BytesIn(unit).value());
    off_t at = piece.file_offset;
    const off_t end = at + static_cast<off_t>(piece.bytes().value());
    while (at < end) {
      const off_t data = ::lseek(piece.fd, at, SEEK_DATA);
      if (data < at || data >= at + unit_bytes) break;
      at += unit_bytes;
    }
    return PagesIn(ByteCount(static_cast<uint64_t>(at - piece.file_offset)));
  }

  const std::unique_ptr<InstallStrategy> strategy_;
  const SharedMapping pages_;
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
  if (region.has_small_file() && (features & UFFD_FEATURE_MINOR_SHMEM) != 0) {
    modes |= UFFDIO_REGISTER_MODE_MINOR;
  }
  if ((features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) != 0) {
    modes |= UFFDIO_REGISTER_MODE_WP;
  }
  return modes;
}

namespace {

absl::StatusOr<std::unique_ptr<InstallStrategy>> ChooseByPages(
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
  if (copies && zeros && region.has_small_file() &&
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

}  // namespace

absl::StatusOr<std::unique_ptr<InstallStrategy>> ChooseInstallStrategy(
    const DestinationRam::Piece& region, const UffdRegistration& registration) {
  auto strategy = ChooseByPages(region, registration);
  if (!strategy.ok() || !region.staged) return strategy;
  absl::StatusOr<SharedMapping> pages =
      SharedMapping::Map(region.fd, ByteCount(0), region.bytes(),
                         SharedMapping::Access::kReadOnly);
  if (!pages.ok()) return pages.status();
  return std::make_unique<StagedStrategy>(*std::move(strategy),
                                          *std::move(pages));
}

}  // namespace postcopy
