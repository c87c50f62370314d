#include "uffd/working_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_checksum.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr uint64_t kMagic = 0x54534B524F574350;
constexpr uint32_t kVersion = 1;

struct Header {
  uint64_t magic;
  uint32_t version;
  uint32_t crc32c;
  uint64_t page_bytes;
  uint64_t pages;
  uint64_t snapshot_bytes;
  uint64_t runs;
};
static_assert(sizeof(Header) == kWorkingSetHeaderBytes);

struct Run {
  uint64_t first;
  uint64_t count;
};
static_assert(sizeof(Run) == kWorkingSetRunBytes);

// What is in front of the checksum, and what is behind it, as one.
uint32_t ChecksumOf(absl::Span<const uint8_t> bytes) {
  constexpr size_t kAt = offsetof(Header, crc32c);
  std::string covered(reinterpret_cast<const char*>(bytes.data()), kAt);
  const auto rest = bytes.subspan(kAt + sizeof(uint32_t));
  covered.append(reinterpret_cast<const char*>(rest.data()), rest.size());
  return Crc32c(
      {reinterpret_cast<const uint8_t*>(covered.data()), covered.size()});
}

absl::Status CheckHeader(const Header& header, size_t file_bytes) {
  if (header.magic != kMagic) {
    return absl::InvalidArgumentError("it is not a working set");
  }
  if (header.version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("it is of version ", header.version,
                     "; this daemon knows version ", kVersion));
  }
  if (header.runs == 0 || header.runs > kWorkingSetRunsMax ||
      file_bytes != kWorkingSetHeaderBytes + header.runs * sizeof(Run)) {
    return absl::DataLossError(
        absl::StrCat("it is damaged: it says that it has ", header.runs,
                     " runs, and has ", file_bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status CheckContent(const Header& header) {
  if (header.page_bytes != kPageSize) {
    return absl::FailedPreconditionError(
        absl::StrCat("it counts pages of ", header.page_bytes,
                     " bytes, this daemon of ", kPageSize));
  }
  if (header.pages == 0 || header.pages > kMaxRamBytes.value() / kPageSize) {
    return absl::InvalidArgumentError(absl::StrCat(
        "it is of a VM of ", header.pages, " pages, which is none"));
  }
  return absl::OkStatus();
}

absl::Status ErrnoStatus(const char* what, int error) {
  const std::string text = absl::StrCat(what, ": ", ::strerrordesc_np(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::Status Annotate(const std::string& path, const absl::Status& status,
                      const char* way_out) {
  return absl::Status(status.code(),
                      absl::StrCat("working set ", path, ": ", status.message(),
                                   "; ", way_out));
}
absl::Status NotRead(const std::string& path, const absl::Status& status) {
  return Annotate(path, status,
                  "name another file, or remove this one: then the next VM "
                  "records it anew");
}
absl::Status NotWritten(const std::string& path, const absl::Status& status) {
  return Annotate(path, status,
                  "name a file in a folder that exists, has room, and in which "
                  "this daemon may write");
}

absl::StatusOr<std::string> ReadAll(int fd) {
  struct stat about;
  if (::fstat(fd, &about) != 0) return ErrnoStatus("cannot look at it", errno);
  if (!S_ISREG(about.st_mode)) {
    return absl::InvalidArgumentError("it is no regular file");
  }
  if (static_cast<uint64_t>(about.st_size) > kWorkingSetFileBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has ", about.st_size,
                     " bytes; a working set has at "
                     "most ",
                     kWorkingSetFileBytesMax));
  }
  std::string bytes(static_cast<size_t>(about.st_size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("cannot read it", errno);
    if (n == 0) break;  // it has been cut meanwhile
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

absl::Status WriteAll(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("cannot write it", errno);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  // Before the rename: else a crash could leave the name with no content.
  if (::fsync(fd) != 0) return ErrnoStatus("cannot write it out", errno);
  return absl::OkStatus();
}

// A new file beside `path`; its name in `name`.
absl::StatusOr<UniqueFd> MakeBeside(const std::string& path,
                                    std::string* name) {
  *name = absl::StrCat(path, ".XXXXXX");
  UniqueFd fd(::mkostemp(name->data(), O_CLOEXEC));
  if (fd.valid()) return fd;
  return ErrnoStatus("cannot make a file beside it", errno);
}

}  // namespace

std::string EncodeWorkingSet(const WorkingSet& set) {
  Header header = {.magic = kMagic,
                   .version = kVersion,
                   .crc32c = 0,
                   .page_bytes = kPageSize,
                   .pages = set.pages.value(),
                   .snapshot_bytes = set.snapshot_bytes.value(),
                   .runs = set.runs.size()};
  std::string bytes(sizeof(header) + set.runs.size() * sizeof(Run), '\0');
  std::memcpy(bytes.data(), &header, sizeof(header));
  char* at = bytes.data() + sizeof(header);
  for (const PageRun& run : set.runs) {
    const Run encoded = {run.first.value(), run.count.value()};
    std::memcpy(at, &encoded, sizeof(encoded));
    at += sizeof(encoded);
  }
  header.crc32c = ChecksumOf(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

absl::StatusOr<WorkingSet> DecodeWorkingSet(absl::Span<const uint8_t> bytes) {
  Header header;
  if (bytes.size() < sizeof(header)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "it has ", bytes.size(), " bytes: it is not a working set"));
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  absl::Status status = CheckHeader(header, bytes.size());
  if (!status.ok()) return status;
  if (header.crc32c != ChecksumOf(bytes)) {
    return absl::DataLossError("it is damaged: its checksum does not fit");
  }
  status = CheckContent(header);
  if (!status.ok()) return status;
  WorkingSet set = {.pages = PageCount(header.pages),
                    .snapshot_bytes = ByteCount(header.snapshot_bytes)};
  set.runs.reserve(header.runs);
  for (uint64_t i = 0; i < header.runs; ++i) {
    Run run;
    std::memcpy(&run, bytes.data() + sizeof(header) + i * sizeof(run),
                sizeof(run));
    if (run.count == 0 || run.count > header.pages ||
        run.first > header.pages - run.count) {
      return absl::InvalidArgumentError(
          absl::StrCat("it names ", run.count, " pages from page ", run.first,
                       ", of a VM of ", header.pages, " pages"));
    }
    set.runs.push_back({PageIndex(run.first), PageCount(run.count)});
  }
  return set;
}

absl::StatusOr<WorkingSet> ReadWorkingSet(const std::string& path) {
  // NONBLOCK: a FIFO without a writer must not stop the daemon.
  const UniqueFd fd(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) {
    return NotRead(path, ErrnoStatus("cannot open it", errno));
  }
  absl::StatusOr<std::string> bytes = ReadAll(fd.get());
  if (!bytes.ok()) return NotRead(path, bytes.status());
  absl::StatusOr<WorkingSet> set = DecodeWorkingSet(
      {reinterpret_cast<const uint8_t*>(bytes->data()), bytes->size()});
  if (!set.ok()) return NotRead(path, set.status());
  return set;
}

absl::Status WriteWorkingSet(const std::string& path, const WorkingSet& set) {
  std::string name;
  const absl::StatusOr<UniqueFd> fd = MakeBeside(path, &name);
  if (!fd.ok()) return NotWritten(path, fd.status());
  absl::Status status = WriteAll(fd->get(), EncodeWorkingSet(set));
  if (status.ok() && ::rename(name.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus("cannot put it in place", errno);
  }
  if (status.ok()) return status;
  ::unlink(name.c_str());
  return NotWritten(path, status);
}

absl::Status CheckWorkingSetFolder(const std::string& path) {
  std::string name;
  const absl::StatusOr<UniqueFd> fd = MakeBeside(path, &name);
  if (!fd.ok()) return NotWritten(path, fd.status());
  ::unlink(name.c_str());
  return absl::OkStatus();
}

}  // namespace postcopy
