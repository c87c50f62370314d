// Whatever bytes come as a handshake: the scanner finds the same end however
// they are cut, ParseHandshake agrees with it, and regions that are accepted
// keep all that FirecrackerRegion promises.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/firecracker/handshake.h"
#include "dirtytrack/check.h"
#include "dirtytrack/ram_layout.h"

namespace postcopy {
namespace {

// Scans `json` in pieces of 1 to `piece_max` bytes. True if none was refused.
bool ScanInPieces(absl::string_view json, size_t piece_max,
                  HandshakeScanner* scanner) {
  size_t length = 1;
  for (size_t at = 0; at < json.size(); at += length) {
    length = at % piece_max + 1;
    if (!scanner->Scan(json.substr(at, length)).ok()) return false;
  }
  return true;
}

void CheckRegions(const std::vector<FirecrackerRegion>& regions) {
  POSTCOPY_CHECK(!regions.empty() && regions.size() <= kMaxRegions);
  for (const FirecrackerRegion& region : regions) {
    const uint64_t page_size = region.page_size.value();
    const uint64_t size = region.size.value();
    POSTCOPY_CHECK(page_size == 4096 || page_size == 2 << 20 ||
                   page_size == 1 << 30);
    POSTCOPY_CHECK(size > 0 && size % page_size == 0);
    POSTCOPY_CHECK(region.host_address.value() % page_size == 0);
    POSTCOPY_CHECK(region.offset % kPageSize == 0);
    POSTCOPY_CHECK(region.host_address.value() + size > size - 1);
    POSTCOPY_CHECK(region.offset + size > size - 1);
    for (const FirecrackerRegion& other : regions) {
      POSTCOPY_CHECK(&region == &other ||
                     region.host_address + region.size <= other.host_address ||
                     other.host_address + other.size <= region.host_address);
    }
  }
}

void CheckHandshake(absl::string_view json) {
  HandshakeScanner whole;
  const bool scanned = whole.Scan(json).ok();
  for (const size_t piece_max : {size_t{1}, size_t{7}, size_t{64}}) {
    HandshakeScanner pieces;
    POSTCOPY_CHECK(ScanInPieces(json, piece_max, &pieces) == scanned);
    POSTCOPY_CHECK(pieces.complete() == whole.complete());
    POSTCOPY_CHECK(pieces.bytes() == whole.bytes());
  }
  const absl::StatusOr<std::vector<FirecrackerRegion>> all =
      ParseHandshake(json);
  POSTCOPY_CHECK(!all.ok() || whole.complete());
  if (!whole.complete()) return;
  const absl::StatusOr<std::vector<FirecrackerRegion>> framed =
      ParseHandshake(json.substr(0, whole.bytes()));
  POSTCOPY_CHECK(!all.ok() || (framed.ok() && *framed == *all));
  POSTCOPY_CHECK(!ParseHandshake(json.substr(0, whole.bytes() - 1)).ok());
  if (framed.ok()) CheckRegions(*framed);
}

}  // namespace
}  // namespace postcopy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  postcopy::CheckHandshake(
      absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
