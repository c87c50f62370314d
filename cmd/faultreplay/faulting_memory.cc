#include "cmd/faultreplay/faulting_memory.h"

#include <fcntl.h>
#include <sys/mman.h>

namespace postcopy {

absl::StatusOr<FaultingMemory> FaultingMemory::Create(PageCount pages) {
  absl::StatusOr<UniqueFd> fd =
      CreateMemfd("replay-ram", BytesIn(pages), F_SEAL_SHRINK | F_SEAL_GROW);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(fd->get(), ByteCount(0), BytesIn(pages),
                         SharedMapping::Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  return FaultingMemory(*std::move(fd), *std::move(mapping));
}

bool FaultingMemory::IsHere(PageIndex page) const {
  unsigned char here = 0;
  const int error =
      ::mincore(mapping_.data() + OffsetOf(page).value(), kPageSize, &here);
  return error == 0 && (here & 1) != 0;
}

PageCount FaultingMemory::CountHere() {
  incore_.resize(PagesIn(size()).value());
  if (::mincore(data(), size().value(), incore_.data()) != 0) {
    return PageCount(0);
  }
  uint64_t count = 0;
  for (unsigned char here : incore_) count += here & 1;
  return PageCount(count);
}

}  // namespace postcopy
