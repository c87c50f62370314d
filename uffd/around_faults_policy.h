// Pages on both sides of where the guest has just faulted.
#ifndef UFFD_AROUND_FAULTS_POLICY_H_
#define UFFD_AROUND_FAULTS_POLICY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "dirtytrack/types.h"
#include "uffd/fetchable_pages.h"
#include "uffd/pull_policy.h"

namespace postcopy {

// Follows up to kStreams places where the guest faults, since vCPUs fault
// independently of each other. A stream is the pages [low, high) that the guest
// has passed or that were asked for on its behalf, with a window on either side
// of it: so many missing pages are asked for there.
//
//   <---- behind ----|low ######## high|---- ahead ---->
//
// A page that has been fetched is touched in silence. But a guest that comes to
// the end of what was fetched and faults just outside has, most likely, used
// all of it: the window on that side doubles, and the one on the other side is
// halved, down to nothing. A stream that nobody comes back to gives its place
// to the next; and where most streams end so, new ones begin with smaller
// windows, down to none: then only a second fault beside the first is taken for
// more than chance. So faults at random cost little, and the next policy has
// its turn.
//
// Fixed memory, about 2 KiB. NextRun looks at no more than kReach pages on
// either side of each stream.
class AroundFaultsPolicy final : public PullPolicy {
 public:
  static constexpr size_t kStreams = 32;
  // Of these, streams that the guest has come back to and that therefore do not
  // give way to others that it has not.
  static constexpr size_t kProvenStreams = 24;
  // Window on either side of the first fault of a stream, and the largest: 64
  // KiB, 64 MiB.
  static constexpr PageCount kFirstWindow{16};
  static constexpr PageCount kLargestWindow{16384};
  // How far outside a stream a fault still belongs to it.
  static constexpr PageCount kNear{32};
  // How far outside a stream missing pages are looked for.
  static constexpr PageCount kReach{4096};

  std::optional<PageRun> NextRun(const FetchablePages& pages,
                                 PageCount max) override;
  void NoteFault(PageRun unit) override;

  // The window that the next new stream begins with.
  PageCount first_window() const;

 private:
  // All in pages; plain numbers, because distances are cut at page 0.
  struct Stream {
    uint64_t low = 0;
    uint64_t high = 0;
    // The windows, and what is left to ask for of them.
    uint64_t ahead = 0;
    uint64_t behind = 0;
    uint64_t ahead_left = 0;
    uint64_t behind_left = 0;
    uint64_t last_fault = 0;  // by faults_; 0: not in use
    bool proven = false;      // the guest has come back to it
  };

  // The stream that a fault on [first, end) goes on with; nullptr if none.
  Stream* Find(uint64_t first, uint64_t end);
  // The stream whose place a new one takes.
  Stream& Replaceable();
  void Begin(uint64_t first, uint64_t end);
  void Continue(Stream& stream, uint64_t first, uint64_t end);
  static std::optional<PageRun> Ahead(Stream& stream,
                                      const FetchablePages& pages,
                                      PageCount max);
  static std::optional<PageRun> Behind(Stream& stream,
                                       const FetchablePages& pages,
                                       PageCount max);

  std::array<Stream, kStreams> streams_;
  uint64_t faults_ = 0;
  // How sure it is that faults are at random: 0 to kDisappointmentsMax.
  uint64_t disappointments_ = 0;
};

}  // namespace postcopy

#endif  // UFFD_AROUND_FAULTS_POLICY_H_
