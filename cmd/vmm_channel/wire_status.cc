#include "cmd/vmm_channel/wire_status.h"

#include <algorithm>

namespace postcopy {
namespace {

constexpr size_t kMaxPrintableBytes = 1024;
constexpr uint32_t kLastCode =
    static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);

}  // namespace

std::string Printable(absl::string_view text) {
  std::string out(text.substr(0, kMaxPrintableBytes));
  std::replace_if(
      out.begin(), out.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  return out;
}

absl::Status StatusFromWire(uint32_t code, absl::string_view message) {
  const absl::StatusCode known = code <= kLastCode
                                     ? static_cast<absl::StatusCode>(code)
                                     : absl::StatusCode::kUnknown;
  return absl::Status(known, Printable(message));
}

}  // namespace postcopy
