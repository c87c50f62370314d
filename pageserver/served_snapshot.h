// A file of guest memory that VMs on other hosts are restored from.
#ifndef PAGESERVER_SERVED_SNAPSHOT_H_
#define PAGESERVER_SERVED_SNAPSHOT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dirtytrack/file_version.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "pageserver/guest_memory.h"
#include "pageserver/page_batch.h"

namespace postcopy {

// A regular file, open read-only, that nobody should change, and the name by
// which it is asked for. Pages are counted from the file's first byte; what is
// behind its last whole page is not served. Thread-safe.
class ServedSnapshot {
 public:
  // INVALID_ARGUMENT for a name that is none (IsValidName), and for a file that
  // holds no page, or more than kMaxRamBytes; else as OpenRegularFile.
  static absl::StatusOr<std::shared_ptr<const ServedSnapshot>> Open(
      std::string name, const std::string& path);

  const std::string& name() const { return name_; }
  // As it was at Open.
  ByteCount size() const { return version_.size; }
  // Of its size and when it was last written to, at Open: equal for the same
  // file opened later, if nobody has written to it, and for a copy that has
  // kept that time.
  uint64_t content_id() const { return content_id_; }

  // DATA_LOSS if the file has been written to or truncated since Open.
  absl::Status CheckUnchanged() const;

  // As GuestMemory's.
  uint64_t disk() const { return memory_->disk(); }
  bool MayWait(PageRun run) const { return memory_->MayWait(run); }

  // Replace what `batch` has by the pages of one UrgentRequest or FetchRange.
  // Holes become runs of zeros. OUT_OF_RANGE, INVALID_ARGUMENT: not such pages.
  // DATA_LOSS: the file is not what it was at Open any more, though it may be
  // elsewhere that it changed. INTERNAL: it cannot be read. With an error what
  // `batch` has is not to be sent.
  absl::Status ReadUrgent(absl::Span<const PageIndex> pages,
                          PageBatch& batch) const;
  absl::Status ReadRange(PageRun run, PageBatch& batch) const;

 private:
  ServedSnapshot(std::string name, UniqueFd fd,
                 std::unique_ptr<const GuestMemory> memory,
                 const FileVersion& version, uint64_t content_id)
      : name_(std::move(name)),
        fd_(std::move(fd)),
        memory_(std::move(memory)),
        version_(version),
        content_id_(content_id) {}

  absl::Status FillRange(PageRun run, PageBatch& batch) const;

  const std::string name_;
  const UniqueFd fd_;
  const std::unique_ptr<const GuestMemory> memory_;
  const FileVersion version_;
  const uint64_t content_id_;
};

}  // namespace postcopy

#endif  // PAGESERVER_SERVED_SNAPSHOT_H_
