#include "dirtytrack/types.h"

#include <array>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace postcopy {
namespace {

struct Unit {
  const char* name;
  uint64_t bytes;
};

// Largest first: ToString takes the first that divides the number.
constexpr std::array<Unit, 4> kUnits = {{
    {"TiB", uint64_t{1} << 40},
    {"GiB", uint64_t{1} << 30},
    {"MiB", uint64_t{1} << 20},
    {"KiB", uint64_t{1} << 10},
}};

// Takes the unit off the end of `text`; 1 if there is none.
uint64_t ConsumeUnit(absl::string_view* text) {
  for (const Unit& unit : kUnits) {
    if (absl::ConsumeSuffix(text, unit.name)) return unit.bytes;
  }
  absl::ConsumeSuffix(text, "B");
  return 1;
}

bool AllDigits(absl::string_view text) {
  for (char c : text) {
    if (c < '0' || c > '9') return false;
  }
  return !text.empty();
}

std::string Hex(uint64_t value) { return absl::StrCat("0x", absl::Hex(value)); }

}  // namespace

std::string ToString(ByteCount bytes) {
  for (const Unit& unit : kUnits) {
    if (bytes.value() != 0 && bytes.value() % unit.bytes == 0) {
      return absl::StrCat(bytes.value() / unit.bytes, unit.name);
    }
  }
  return absl::StrCat(bytes.value());
}

std::string ToString(PageCount pages) {
  return absl::StrCat(pages.value(), pages.value() == 1 ? " page" : " pages");
}

std::string ToString(PageIndex page) {
  return absl::StrCat("page ", Hex(page.value()));
}

std::string ToString(RamOffset offset) {
  return absl::StrCat("RAM offset ", Hex(offset.value()));
}

std::string ToString(HostAddress address) {
  return absl::StrCat("host address ", Hex(address.value()));
}

std::string ToString(SlotId slot) {
  return absl::StrCat("slot ", slot.address_space, ":", slot.slot);
}

std::string ToString(PageRun run) {
  // Not end(): what is printed may be a run that was refused because it
  // overflows.
  const uint64_t first = run.first.value();
  const uint64_t count = run.count.value();
  if (count > UINT64_MAX - first) {
    return absl::StrCat("pages [", Hex(first), ", ", Hex(first), " + ",
                        Hex(count), ")");
  }
  return absl::StrCat("pages [", Hex(first), ", ", Hex(first + count), ")");
}

std::ostream& operator<<(std::ostream& out, ByteCount bytes) {
  return out << ToString(bytes);
}
std::ostream& operator<<(std::ostream& out, PageCount pages) {
  return out << ToString(pages);
}
std::ostream& operator<<(std::ostream& out, PageIndex page) {
  return out << ToString(page);
}
std::ostream& operator<<(std::ostream& out, RamOffset offset) {
  return out << ToString(offset);
}
std::ostream& operator<<(std::ostream& out, HostAddress address) {
  return out << ToString(address);
}
std::ostream& operator<<(std::ostream& out, SlotId slot) {
  return out << ToString(slot);
}
std::ostream& operator<<(std::ostream& out, PageRun run) {
  return out << ToString(run);
}

bool ParseByteCount(absl::string_view text, ByteCount* bytes,
                    std::string* error) {
  absl::string_view number = text;
  const uint64_t unit = ConsumeUnit(&number);
  // SimpleAtoi alone would also take a sign and spaces.
  if (!AllDigits(number)) {
    *error = absl::StrCat("\"", text,
                          "\" is not a size; write a whole number and one of "
                          "B, KiB, MiB, GiB, TiB, such as 512MiB");
    return false;
  }
  uint64_t value = 0;
  if (!absl::SimpleAtoi(number, &value) || value > UINT64_MAX / unit) {
    *error = absl::StrCat("\"", text, "\" is more than 2^64 - 1 bytes");
    return false;
  }
  *bytes = ByteCount(value * unit);
  return true;
}

bool AbslParseFlag(absl::string_view text, ByteCount* bytes,
                   std::string* error) {
  return ParseByteCount(text, bytes, error);
}

std::string AbslUnparseFlag(ByteCount bytes) { return ToString(bytes); }

}  // namespace postcopy
