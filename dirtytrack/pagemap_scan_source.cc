#include "dirtytrack/pagemap_scan_source.h"

#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"

namespace postcopy {
namespace {

constexpr uint64_t kProtect = kPmScanWpMatching | kPmScanCheckWpAsync;

absl::Status CheckRegion(const Region& region,
                         const PagemapScanSource::HostRegion& host) {
  const uint64_t unit = host.kernel_page_size.value();
  if (unit != kPageSize &&
      host.kernel_page_size != PagemapScanSource::kHugePageSize) {
    return absl::InvalidArgumentError(absl::StrCat(
        "region '", region.name, "' has kernel pages of ",
        ToString(host.kernel_page_size), "; only 4KiB and 2MiB are tracked"));
  }
  if (host.address.value() % unit != 0 || region.length.value() % unit != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "region '", region.name, "', ", ToString(region.length), " at ",
        ToString(host.address), ", is not made of whole pages of ",
        ToString(host.kernel_page_size)));
  }
  if (host.address.value() > UINT64_MAX - region.length.value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("region '", region.name, "' at ", ToString(host.address),
                     " ends behind the last address"));
  }
  return absl::OkStatus();
}

// Of two regions that share memory, one would take what the other has to
// report.
absl::Status CheckNoOverlap(
    const RamLayout& layout,
    const std::vector<PagemapScanSource::HostRegion>& hosts) {
  for (size_t i = 0; i < hosts.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const Region& a = layout.regions()[i];
      const Region& b = layout.regions()[j];
      if (hosts[i].address < hosts[j].address + b.length &&
          hosts[j].address < hosts[i].address + a.length) {
        return absl::InvalidArgumentError(
            absl::StrCat("regions '", b.name, "' and '", a.name,
                         "' overlap in the VMM's memory; give each region its "
                         "own mapping"));
      }
    }
  }
  return absl::OkStatus();
}

// An ioctl on a file system or device that the VMM serves itself (FUSE, CUSE)
// could hang, and answer anything.
absl::Status CheckProcFile(int fd) {
  struct statfs stat = {};
  if (::fstatfs(fd, &stat) == 0 && stat.f_type == PROC_SUPER_MAGIC) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "the descriptor is not of /proc: open /proc/self/pagemap in the VMM and "
      "send that");
}

}  // namespace

HostAddress PagemapScanSource::Tracked::AddressOf(PageIndex page) const {
  return address + BytesIn(page - pages.first);
}

PageIndex PagemapScanSource::Tracked::PageAt(HostAddress at) const {
  return pages.first + PagesIn(at - address);
}

PageRun PagemapScanSource::Tracked::Widen(PageRun run) const {
  const uint64_t unit = kernel_page.value();
  const uint64_t first = (run.first - pages.first).value() / unit * unit;
  const uint64_t end =
      ((run.end() - pages.first).value() + unit - 1) / unit * unit;
  return {pages.first + PageCount(first), PageCount(end - first)};
}

absl::StatusOr<std::unique_ptr<PagemapScanSource>> PagemapScanSource::Create(
    const RamLayout& layout, std::vector<HostRegion> regions, UniqueFd pagemap,
    Mode mode) {
  if (absl::Status s = CheckProcFile(pagemap.get()); !s.ok()) return s;
  return CreateWithScan(layout, std::move(regions), std::move(pagemap), mode,
                        nullptr);
}

