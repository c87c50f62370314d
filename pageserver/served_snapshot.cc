#include "pageserver/served_snapshot.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/regular_file.h"

namespace postcopy {
namespace {

uint64_t ContentId(const FileVersion& version) {
  const std::array<uint64_t, 3> parts = {
      version.size.value(), static_cast<uint64_t>(version.written_s),
      static_cast<uint64_t>(version.written_ns)};
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
  const absl::StatusOr<FileVersion> version = VersionOf(fd->get());
  if (!version.ok()) return version.status();
  absl::StatusOr<RamLayout> layout = LayoutOf(name, version->size);
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
                         *version, ContentId(*version)));
}

absl::Status ServedSnapshot::CheckUnchanged() const {
  return CheckVersion(fd_.get(), version_,
                      absl::StrCat("the file of snapshot \"", name_, "\""));
}

// Both look at the file once more when they have read it: a VM must not get
// pages of two files.

absl::Status ServedSnapshot::ReadUrgent(absl::Span<const PageIndex> pages,
                                        PageBatch& batch) const {
  batch.Clear();
  if (absl::Status s = ReadAsked(*memory_, pages, batch); !s.ok()) return s;
  return CheckUnchanged();
}

absl::Status ServedSnapshot::ReadRange(PageRun run, PageBatch& batch) const {
  batch.Clear();
  if (absl::Status s = FillRange(run, batch); !s.ok()) return s;
  return CheckUnchanged();
}

absl::Status ServedSnapshot::FillRange(PageRun run, PageBatch& batch) const {
  if (absl::Status s = CheckFetch(memory_->layout(), run); !s.ok()) return s;
  absl::StatusOr<PageIndex> data = memory_->NextData(run.first, run.end());
  if (!data.ok()) return data.status();
  if (*data > run.first) batch.AddZero({run.first, *data - run.first});
  // There may be holes further on: reading them gives zeros.
  if (*data == run.end()) return absl::OkStatus();
  return batch.AddFrom(*memory_, {*data, run.end() - *data});
}

}  // namespace postcopy
