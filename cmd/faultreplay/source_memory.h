// The memory that all backends of a replay answer from.
#ifndef CMD_FAULTREPLAY_SOURCE_MEMORY_H_
#define CMD_FAULTREPLAY_SOURCE_MEMORY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "cmd/faultreplay/page_pattern.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

// A memfd with every page's final content. Threads: as memory.
class SourceMemory {
 public:
  // `lost`: a page that is all zeros, as one that was lost would read; to see
  // that it is noticed.
  static absl::StatusOr<SourceMemory> Create(PageCount pages,
                                             std::optional<PageIndex> lost);

  // Maps what another process has created, by Path().
  static absl::StatusOr<SourceMemory> Open(const std::string& path,
                                           PageCount pages);

  PageCount pages() const { return PagesIn(mapping_.size()); }
  int fd() const { return fd_.get(); }
  // By which another process of this user can open it while this one lives.
  std::string Path() const;
  uint8_t* PageAt(PageIndex page) const {
    return mapping_.data() + OffsetOf(page).value();
  }
  // Makes a page hold that; the page that was lost stays so.
  void Write(PageIndex page, PageVersion version) const;

 private:
  SourceMemory(UniqueFd fd, SharedMapping mapping,
               std::optional<PageIndex> lost)
      : fd_(std::move(fd)), mapping_(std::move(mapping)), lost_(lost) {}

  UniqueFd fd_;
  SharedMapping mapping_;
  std::optional<PageIndex> lost_;
};

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_SOURCE_MEMORY_H_