absl::StatusOr<std::unique_ptr<PagemapScanSource>>
PagemapScanSource::CreateWithScan(const RamLayout& layout,
                                  std::vector<HostRegion> regions,
                                  UniqueFd pagemap, Mode mode, ScanCall scan) {
  if (regions.size() != layout.regions().size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the VM has ", layout.regions().size(), " regions and ", regions.size(),
        " host addresses; say where the VMM has mapped each region"));
  }
  std::vector<Tracked> tracked;
  for (size_t i = 0; i < regions.size(); ++i) {
    const Region& region = layout.regions()[i];
    if (absl::Status s = CheckRegion(region, regions[i]); !s.ok()) return s;
    tracked.push_back({region.name,
                       {PageOf(region.start), PagesIn(region.length)},
                       regions[i].address,
                       PagesIn(regions[i].kernel_page_size)});
  }
  if (absl::Status s = CheckNoOverlap(layout, regions); !s.ok()) return s;
  absl::StatusOr<PageBitmap> pending = PageBitmap::Create(layout.pages());
  if (!pending.ok()) return pending.status();
  if (scan == nullptr) {
    scan = [fd = pagemap.get()](PagemapScanArg* arg) {
      return ::ioctl(fd, kPagemapScan, arg);
    };
  }
  // Not make_unique: the constructor is private.
  return std::unique_ptr<PagemapScanSource>(new PagemapScanSource(
      layout.pages(), std::move(tracked), std::move(pagemap), mode,
      *std::move(pending), std::move(scan)));
}

PagemapScanSource::PagemapScanSource(PageCount pages,
                                     std::vector<Tracked> regions,
                                     UniqueFd pagemap, Mode mode,
                                     PageBitmap pending, ScanCall scan)
    : pages_(pages),
      regions_(std::move(regions)),
      pagemap_(std::move(pagemap)),
      mode_(mode),
      scan_(std::move(scan)),
      found_(kRunsPerScan),
      pending_(std::move(pending)) {}

absl::Status PagemapScanSource::ScanError(const Tracked& region,
                                          int error) const {
  const std::string what = absl::StrCat(
      "cannot tell which pages of region '", region.name, "' at ",
      ToString(region.address), " were written: ", ::strerrordesc_np(error));
  switch (error) {
    case EPERM:
      return absl::FailedPreconditionError(
          absl::StrCat(what,
                       "; the VMM has to register it with a userfaultfd of "
                       "UFFD_FEATURE_WP_ASYNC in mode WP, and keep that open"));
    case ESRCH:
      return absl::AbortedError(absl::StrCat(what, "; the VMM has ended"));
    case EFAULT:
      return absl::InvalidArgumentError(
          absl::StrCat(what, "; it is not memory of a process"));
    case EINVAL:
      return absl::InvalidArgumentError(
          absl::StrCat(what, "; send /proc/self/pagemap of the VMM"));
    case ENOTTY:
      return absl::UnimplementedError(absl::StrCat(
          what,
          "; this needs Linux 6.7 and the VMM's /proc/self/pagemap: use a "
          "dirty log"));
    case ENOMEM:
      return absl::ResourceExhaustedError(
          absl::StrCat(what, "; free memory for its page tables"));
    default:
      return absl::InternalError(what);
  }
}

absl::StatusOr<PageIndex> PagemapScanSource::ScanOnce(const Tracked& region,
                                                      PageRun run,
                                                      const Scan& scan,
                                                      Visit visit) {
  const uint64_t start = region.AddressOf(run.first).value();
  const uint64_t end = region.AddressOf(run.end()).value();
  PagemapScanArg arg = {
      .size = sizeof(PagemapScanArg),
      .flags = scan.flags,
      .start = start,
      .end = end,
      .vec =
          scan.max_runs == 0 ? 0 : reinterpret_cast<uintptr_t>(found_.data()),
      .vec_len = scan.max_runs,
      .category_mask = scan.category,
      .return_mask = scan.category,
  };
  const int filled = scan_(&arg);
  if (filled < 0) return ScanError(region, errno);
  // An answer that does not fit the question is an error, not a reason to end
  // this process, and not to be clamped: part of it would be missing.
  bool sane = arg.walk_end >= start && arg.walk_end <= end &&
              arg.walk_end % kPageSize == 0 &&
              static_cast<size_t>(filled) <= scan.max_runs;
  uint64_t walked = start;
  for (int i = 0; sane && i < filled; ++i) {
    const PagemapRegion& found = found_[i];
    sane = found.start >= walked && found.start < found.end &&
           found.end <= end && found.start % kPageSize == 0 &&
           found.end % kPageSize == 0;
    walked = found.end;
  }
  if (!sane) {
    return absl::InternalError(
        absl::StrCat("PAGEMAP_SCAN of region '", region.name,
                     "' answered with addresses that were not asked for"));
  }
  // The kernel gathers 512 runs at a time. If it has gathered more than once
  // and then comes to the end, it leaves walk_end where it gathered last, and
  // the runs go further (seen in Linux 6.18).
  walked = std::max(walked, uint64_t{arg.walk_end});
  if (walked == start) {
    // A part of a huge page cannot be protected; the kernel stops before it.
    return absl::FailedPreconditionError(absl::StrCat(
        "region '", region.name, "' is mapped with larger pages than ",
        ToString(BytesIn(region.kernel_page)),
        "; the VMM has to say which it uses, 4KiB or 2MiB"));
  }
  for (int i = 0; i < filled; ++i) {
    const PageIndex first = region.PageAt(HostAddress(found_[i].start));
    visit({first, region.PageAt(HostAddress(found_[i].end)) - first});
  }
  return region.PageAt(HostAddress(walked));
}

