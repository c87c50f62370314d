#include "uffd/installer.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"

namespace postcopy {
namespace {

absl::Status InstallError(int error, PageRun run) {
  const std::string what = absl::StrCat("installing ", ToString(run), ": ",
                                        ::strerrordesc_np(error));
  switch (error) {
    case ESRCH:
      return absl::AbortedError(
          absl::StrCat("the VMM's process is gone (", what, ")"));
    case EAGAIN:
      return absl::UnavailableError(
          absl::StrCat(what, ", also after ", kMaxInstallRetries, " tries"));
    case ESTALE:  // kMaxEmptied
      return absl::FailedPreconditionError(
          absl::StrCat(what,
                       "; the memory descriptor that the VMM gave is not of "
                       "the file that it "
                       "has mapped there"));
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(absl::StrCat(
          what,
          "; free memory on this host, or enlarge the tmpfs or memory "
          "cgroup of the VM"));
    default:
      return absl::InternalError(what);
  }
}

PageRun Rest(PageRun run, PageCount done) {
  return {run.first + done, run.count - done};
}

const uint8_t* Advance(const uint8_t* bytes, PageCount pages) {
  return bytes == nullptr ? nullptr : bytes + BytesIn(pages).value();
}

void Pause(int retries) {
  constexpr timespec kSleep = {.tv_sec = 0, .tv_nsec = 50'000};
  if (retries <= kMaxInstallYields) {
    ::sched_yield();
  } else {
    ::nanosleep(&kSleep, nullptr);
  }
}

void Count(std::atomic<uint64_t>* counter, uint64_t by = 1) {
  counter->fetch_add(by, std::memory_order_relaxed);
}

}  // namespace

ReceiveResult Installer::InstallData(PageRun run,
                                     absl::Span<const uint8_t> bytes) {
  POSTCOPY_CHECK(bytes.size() == BytesIn(run.count).value());
  return Install(run, bytes.data());
}

ReceiveResult Installer::InstallZero(PageRun run) {
  return Install(run, nullptr);
}

ReceiveResult Installer::AdmitZero(PageRun run) {
  // Some may be poisoned, which are not zeros: the kernel knows.
  if (poisoning_.load()) return InstallZero(run);
  ReceiveResult result;
  std::optional<PageRun> missing = state_.NextMissingRun(run.first);
  while (missing.has_value() && missing->first < run.end()) {
    missing->count = std::min(missing->count, run.end() - missing->first);
    int error = 0;
    const PageCount settled = AdmitSome(*missing, &result.received, &error);
    if (error != 0) {
      result.status = InstallError(error, *missing);
      break;
    }
    missing = state_.NextMissingRun(missing->first + settled);
  }
  // After the marks: who faults again must be found to want zeros.
  Wake(run);
  return result;
}

PageCount Installer::AdmitSome(PageRun run, PageCount* received, int* error) {
  const InstallGate::Pass pass = gate_.Enter();
  const Piece piece = FirstPass(run);
  const PageClaims::Claim claim = ClaimFor(piece);
  const Piece same = SameNeeds(piece, /*is_zero=*/false);
  // Somebody may have been quicker.
  if (NeedOf(same.pages.first, /*is_zero=*/false) == Need::kNothing) {
    return same.pages.count;
  }
  const std::shared_lock<std::shared_mutex> marking(mark_mutex_);
  // Begun since: asked for again, and then as above.
  if (poisoning_.load()) return same.pages.count;
  if (StrategyOf(same).replaces()) *error = same.PunchHole();
  if (*error == 0) *received += state_.MarkReceived(same.pages, true);
  return same.pages.count;
}

void Installer::Wake(PageRun run) {
  const InstallGate::Pass pass = gate_.Enter();
  while (!run.count.empty()) {
    const Piece piece = ram_.FirstPiece(run);
    WakePiece(piece);
    run = Rest(run, piece.pages.count);
  }
}

int Installer::TryZero(PageIndex page) {
  const InstallGate::Pass pass = gate_.Enter();
  const Piece piece = ram_.FirstPiece(ram_.UnitOf(page));
  if (!piece.mapped()) return 0;
  UffdResult result = Insert(piece, nullptr);
  switch (result.error) {
    case 0:
      state_.MarkReceived(piece.pages, /*is_zero=*/true);
      return 0;
    case EEXIST:
      result.error = Show(piece);
      return result.error == 0 ? EEXIST : result.error;
    case ENOENT:
      Count(&unmapped_, piece.pages.count.value());
      WakePiece(piece);
      return 0;
    default:
      return result.error;
  }
}

int Installer::TryReveal(PageIndex page) {
  const InstallGate::Pass pass = gate_.Enter();
  const Piece piece = ram_.FirstPiece(ram_.UnitOf(page));
  return piece.mapped() ? Show(piece) : 0;
}

int Installer::Show(const Piece& piece) {
  const PageClaims::Claim claim = ClaimToReveal(piece);
  const UffdResult result = StrategyOf(piece).Reveal(ops_, piece);
  switch (result.error) {
    case ENOENT:
      Count(&unmapped_, piece.pages.count.value());
      [[fallthrough]];
    case EEXIST:
      WakePiece(piece);
      return 0;
    default:
      return result.error;
  }
}

std::optional<PageCount> Installer::RevealSome(PageRun run) {
  const InstallGate::Pass pass = gate_.Enter();
  Piece piece = FirstInGate(run);
  const PageCount unit = std::min(piece.unit, piece.pages.count);
  const bool staged = StrategyOf(piece).staged();
  // Where what is there is in sight, nothing is to be done.
  if (!piece.mapped() || (!StrategyOf(piece).replaces() && !staged)) {
    return piece.pages.count;
  }
  if (staged) {
    piece.pages.count =
        std::min(piece.pages.count, std::max(kMaxClaimedPages, unit));
  }
  const PageClaims::Claim claim = ClaimToReveal(piece);
  UffdResult result = StrategyOf(piece).Reveal(ops_, piece);
  if (result.error == ENOENT && piece.pages.count > unit) {
    // Over two mappings: see Transfer.
    piece.pages.count = unit;
    result = StrategyOf(piece).Reveal(ops_, piece);
  }
  if (result.error == ESRCH) return std::nullopt;
  const PageCount done(result.done.value() / kPageSize);
  if (!done.empty()) return done;
  const bool passing =
      result.error == EAGAIN || (staged && result.error == ENOMEM);
  if (passing) return PageCount(0);
  // In sight already, or a hole, or unmapped: whoever touches it learns which.
  if (staged && result.error == ENOENT) {
    // And nobody can see what waits for it.
    piece.pages.count = unit;
    if (piece.PunchHole() == 0) Count(&unmapped_, unit.value());
  }
  return unit;
}

DestinationRam::Piece Installer::FirstInGate(PageRun run) const {
  Piece piece = ram_.FirstPiece(run);
  if (!gate_.needed()) return piece;
  const PageCount most = std::max(kPagesPerPass, piece.unit);
  piece.pages.count = std::min(piece.pages.count, most);
  return piece;
}

DestinationRam::Piece Installer::FirstPass(PageRun run) const {
  Piece piece = FirstInGate(run);
  if (StrategyOf(piece).replaces()) {
    piece.pages.count = std::min(piece.pages.count, kMaxClaimedPages);
  }
  return piece;
}

PageClaims::Claim Installer::ClaimFor(const Piece& piece) {
  if (!StrategyOf(piece).replaces()) return PageClaims::Claim();
  return claims_.Take(piece.pages);
}

PageClaims::Claim Installer::ClaimToReveal(const Piece& piece) {
  if (!StrategyOf(piece).staged()) return PageClaims::Claim();
  const bool huge = piece.unit > PageCount(1);
  return claims_.Take(
      {piece.pages.first, huge ? PageCount(1) : piece.pages.count});
}

absl::Status Installer::Poison(PageRun run) {
  if (!poisoning_.load()) {
    const std::unique_lock<std::shared_mutex> nobody_marks(mark_mutex_);
    poisoning_.store(true);
  }
  int retries = 0;
  while (!run.count.empty()) {
    const UffdResult result = PoisonSome(ram_.FirstPiece(run));
    if (result.error == EAGAIN && result.done.empty()) {
      if (++retries > kMaxInstallRetries) return InstallError(EAGAIN, run);
      Pause(retries);
      continue;
    }
    if (result.error == EINVAL) {
      // It cannot poison one page and not another.
      poisoning_.store(false);
      return absl::UnimplementedError(
          "the kernel cannot poison pages: Linux 6.6 can");
    }
    if (result.done.empty()) return InstallError(result.error, run);
    retries = 0;
    run = Rest(run, PageCount(result.done.value() / kPageSize));
  }
  return absl::OkStatus();
}

// Pages that need no poison count as done.
UffdResult Installer::PoisonSome(const Piece& piece) {
  const InstallGate::Pass pass = gate_.Enter();
  const ByteCount unit = BytesIn(std::min(piece.unit, piece.pages.count));
  if (!piece.mapped()) return {.error = 0, .done = piece.bytes()};
  if (state_.IsReceived(piece.pages.first)) return {.error = 0, .done = unit};
  UffdResult result = ops_.Poison(piece.address, unit);
  if (result.error == EEXIST || result.error == ENOENT) {
    WakePiece(piece);
    result.done = unit;
  }
  return result;
}

ReceiveResult Installer::Install(PageRun run, const uint8_t* bytes) {
  ReceiveResult result;
  Attempt attempt;
  while (!run.count.empty()) {
    const PageCount settled =
        InstallSome(run, bytes, &attempt, &result.received);
    if (attempt.error != 0) {
      result.status = InstallError(attempt.error, run);
      return result;
    }
    if (settled.empty()) {
      if (attempt.retries > 0) Pause(attempt.retries);
      continue;
    }
    attempt = Attempt();
    bytes = Advance(bytes, settled);
    run = Rest(run, settled);
  }
  return result;
}

PageCount Installer::InstallSome(PageRun rest, const uint8_t* bytes,
                                 Attempt* attempt, PageCount* received) {
  const bool is_zero = bytes == nullptr;
  const InstallGate::Pass pass = gate_.Enter();
  const Piece first = FirstPass(rest);
  const PageClaims::Claim claim = ClaimFor(first);
  const Piece piece = SameNeeds(first, is_zero);
  const Need need = NeedOf(piece.pages.first, is_zero);
  if (!piece.mapped() || need == Need::kNothing) {
    WakePiece(piece);
    return piece.pages.count;
  }
  if (is_zero && need == Need::kAll && StrategyOf(piece).replaces()) {
    attempt->error = piece.PunchHole();
    if (attempt->error != 0) return PageCount(0);
  }
  const PageCount settled = Transfer(piece, bytes, attempt);
  if (!settled.empty() && !attempt->unclear) {
    *received += state_.MarkReceived({piece.pages.first, settled}, is_zero);
  }
  return settled;
}

DestinationRam::Piece Installer::SameNeeds(Piece piece, bool is_zero) const {
  const Need need = NeedOf(piece.pages.first, is_zero);
  PageCount same = piece.unit;
  while (same < piece.pages.count &&
         NeedOf(piece.pages.first + same, is_zero) == need) {
    same += piece.unit;
  }
  piece.pages.count = std::min(same, piece.pages.count);
  return piece;
}

// A page received with content must never be filled again, not even where it
// has become a hole: old bytes would come back that the guest gave up, or zeros
// would hide that the page was lost.
Installer::Need Installer::NeedOf(PageIndex page, bool is_zero) const {
  if (!state_.IsReceived(page)) return Need::kAll;
  return is_zero && state_.IsZero(page) ? Need::kZeros : Need::kNothing;
}

PageCount Installer::Transfer(const Piece& piece, const uint8_t* bytes,
                              Attempt* attempt) {
  // Less than the region's page where the VMM has cut one in two.
  const PageCount unit = std::min(piece.unit, piece.pages.count);
  Piece asked = piece;
  if (attempt->one_page) asked.pages.count = unit;
  const UffdResult result = Insert(asked, bytes);
  const PageCount done(result.done.value() / kPageSize);
  if (!done.empty()) return done;
  switch (result.error) {
    case EEXIST:
      asked.pages.count = unit;
      WakePiece(asked);
      // If it is there, whoever has put it there marks it.
      attempt->unclear = poisoning_.load();
      if (!attempt->unclear) Count(&already_present_, unit.value());
      return unit;
    case ENOENT:
      // Also said of a range that crosses from one mapping into the next: the
      // VMM may have split its memory with mprotect() or madvise().
      attempt->one_page = asked.pages.count > unit;
      if (attempt->one_page) return PageCount(0);
      Count(&unmapped_, unit.value());
      return unit;
    case EFAULT:
      if (!StrategyOf(asked).replaces()) attempt->error = EFAULT;
      if (++attempt->emptied > kMaxEmptied) attempt->error = ESTALE;
      Count(&retries_);
      return PageCount(0);
    case EAGAIN:
      Count(&retries_);
      if (++attempt->retries > kMaxInstallRetries) attempt->error = EAGAIN;
      return PageCount(0);
    default:
      // Success without progress would repeat for ever.
      attempt->error = result.error != 0 ? result.error : EIO;
      return PageCount(0);
  }
}

UffdResult Installer::Insert(const Piece& piece, const uint8_t* bytes) {
  const InstallStrategy& strategy = StrategyOf(piece);
  return bytes == nullptr ? strategy.Zero(ops_, piece)
                          : strategy.Data(ops_, piece, bytes);
}

void Installer::WakePiece(const Piece& piece) {
  if (piece.mapped()) ops_.Wake(piece.address, piece.bytes());
}

}  // namespace postcopy
