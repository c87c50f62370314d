#include "cmd/faultd/fault_recorder.h"

#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cmd/log/captured_log.h"
#include "cmd/log/log.h"
#include "cmd/trace/trace_codec.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_bitmap.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/pending_faults.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

constexpr PageCount kPages{1000};

TEST(TraceStemTest, IsAFileNameWhateverTheVmIsCalled) {
  EXPECT_EQ(TraceStem("web-1.prod_2"), "web-1.prod_2");
  EXPECT_EQ(TraceStem("VM 7 (process 12)"), "VM_7__process_12_");
  EXPECT_EQ(TraceStem("../../etc/passwd"), "_.._.._etc_passwd");
  EXPECT_EQ(TraceStem(""), "_");
  EXPECT_EQ(TraceStem(std::string("a\0b\n\xff", 5)), "a_b__");
  EXPECT_EQ(TraceStem(std::string(kTraceNameBytesMax, 'x')).size(),
            kTraceNameBytesMax);
  EXPECT_EQ(TraceStem(std::string(kTraceNameBytesMax + 1, 'x')).size(),
            kTraceNameBytesMax);
}

TEST(CheckTraceEventsTest, AtTheLimitsAndOnePast) {
  EXPECT_FALSE(CheckTraceEvents(0).ok());
  EXPECT_TRUE(CheckTraceEvents(1).ok());
  EXPECT_TRUE(CheckTraceEvents(kTraceEventsMax).ok());
  EXPECT_FALSE(CheckTraceEvents(kTraceEventsMax + 1).ok());
}

class FaultRecorderTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/traces";
    std::filesystem::remove_all(directory_);
    ASSERT_EQ(::mkdir(directory_.c_str(), 0700), 0);
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  void Create(size_t events_max = kDefaultTraceEvents) {
    auto recorder = FaultRecorder::Create(
        {.directory = directory_, .events_max = events_max, .log = &log_});
    ASSERT_TRUE(recorder.ok()) << recorder.status();
    recorder_ = *std::move(recorder);
  }
  // What is recorded is written.
  std::vector<std::string> FilesAtTheEnd() {
    recorder_->Shutdown();
    return Files();
  }
  std::vector<std::string> Files() {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      files.push_back(entry.path());
    }
    return files;
  }
  // The only one.
  Trace ReadTrace() {
    const std::vector<std::string> files = FilesAtTheEnd();
    EXPECT_EQ(files.size(), 1u);
    if (files.size() != 1) return {};
    const absl::StatusOr<Trace> trace = ReadTraceFile(files[0]);
    EXPECT_TRUE(trace.ok()) << trace.status();
    return trace.ok() ? *trace : Trace();
  }
  bool IsLogged(const std::string& part) {
    for (const LogRecord& record : log_.records()) {
      if (absl::StrContains(record.sentence, part)) return true;
    }
    return false;
  }

  std::string directory_;
  CapturedLog log_;
  std::unique_ptr<FaultRecorder> recorder_;
};

TEST_F(FaultRecorderTest, WritesWhatItIsTold) {
  Create();
  std::shared_ptr<FaultRecords> records = recorder_->Record("a/b", kPages);
  ASSERT_NE(records, nullptr);
  records->Add({.page = PageIndex(7),
                .read_ns = 5000,
                .stages_ns = {1},
                .thread = 42,
                .kind = FaultKind::kWrite});
  records->Add({.page = PageIndex(7),
                .read_ns = 5000,
                .stages_ns = {1, 2, 3, 4},
                .ended = true});
  records->Add({.page = PageIndex(8), .read_ns = 6000});
  records.reset();
  const Trace trace = ReadTrace();
  EXPECT_EQ(trace.pages, kPages);
  EXPECT_THAT(trace.origin, HasSubstr("VM a_b"));
  EXPECT_EQ(trace.dropped, 0u);
  EXPECT_EQ(trace.events,
            (std::vector<TraceEvent>{{.time_ns = 0,
                                      .page = PageIndex(7),
                                      .thread = 42,
                                      .kind = TouchKind::kWrite,
                                      .stages_ns = {1, 2, 3, 4}},
                                     {.time_ns = 1000, .page = PageIndex(8)}}));
  EXPECT_EQ(recorder_->totals().events.load(), 2u);
  EXPECT_EQ(recorder_->totals().failures.load(), 0u);
  EXPECT_TRUE(IsLogged("has 2 faults"));
  struct stat about = {};
  ASSERT_EQ(::stat(Files()[0].c_str(), &about), 0);
  EXPECT_EQ(about.st_mode & 0777, 0600u);
}

