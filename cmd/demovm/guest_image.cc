#include "cmd/demovm/guest_image.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "cmd/demovm/guest_program.h"
#include "dirtytrack/check.h"

namespace postcopy::demovm {
namespace {

constexpr uint64_t kGibibyte = uint64_t{1} << 30;
constexpr uint64_t kLargePageBytes = uint64_t{2} << 20;
constexpr uint64_t kProgramPages = 4;
constexpr uint64_t kDataPagesPerVcpuMin = 64;

// Page-table entries (Intel SDM 3A, 4.5): present, writable, user, and already
// accessed (and dirty, where it is a leaf), so that no walk writes them.
constexpr uint64_t kTableEntry = 0x27;
constexpr uint64_t kLeafEntry = 0xe7;

uint64_t RamEnd(const GuestRam& ram) {  // guest physical
  const Slot& last = ram.blocks().back().slot;
  return last.guest_physical_address + last.length.value();
}

uint64_t PageDirectories(const GuestRam& ram) {
  return (RamEnd(ram) + kGibibyte - 1) / kGibibyte;
}

absl::Status CheckOptions(const MachineOptions& options) {
  if (options.vcpus < 1 || options.vcpus > kMaxVcpus) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.vcpus, " vCPUs: give 1 to ", kMaxVcpus, " of them"));
  }
  if (options.hot_percent < 1 || options.hot_percent > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("a hot set of ", options.hot_percent,
                     " percent: give 1 to 100 percent"));
  }
  if (options.fill_percent < 0 || options.fill_percent > 100) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.fill_percent, " percent filled: give 0 to 100 percent"));
  }
  const int one_in = options.never_written_one_in;
  if (one_in != 0 && (one_in < 2 || one_in > 1 << 20 ||
                      !std::has_single_bit(static_cast<unsigned>(one_in)))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "one page in ", one_in,
        " never written: give 0, or a power of two from 2 to ", 1 << 20));
  }
  return absl::OkStatus();
}

// Entry `index` of the table at guest physical `table`.
void SetTableEntry(const GuestRam& ram, uint64_t table, uint64_t index,
                   uint64_t entry) {
  std::memcpy(ram.guest_physical_zero() + table + index * sizeof(entry), &entry,
              sizeof(entry));
}

// Every address of RAM is itself, in large pages.
void InstallPageTables(const GuestRam& ram) {
  const uint64_t pointers = kPageTableRoot + kGuestPageBytes;
  const uint64_t directories = pointers + kGuestPageBytes;
  SetTableEntry(ram, kPageTableRoot, 0, pointers | kTableEntry);
  for (uint64_t i = 0; i < PageDirectories(ram); ++i) {
    SetTableEntry(ram, pointers, i,
                  (directories + i * kGuestPageBytes) | kTableEntry);
  }
  for (const RamBlock& block : ram.blocks()) {
    const uint64_t start = block.slot.guest_physical_address;
    for (uint64_t at = start; at < start + block.slot.length.value();
         at += kLargePageBytes) {
      // The directories lie one after another: one table of all large pages.
      SetTableEntry(ram, directories, at / kLargePageBytes, at | kLeafEntry);
    }
  }
}

// A task-state segment (SDM 3A, 8.7) whose bitmap, right after its 104 bytes,
// has a 0 for every port: user mode may use them.
void InstallTaskState(const GuestRam& ram) {
  constexpr uint64_t kBitmapOffsetAt = 102;
  constexpr uint16_t kBitmapOffset = 104;
  static_assert(kReportPort / 8 + kBitmapOffset < kGuestPageBytes - 1);
  std::memcpy(ram.guest_physical_zero() + kTaskStateAddress + kBitmapOffsetAt,
              &kBitmapOffset, sizeof(kBitmapOffset));
}

void InstallProgram(const GuestParams& params, const GuestRam& ram) {
  const GuestCode code = GuestProgram();
  POSTCOPY_CHECK(code.end - code.begin <=
                 static_cast<ptrdiff_t>(kProgramPages * kGuestPageBytes));
  std::memcpy(ram.guest_physical_zero() + params.program_address, code.begin,
              code.end - code.begin);
}

// Writes page number `own` of `vcpu` as its first version.
void FillPage(const GuestParams& params, const GuestRam& ram, uint32_t vcpu,
              uint64_t own, GuestRegisters& registers) {
  const uint64_t page = OwnedPage(params, vcpu, own);
  const bool zeroed = own % 16 == 15;  // a page of zeros that is no hole
  const uint32_t entry = NextEntry(0, zeroed);
  uint64_t words[kWordsPerPage];
  for (uint64_t j = 0; j < kWordsPerPage; ++j) {
    words[j] = PageSeed(page, entry) + j * PageStride(entry);
  }
  uint8_t* zero = ram.guest_physical_zero();
  std::memcpy(zero + AddressOfPage(params, page), words, sizeof(words));
  std::memcpy(zero + EntryAddress(params, page), &entry, sizeof(entry));
  registers[kTableSum] += TableTerm(page, entry);
}

