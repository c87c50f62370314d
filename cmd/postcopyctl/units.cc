#include "cmd/postcopyctl/units.h"

#include <cstddef>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace postcopy {

std::string FormatCount(uint64_t count) {
  std::string digits = absl::StrCat(count);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

std::string FormatBytes(ByteCount bytes) {
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes.value() < 1024) return absl::StrCat(bytes.value(), " B");
  double value = static_cast<double>(bytes.value()) / 1024;
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string FormatRate(uint64_t bytes_per_second) {
  return absl::StrCat(FormatBytes(ByteCount(bytes_per_second)), "/s");
}

std::string FormatMicros(uint64_t micros) {
  if (micros < 10'000) return absl::StrCat(FormatCount(micros), " us");
  double millis = static_cast<double>(micros) / 1000;
  if (millis < 10'000) return absl::StrFormat("%.1f ms", millis);
  return absl::StrFormat("%.1f s", millis / 1000);
}

}  // namespace postcopy
