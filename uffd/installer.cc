#include "uffd/installer.h"

#include <sched.h>

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

constexpr PageCount kOnePage{1};

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
    case ENOMEM:
    case ENOSPC:
      return absl::ResourceExhaustedError(absl::StrCat(
          what,
          "; free memory on this host, or enlarge the tmpfs or memory "
          "cgroup of the VM"));
    default:
      return absl::InternalError(what);
  }
}

void Append(ReceiveResult part, ReceiveResult* whole) {
  whole->received += part.received;
  whole->status = std::move(part.status);
}

PageRun Rest(PageRun run, PageCount done) {
  return {run.first + done, run.count - done};
}

// What is left of `piece` behind its first `done` pages.
DestinationRam::Piece RestOf(const DestinationRam::Piece& piece,
                             PageCount done) {
  DestinationRam::Piece rest = piece;
  rest.pages = Rest(piece.pages, done);
  rest.address += BytesIn(done);
  rest.file_offset += static_cast<off_t>(BytesIn(done).value());
  return rest;
}

const uint8_t* Advance(const uint8_t* bytes, PageCount pages) {
  return bytes == nullptr ? nullptr : bytes + BytesIn(pages).value();
}

void Count(std::atomic<uint64_t>* counter) {
  counter->fetch_add(1, std::memory_order_relaxed);
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
  ReceiveResult result;
  std::optional<PageRun> missing = state_.NextMissingRun(run.first);
  while (missing.has_value() && missing->first < run.end()) {
    missing->count = std::min(missing->count, run.end() - missing->first);
    result.received += state_.MarkReceived(*missing, /*is_zero=*/true);
    missing = state_.NextMissingRun(missing->end());
  }
  // After the marks: who faults again must be found to want zeros.
  Wake(run);
  return result;
}

void Installer::Wake(PageRun run) {
  while (!run.count.empty()) {
    const Piece piece = ram_.FirstPiece(run);
    ops_.Wake(piece.address, piece.bytes());
    run = Rest(run, piece.pages.count);
  }
}

ReceiveResult Installer::Install(PageRun run, const uint8_t* bytes) {
  ReceiveResult result;
  while (!run.count.empty() && result.status.ok()) {
    const Piece piece = ram_.FirstPiece(run);
    Append(InstallPiece(piece, bytes), &result);
    bytes = Advance(bytes, piece.pages.count);
    run = Rest(run, piece.pages.count);
  }
  return result;
}

// Cuts `piece` into runs that need content, and runs that do not.
ReceiveResult Installer::InstallPiece(const Piece& piece,
                                      const uint8_t* bytes) {
  const bool is_zero = bytes == nullptr;
  ReceiveResult result;
  Piece rest = piece;
  while (!rest.pages.count.empty() && result.status.ok()) {
    const bool needs = Needs(rest.pages.first, is_zero);
    PageCount same(1);
    while (same < rest.pages.count &&
           Needs(rest.pages.first + same, is_zero) == needs) {
      same += kOnePage;
    }
    Piece part = rest;
    part.pages.count = same;
    if (needs) {
      Append(Transfer(part, bytes), &result);
    } else {
      ops_.Wake(part.address, part.bytes());
    }
    bytes = Advance(bytes, same);
    rest = RestOf(rest, same);
  }
  return result;
}

// A page received with content must never be filled again, not even where it
// has become a hole: old bytes would come back that the guest gave up, or zeros
// would hide that the page was lost.
bool Installer::Needs(PageIndex page, bool is_zero) const {
  return !state_.IsReceived(page) || (is_zero && state_.IsZero(page));
}

ReceiveResult Installer::Transfer(const Piece& piece, const uint8_t* bytes) {
  ReceiveResult result;
  Piece rest = piece;
  Attempt attempt;
  while (!rest.pages.count.empty()) {
    const PageCount settled = TransferSome(rest, bytes, &attempt);
    if (attempt.error != 0) {
      result.status = InstallError(attempt.error, rest.pages);
      return result;
    }
    if (settled.empty()) continue;
    attempt = Attempt();
    result.received += state_.MarkReceived({rest.pages.first, settled},
                                           /*is_zero=*/bytes == nullptr);
    bytes = Advance(bytes, settled);
    rest = RestOf(rest, settled);
  }
  return result;
}

PageCount Installer::TransferSome(const Piece& rest, const uint8_t* bytes,
                                  Attempt* attempt) {
  const PageCount asked = attempt->one_page ? kOnePage : rest.pages.count;
  const UffdResult result =
      bytes == nullptr
          ? ops_.ZeroPage(rest.address, BytesIn(asked), /*wake=*/true)
          : ops_.Copy(rest.address, bytes, BytesIn(asked), /*wake=*/true);
  const PageCount done(result.done.value() / kPageSize);
  if (!done.empty()) return done;
  switch (result.error) {
    case EEXIST:
      Count(&already_present_);
      ops_.Wake(rest.address, BytesIn(kOnePage));
      return kOnePage;
    case ENOENT:
      // Also said of a range that crosses from one mapping into the next: the
      // VMM may have split its memory with mprotect() or madvise().
      attempt->one_page = asked > kOnePage;
      if (attempt->one_page) return PageCount(0);
      Count(&unmapped_);
      return kOnePage;
    case EAGAIN:
      Count(&retries_);
      if (++attempt->retries > kMaxInstallRetries) attempt->error = EAGAIN;
      ::sched_yield();
      return PageCount(0);
    default:
      // Success without progress would repeat for ever.
      attempt->error = result.error != 0 ? result.error : EIO;
      return PageCount(0);
  }
}

}  // namespace postcopy
