#include "pageserver/served_snapshot.h"

#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/regular_file.h"

namespace postcopy {
namespace {

uint64_t ContentId(const struct stat& info) {
  const std::array<uint64_t, 3> parts = {
      static_cast<uint64_t>(info.st_size),
      static_cast<uint64_t>(info.st_mtim.tv_sec),
      static_cast<uint64_t>(info.st_mtim.tv_nsec)};
  const absl::Span<const uint8_t> bytes(
      reinterpret_cast<const uint8_t*>(parts.data()), sizeof(parts));
  // Two different checksums of 32 bits: nobody is to be kept from forging it.
  return uint64_t{Crc32c(bytes)} << 32 |
         PlacedCrc32c(RamOffset(parts[0]), parts[1], bytes);
}

absl::StatusOr<RamLayout> LayoutOf(const std::string& name, ByteCount size) {
  const ByteCount whole(size.value() / kPageSize * kPageSize);
  if (whole.empty()) {
    return absl::InvalidArgumentError("it does not hold a single page");
  }
  return RamLayout::Create(
      {{.name = name, .start = RamOffset(0), .length = whole}});
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ServedSnapshot>> ServedSnapshot::Open(
    std::string name, const std::string& path) {
  if (!IsValidName(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is no name for a snapshot: give 1 to ",
                     kMaxNameBytes, " of the characters A-Z a-z 0-9 . _ -"));
  }
  absl::StatusOr<UniqueFd> fd = OpenRegularFile("the snapshot file", path);
  if (!fd.ok()) return fd.status();
  struct stat info = {};
  if (::fstat(fd->get(), &info) != 0) {
    return OpenFileError("the snapshot file", path, errno);
  }
  const ByteCount size(static_cast<uint64_t>(info.st_size));
  absl::StatusOr<RamLayout> layout = LayoutOf(name, size);
  if (!layout.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the snapshot file ", path,
                     " cannot be served: ", layout.status().message()));
  }
  auto memory =
      GuestMemory::Create(*std::move(layout), {{.fd = fd->get(), .offset = 0}});
  if (!memory.ok()) return memory.status();
  return std::shared_ptr<const ServedSnapshot>(
      new ServedSnapshot(std::move(name), *std::move(fd), *std::move(memory),
                         size, ContentId(info)));
}

absl::Status ServedSnapshot::CheckLength() const {
  struct stat info = {};
  if (::fstat(fd_.get(), &info) != 0) {
    return absl::InternalError(absl::StrCat("cannot look at snapshot \"", name_,
                                            "\": ", ::strerrordesc_np(errno)));
  }
  if (static_cast<uint64_t>(info.st_size) >= size_.value()) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      "the file of snapshot \"", name_, "\" has been truncated: it has ",
      info.st_size, " bytes, and had ", size_.value(),
      ": it must not be changed while VMs are restored from it"));
}

absl::Status ServedSnapshot::ReadUrgent(absl::Span<const PageIndex> pages,
                                        PageBatch& batch) const {
  batch.Clear();
  return ReadAsked(*memory_, pages, batch);
}

absl::Status ServedSnapshot::ReadRange(PageRun run, PageBatch& batch) const {
  batch.Clear();
  if (absl::Status s = CheckFetch(memory_->layout(), run); !s.ok()) return s;
  absl::StatusOr<PageIndex> data = memory_->NextData(run.first, run.end());
  if (!data.ok()) return data.status();
  if (*data > run.first) batch.AddZero({run.first, *data - run.first});
  // There may be holes further on: reading them gives zeros.
  if (*data == run.end()) return absl::OkStatus();
  return batch.AddFrom(*memory_, {*data, run.end() - *data});
}

}  // namespace postcopy
