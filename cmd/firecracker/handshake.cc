#include "cmd/firecracker/handshake.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <climits>
#include <numeric>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "cmd/vmm_channel/wire_status.h"
#include "dirtytrack/ram_layout.h"
#include "postcopy/v1/firecracker.pb.h"

namespace postcopy {
namespace {

constexpr uint64_t kPageSizes[] = {kPageSize, uint64_t{2} << 20,
                                   uint64_t{1} << 30};

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("the handshake: ", parts...));
}

// JSON's; other white space is no JSON.
bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// True for what numbers, true, false, null and the marks between values are
// made of. Quotes of other kinds and bare names, which protobuf's parser would
// take, are left out: it must not see a bracket as text that the scanner has
// counted.
bool IsPlain(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == ',' ||
         c == ':' || c == '.' || c == '+' || c == '-';
}

absl::Status TooLong() {
  return Invalid("it is longer than ", kHandshakeBytesMax,
                 " bytes; send one array of at most ", kMaxRegions, " regions");
}

// OK if `json` is one array and white space.
absl::Status CheckShape(absl::string_view json) {
  if (json.size() > kHandshakeBytesMax) return TooLong();
  HandshakeScanner scanner;
  if (absl::Status status = scanner.Scan(json); !status.ok()) return status;
  if (!scanner.complete()) {
    return Invalid("it ends after ", json.size(),
                   " bytes, before the array does; send the whole array");
  }
  const absl::string_view rest = json.substr(scanner.bytes());
  if (!std::all_of(rest.begin(), rest.end(), IsSpace)) {
    return Invalid("something follows the array, which ends after ",
                   scanner.bytes(), " bytes; send the array alone");
  }
  return absl::OkStatus();
}

// REQUIRES: CheckShape(json) is OK.
absl::Status Decode(absl::string_view json,
                    v1::GuestRegionUffdMappings* message) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto status = google::protobuf::util::JsonStringToMessage(
      absl::StrCat("{\"mappings\":", json, "}"), message, options);
  if (status.ok()) return absl::OkStatus();
  const std::string why(status.message());
  // The first line says what is wrong; those below it quote the input.
  return Invalid("it is not a JSON array of Firecracker's mappings: ",
                 Printable(why.substr(0, why.find('\n'))));
}

absl::Status Missing(size_t index, absl::string_view key) {
  return Invalid("region ", index, " has no ", key, "; send it");
}

absl::Status CheckPresent(size_t index, const v1::GuestRegionUffdMapping& m) {
  if (!m.has_base_host_virt_addr()) {
    return Missing(index, "base_host_virt_addr");
  }
  if (!m.has_size()) return Missing(index, "size");
  if (!m.has_offset()) return Missing(index, "offset");
  if (!m.has_page_size() && !m.has_page_size_kib()) {
    return Missing(index, "page_size (nor page_size_kib, its old name)");
  }
  return absl::OkStatus();
}

absl::Status CheckMultiple(size_t index, absl::string_view key, uint64_t value,
                           uint64_t unit) {
  if (value % unit == 0) return absl::OkStatus();
  return Invalid("region ", index, ": ", key, " ", value,
                 " is not a multiple of ", unit, "; align it");
}

absl::Status CheckSum(size_t index, absl::string_view key, uint64_t value,
                      uint64_t size) {
  if (size <= UINT64_MAX - value) return absl::OkStatus();
  return Invalid("region ", index, ": ", key, " ", value, " and size ", size,
                 " together exceed 64 bits; lower one of them");
}

absl::Status CheckPageSize(size_t index, uint64_t page_size) {
  if (std::find(std::begin(kPageSizes), std::end(kPageSizes), page_size) !=
      std::end(kPageSizes)) {
    return absl::OkStatus();
  }
  return Invalid("region ", index, ": page_size ", page_size,
                 " is not known; use 4096, 2097152 or 1073741824 (bytes)");
}

