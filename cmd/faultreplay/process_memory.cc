#include "cmd/faultreplay/process_memory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace postcopy {
namespace {

// Of a word of /proc/PID/pagemap: the page is in memory, or swapped out.
constexpr uint64_t kHasContent = uint64_t{3} << 62;
constexpr size_t kPagesAtOnce = 512;

absl::Status FileError(const std::string& what) {
  return absl::InternalError(
      absl::StrCat(what, ": ", ::strerrordesc_np(errno)));
}

bool ParseMapping(absl::string_view line, Mapping* mapping) {
  // The name may have spaces, and is padded with them.
  const std::vector<std::string> parts =
      absl::StrSplit(line, absl::MaxSplits(' ', 5));
  if (parts.size() < 5) return false;
  const std::vector<std::string> range = absl::StrSplit(parts[0], '-');
  if (range.size() != 2 || parts[1].size() != 4) return false;
  mapping->permissions = parts[1];
  if (parts.size() == 6) {
    mapping->name = std::string(absl::StripAsciiWhitespace(parts[5]));
  }
  return absl::SimpleHexAtoi(range[0], &mapping->begin) &&
         absl::SimpleHexAtoi(range[1], &mapping->end) &&
         mapping->begin < mapping->end &&
         absl::SimpleAtoi(parts[4], &mapping->inode);
}

bool IsRecorded(const Mapping& mapping) {
  return mapping.permissions == "rw-p" && mapping.inode == 0 &&
         (mapping.name.empty() || mapping.name == "[heap]" ||
          absl::StartsWith(mapping.name, "[anon:"));
}

}  // namespace

absl::StatusOr<std::vector<Mapping>> ParseMappings(absl::string_view text) {
  std::vector<Mapping> mappings;
  for (const absl::string_view line :
       absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    Mapping mapping;
    if (!ParseMapping(line, &mapping)) {
      return absl::InvalidArgumentError(
          absl::StrCat("not a line of /proc/PID/maps: ", line));
    }
    mappings.push_back(std::move(mapping));
  }
  return mappings;
}

absl::StatusOr<std::vector<Mapping>> ReadMappings(pid_t pid) {
  const std::string path = absl::StrCat("/proc/", pid, "/maps");
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  if (!file.is_open() || file.bad()) return FileError(path);
  return ParseMappings(text.str());
}

std::vector<Mapping> ChooseRecorded(std::vector<Mapping> mappings,
                                    ByteCount bytes_min, size_t count_max) {
  const auto size = [](const Mapping& m) { return m.end - m.begin; };
  const auto unfit = [&](const Mapping& m) {
    return !IsRecorded(m) || size(m) < bytes_min.value();
  };
  mappings.erase(std::remove_if(mappings.begin(), mappings.end(), unfit),
                 mappings.end());
  std::stable_sort(
      mappings.begin(), mappings.end(),
      [&](const Mapping& a, const Mapping& b) { return size(a) > size(b); });
  if (mappings.size() > count_max) mappings.resize(count_max);
  std::sort(
      mappings.begin(), mappings.end(),
      [](const Mapping& a, const Mapping& b) { return a.begin < b.begin; });
  return mappings;
}

absl::StatusOr<ProcessMemory> ProcessMemory::Open(pid_t pid) {
  const std::string base = absl::StrCat("/proc/", pid);
  UniqueFd memory(::open((base + "/mem").c_str(), O_RDWR | O_CLOEXEC));
  if (!memory.valid()) return FileError(base + "/mem");
  UniqueFd pagemap(::open((base + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return FileError(base + "/pagemap");
  return ProcessMemory(std::move(memory), std::move(pagemap));
}

absl::Status ProcessMemory::Read(uint64_t address, char* bytes,
                                 size_t size) const {
  const ssize_t read =
      ::pread(memory_.get(), bytes, size, static_cast<off_t>(address));
  if (read == static_cast<ssize_t>(size)) return absl::OkStatus();
  return FileError(absl::StrCat("reading ", size, " bytes at 0x",
                                absl::Hex(address), " of the program"));
}

absl::Status ProcessMemory::Write(uint64_t address, const char* bytes,
                                  size_t size) const {
  const ssize_t written =
      ::pwrite(memory_.get(), bytes, size, static_cast<off_t>(address));
  if (written == static_cast<ssize_t>(size)) return absl::OkStatus();
  return FileError(absl::StrCat("writing ", size, " bytes at 0x",
                                absl::Hex(address), " of the program"));
}

absl::StatusOr<PageCount> ProcessMemory::Save(const Mapping& mapping, int fd,
                                              uint64_t offset) const {
  if (::ftruncate(
          fd, static_cast<off_t>(offset + mapping.end - mapping.begin)) != 0) {
    return FileError("making the snapshot larger");
  }
  std::array<uint64_t, kPagesAtOnce> words;
  std::string page(kPageSize, '\0');
  PageCount saved;
  for (uint64_t at = mapping.begin; at < mapping.end;) {
    const size_t pages =
        std::min<uint64_t>(words.size(), (mapping.end - at) / kPageSize);
    const size_t bytes = pages * sizeof(words[0]);
    if (::pread(pagemap_.get(), words.data(), bytes,
                static_cast<off_t>(at / kPageSize * sizeof(words[0]))) !=
        static_cast<ssize_t>(bytes)) {
      return FileError("reading which pages the program has");
    }
    for (size_t i = 0; i < pages; ++i, at += kPageSize) {
      if ((words[i] & kHasContent) == 0) continue;
      absl::Status status = Read(at, page.data(), page.size());
      if (!status.ok()) return status;
      if (::pwrite(fd, page.data(), page.size(),
                   static_cast<off_t>(offset + at - mapping.begin)) !=
          static_cast<ssize_t>(page.size())) {
        return FileError("writing the snapshot (is $TMPDIR full?)");
      }
      saved += PageCount(1);
    }
  }
  return saved;
}

}  // namespace postcopy