GuestRegisters InstallVcpu(const GuestParams& params, const GuestRam& ram,
                           uint32_t vcpu) {
  GuestRegisters registers{};
  registers[kRandom] = Scramble(params.seed * kMaxVcpus + vcpu) | 1;
  for (uint64_t own = 0; own < OwnedPages(params, vcpu); ++own) {
    // By chance, but the same on every run; holes lie between filled pages.
    const uint64_t dice = Scramble(registers[kRandom] + own) % 100;
    if (IsNeverWritten(params, own) || dice >= params.fill_percent) continue;
    FillPage(params, ram, vcpu, own, registers);
  }
  return registers;
}

}  // namespace

absl::StatusOr<GuestParams> MakeGuestParams(const MachineOptions& options,
                                            const GuestRam& ram) {
  if (auto status = CheckOptions(options); !status.ok()) return status;
  const uint32_t vcpus = static_cast<uint32_t>(options.vcpus);
  GuestParams params{};
  params.magic = kGuestParamsMagic;
  params.ram_pages = PagesIn(ram.bytes()).value();
  params.low_pages = PagesIn(ram.blocks()[0].region.length).value();
  params.hole_bytes = kHighRamStart - params.low_pages * kGuestPageBytes;
  params.program_address =
      kPageTableRoot + (2 + PageDirectories(ram)) * kGuestPageBytes;
  params.mailbox_address =
      params.program_address + kProgramPages * kGuestPageBytes;
  params.stack_address = params.mailbox_address + vcpus * kGuestPageBytes;
  params.table_address =
      params.stack_address + vcpus * kStackPages * kGuestPageBytes;
  const uint64_t table_page = params.table_address / kGuestPageBytes;
  const uint64_t pages_left =
      params.ram_pages - std::min(params.ram_pages, table_page);
  // A table for all pages that are left is a bit longer than it need be.
  const uint64_t table_pages =
      (pages_left * sizeof(uint32_t) + kGuestPageBytes - 1) / kGuestPageBytes;
  params.first_data_page = table_page + table_pages;
  if (params.first_data_page >= params.low_pages ||
      params.ram_pages - params.first_data_page <
          kDataPagesPerVcpuMin * vcpus) {
    return absl::InvalidArgumentError(absl::StrCat(ToString(ram.bytes()),
                                                   " of guest RAM for ", vcpus,
                                                   " vCPUs: give it more RAM"));
  }
  params.data_pages = params.ram_pages - params.first_data_page;
  params.vcpus = vcpus;
  params.hot_percent = static_cast<uint32_t>(options.hot_percent);
  params.never_mask =
      options.never_written_one_in == 0 ? 0 : options.never_written_one_in - 1;
  params.fill_percent = static_cast<uint32_t>(options.fill_percent);
  params.seed = options.seed;
  return params;
}

absl::Status CheckGuestParams(const GuestParams& params, int vcpus,
                              const GuestRam& ram) {
  if (params.vcpus != static_cast<uint32_t>(vcpus)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state is of a machine with ", params.vcpus,
                     " vCPUs, this one has ", vcpus));
  }
  if (params.ram_pages != PagesIn(ram.bytes()).value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the state is of a machine with ", params.ram_pages,
        " pages of RAM, this one has ", PagesIn(ram.bytes()).value()));
  }
  const MachineOptions options{
      .vcpus = vcpus,
      .hot_percent = static_cast<int>(params.hot_percent),
      .never_written_one_in =
          params.never_mask == 0 ? 0 : static_cast<int>(params.never_mask + 1),
      .fill_percent = static_cast<int>(params.fill_percent),
      .seed = params.seed};
  absl::StatusOr<GuestParams> made = MakeGuestParams(options, ram);
  if (!made.ok()) return made.status();
  if (std::memcmp(&params, &*made, sizeof(params)) != 0) {
    return absl::InvalidArgumentError(
        "the state is of a guest that is laid out differently: run the same "
        "version of this program on both hosts");
  }
  return absl::OkStatus();
}

std::vector<GuestRegisters> InstallGuest(const GuestParams& params,
                                         const GuestRam& ram) {
  InstallPageTables(ram);
  InstallTaskState(ram);
  InstallProgram(params, ram);
  std::memcpy(ram.guest_physical_zero() + kParamsAddress, &params,
              sizeof(params));
  std::vector<GuestRegisters> registers;
  for (uint32_t vcpu = 0; vcpu < params.vcpus; ++vcpu) {
    registers.push_back(InstallVcpu(params, ram, vcpu));
  }
  return registers;
}

absl::Status CheckRegisters(const GuestRegisters& registers,
                            const GuestParams& params, uint32_t vcpu,
                            bool within_step) {
  const uint64_t walk_end = OwnedPages(params, vcpu) + (within_step ? 1 : 0);
  // For 0, none, this is far beyond all pages.
  const uint64_t in_flight = registers[kInFlight] - 1 - params.first_data_page;
  const bool good = registers[kRandom] != 0 && registers[kWalk] < walk_end &&
                    (registers[kInFlight] == 0 ||
                     (within_step && in_flight < params.data_pages &&
                      in_flight % params.vcpus == vcpu));
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the state of vCPU ", vcpu, " is none that the guest can have"));
}

}  // namespace postcopy::demovm
