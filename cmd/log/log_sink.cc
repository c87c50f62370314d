#include "cmd/log/log_sink.h"

#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

bool NeedsNoQuotes(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
         c == '_' || c == '-' || c == ':' || c == '/';
}

// How a character of UTF-8 begins. Shorter ones than the value needs are none.
struct Utf8Lead {
  unsigned char mask;
  unsigned char bits;
  size_t bytes;
  uint32_t least;
};
constexpr Utf8Lead kUtf8Leads[] = {{0x80, 0x00, 1, 0x0},
                                   {0xe0, 0xc0, 2, 0x80},
                                   {0xf0, 0xe0, 3, 0x800},
                                   {0xf8, 0xf0, 4, 0x10000}};

// Bytes of the character that `text` begins with; 0: there is none, or it is
// not to be printed.
size_t PrintableBytes(absl::string_view text) {
  const auto first = static_cast<unsigned char>(text.front());
  for (const Utf8Lead& lead : kUtf8Leads) {
    if ((first & lead.mask) != lead.bits) continue;
    if (text.size() < lead.bytes) return 0;
    uint32_t value = first & static_cast<unsigned char>(~lead.mask);
    for (size_t i = 1; i < lead.bytes; ++i) {
      const auto next = static_cast<unsigned char>(text[i]);
      if ((next & 0xc0) != 0x80) return 0;
      value = value << 6 | (next & 0x3f);
    }
    const bool control = value < 0x20 || (value >= 0x7f && value < 0xa0);
    const bool surrogate = value >= 0xd800 && value < 0xe000;
    const bool none = value < lead.least || value > 0x10ffff || surrogate;
    return control || none ? 0 : lead.bytes;
  }
  return 0;
}

// Letters of any language stay.
std::string Printable(absl::string_view text) {
  std::string printable;
  printable.reserve(text.size());
  while (!text.empty()) {
    const size_t bytes = PrintableBytes(text);
    if (bytes > 0) {
      printable.append(text.data(), bytes);
      text.remove_prefix(bytes);
      continue;
    }
    printable += '?';
    text.remove_prefix(1);
  }
  return printable;
}

std::string Value(const std::string& value) {
  bool plain = !value.empty();
  for (const char c : value) plain = plain && NeedsNoQuotes(c);
  if (plain) return value;
  std::string quoted = "\"";
  for (const char c : Printable(value)) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted += '"';
}

void WriteAll(int fd, const std::string& text) {
  // If it cannot be written there is nobody left to be told.
  const ssize_t written = ::write(fd, text.data(), text.size());
  static_cast<void>(written);
}

}  // namespace

std::string FormatLine(const std::string& program, const LogRecord& record) {
  std::string line =
      absl::StrCat(program, ": ", LogSeverityName(record.severity), ": ",
                   Printable(record.sentence));
  for (const auto& [name, value] : record.fields) {
    absl::StrAppend(&line, " ", absl::AsciiStrToLower(name), "=", Value(value));
  }
  return line += '\n';
}

std::vector<std::string> FormatJournal(const std::string& program,
                                       const LogRecord& record) {
  std::vector<std::string> fields = {
      absl::StrCat("MESSAGE=", Printable(record.sentence)),
      absl::StrCat("PRIORITY=", static_cast<int>(record.severity)),
      absl::StrCat("SYSLOG_IDENTIFIER=", program)};
  for (const auto& [name, value] : record.fields) {
    fields.push_back(absl::StrCat(name, "=", Printable(value)));
  }
  return fields;
}

LogSink LinesTo(int fd, std::string program) {
  return [fd, program = std::move(program)](const LogRecord& record) {
    WriteAll(fd, FormatLine(program, record));
  };
}

LogSink ToJournal(std::string program) {
  return [program = std::move(program)](const LogRecord& record) {
    std::vector<std::string> fields = FormatJournal(program, record);
    std::vector<iovec> parts;
    parts.reserve(fields.size());
    for (std::string& field : fields) {
      parts.push_back({field.data(), field.size()});
    }
    const int sent =
        ::sd_journal_sendv(parts.data(), static_cast<int>(parts.size()));
    if (sent < 0) WriteAll(STDERR_FILENO, FormatLine(program, record));
  };
}

bool IsJournal(int fd, const char* journal_stream) {
  struct stat status = {};
  if (journal_stream == nullptr || ::fstat(fd, &status) != 0) return false;
  return absl::StrCat(status.st_dev, ":", status.st_ino) == journal_stream;
}

LogSink ChooseLogSink(std::string program) {
  // Read before any thread is started that could set it.
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  const char* const stream = std::getenv("JOURNAL_STREAM");
  return IsJournal(STDERR_FILENO, stream)
             ? ToJournal(std::move(program))
             : LinesTo(STDERR_FILENO, std::move(program));
}

}  // namespace postcopy
