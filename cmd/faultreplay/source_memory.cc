#include "cmd/faultreplay/source_memory.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace postcopy {

absl::StatusOr<SourceMemory> SourceMemory::Create(
    PageCount pages, std::optional<PageIndex> lost) {
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("replay-source", BytesIn(pages), F_SEAL_SHRINK | F_SEAL_GROW);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(fd->get(), ByteCount(0), BytesIn(pages),
                         SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  SourceMemory memory(*std::move(fd), *std::move(mapping), lost);
  for (PageIndex page(0); page.value() < pages.value(); page += PageCount(1)) {
    memory.Write(page, PageVersion::kFinal);
  }
  return memory;
}

absl::StatusOr<SourceMemory> SourceMemory::Open(const std::string& path,
                                                PageCount pages) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid())
    return absl::ErrnoToStatus(errno, absl::StrCat("open ", path));
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(fd.get(), ByteCount(0), BytesIn(pages),
                         SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  return SourceMemory(std::move(fd), *std::move(mapping), std::nullopt);
}

std::string SourceMemory::Path() const {
  return absl::StrCat("/proc/", ::getpid(), "/fd/", fd_.get());
}

void SourceMemory::Write(PageIndex page, PageVersion version) const {
  if (page != lost_) FillPage(page, version, PageAt(page));
}

}  // namespace postcopy
