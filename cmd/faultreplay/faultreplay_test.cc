// The program as its user calls it, with real daemons behind it.
#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/faultreplay/program_fixture.h"
#include "dirtytrack/userfaultfd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ReplayTest : public FaultReplayTest {
 protected:
  void SetUp() override {
    const auto uffd = CreateUserfaultfd();
    if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  }
};

TEST_F(FaultReplayTest, ATraceGoesThroughAllFormatsAndBack) {
  ASSERT_EQ(Run({"synth", "--pattern=2*zipfian+sequential", "--threads=3",
                 "--write_percent=10", "--touches=500", At("a.trace")}),
            0)
      << err_;
  ASSERT_EQ(Run({"convert", At("a.trace"), At("b.csv")}), 0) << err_;
  ASSERT_EQ(Run({"convert", At("b.csv"), At("c.json")}), 0) << err_;
  ASSERT_EQ(Run({"convert", At("c.json"), At("d.trace")}), 0) << err_;
  EXPECT_EQ(Content("a.trace"), Content("d.trace"));
  ASSERT_EQ(Run({"info", At("d.trace")}), 0) << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("500"), HasSubstr("3 threads"),
                          HasSubstr("synth 2*zipfian+sequential seed 1")));
  ASSERT_EQ(Run({"info", "--output=json", At("b.csv")}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("\"events\":500"));
}

TEST_F(FaultReplayTest, WrongUsageIsToldSo) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"dance"},
                                             {"synth"},
                                             {"info"},
                                             {"convert", "x"},
                                             {"compare"},
                                             {"compare", "vmware"},
                                             {"run", "--backend=ours"},
                                             {"run", "--repeats=0"},
                                             {"run", "--repeats=101"},
                                             {"run", "--think=hard"},
                                             {"run", "--placement=moon"},
                                             {"run", "--output=xml"},
                                             {"run", "--ram=5000"},
                                             {"run", "--pattern=x"},
                                             {"run", "--what"},
                                             {"bench", "x"}}) {
    EXPECT_EQ(Run(arguments), 2) << ::testing::PrintToString(arguments);
    EXPECT_THAT(err_, HasSubstr("--help"));
  }
}

TEST_F(FaultReplayTest, WhereThereIsNoQemuItIsToldSo) {
  EXPECT_EQ(Run({"compare", "qemu", "--qemu=/nowhere/qemu"}), 1);
  EXPECT_THAT(err_, AllOf(HasSubstr("QEMU is not installed"),
                          HasSubstr("/nowhere/qemu")));
  ASSERT_EQ(::setenv("PATH", directory_.c_str(), 1), 0);
  EXPECT_EQ(Run({"compare", "qemu"}), 1);
  EXPECT_THAT(err_,
              AllOf(HasSubstr("QEMU is not installed"), HasSubstr("in $PATH")));
}

TEST_F(FaultReplayTest, WhatQemusGuestCannotDoIsWrongUsage) {
  for (const char* flag : {"--threads=2", "--ram=3GiB", "--touches=1048577"}) {
    EXPECT_EQ(Run({"run", "--backend=qemu", "--qemu=/bin/false", flag}), 2)
        << flag;
  }
}

TEST_F(FaultReplayTest, ATraceThatIsNoneIsToldSo) {
  std::ofstream(At("bad.trace")) << "PCTRACE1nonsense";
  EXPECT_NE(Run({"info", At("bad.trace")}), 0);
  EXPECT_THAT(err_, HasSubstr("at byte"));
  EXPECT_EQ(Run({"info", At("none.trace")}), 1);
}

TEST_F(FaultReplayTest, HelpIsOneScreen) {
  EXPECT_EQ(Run({"--help"}), 0);
  EXPECT_LT(std::count(out_.begin(), out_.end(), '\n'), 50);
}

TEST_F(ReplayTest, TheServiceBesideItsFloors) {
  ASSERT_EQ(Run({"compare", "floors", "--ram=4MiB", "--touches=300",
                 "--threads=2", "--repeats=1", "--output=json",
                 "--html=" + At("r.html"), "--hdr=" + At("r.hdr")}),
            0)
      << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("\"name\":\"local\""),
                          HasSubstr("\"name\":\"tcp\""),
                          HasSubstr("\"name\":\"grpc-echo\""),
                          HasSubstr("\"name\":\"service:idle\""),
                          HasSubstr("\"name\":\"answering\""),
                          HasSubstr("\"pages_checked\":1024")));
  EXPECT_THAT(Content("r.html"), HasSubstr("p50 of a fault / (grpc-echo"));
  EXPECT_THAT(Content("r.hdr"), HasSubstr("# service:idle"));
}

TEST_F(ReplayTest, TheServiceInEveryWay) {
  ASSERT_EQ(
      Run({"run", "--ram=4MiB", "--touches=400", "--threads=3", "--repeats=1",
           "--pattern=phased:2+sequential", "--write_percent=20",
           "--think_time=10us", "--think=recorded", "--placement=spread",
           "--backend=service,service:linear,service:after-precopy,"
           "service:around-faults:limit=64MiB,service:idle:delay=1ms,"
           "grpc-stream,grpc-echo:delay=1ms,tcp:delay=1ms"}),
      0)
      << err_;
  EXPECT_THAT(out_, HasSubstr("touching threads bound"));
}

TEST_F(ReplayTest, ASlowNetworkIsSeen) {
  ASSERT_EQ(Run({"run", "--ram=1MiB", "--touches=20", "--repeats=1",
                 "--pattern=strided:13", "--backend=service:idle:delay=20ms",
                 "--output=json"}),
            0)
      << err_;
  const size_t at = out_.find("\"p50\":");
  ASSERT_NE(at, std::string::npos);
  EXPECT_GE(std::stoull(out_.substr(at + 6)), 20'000'000u) << out_;
}

TEST_F(ReplayTest, ALostPageFailsTheRun) {
  for (const char* backend : {"local", "tcp", "grpc-echo", "service"}) {
    EXPECT_EQ(Run({"run", "--ram=1MiB", "--touches=50", "--repeats=1",
                   "--lose_page=77", absl::StrCat("--backend=", backend)}),
              1)
        << backend;
    EXPECT_THAT(err_, HasSubstr("page 77")) << backend;
  }
}

TEST_F(ReplayTest, ADaemonThatCannotBeStartedFailsTheRun) {
  EXPECT_EQ(Run({"run", "--ram=1MiB", "--faultd=/bin/false"}), 1);
  EXPECT_EQ(Run({"run", "--ram=1MiB", "--faultd=/nowhere"}), 1);
  EXPECT_THAT(err_, HasSubstr("/nowhere"));
}

}  // namespace
}  // namespace postcopy
