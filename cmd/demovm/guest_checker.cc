#include "cmd/demovm/guest_checker.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace postcopy::demovm {
namespace {

using Registers = std::array<uint64_t, kGuestRegisterCount>;

uint64_t WordOf(uint64_t page, uint32_t entry, uint64_t j) {
  return PageSeed(page, entry) + j * PageStride(entry);
}

// The pages of one vCPU.
class VcpuChecker {
 public:
  VcpuChecker(const GuestRam& ram, const GuestParams& params, uint32_t vcpu,
              const Registers& registers, GuestVerdict& verdict)
      : ram_(ram),
        params_(params),
        vcpu_(vcpu),
        registers_(registers),
        verdict_(verdict) {}

  void Check() {
    const uint64_t owned = OwnedPages(params_, vcpu_);
    for (uint64_t own = 0; own < owned; ++own) {
      CheckPage(OwnedPage(params_, vcpu_, own));
    }
    CheckSum();
  }

 private:
  uint32_t old_entry() const {
    return static_cast<uint32_t>(registers_[kInFlightEntry]);
  }
  uint32_t new_entry() const {
    return static_cast<uint32_t>(registers_[kInFlightEntry] >> 32);
  }

  void CheckPage(uint64_t page) {
    uint32_t entry;
    std::memcpy(&entry,
                ram_.guest_physical_zero() + EntryAddress(params_, page),
                sizeof(entry));
    uint64_t words[kWordsPerPage];
    std::memcpy(words, ram_.PageAddress(PageIndex(page)), sizeof(words));
    ++verdict_.pages;
    sum_ += TableTerm(page, entry);
    CountIfZero(words);
    if (page + 1 == registers_[kInFlight]) {
      in_flight_term_ = TableTerm(page, entry);
      CheckWords(page, entry == new_entry() ? new_entry() : old_entry(), words,
                 new_entry());
    } else {
      CheckWords(page, entry, words, entry);
    }
  }

  void CountIfZero(const uint64_t (&words)[kWordsPerPage]) {
    uint64_t any = 0;
    for (const uint64_t word : words) any |= word;
    if (any == 0) ++verdict_.zero_pages;
  }

  // Every word must be as `entry` or `other_entry` has it.
  void CheckWords(uint64_t page, uint32_t entry,
                  const uint64_t (&words)[kWordsPerPage],
                  uint32_t other_entry) {
    for (uint64_t j = 0; j < kWordsPerPage; ++j) {
      if (words[j] == WordOf(page, entry, j) ||
          words[j] == WordOf(page, other_entry, j)) {
        continue;
      }
      ++verdict_.corrupt_pages;
      if (!verdict_.first_mismatch.has_value()) {
        verdict_.first_mismatch =
            GuestMismatch{.kind = GuestMismatch::Kind::kPage,
                          .page = PageIndex(page),
                          .entry = entry,
                          .word = j,
                          .found = words[j]};
      }
      return;
    }
  }

  void CheckSum() {
    const uint64_t claimed = registers_[kTableSum];
    if (registers_[kInFlight] == 0) {
      if (sum_ == claimed) return;
    } else {
      // The page's entry and the sum may each be old or new.
      const uint64_t page = registers_[kInFlight] - 1;
      const uint64_t others = sum_ - in_flight_term_;
      const uint64_t old_term = TableTerm(page, old_entry());
      const uint64_t new_term = TableTerm(page, new_entry());
      const bool entry_good =
          in_flight_term_ == old_term || in_flight_term_ == new_term;
      const bool sum_good =
          claimed == others + old_term || claimed == others + new_term;
      if (entry_good && sum_good) return;
    }
    ++verdict_.corrupt_sums;
    bad_sum_ = true;
  }

 public:
  bool bad_sum() const { return bad_sum_; }

 private:
  const GuestRam& ram_;
  const GuestParams& params_;
  const uint32_t vcpu_;
  const Registers& registers_;
  GuestVerdict& verdict_;
  uint64_t sum_ = 0;
  uint64_t in_flight_term_ = 0;
  bool bad_sum_ = false;
};

}  // namespace

GuestVerdict CheckGuest(const GuestRam& ram, const GuestClaims& claims) {
  GuestVerdict verdict;
  std::optional<GuestMismatch> first_sum;
  for (uint32_t vcpu = 0; vcpu < claims.registers.size(); ++vcpu) {
    VcpuChecker checker(ram, claims.params, vcpu, claims.registers[vcpu],
                        verdict);
    checker.Check();
    if (checker.bad_sum() && !first_sum.has_value()) {
      first_sum.emplace();
      first_sum->kind = GuestMismatch::Kind::kSum;
      first_sum->vcpu = vcpu;
    }
  }
  if (!verdict.first_mismatch.has_value()) verdict.first_mismatch = first_sum;
  return verdict;
}

std::string ToString(const GuestVerdict& verdict) {
  std::string text = absl::StrCat(verdict.pages, " pages (", verdict.zero_pages,
                                  " of zeros): ");
  if (verdict.ok()) return text + "all correct";
  absl::StrAppend(&text, verdict.corrupt_pages, " corrupt pages, ",
                  verdict.corrupt_sums, " corrupt sums");
  if (verdict.first_mismatch.has_value()) {
    absl::StrAppend(&text, "; first ", ToString(*verdict.first_mismatch));
  }
  return text;
}

}  // namespace postcopy::demovm