absl::Status PagemapScanSource::ScanRun(const Tracked& region, PageRun run,
                                        const Scan& scan, Visit visit) {
  for (PageIndex at = run.first; at < run.end();) {
    const PageRun part = {at, std::min(run.end() - at, kPagesPerScan)};
    absl::StatusOr<PageIndex> stopped = ScanOnce(region, part, scan, visit);
    if (!stopped.ok()) {
      // It may have protected pages before it failed, and does not say which.
      if (scan.flags & kPmScanWpMatching) pending_.view().SetRun(part);
      return stopped.status();
    }
    at = *stopped;
  }
  return absl::OkStatus();
}

absl::Status PagemapScanSource::CheckAlive() const {
  // Reading a pagemap ends at once when its process has. Kernels that look
  // for it in a scan say ESRCH there; to others no memory has no dirty pages.
  const Tracked& region = regions_.front();
  uint64_t entry = 0;
  const off_t offset =
      static_cast<off_t>(region.address.value() / kPageSize * sizeof(entry));
  if (::pread(pagemap_.get(), &entry, sizeof(entry), offset) ==
      static_cast<ssize_t>(sizeof(entry))) {
    return absl::OkStatus();
  }
  return ScanError(region, ESRCH);
}

absl::Status PagemapScanSource::CheckRegistered(const Tracked& region) {
  // Scans skip what is not mapped, so this asks for what is.
  PageIndex covered = region.pages.first;
  absl::Status status = ScanRun(region, region.pages,
                                {.flags = kPmScanCheckWpAsync,
                                 .category = kPageIsWpAllowed,
                                 .max_runs = kRunsPerScan},
                                [&](PageRun run) {
                                  if (run.first == covered) covered = run.end();
                                });
  if (!status.ok()) return status;
  if (covered == region.pages.end()) return absl::OkStatus();
  if (absl::Status s = CheckAlive(); !s.ok()) return s;
  return absl::FailedPreconditionError(absl::StrCat(
      "region '", region.name, "': nothing is mapped at ",
      ToString(region.AddressOf(covered)),
      " in the VMM; say where the VMM has mapped it, or map it first"));
}

absl::Status PagemapScanSource::CheckNoHugePage(const Tracked& region) {
  if (region.kernel_page != PageCount(1)) return absl::OkStatus();
  bool found = false;
  absl::Status status = ScanRun(
      region, region.pages,
      {.flags = kPmScanCheckWpAsync, .category = kPageIsHuge, .max_runs = 1},
      [&](PageRun) { found = true; });
  if (!status.ok() || !found) return status;
  return absl::FailedPreconditionError(absl::StrCat(
      "region \"", region.name,
      "\" is mapped in huge pages, whose parts the kernel does not track on "
      "their own; if they are transparent, the VMM has to call "
      "madvise(MADV_NOHUGEPAGE) before it touches the memory"));
}