absl::Status CheckRegion(size_t index, const FirecrackerRegion& region) {
  const uint64_t address = region.host_address.value();
  const uint64_t size = region.size.value();
  const uint64_t page_size = region.page_size.value();
  if (absl::Status s = CheckPageSize(index, page_size); !s.ok()) return s;
  if (size == 0) {
    return Invalid("region ", index, ": size is 0; leave the region out");
  }
  // In the order in which the messages name them.
  for (const absl::Status& status :
       {CheckMultiple(index, "base_host_virt_addr", address, page_size),
        CheckMultiple(index, "size", size, page_size),
        CheckMultiple(index, "offset", region.offset, kPageSize),
        CheckSum(index, "base_host_virt_addr", address, size),
        CheckSum(index, "offset", region.offset, size)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<FirecrackerRegion> ToRegion(
    size_t index, const v1::GuestRegionUffdMapping& m) {
  if (absl::Status status = CheckPresent(index, m); !status.ok()) {
    return status;
  }
  FirecrackerRegion region;
  region.host_address = HostAddress(m.base_host_virt_addr());
  region.size = ByteCount(m.size());
  region.offset = m.offset();
  region.page_size =
      ByteCount(m.has_page_size() ? m.page_size() : m.page_size_kib());
  if (absl::Status status = CheckRegion(index, region); !status.ok()) {
    return status;
  }
  return region;
}

// REQUIRES: CheckRegion of each is OK.
absl::Status CheckOverlaps(const std::vector<FirecrackerRegion>& regions) {
  std::vector<size_t> order(regions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return regions[a].host_address < regions[b].host_address;
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const FirecrackerRegion& below = regions[order[i - 1]];
    if (below.host_address + below.size <= regions[order[i]].host_address) {
      continue;
    }
    return Invalid("regions ", std::min(order[i - 1], order[i]), " and ",
                   std::max(order[i - 1], order[i]),
                   " overlap in host addresses; move one of them");
  }
  return absl::OkStatus();
}

absl::Status CheckCount(size_t count) {
  if (count == 0) {
    return Invalid("the array is empty; send 1 to ", kMaxRegions, " regions");
  }
  if (count > kMaxRegions) {
    return Invalid("it has ", count, " regions; at most ", kMaxRegions,
                   " are allowed");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status HandshakeScanner::Scan(absl::string_view bytes) {
  for (const char c : bytes) {
    if (complete_) break;
    if (bytes_ == kHandshakeBytesMax) return TooLong();
    ++bytes_;
    if (absl::Status status = Step(c); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status HandshakeScanner::Step(char c) {
  if (!in_string_) return StepOutside(c);
  if (static_cast<unsigned char>(c) < 0x20) {
    return Invalid("byte ", bytes_ - 1, " (", static_cast<unsigned char>(c),
                   ") is a control character in a string; escape it");
  }
  StepInString(c);
  return absl::OkStatus();
}

void HandshakeScanner::StepInString(char c) {
  if (escaped_) {
    escaped_ = false;
  } else if (c == '\\') {
    escaped_ = true;
  } else if (c == '"') {
    in_string_ = false;
  }
}

absl::Status HandshakeScanner::StepOutside(char c) {
  if (IsSpace(c)) return absl::OkStatus();
  if (depth_ == 0 && c != '[') {
    return Invalid("it begins with byte ", static_cast<unsigned char>(c),
                   " instead of '['; send one JSON array");
  }
  // Protobuf's parser would pass over null, and flatten an array.
  if (depth_ == 1 && c != '{' && c != ',' && c != ']') {
    return Invalid("byte ", bytes_ - 1, " (", static_cast<unsigned char>(c),
                   ") begins no object; the array may hold objects only");
  }
  switch (c) {
    case '[':
    case '{':
      return Open(c == '{');
    case ']':
    case '}':
      return Close(c == '}');
    case '"':
      in_string_ = true;
      return absl::OkStatus();
    default:
      if (IsPlain(c)) return absl::OkStatus();
      return Invalid("byte ", bytes_ - 1, " (", static_cast<unsigned char>(c),
                     ") has no place in JSON outside a string");
  }
}

absl::Status HandshakeScanner::Open(bool is_object) {
  static_assert(kHandshakeNestingMax <= sizeof(objects_) * CHAR_BIT);
  if (depth_ == kHandshakeNestingMax) {
    return Invalid("arrays and objects are nested more than ",
                   kHandshakeNestingMax, " deep at byte ", bytes_ - 1);
  }
  const uint32_t bit = uint32_t{1} << depth_;
  objects_ = is_object ? objects_ | bit : objects_ & ~bit;
  ++depth_;
  return absl::OkStatus();
}

absl::Status HandshakeScanner::Close(bool is_object) {
  --depth_;
  if (((objects_ >> depth_) & 1) != (is_object ? 1u : 0u)) {
    return Invalid("the bracket at byte ", bytes_ - 1,
                   " does not match the one that it closes");
  }
  complete_ = depth_ == 0;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<FirecrackerRegion>> ParseHandshake(
    absl::string_view json) {
  if (absl::Status status = CheckShape(json); !status.ok()) return status;
  v1::GuestRegionUffdMappings message;
  if (absl::Status status = Decode(json, &message); !status.ok()) {
    return status;
  }
  const auto count = static_cast<size_t>(message.mappings_size());
  if (absl::Status status = CheckCount(count); !status.ok()) return status;
  std::vector<FirecrackerRegion> regions;
  regions.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    absl::StatusOr<FirecrackerRegion> region =
        ToRegion(i, message.mappings(static_cast<int>(i)));
    if (!region.ok()) return region.status();
    regions.push_back(*region);
  }
  if (absl::Status status = CheckOverlaps(regions); !status.ok()) {
    return status;
  }
  return regions;
}

}  // namespace postcopy