TEST_F(FaultRecorderTest, TheSameNameTwiceIsTwoFiles) {
  Create();
  for (int i = 0; i < 2; ++i) {
    const auto records = recorder_->Record("vm", kPages);
    ASSERT_NE(records, nullptr);
    records->Add({.page = PageIndex(1)});
  }
  EXPECT_EQ(FilesAtTheEnd().size(), 2u);
}

// VMs that are turned away, and migrations that are given up, come as often as
// somebody likes: they must not take the places of traces.
TEST_F(FaultRecorderTest, AVmWithoutAFaultLeavesNoFile) {
  Create();
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(recorder_->Record("vm", kPages), nullptr);
  }
  EXPECT_TRUE(FilesAtTheEnd().empty());
  EXPECT_EQ(recorder_->totals().recordings.load(), 3u);
  EXPECT_EQ(recorder_->totals().failures.load(), 0u);
}

TEST_F(FaultRecorderTest, AVmThatIsTakenHasATraceAlsoWithoutAFault) {
  Create();
  const auto taken = std::make_shared<std::atomic<bool>>(false);
  auto records = recorder_->Record("vm", kPages, taken);
  taken->store(true);
  records.reset();
  EXPECT_EQ(ReadTrace().events.size(), 0u);
}

// A log that holds up who writes to it, as a disk does that is slow.
class SlowLog final : public Log {
 public:
  void Write(LogRecord /*record*/) override {
    asked_.set_value();
    go_.get_future().wait();
  }
  void AwaitAsked() { asked_.get_future().wait(); }
  void LetGo() { go_.set_value(); }

 private:
  std::promise<void> asked_;
  std::promise<void> go_;
};

// Whoever attaches a VM, or takes one down, goes on: with the thread of a
// recording still in its file's making, or in its end.
TEST_F(FaultRecorderTest, NobodyWaitsForItsFiles) {
  SlowLog slow;
  auto recorder =
      FaultRecorder::Create({.directory = directory_, .log = &slow});
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  // So that the file's making has something to say.
  std::filesystem::remove_all(directory_);
  std::shared_ptr<FaultRecords> first = (*recorder)->Record("a", kPages);
  ASSERT_NE(first, nullptr);
  first->Add({.page = PageIndex(1)});
  slow.AwaitAsked();
  EXPECT_NE((*recorder)->Record("b", kPages), nullptr);
  first.reset();
  slow.LetGo();
}

// Those that have gone count until their traces are written.
TEST_F(FaultRecorderTest, SoManyAtATimeAndOneMore) {
  auto recorder = FaultRecorder::Create(
      {.directory = directory_, .recordings_max = 2, .log = &log_});
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  const auto first = (*recorder)->Record("vm", kPages);
  auto second = (*recorder)->Record("vm", kPages);
  EXPECT_NE(first, nullptr);
  EXPECT_NE(second, nullptr);
  EXPECT_EQ((*recorder)->Record("vm", kPages), nullptr);
  EXPECT_TRUE(IsLogged("2 VMs are recorded"));
  EXPECT_EQ((*recorder)->totals().failures.load(), 1u);
  second.reset();
  // It ends by itself.
  while ((*recorder)->Record("vm", kPages) == nullptr) {
    std::this_thread::yield();
  }
  EXPECT_EQ(FaultRecorder::Options().recordings_max, 512u);
}

TEST_F(FaultRecorderTest, KeepsSoManyEventsAndCountsTheOthers) {
  Create(/*events_max=*/10);
  auto records = recorder_->Record("vm", kPages);
  ASSERT_NE(records, nullptr);
  for (int i = 0; i < 11; ++i) records->Add({.page = PageIndex(1)});
  records.reset();
  EXPECT_EQ(ReadTrace().events.size(), 10u);
  EXPECT_EQ(ReadTrace().dropped, 1u);
  EXPECT_EQ(recorder_->totals().dropped.load(), 1u);
  EXPECT_TRUE(IsLogged("no room for 1 more"));
}

