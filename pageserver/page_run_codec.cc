#include "pageserver/page_run_codec.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace postcopy {

void EncodeRuns(PageBatch& batch,
                google::protobuf::RepeatedPtrField<v1::PageRun>* runs) {
  // Messages are written over, not cleared first: their strings come back to
  // the batch at the size they had, and need not be filled with zeros to be
  // read into.
  const int count = static_cast<int>(batch.runs().size());
  while (runs->size() > count) runs->RemoveLast();
  for (int i = 0; i < count; ++i) {
    PageBatch::Run& run = batch.runs()[static_cast<size_t>(i)];
    v1::PageRun* out = i < runs->size() ? runs->Mutable(i) : runs->Add();
    out->set_ram_offset_bytes(OffsetOf(run.pages.first).value());
    out->set_page_count(run.pages.count.value());
    out->mutable_data()->swap(run.data);
    out->set_crc32c(run.crc32c);
    out->set_encoding(run.compressed ? v1::PAGE_ENCODING_ZSTD
                                     : v1::PAGE_ENCODING_UNSPECIFIED);
  }
}

absl::StatusOr<PageIndex> DecodePage(uint64_t ram_offset_bytes) {
  const RamOffset offset(ram_offset_bytes);
  if (!IsPageAligned(offset)) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToString(offset), " is not a multiple of ", kPageSize));
  }
  return PageOf(offset);
}

SessionKey KeyOf(const v1::SessionRef& session) {
  return {session.session_id(), session.epoch()};
}

absl::StatusOr<RamLayout> DecodeLayout(const v1::RamLayout& layout) {
  std::vector<Region> regions;
  for (const v1::RamRegion& region : layout.regions()) {
    regions.push_back({.name = region.name(),
                       .start = RamOffset(region.start_bytes()),
                       .length = ByteCount(region.length_bytes()),
                       .page_size = ByteCount(region.page_size_bytes())});
  }
  return RamLayout::Create(std::move(regions));
}

}  // namespace postcopy
