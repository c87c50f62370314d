// Where log records end up: the journal, or stderr.
#ifndef CMD_LOG_LOG_SINK_H_
#define CMD_LOG_LOG_SINK_H_

#include <functional>
#include <string>
#include <vector>

#include "cmd/log/log.h"

namespace postcopy {

// Writes one record; may block. By one thread. Stuck, it outlives its
// DaemonLog.
using LogSink = std::function<void(const LogRecord&)>;

// "faultd: info: sentence vm_name=vm-1\n". Values with anything but letters,
// digits and a few signs are quoted. What could start another line, or move a
// terminal's cursor, becomes '?': control characters, those beyond ASCII too
// (U+0080 to U+009F), and bytes that are no UTF-8, which a terminal may take
// for these.
std::string FormatLine(const std::string& program, const LogRecord& record);

// "MESSAGE=sentence" and so on, as sd_journal_sendv takes them.
std::vector<std::string> FormatJournal(const std::string& program,
                                       const LogRecord& record);

// To descriptor `fd`, one write(2) for each line.
LogSink LinesTo(int fd, std::string program);

// To the journal with all fields; what cannot be sent there goes to stderr.
LogSink ToJournal(std::string program);

// True if `fd` is the journal's, as `journal_stream`, systemd's environment
// variable JOURNAL_STREAM, says ("DEVICE:INODE"). Null: not set.
bool IsJournal(int fd, const char* journal_stream);

// The journal if stderr leads there, else lines on stderr.
LogSink ChooseLogSink(std::string program);

}  // namespace postcopy

#endif  // CMD_LOG_LOG_SINK_H_
