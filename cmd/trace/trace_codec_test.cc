#include "cmd/trace/trace_codec.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "cmd/trace/trace_check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

Trace TraceOf(size_t events) {
  Trace trace = {.pages = PageCount(1 << 20),
                 .origin = "by hand",
                 .events = {},
                 .dropped = 3};
  for (size_t i = 0; i < events; ++i) {
    trace.events.push_back({.time_ns = i * 1000,
                            .page = PageIndex(i * 7919 % (1 << 20)),
                            .thread = static_cast<uint32_t>(i % 3),
                            .kind = static_cast<TouchKind>(i % 4),
                            .stages_ns = {1, 2 * i, 3, kTraceTimeNanosMax}});
  }
  return trace;
}

void ExpectRefused(const std::string& bytes, absl::StatusCode code,
                   const std::string& part) {
  const absl::StatusOr<Trace> trace = DecodeTrace(bytes);
  EXPECT_EQ(trace.status().code(), code) << trace.status();
  EXPECT_THAT(std::string(trace.status().message()), HasSubstr(part));
}

TEST(TraceCodecTest, WhatIsEncodedIsDecoded) {
  for (size_t events :
       {size_t{0}, size_t{1}, kTraceBatchEventsMax, kTraceBatchEventsMax + 1}) {
    const Trace trace = TraceOf(events);
    const absl::StatusOr<Trace> decoded = DecodeTrace(EncodeTrace(trace));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, trace);
  }
}

TEST(TraceCodecTest, TheLargestEventsOfABatchFitIntoARecord) {
  Trace trace = {.pages = PageCount(kTracePagesMax), .origin = ""};
  for (size_t i = 0; i < kTraceBatchEventsMax; ++i) {
    trace.events.push_back(
        {.time_ns = kTraceTimeNanosMax,
         .page = PageIndex(kTracePagesMax - 1),
         .thread = UINT32_MAX,
         .kind = TouchKind::kWriteProtect,
         .stages_ns = {kTraceTimeNanosMax, kTraceTimeNanosMax,
                       kTraceTimeNanosMax, kTraceTimeNanosMax}});
  }
  const absl::StatusOr<Trace> decoded = DecodeTrace(EncodeTrace(trace));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, trace);
}

TEST(TraceCodecTest, ATraceThatEndsTooEarlyIsRefusedWhereverItEnds) {
  const std::string bytes = EncodeTrace(TraceOf(20));
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(DecodeTrace(bytes.substr(0, length)).ok()) << length;
  }
  ExpectRefused(bytes.substr(0, bytes.size() - 1), absl::StatusCode::kDataLoss,
                "at byte ");
}

TEST(TraceCodecTest, OneWrongBitIsSeenWhereverItIs) {
  const std::string bytes = EncodeTrace(TraceOf(5));
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ 1 << bit);
      const absl::StatusOr<Trace> trace = DecodeTrace(damaged);
      // The trailer's count of dropped events is behind the checksum's reach,
      // and so is a longer form of its length.
      EXPECT_TRUE(!trace.ok() || trace->events == TraceOf(5).events) << i;
    }
  }
}

TEST(TraceCodecTest, BytesBehindTheTrailerAreRefused) {
  ExpectRefused(EncodeTrace(TraceOf(1)) + "x",
                absl::StatusCode::kInvalidArgument, "behind the trailer");
}

TEST(TraceCodecTest, WhatIsNoTraceIsToldSo) {
  ExpectRefused("", absl::StatusCode::kInvalidArgument, "no trace");
  ExpectRefused("hello, world", absl::StatusCode::kInvalidArgument, "no trace");
}

TEST(TraceCodecTest, AnotherVersionIsToldSo) {
  std::string bytes = EncodeTrace(TraceOf(0));
  // Magic, the record's length, tag and length of the header, tag of version.
  const size_t version = kTraceMagic.size() + 4;
  ASSERT_EQ(bytes[version], 1);
  bytes[version] = 2;
  ExpectRefused(bytes, absl::StatusCode::kFailedPrecondition, "version 2");
}

