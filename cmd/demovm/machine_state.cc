#include "cmd/demovm/machine_state.h"

#include <cstring>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy::demovm {
namespace {

constexpr uint64_t kMagic = 0x45'54'41'54'53'4d'56'44;  // "DVMSTATE"
constexpr uint32_t kVersion = 1;

struct Header {
  uint64_t magic;
  uint32_t version;
  uint32_t kind;
  uint64_t checksum;  // of all that follows the header
  uint32_t vcpus;
  uint32_t vcpu_bytes;
};
static_assert(sizeof(Header) == 32);

struct MismatchRecord {
  uint32_t kind;  // 0: none, else GuestReport
  uint32_t entry;
  uint64_t page;
  uint64_t word;
  uint64_t found;
  uint64_t vcpu;
};
static_assert(sizeof(MismatchRecord) == 40);

constexpr size_t kFixedBytes =
    sizeof(Header) + sizeof(GuestParams) + sizeof(MismatchRecord);

// FNV-1a: against accidents on the way; who means harm meets the checks of
// every value.
uint64_t Checksum(absl::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  }
  return hash;
}

template <typename T>
void Append(const T& value, std::string& out) {
  static_assert(std::has_unique_object_representations_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// REQUIRES: `in` is long enough.
template <typename T>
T Take(absl::string_view& in) {
  T value;
  std::memcpy(&value, in.data(), sizeof(value));
  in.remove_prefix(sizeof(value));
  return value;
}

MismatchRecord ToRecord(const std::optional<GuestMismatch>& mismatch) {
  if (!mismatch.has_value()) return {};
  const bool page = mismatch->kind == GuestMismatch::Kind::kPage;
  return {.kind = static_cast<uint32_t>(page ? kReportBadPage : kReportBadSum),
          .entry = mismatch->entry,
          .page = mismatch->page.value(),
          .word = mismatch->word,
          .found = mismatch->found,
          .vcpu = mismatch->vcpu};
}

std::optional<GuestMismatch> FromRecord(const MismatchRecord& record) {
  if (record.kind == 0) return std::nullopt;
  return GuestMismatch{.kind = record.kind == kReportBadPage
                                   ? GuestMismatch::Kind::kPage
                                   : GuestMismatch::Kind::kSum,
                       .page = PageIndex(record.page),
                       .entry = record.entry,
                       .word = record.word,
                       .found = record.found,
                       .vcpu = record.vcpu};
}

absl::Status Bad(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("not a state this machine can load: ", what));
}

absl::Status CheckHeader(const Header& header, absl::string_view body,
                         MachineKind kind, size_t vcpu_bytes) {
  if (header.magic != kMagic) return Bad("it is no machine state at all");
  if (header.version != kVersion) {
    return Bad(absl::StrCat("it has version ", header.version, ", this is ",
                            kVersion, "; run the same version on both hosts"));
  }
  if (header.kind != static_cast<uint32_t>(kind)) {
    return Bad(absl::StrCat("it is of a machine of kind ",
                            ToString(static_cast<MachineKind>(header.kind)),
                            ", this one is ", ToString(kind),
                            "; use the same --guest on both hosts"));
  }
  if (header.vcpus < 1 || header.vcpus > kMaxVcpus) {
    return Bad(absl::StrCat("it has ", header.vcpus, " vCPUs"));
  }
  if (header.vcpu_bytes != vcpu_bytes) {
    return Bad(absl::StrCat("its vCPUs take ", header.vcpu_bytes,
                            " bytes, not ", vcpu_bytes));
  }
  const size_t expected =
      kFixedBytes - sizeof(Header) + header.vcpus * vcpu_bytes;
  if (body.size() != expected) {
    return Bad(absl::StrCat("it is ", body.size() + sizeof(Header),
                            " bytes long, not ", expected + sizeof(Header)));
  }
  if (Checksum(body) != header.checksum) return Bad("its checksum is wrong");
  return absl::OkStatus();
}

}  // namespace

absl::string_view ToString(MachineKind kind) {
  switch (kind) {
    case MachineKind::kKvm:
      return "kvm";
    case MachineKind::kProcess:
      return "process";
  }
  return "unknown";
}

std::string EncodeState(const MachineState& state) {
  std::string body;
  Append(state.params, body);
  Append(ToRecord(state.first_mismatch), body);
  for (const std::string& vcpu : state.vcpus) body += vcpu;
  std::string blob;
  Append(Header{.magic = kMagic,
                .version = kVersion,
                .kind = static_cast<uint32_t>(state.kind),
                .checksum = Checksum(body),
                .vcpus = static_cast<uint32_t>(state.vcpus.size()),
                .vcpu_bytes = static_cast<uint32_t>(state.vcpus[0].size())},
         blob);
  return blob + body;
}

absl::StatusOr<MachineState> DecodeState(absl::string_view blob,
                                         MachineKind kind, size_t vcpu_bytes) {
  if (blob.size() < kFixedBytes) {
    return Bad(absl::StrCat("it is only ", blob.size(), " bytes long"));
  }
  const Header header = Take<Header>(blob);
  if (auto status = CheckHeader(header, blob, kind, vcpu_bytes); !status.ok()) {
    return status;
  }
  MachineState state{.kind = kind, .params = Take<GuestParams>(blob)};
  const MismatchRecord record = Take<MismatchRecord>(blob);
  if (record.kind != 0 && record.kind != kReportBadPage &&
      record.kind != kReportBadSum) {
    return Bad("its mismatch is of no known kind");
  }
  state.first_mismatch = FromRecord(record);
  for (uint32_t vcpu = 0; vcpu < header.vcpus; ++vcpu) {
    state.vcpus.emplace_back(blob.substr(vcpu * vcpu_bytes, vcpu_bytes));
  }
  return state;
}

}  // namespace postcopy::demovm
