#include "cmd/trace/trace_text.h"

#include <string>

#include "absl/strings/str_replace.h"
#include "cmd/trace/trace_codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

Trace Small() {
  return {.pages = PageCount(100),
          .origin = "by hand, \"quoted\"",
          .events = {{.time_ns = 10, .page = PageIndex(99)},
                     {.time_ns = kTraceTimeNanosMax,
                      .page = PageIndex(3),
                      .thread = 7,
                      .kind = TouchKind::kWriteProtect,
                      .stages_ns = {1, 2, 3, 4}}},
          .dropped = 5};
}

void ExpectRefused(const absl::StatusOr<Trace>& trace,
                   const std::string& part) {
  EXPECT_EQ(trace.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(trace.status().message()), HasSubstr(part));
}

TEST(TraceTextTest, CsvAsDocumented) {
  EXPECT_EQ(TraceToCsv(Small()),
            "# pages=100 dropped=5 by hand, \"quoted\"\n"
            "time_ns,page,thread,kind,reading_ns,asking_ns,answering_ns,"
            "installing_ns\n"
            "10,99,0,read,0,0,0,0\n"
            "9007199254740991,3,7,write-protect,1,2,3,4\n");
}

TEST(TraceTextTest, WhatIsWrittenIsRead) {
  const absl::StatusOr<Trace> csv = TraceFromCsv(TraceToCsv(Small()));
  ASSERT_TRUE(csv.ok()) << csv.status();
  EXPECT_EQ(*csv, Small());
  const absl::StatusOr<Trace> json = TraceFromJson(TraceToJson(Small()));
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(*json, Small());
}

TEST(TraceTextTest, ATraceThatEndedEarlySaysSoInEveryFormat) {
  Trace early = Small();
  early.ended_early = true;
  EXPECT_THAT(TraceToCsv(early), HasSubstr("dropped=5,ended_early by hand"));
  EXPECT_THAT(TraceToJson(early), HasSubstr("\"endedEarly\":true"));
  for (const absl::StatusOr<Trace>& read :
       {TraceFromCsv(TraceToCsv(early)), TraceFromJson(TraceToJson(early)),
        DecodeTrace(EncodeTrace(early))}) {
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, early);
  }
}

TEST(TraceTextTest, CsvThatIsNoneNamesTheLine) {
  const std::string good = TraceToCsv(Small());
  const auto with = [&](const char* from, const char* to) {
    return TraceFromCsv(absl::StrReplaceAll(good, {{from, to}}));
  };
  ExpectRefused(TraceFromCsv(""), "nothing");
  ExpectRefused(with("# pages", "pages"), "line 1");
  ExpectRefused(with("pages=100", "pages=0"), "line 1");
  ExpectRefused(with("time_ns,", "time,"), "line 2");
  ExpectRefused(with("10,99,", "99,"), "line 3: has 7 fields");
  ExpectRefused(with("10,99,", "x,99,"), "no number");
  ExpectRefused(with("10,99,", "-1,99,"), "no number");
  ExpectRefused(with("read,0", "sing,0"), "\"sing\" is no kind");
  ExpectRefused(with("10,99,", "10,100,"), "page 100");
}

TEST(TraceTextTest, JsonThatIsNoneNamesTheLine) {
  const std::string good = TraceToJson(Small());
  ExpectRefused(TraceFromJson(""), "no trailer");
  ExpectRefused(TraceFromJson("hello"), "line 1");
  ExpectRefused(TraceFromJson(good + good), "behind the trailer");
  ExpectRefused(TraceFromJson(good.substr(good.find('\n') + 1)), "header");
  ExpectRefused(TraceFromJson(absl::StrReplaceAll(good, {{"_READ", "_SING"}})),
                "line 2");
  ExpectRefused(TraceFromJson(absl::StrReplaceAll(
                    good, {{"\"page\":99", "\"page\":1e3"}})),
                "page 1000");
}

}  // namespace
}  // namespace postcopy
