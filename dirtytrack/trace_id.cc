#include "dirtytrack/trace_id.h"

#include <cstddef>
#include <random>

namespace postcopy {
namespace {

constexpr size_t kTraceIdDigits = 32;
constexpr char kDigits[] = "0123456789abcdef";

}  // namespace

bool IsTraceId(absl::string_view text) {
  return text.size() == kTraceIdDigits &&
         text.find_first_not_of(kDigits) == absl::string_view::npos &&
         text.find_first_not_of('0') != absl::string_view::npos;
}

std::string NewTraceId() {
  std::random_device random;
  std::string id;
  do {
    id.clear();
    while (id.size() < kTraceIdDigits) id += kDigits[random() % 16];
  } while (!IsTraceId(id));
  return id;
}

}  // namespace postcopy