absl::Status PagemapScanSource::Start() {
  if (started_) {
    return absl::FailedPreconditionError("dirty tracking is already started");
  }
  for (const Tracked& region : regions_) {
    if (absl::Status s = CheckRegistered(region); !s.ok()) return s;
    if (absl::Status s = CheckNoHugePage(region); !s.ok()) return s;
  }
  for (const Tracked& region : regions_) {
    absl::Status s =
        ScanRun(region, region.pages,
                {.flags = kProtect, .category = kPageIsWritten, .max_runs = 0},
                [](PageRun) {});
    if (!s.ok()) return s;
  }
  pending_.Reset();
  started_ = true;
  return absl::OkStatus();
}

absl::Status PagemapScanSource::Stop() {
  pending_.Reset();
  started_ = false;
  return absl::OkStatus();
}

absl::Status PagemapScanSource::CheckUse(PageBitmapView bitmap) const {
  return CheckDirtySourceUse(started_, pages_, bitmap);
}

absl::StatusOr<PageCount> PagemapScanSource::Collect(PageBitmapView into) {
  if (absl::Status s = CheckUse(into); !s.ok()) return s;
  PageCount set = into.MoveFrom(pending_.view());
  const Scan scan = {
      .flags = mode_ == Mode::kTakeAtOnce ? kProtect : kPmScanCheckWpAsync,
      .category = kPageIsWritten,
      .max_runs = kRunsPerScan};
  for (const Tracked& region : regions_) {
    absl::Status s = ScanRun(region, region.pages, scan,
                             [&](PageRun run) { set += into.SetRun(run); });
    if (!s.ok()) return s;
  }
  if (absl::Status s = CheckAlive(); !s.ok()) return s;
  return set;
}

absl::Status PagemapScanSource::ClearIn(const Tracked& region,
                                        PageBitmapView pages, PageRun run) {
  // One scan from the first named page to the last: a scan for each run of
  // named pages would flush the guest's TLBs as often.
  std::optional<PageRun> named;
  for (PageIndex at = run.first; at < run.end();) {
    const auto next = pages.NextSetRun(at, run.end() - at);
    if (!next.has_value() || next->first >= run.end()) break;
    at = std::min(next->end(), run.end());
    const PageIndex first = named.has_value() ? named->first : next->first;
    named = PageRun{first, at - first};
  }
  if (!named.has_value()) return absl::OkStatus();
  return ScanRun(
      region, region.Widen(*named),
      {.flags = kProtect, .category = kPageIsWritten, .max_runs = kRunsPerScan},
      [&](PageRun taken) { pending_.view().SetRun(taken); });
}

absl::Status PagemapScanSource::Clear(PageBitmapView pages, PageRun run) {
  if (absl::Status s = CheckUse(pages); !s.ok()) return s;
  POSTCOPY_CHECK(run.end().value() <= pages_.value());
  for (const Tracked& region : regions_) {
    const PageIndex first = std::max(run.first, region.pages.first);
    const PageIndex end = std::min(run.end(), region.pages.end());
    if (mode_ == Mode::kTakeAtOnce || first >= end) continue;
    absl::Status s = ClearIn(region, pages, {first, end - first});
    if (!s.ok()) return s;
  }
  // All that was taken is pending now. What the caller is about to read need
  // not be; the rest stays, or a write to it would be lost.
  ForEachWord(run, [&](size_t i, uint64_t mask) {
    uint64_t named = pages.LoadWord(i) & mask;
    for (; named != 0; named &= named - 1) {
      pending_.view().TestAndClear(PageIndex(i * 64 + std::countr_zero(named)));
    }
  });
  return absl::OkStatus();
}

absl::Status PagemapScanSource::Restore(PageBitmapView unsent) {
  if (absl::Status s = CheckUse(unsent); !s.ok()) return s;
  pending_.view().MergeFrom(PageBitmapView(unsent.words(), pages_));
  return absl::OkStatus();
}

}  // namespace postcopy
