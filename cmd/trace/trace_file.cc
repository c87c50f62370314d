#include "cmd/trace/trace_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Status WriteError(int error) {
  const std::string why =
      absl::StrCat("cannot write: ", ::strerrordesc_np(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    return absl::ResourceExhaustedError(why);
  }
  return absl::InternalError(why);
}

}  // namespace

absl::StatusOr<TraceFile> TraceFile::Begin(UniqueFd fd, PageCount pages,
                                           const std::string& origin) {
  TraceFile file(std::move(fd));
  const std::string header = file.content_.encoder.Begin(pages, origin);
  TraceEncoder ending = file.content_.encoder;
  file.trailer_ = ending.End(/*dropped=*/0);
  const absl::Status status = file.Write(header + file.trailer_);
  if (!status.ok()) return status;
  file.content_.end = static_cast<off_t>(header.size());
  return file;
}

absl::Status TraceFile::Append(absl::Span<const TraceEvent> events,
                               uint64_t dropped) {
  TraceEncoder encoder = content_.encoder;
  const std::string batch = events.empty() ? "" : encoder.Append(events);
  TraceEncoder ending = encoder;
  std::string trailer = ending.End(dropped);
  absl::Status status = Write(batch + trailer);
  if (!status.ok()) {
    // Fits, as it did before. If not, the reader says that it is cut off.
    Write(trailer_).IgnoreError();
    return status;
  }
  trailer_ = std::move(trailer);
  if (events.empty()) return status;
  before_ = std::exchange(
      content_, {encoder, content_.end + static_cast<off_t>(batch.size())});
  last_events_ = events.size();
  return status;
}

absl::StatusOr<size_t> TraceFile::EndEarly(uint64_t dropped) {
  absl::Status status = WriteEarlyTrailer(dropped);
  if (status.ok()) return 0;
  if (last_events_ > 0) {
    content_ = before_;
    const size_t taken_back = std::exchange(last_events_, 0);
    status = WriteEarlyTrailer(dropped + taken_back);
    if (status.ok()) return taken_back;
  } else if (ended_early_) {
    Write(trailer_).IgnoreError();
  }
  return status;
}

absl::Status TraceFile::WriteEarlyTrailer(uint64_t dropped) {
  TraceEncoder ending = content_.encoder;
  std::string trailer = ending.End(dropped, /*ended_early=*/true);
  absl::Status status = Write(trailer);
  if (!status.ok()) return status;
  trailer_ = std::move(trailer);
  ended_early_ = true;
  return status;
}

absl::Status TraceFile::Write(const std::string& bytes) {
  size_t done = 0;
  int error = 0;
  while (done < bytes.size() && error == 0) {
    const ssize_t written =
        ::pwrite(fd_.get(), bytes.data() + done, bytes.size() - done,
                 content_.end + static_cast<off_t>(done));
    if (written > 0) {
      done += static_cast<size_t>(written);
    } else if (written == 0 || errno != EINTR) {
      error = written == 0 ? ENOSPC : errno;
    }
  }
  if (::ftruncate(fd_.get(), content_.end + static_cast<off_t>(done)) != 0 &&
      error == 0) {
    error = errno;
  }
  return error == 0 ? absl::OkStatus() : WriteError(error);
}

}  // namespace postcopy
