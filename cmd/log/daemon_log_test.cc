#include "cmd/log/daemon_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <future>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/log/log_sink.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

// What a DaemonLog passes on. Valid to read once that has ended.
struct Kept {
  std::vector<LogRecord> records;
  LogSink Sink() {
    return [this](const LogRecord& record) { records.push_back(record); };
  }
};

TEST(DaemonLogTest, PassesOnInOrderAndIsDoneAtItsEnd) {
  Kept kept;
  {
    DaemonLog log(kept.Sink(), LogSeverity::kDebug);
    for (int i = 0; i < 100; ++i) {
      log.Write({LogSeverity::kInfo, absl::StrCat(i), {}});
    }
  }
  ASSERT_EQ(kept.records.size(), 100u);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(kept.records[i].sentence, absl::StrCat(i));
  }
}

TEST(DaemonLogTest, LeavesOutWhatIsLessSevereThanAskedFor) {
  Kept kept;
  {
    DaemonLog log(kept.Sink(), LogSeverity::kWarning);
    log.Write({LogSeverity::kNotice, "not this", {}});
    log.Write({LogSeverity::kWarning, "this", {}});
    log.Write({LogSeverity::kError, "and this", {}});
    EXPECT_EQ(log.written(), 2u);
  }
  ASSERT_EQ(kept.records.size(), 2u);
  EXPECT_EQ(kept.records[0].sentence, "this");
}

// A peer may have a say in what is written.
TEST(DaemonLogTest, LongTextsAreCut) {
  Kept kept;
  {
    DaemonLog log(kept.Sink(), LogSeverity::kInfo);
    log.Write({LogSeverity::kInfo,
               std::string(kLogSentenceBytesMax, 'a'),
               {{"FIELD", std::string(kLogFieldBytesMax, 'a')}}});
    log.Write({LogSeverity::kInfo,
               std::string(kLogSentenceBytesMax + 1, 'a'),
               {{"FIELD", std::string(kLogFieldBytesMax + 1, 'a')}}});
  }
  EXPECT_EQ(kept.records[0].sentence.size(), kLogSentenceBytesMax);
  EXPECT_EQ(kept.records[0].fields[0].second.size(), kLogFieldBytesMax);
  EXPECT_EQ(kept.records[1].sentence,
            absl::StrCat(std::string(kLogSentenceBytesMax, 'a'), "..."));
  EXPECT_EQ(kept.records[1].fields[0].second,
            absl::StrCat(std::string(kLogFieldBytesMax, 'a'), "..."));
}

// At the limit of the queue all are kept; one past it is dropped, the writer
// does not wait, and the log tells.
TEST(DaemonLogTest, AStuckSinkHoldsUpNobody) {
  std::vector<std::string> sentences;
  std::promise<void> first_came, go_on;
  std::shared_future<void> may_go_on = go_on.get_future().share();
  uint64_t dropped = 0;
  {
    DaemonLog log(
        [&](const LogRecord& record) {
          sentences.push_back(record.sentence);
          if (sentences.size() == 1) {
            first_came.set_value();
            may_go_on.wait();
          }
        },
        LogSeverity::kInfo);
    log.Write({LogSeverity::kInfo, "first", {}});
    first_came.get_future().wait();
    for (size_t i = 0; i < kLogQueueMax; ++i) {
      log.Write({LogSeverity::kInfo, "waits", {}});
    }
    EXPECT_EQ(log.dropped(), 0u);
    log.Write({LogSeverity::kInfo, "too many", {}});
    dropped = log.dropped();
    go_on.set_value();
  }
  EXPECT_EQ(dropped, 1u);
  ASSERT_EQ(sentences.size(), kLogQueueMax + 2);
  EXPECT_EQ(sentences.back(),
            "1 lines of this log were dropped: it is written more slowly than "
            "there is to say");
}

TEST(LogSinkTest, LinesHaveSeveritySentenceAndFields) {
  EXPECT_EQ(FormatLine("faultd", {LogSeverity::kWarning,
                                  "the source is lost",
                                  {{kVmNameField, "vm-1"},
                                   {kStateField, "PAUSED"},
                                   {"PEER", "ipv4:10.0.0.1:7"},
                                   {"NOTE", "a \"b\" \\"},
                                   {"NOTHING", ""}}}),
            "faultd: warning: the source is lost vm_name=vm-1 state=PAUSED "
            "peer=ipv4:10.0.0.1:7 note=\"a \\\"b\\\" \\\\\" nothing=\"\"\n");
}

// A peer cannot write lines of its own, or colours on a terminal.
TEST(LogSinkTest, NothingStartsAnotherLine) {
  const LogRecord evil = {
      LogSeverity::kInfo, "a\nfaultd: error: b\x1b[31m", {{"X", "c\nd\re"}}};
  EXPECT_EQ(FormatLine("faultd", evil),
            "faultd: info: a?faultd: error: b?[31m x=\"c?d?e\"\n");
  EXPECT_EQ(
      FormatJournal("faultd", evil),
      (std::vector<std::string>{"MESSAGE=a?faultd: error: b?[31m", "PRIORITY=6",
                                "SYSLOG_IDENTIFIER=faultd", "X=c?d?e"}));
}

TEST(LogSinkTest, WritesLinesToADescriptor) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  const UniqueFd read_end(fds[0]), write_end(fds[1]);
  LinesTo(write_end.get(), "p")({LogSeverity::kInfo, "hello", {}});
  char text[64] = {};
  ASSERT_GT(::read(read_end.get(), text, sizeof text - 1), 0);
  EXPECT_STREQ(text, "p: info: hello\n");
}

TEST(LogSinkTest, TheJournalIsWhereJournalStreamSaysItIs) {
  const UniqueFd file(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  struct stat status = {};
  ASSERT_EQ(::fstat(file.get(), &status), 0);
  const std::string stream = absl::StrCat(status.st_dev, ":", status.st_ino);
  EXPECT_TRUE(IsJournal(file.get(), stream.c_str()));
  EXPECT_FALSE(IsJournal(file.get(), nullptr)) << "not started by systemd";
  EXPECT_FALSE(IsJournal(file.get(), "1:2")) << "redirected since";
  EXPECT_FALSE(IsJournal(file.get(), ""));
  EXPECT_FALSE(IsJournal(-1, stream.c_str()));
}

}  // namespace
}  // namespace postcopy