// More than the queue and the window hold, as fast as they can be told.
TEST_F(FaultRecorderTest, WhatIsWrittenAndDroppedIsWhatWasTold) {
  Create();
  auto records = recorder_->Record("vm", kPages);
  ASSERT_NE(records, nullptr);
  constexpr uint64_t kFaults = 4 * kFaultRecordsMax;
  for (uint64_t i = 0; i < kFaults; ++i) {
    records->Add(
        {.page = PageIndex(i % 1000), .read_ns = static_cast<int64_t>(i)});
    records->Add({.page = PageIndex(i % 1000),
                  .read_ns = static_cast<int64_t>(i),
                  .stages_ns = {0, 1, 1, 1},
                  .ended = true});
  }
  records.reset();
  const Trace trace = ReadTrace();
  EXPECT_EQ(trace.events.size() + trace.dropped, kFaults);
  EXPECT_GE(trace.events.size(), kFaultRecordsMax / 2);
}

TEST_F(FaultRecorderTest, ItsEndIsTheEndOfItsRecordings) {
  Create();
  auto records = recorder_->Record("vm", kPages);
  ASSERT_NE(records, nullptr);
  records->Add({.page = PageIndex(1)});
  EXPECT_EQ(ReadTrace().events.size(), 1u);
  EXPECT_EQ(recorder_->Record("vm", kPages), nullptr);
  recorder_.reset();
  records->Add({.page = PageIndex(2)});
  records.reset();
  EXPECT_EQ(Files().size(), 1u);
}

TEST_F(FaultRecorderTest, ADirectoryWithManyTracesGetsNoMore) {
  Create();
  for (size_t i = 0; i + 1 < kTraceFilesMax; ++i) {
    std::ofstream(absl::StrCat(directory_, "/", i, ".trace")) << "x";
  }
  for (int i = 0; i < 2; ++i) {
    const auto records = recorder_->Record("vm", kPages);
    ASSERT_NE(records, nullptr);
    records->Add({.page = PageIndex(1)});
  }
  EXPECT_EQ(FilesAtTheEnd().size(), kTraceFilesMax);
  EXPECT_TRUE(IsLogged("256 traces already"));
  EXPECT_EQ(recorder_->totals().recordings.load(), 2u);
  EXPECT_EQ(recorder_->totals().failures.load(), 1u);
  EXPECT_EQ(recorder_->totals().events.load(), 1u);
  EXPECT_EQ(recorder_->totals().dropped.load(), 1u);
}

TEST_F(FaultRecorderTest, AVmThatNoTraceCanBeOfGoesOnWithout) {
  Create();
  EXPECT_NE(recorder_->Record("vm", PageCount(kTracePagesMax)), nullptr);
  EXPECT_EQ(recorder_->Record("vm", PageCount(kTracePagesMax + 1)), nullptr);
  EXPECT_TRUE(IsLogged("a trace is of at most"));
}

TEST_F(FaultRecorderTest, ADirectoryThatHasGoneIsTold) {
  Create();
  std::filesystem::remove_all(directory_);
  recorder_->Record("vm", kPages)->Add({.page = PageIndex(1)});
  recorder_->Shutdown();
  EXPECT_TRUE(IsLogged("not recorded"));
  EXPECT_EQ(recorder_->totals().failures.load(), 1u);
}

TEST_F(FaultRecorderTest, AWrongDirectoryIsToldAtOnce) {
  const auto missing = FaultRecorder::Create({.directory = directory_ + "/no"});
  EXPECT_TRUE(absl::IsNotFound(missing.status())) << missing.status();
  std::ofstream(directory_ + "/file") << "x";
  const auto file = FaultRecorder::Create({.directory = directory_ + "/file"});
  EXPECT_TRUE(absl::IsNotFound(file.status())) << file.status();
}

TEST_F(FaultRecorderTest, ADirectoryWithoutPermissionIsToldAtOnce) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  ASSERT_EQ(::chmod(directory_.c_str(), 0500), 0);
  const auto recorder = FaultRecorder::Create({.directory = directory_});
  EXPECT_TRUE(absl::IsPermissionDenied(recorder.status()));
}

// The limit of a file's size stands for a file system that is full.
class FullDiskTest : public FaultRecorderTest {
 protected:
  void SetUp() override {
    FaultRecorderTest::SetUp();
    ::signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
  }
  void TearDown() override {
    Allow(before_.rlim_cur);
    FaultRecorderTest::TearDown();
  }
  void Allow(rlim_t bytes) const {
    const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }

