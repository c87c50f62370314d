#include "cmd/log/daemon_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
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

// A pipe that nobody reads must not keep a daemon from ending.
TEST(DaemonLogTest, AStuckSinkHoldsUpNoEnd) {
  struct Shared {
    std::promise<void> came, go_on, done;
    std::shared_future<void> may_go_on = go_on.get_future().share();
  };
  const auto shared = std::make_shared<Shared>();
  {
    DaemonLog log(
        [shared](const LogRecord& record) {
          if (record.sentence != "stuck") return;
          shared->came.set_value();
          shared->may_go_on.wait();
          shared->done.set_value();
        },
        LogSeverity::kInfo, std::chrono::milliseconds(1));
    log.Write({LogSeverity::kInfo, "stuck", {}});
    log.Write({LogSeverity::kInfo, "behind it", {}});
    shared->came.get_future().wait();
  }
  // What is left runs on without it.
  shared->go_on.set_value();
  shared->done.get_future().wait();
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

// U+009B is CSI, with which a sequence for a terminal begins as with ESC [.
TEST(LogSinkTest, ControlCharactersBeyondAsciiAreNotPassedOn) {
  const auto shown = [](const std::string& sentence) {
    return FormatLine("p", {LogSeverity::kInfo, sentence, {}});
  };
  EXPECT_EQ(shown("a\xc2\x9b"
                  "31mb"),
            "p: info: a??31mb\n");
  EXPECT_EQ(shown("\xc2\x80 \xc2\x9f \x7f"), "p: info: ?? ?? ?\n");
  // The first behind them, and letters.
  const std::string letters = "\xc2\xa0 \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80";
  EXPECT_EQ(shown(letters), "p: info: " + letters + "\n");
  // Bytes alone, cut off, longer than need be, beyond the last, surrogates.
  EXPECT_EQ(shown("\x9b"
                  "1m"),
            "p: info: ?1m\n");
  EXPECT_EQ(shown("a\xe2\x82"), "p: info: a??\n");
  EXPECT_EQ(shown("\xe2z"), "p: info: ?z\n");
  EXPECT_EQ(shown("\xc0\x9b"), "p: info: ??\n");
  EXPECT_EQ(shown("\xe0\x82\x9b"), "p: info: ???\n");
  EXPECT_EQ(shown("\xf4\x90\x80\x80"), "p: info: ????\n");
  EXPECT_EQ(shown("\xed\xa0\x80"), "p: info: ???\n");
  EXPECT_EQ(shown("\xff"), "p: info: ?\n");
  EXPECT_EQ(
      FormatJournal("p", {LogSeverity::kInfo, "", {{"X", "\xc2\x9b"}}}).back(),
      "X=??");
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
