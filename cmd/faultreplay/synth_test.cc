#include "cmd/faultreplay/synth.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include "cmd/trace/trace_check.h"
#include "cmd/trace/trace_codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Trace Make(const std::string& patterns, uint32_t threads = 1,
           uint64_t seed = 1) {
  SynthOptions options;
  options.patterns = *ParsePatterns(patterns);
  options.pages = PageCount(1000);
  options.touches = 4000;
  options.threads = threads;
  options.seed = seed;
  options.think_ns = 500;
  options.write_percent = 25;
  absl::StatusOr<Trace> trace = Synthesize(options);
  EXPECT_TRUE(trace.ok()) << trace.status();
  EXPECT_TRUE(CheckTrace(*trace).ok()) << CheckTrace(*trace);
  return *std::move(trace);
}

std::vector<uint64_t> FirstPages(const Trace& trace, size_t count) {
  std::vector<uint64_t> pages;
  for (size_t i = 0; i < count; ++i) {
    pages.push_back(trace.events[i].page.value());
  }
  return pages;
}

TEST(SynthTest, TheSameSeedGivesTheSameBytes) {
  for (const char* patterns :
       {"sequential", "strided:7", "uniform", "zipfian", "phased",
        "2*sequential+zipfian:0.5+0.1*uniform"}) {
    const std::string bytes = EncodeTrace(Make(patterns, 3, 42));
    EXPECT_EQ(EncodeTrace(Make(patterns, 3, 42)), bytes) << patterns;
    EXPECT_NE(EncodeTrace(Make(patterns, 3, 43)), bytes) << patterns;
  }
}

TEST(SynthTest, SequentialGoesUpwardsAndBeginsAgain) {
  const Trace trace = Make("sequential");
  EXPECT_THAT(FirstPages(trace, 3), ElementsAre(0, 1, 2));
  EXPECT_EQ(trace.events[1000].page, PageIndex(0));
}

TEST(SynthTest, EachThreadHasAPartOfItsOwn) {
  const Trace trace = Make("sequential", 4);
  EXPECT_THAT(FirstPages(trace, 6), ElementsAre(0, 250, 500, 750, 1, 251));
}

TEST(SynthTest, StridesCoverAllInTheEnd) {
  const Trace trace = Make("strided:300");
  EXPECT_THAT(FirstPages(trace, 6), ElementsAre(0, 300, 600, 900, 1, 301));
  std::set<uint64_t> pages;
  for (const TraceEvent& event : trace.events) pages.insert(event.page.value());
  EXPECT_EQ(pages.size(), 1000u);
}

TEST(SynthTest, ZipfianHasFewHotPages) {
  std::map<uint64_t, int> touches;
  for (const TraceEvent& event : Make("zipfian:0.99").events) {
    ++touches[event.page.value()];
  }
  std::multiset<int> counts;
  for (const auto& [page, count] : touches) counts.insert(count);
  // 1 / zeta(1000, 0.99) is 13 %.
  EXPECT_GT(*counts.rbegin(), 400);
  EXPECT_LT(*counts.rbegin(), 700);
  EXPECT_GT(touches.size(), 300u);
}

TEST(SynthTest, PhasesStayInTheirSet) {
  const Trace trace = Make("phased:4");
  for (size_t phase = 0; phase < 4; ++phase) {
    uint64_t low = UINT64_MAX;
    uint64_t high = 0;
    for (size_t i = phase * 1000; i < (phase + 1) * 1000; ++i) {
      low = std::min(low, trace.events[i].page.value());
      high = std::max(high, trace.events[i].page.value());
    }
    EXPECT_LT(high - low, 1000 / kPhasedParts);
  }
}

TEST(SynthTest, WeightsAndWritesAreInProportion) {
  size_t sequential = 0;
  size_t writes = 0;
  uint64_t next = 0;
  for (const TraceEvent& event : Make("3*sequential+uniform").events) {
    if (event.page.value() == next % 1000) ++sequential, ++next;
    if (event.kind == TouchKind::kWrite) ++writes;
  }
  EXPECT_NEAR(static_cast<double>(sequential), 3000, 150);
  EXPECT_NEAR(static_cast<double>(writes), 1000, 150);
}

TEST(SynthTest, PatternsThatAreNoneAreToldSo) {
  for (const char* text :
       {"", "random", "sequential:3", "strided:0", "strided:1048577",
        "zipfian:1", "zipfian:x", "phased:0", "phased:65537", "0*uniform",
        "-1*uniform", "nan*uniform", "uniform+"}) {
    EXPECT_FALSE(ParsePatterns(text).ok()) << text;
  }
  EXPECT_TRUE(ParsePatterns("strided:1048576").ok());
  EXPECT_TRUE(ParsePatterns("phased:65536").ok());
  std::string many = "uniform";
  for (size_t i = 1; i < kPatternsMax; ++i) many += "+uniform";
  EXPECT_TRUE(ParsePatterns(many).ok());
  EXPECT_THAT(std::string(ParsePatterns(many + "+uniform").status().message()),
              HasSubstr("at most 16"));
}

TEST(SynthTest, LimitsOfATrace) {
  SynthOptions options = {.patterns = *ParsePatterns("uniform")};
  options.pages = PageCount(1);
  options.threads = kTraceThreadsMax;
  EXPECT_TRUE(Synthesize(options).ok());
  options.threads = kTraceThreadsMax + 1;
  EXPECT_FALSE(Synthesize(options).ok());
  options.threads = 0;
  EXPECT_FALSE(Synthesize(options).ok());
  options.threads = 1;
  options.touches = kTraceEventsMax + 1;
  EXPECT_FALSE(Synthesize(options).ok());
  options.touches = 1;
  options.write_percent = 101;
  EXPECT_FALSE(Synthesize(options).ok());
  options.write_percent = 100;
  options.think_ns = kTraceTimeNanosMax;
  EXPECT_FALSE(Synthesize(options).ok());
  options.think_ns = kTraceTimeNanosMax / 2;
  EXPECT_TRUE(Synthesize(options).ok());
  options.pages = PageCount(0);
  EXPECT_FALSE(Synthesize(options).ok());
}

TEST(SynthTest, EveryPatternFitsTheSmallestMemory) {
  for (uint64_t pages : {1, 2, 3}) {
    SynthOptions options = {
        .patterns = *ParsePatterns("sequential+strided+uniform+zipfian+phased"),
        .pages = PageCount(pages),
        .touches = 1000,
        .threads = 5};
    const absl::StatusOr<Trace> trace = Synthesize(options);
    ASSERT_TRUE(trace.ok());
    EXPECT_TRUE(CheckTrace(*trace).ok());
  }
}

}  // namespace
}  // namespace postcopy