  rlimit before_ = {};
};

TEST_F(FullDiskTest, ATraceEndsEarlyAndIsWholeAllTheSame) {
  Create();
  auto records = recorder_->Record("vm", kPages);
  ASSERT_NE(records, nullptr);
  Allow(4096);
  constexpr uint64_t kFaults = 3 * kTraceBatchEventsMax;
  for (uint64_t i = 0; i < kFaults; ++i) records->Add({.page = PageIndex(1)});
  records.reset();
  const Trace trace = ReadTrace();
  Allow(before_.rlim_cur);
  EXPECT_EQ(trace.events.size(), 0u);
  EXPECT_TRUE(trace.ended_early);
  EXPECT_EQ(trace.dropped, kFaults);
  EXPECT_TRUE(IsLogged("ends early, the VM goes on"));
  EXPECT_TRUE(IsLogged(absl::StrCat("no room for ", kFaults, " more")));
  EXPECT_EQ(recorder_->totals().failures.load(), 1u);
  EXPECT_EQ(recorder_->totals().events.load(), 0u);
  EXPECT_EQ(recorder_->totals().dropped.load(), kFaults);
}

TEST_F(FullDiskTest, NoRoomForATraceLeavesNoFile) {
  Create();
  Allow(0);
  auto records = recorder_->Record("vm", kPages);
  ASSERT_NE(records, nullptr);
  records->Add({.page = PageIndex(1)});
  records.reset();
  EXPECT_TRUE(FilesAtTheEnd().empty());
  Allow(before_.rlim_cur);
  EXPECT_TRUE(IsLogged("cannot write"));
}

// Threads that fault through a real userfaultfd, and the trace that is left.
TEST_F(FaultRecorderTest, FaultsOfARealUserfaultfdAreReadBack) {
  std::string reason;
  const std::unique_ptr<KernelGuest> guest =
      KernelGuest::Create({{MemoryKind::kAnonymous, PageCount(16)}},
                          UFFD_FEATURE_THREAD_ID, &reason);
  if (guest == nullptr) GTEST_SKIP() << reason;
  Create();
  std::unique_ptr<DestinationVm> vm = *DestinationVm::Create(
      guest->layout(), guest->regions(), guest->TakeOps(), Clock::Monotonic());
  ASSERT_TRUE(vm->RecordFaults(recorder_->Record("vm", PageCount(16))).ok());
  const PageBitmap stale = *PageBitmap::Create(PageCount(16));
  ASSERT_TRUE(vm->DiscardStale(stale.view()).ok());
  FakePageSource source;
  ASSERT_TRUE(vm->StartServing(&source, 0, [](const absl::Status&) {}).ok());
  uint32_t thread_id = 0;
  const std::vector<uint64_t> touched = {7, 3, 12};
  std::thread vcpu([&] {
    thread_id = static_cast<uint32_t>(::gettid());
    for (const uint64_t page : touched) {
      EXPECT_TRUE(HasPattern(guest->at(PageIndex(page)), PageIndex(page)));
    }
    *guest->at(PageIndex(5)) = 1;
  });
  for (size_t i = 0; i < touched.size() + 1; ++i) {
    source.AwaitUrgent(i + 1);
    const PageIndex page(i < touched.size() ? touched[i] : 5);
    ASSERT_TRUE(
        vm->OnUrgentPages(Answer(std::vector<PageIndex>{page}, {}).runs())
            .ok());
  }
  vcpu.join();
  vm->Abort();
  vm.reset();
  const Trace trace = ReadTrace();
  ASSERT_EQ(trace.events.size(), 4u);
  uint64_t before_ns = 0;
  for (size_t i = 0; i < 4; ++i) {
    const TraceEvent& event = trace.events[i];
    EXPECT_EQ(event.page.value(), i < 3 ? touched[i] : 5);
    EXPECT_EQ(event.thread, thread_id);
    EXPECT_EQ(event.kind, i < 3 ? TouchKind::kRead : TouchKind::kWrite);
    EXPECT_GT(event.stages_ns[2], 0u);
    EXPECT_GT(event.stages_ns[3], 0u);
    EXPECT_GE(event.time_ns, before_ns);
    // Installing ends for the one who waits before it ends for us.
    before_ns = event.time_ns + event.stages_ns[1] + event.stages_ns[2];
  }
}

}  // namespace
}  // namespace postcopy