TEST(TraceCodecTest, ARecordOfTheLimitIsReadAndNotOneLonger) {
  // A length of kTraceRecordBytesMax with nothing behind it: not refused for
  // the length.
  ExpectRefused(std::string(kTraceMagic) + "\x80\x80\x20",
                absl::StatusCode::kDataLoss, "within a record");
  ExpectRefused(std::string(kTraceMagic) + "\x81\x80\x20",
                absl::StatusCode::kInvalidArgument, "a record of 524289");
}

TEST(TraceCheckTest, LimitsOfAHeader) {
  const std::string longest(kTraceOriginBytesMax, 'x');
  EXPECT_TRUE(CheckTraceHeader(1, longest).ok());
  EXPECT_TRUE(CheckTraceHeader(kTracePagesMax, "").ok());
  EXPECT_FALSE(CheckTraceHeader(0, "").ok());
  EXPECT_FALSE(CheckTraceHeader(kTracePagesMax + 1, "").ok());
  EXPECT_FALSE(CheckTraceHeader(1, longest + "x").ok());
  EXPECT_FALSE(CheckTraceHeader(1, "two\nlines").ok());
}

TEST(TraceCheckTest, LimitsOfAnEvent) {
  TraceEventChecker checker(PageCount(10));
  EXPECT_TRUE(checker.Check({.time_ns = 5, .page = PageIndex(9)}).ok());
  EXPECT_FALSE(checker.Check({.time_ns = 5, .page = PageIndex(10)}).ok());
  EXPECT_FALSE(checker.Check({.time_ns = 4, .page = PageIndex(0)}).ok());
  EXPECT_TRUE(checker.Check({.time_ns = kTraceTimeNanosMax}).ok());
  EXPECT_FALSE(checker.Check({.time_ns = kTraceTimeNanosMax + 1}).ok());
  EXPECT_FALSE(checker
                   .Check({.time_ns = kTraceTimeNanosMax,
                           .stages_ns = {0, 0, 0, kTraceTimeNanosMax + 1}})
                   .ok());
}

TEST(TraceCheckTest, LimitOfThreads) {
  TraceEventChecker checker(PageCount(1));
  for (uint32_t i = 0; i < kTraceThreadsMax; ++i) {
    ASSERT_TRUE(checker.Check({.thread = i * 1000}).ok());
  }
  EXPECT_TRUE(checker.Check({.thread = 1000}).ok());
  EXPECT_FALSE(checker.Check({.thread = 1}).ok());
}

TEST(TraceCheckTest, LimitOfEvents) {
  TraceEventChecker checker(PageCount(1));
  for (size_t i = 0; i < kTraceEventsMax; ++i) {
    if (!checker.Check({}).ok()) FAIL() << i;
  }
  EXPECT_FALSE(checker.Check({}).ok());
}

class TraceFileTest : public ::testing::Test {
 protected:
  const std::string path_ = ::testing::TempDir() + "/trace";
};

TEST_F(TraceFileTest, WhatIsWrittenIsRead) {
  ASSERT_TRUE(WriteTraceFile(path_, TraceOf(10)).ok());
  const absl::StatusOr<Trace> trace = ReadTraceFile(path_);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(*trace, TraceOf(10));
  EXPECT_FALSE(std::filesystem::exists(path_ + ".new"));
}

TEST_F(TraceFileTest, WhatCannotBeReadIsNamed) {
  EXPECT_EQ(ReadTraceFile(path_ + ".none").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadTraceFile("/dev/null").status().message()),
              HasSubstr("no regular file"));
  std::ofstream(path_) << kTraceMagic << "nonsense";
  EXPECT_THAT(std::string(ReadTraceFile(path_).status().message()),
              HasSubstr(path_));
  std::filesystem::resize_file(path_, kTraceFileBytesMax + 1);
  EXPECT_THAT(std::string(ReadTraceFile(path_).status().message()),
              HasSubstr("at most"));
}

TEST_F(TraceFileTest, WhatCannotBeWrittenIsNamed) {
  EXPECT_THAT(
      std::string(WriteTraceFile("/nowhere/trace", TraceOf(1)).message()),
      HasSubstr("/nowhere/trace"));
}

}  // namespace
}  // namespace postcopy
