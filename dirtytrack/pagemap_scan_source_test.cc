// PAGEMAP_SCAN on the real kernel: what is reported and what is not, then the
// errors. What the real kernel does not do on demand, a function does.

#include "dirtytrack/pagemap_scan_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/tracked_child.h"
#include "dirtytrack/write_tracking.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using absl::StatusCode;
using HostRegion = PagemapScanSource::HostRegion;
using Memory = TrackedChild::Memory;
using Mode = PagemapScanSource::Mode;
using Set = std::set<uint64_t>;

constexpr ByteCount kHuge = PagemapScanSource::kHugePageSize;
constexpr uint64_t kPagesPerHuge = 512;

RamLayout LayoutOf(ByteCount bytes) {
  return *RamLayout::Create({{"ram", RamOffset(0), bytes}});
}

Set PagesOf(PageBitmapView bitmap) {
  Set pages;
  PageIndex at;
  while (auto run = bitmap.NextSetRun(at, PageCount(1))) {
    pages.insert(run->first.value());
    at = run->end();
  }
  return pages;
}

testing::AssertionResult Is(const absl::Status& status, StatusCode code,
                            absl::string_view part) {
  if (status.code() == code && absl::StrContains(status.message(), part)) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << status << ", expected " << absl::StatusCodeToString(code)
         << " with \"" << std::string(part) << "\"";
}

// --- What counts as written --------------------------------------------------

// This process's own memory.
class OwnMemoryTest : public testing::Test {
 protected:
  // Maps, registers and starts to track `bytes`.
  void Track(ByteCount bytes, Mode mode, int memfd = -1) {
    bytes_ = bytes;
    const int flags = memfd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void* base = ::mmap(nullptr, bytes.value(), PROT_READ | PROT_WRITE,
                        flags | MAP_NORESERVE, memfd, 0);
    ASSERT_NE(base, MAP_FAILED);
    base_ = static_cast<volatile uint8_t*>(base);
    const HostRange range = {address(), bytes};
    absl::StatusOr<WriteTracking> tracking = WriteTracking::Create({&range, 1});
    if (IsLackOfThisMachine(tracking.status())) {
      GTEST_SKIP() << tracking.status();
    }
    ASSERT_TRUE(tracking.ok()) << tracking.status();
    tracking_.emplace(*std::move(tracking));
    source_ = *PagemapScanSource::Create(LayoutOf(bytes), {{address()}},
                                         tracking_->TakePagemap(), mode);
    into_ = *PageBitmap::Create(PagesIn(bytes));
    const absl::Status started = source_->Start();
    ASSERT_TRUE(started.ok()) << started;
  }

  void TearDown() override {
    tracking_.reset();
    if (base_ != nullptr) {
      ::munmap(const_cast<uint8_t*>(base_), bytes_.value());
    }
  }

  HostAddress address() const {
    return HostAddress(reinterpret_cast<uintptr_t>(base_));
  }
  void Write(uint64_t page) { base_[page * kPageSize] = ++value_; }
  void* PageAt(uint64_t page) {
    return const_cast<uint8_t*>(base_ + page * kPageSize);
  }

  Set Collected() {
    into_.Reset();
    const absl::StatusOr<PageCount> set = source_->Collect(into_.view());
    EXPECT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set.value_or(PageCount(0)), into_.view().Count());
    return PagesOf(into_.view());
  }

  absl::Status Clear(const Set& pages, PageRun run) {
    into_.Reset();
    for (uint64_t page : pages) into_.view().TestAndSet(PageIndex(page));
    return source_->Clear(into_.view(), run);
  }

  ByteCount bytes_;
  volatile uint8_t* base_ = nullptr;
  std::optional<WriteTracking> tracking_;
  std::unique_ptr<PagemapScanSource> source_;
  PageBitmap into_;
  uint8_t value_ = 0;
};

constexpr ByteCount kSmall{uint64_t{1} << 20};

// Skips if Track skipped.
#define TRACK(...)                               \
  do {                                           \
    ASSERT_NO_FATAL_FAILURE(Track(__VA_ARGS__)); \
    if (testing::Test::IsSkipped()) return;      \
  } while (false)

TEST_F(OwnMemoryTest, ReportsWhatWasWrittenAndNothingElse) {
  TRACK(kSmall, Mode::kTakeAtOnce);
  EXPECT_EQ(Collected(), Set());
  Write(3);
  Write(4);
  Write(255);
  EXPECT_EQ(Collected(), Set({3, 4, 255}));
  EXPECT_EQ(Collected(), Set());
  Write(4);
  EXPECT_EQ(Collected(), Set({4}));
}

TEST_F(OwnMemoryTest, ReadingAHoleDoesNotCountAsWriting) {
  TRACK(kSmall, Mode::kTakeAtOnce);
  for (uint64_t page = 0; page < 256; ++page) (void)base_[page * kPageSize];
  EXPECT_EQ(Collected(), Set());
}

TEST_F(OwnMemoryTest, WhatWasWrittenBeforeStartIsNotReported) {
  TRACK(kSmall, Mode::kTakeAtOnce);
  ASSERT_TRUE(source_->Stop().ok());
  Write(9);
  ASSERT_TRUE(source_->Start().ok());
  EXPECT_EQ(Collected(), Set());
}

TEST_F(OwnMemoryTest, LooksUntilCleared) {
  TRACK(kSmall, Mode::kClearBeforeRead);
  Write(3);
  Write(70);
  EXPECT_EQ(Collected(), Set({3, 70}));
  EXPECT_EQ(Collected(), Set({3, 70}));
  ASSERT_TRUE(Clear({3}, {PageIndex(0), PageCount(64)}).ok());
  EXPECT_EQ(Collected(), Set({70}));
  Write(3);
  EXPECT_EQ(Collected(), Set({3, 70}));
}

TEST_F(OwnMemoryTest, WhatClearTakesUnnamedIsReportedOnce) {
  TRACK(kSmall, Mode::kClearBeforeRead);
  for (uint64_t page : {10, 11, 12, 13}) Write(page);
  // 11 and 12 lie between the named ones.
  ASSERT_TRUE(Clear({10, 13}, {PageIndex(0), PageCount(64)}).ok());
  EXPECT_EQ(Collected(), Set({11, 12}));
  EXPECT_EQ(Collected(), Set());
}

TEST_F(OwnMemoryTest, ClearNamesOnlyWhatLiesInItsRun) {
  TRACK(kSmall, Mode::kClearBeforeRead);
  for (uint64_t page : {10, 100}) Write(page);
  ASSERT_TRUE(Clear({10, 100}, {PageIndex(0), PageCount(64)}).ok());
  EXPECT_EQ(Collected(), Set({100}));
}

TEST_F(OwnMemoryTest, ClearForgetsWhatWasPutBack) {
  for (Mode mode : {Mode::kTakeAtOnce, Mode::kClearBeforeRead}) {
    TRACK(kSmall, mode);
    PageBitmap unsent = *PageBitmap::Create(PagesIn(kSmall) + PageCount(64));
    for (uint64_t page : {5, 6}) unsent.view().TestAndSet(PageIndex(page));
    unsent.view().TestAndSet(PageIndex(300));  // no page of the VM
    ASSERT_TRUE(source_->Restore(unsent.view()).ok());
    ASSERT_TRUE(Clear({5}, {PageIndex(0), PageCount(256)}).ok());
    EXPECT_EQ(Collected(), Set({6}));
    EXPECT_EQ(Collected(), Set());
    TearDown();
  }
}

// Neither a loss nor a repetition where one answer ends and the next begins,
// nor where the kernel's own buffer of 512 runs does.
TEST_F(OwnMemoryTest, AnyNumberOfRunsIsReported) {
  constexpr uint64_t kMost = PagemapScanSource::kRunsPerScan;
  for (uint64_t runs :
       {uint64_t{511}, uint64_t{512}, uint64_t{513}, uint64_t{1024},
        uint64_t{1500}, kMost - 1, kMost, kMost + 1, 2 * kMost + 3}) {
    for (Mode mode : {Mode::kTakeAtOnce, Mode::kClearBeforeRead}) {
      TRACK(BytesIn(PageCount(2 * runs)), mode);
      Set written;
      for (uint64_t i = 0; i < runs; ++i) {
        Write(2 * i);
        written.insert(written.end(), 2 * i);
      }
      EXPECT_EQ(Collected(), written) << runs;
      if (mode == Mode::kClearBeforeRead) {
        ASSERT_TRUE(
            source_->Clear(into_.view(), {PageIndex(0), into_.pages()}).ok());
      }
      EXPECT_EQ(Collected(), Set()) << runs;
      TearDown();
    }
  }
}

TEST_F(OwnMemoryTest, MoreMemoryThanOneScanTakes) {
  const uint64_t scan = PagemapScanSource::kPagesPerScan.value();
  TRACK(BytesIn(PageCount(scan + 3)), Mode::kTakeAtOnce);
  for (uint64_t page : {scan - 1, scan, scan + 2}) Write(page);
  EXPECT_EQ(Collected(), Set({scan - 1, scan, scan + 2}));
  EXPECT_EQ(Collected(), Set());
}

// A part of one that is protected is unmapped as a whole, and a hole of that
// size does not count as written: a write to it would be lost.
TEST_F(OwnMemoryTest, TransparentHugePagesAreRefused) {
  TRACK(ByteCount(3 * kHuge.value()), Mode::kTakeAtOnce);
  // WriteTracking has asked for none; a VMM may insist.
  for (uint64_t page = 0; page < 3 * kPagesPerHuge; ++page) Write(page);
  ASSERT_TRUE(source_->Stop().ok());
  ASSERT_TRUE(source_->Start().ok());
  ASSERT_TRUE(source_->Stop().ok());
  ::madvise(PageAt(0), bytes_.value(), MADV_HUGEPAGE);
  ::madvise(PageAt(0), bytes_.value(), MADV_DONTNEED);
  for (uint64_t page = 0; page < 3 * kPagesPerHuge; ++page) Write(page);
  const absl::Status status = source_->Start();
  if (status.ok()) GTEST_SKIP() << "no transparent huge page is to be had";
  EXPECT_TRUE(Is(status, StatusCode::kFailedPrecondition, "MADV_NOHUGEPAGE"));
}

TEST_F(OwnMemoryTest, PrivateMemoryThatIsDiscardedCountsAsWritten) {
  TRACK(kSmall, Mode::kTakeAtOnce);
  Write(5);
  EXPECT_EQ(Collected(), Set({5}));
  ASSERT_EQ(::madvise(PageAt(5), kPageSize, MADV_DONTNEED), 0);
  EXPECT_EQ(Collected(), Set({5}));
}

// So a balloon of shared memory needs a dirty log.
TEST_F(OwnMemoryTest, PagesPunchedOutOfASharedFileAreNotSeen) {
  const UniqueFd memfd = *CreateMemfd("ram", kSmall, 0);
  TRACK(kSmall, Mode::kTakeAtOnce, memfd.get());
  Write(5);
  EXPECT_EQ(Collected(), Set({5}));
  ASSERT_EQ(::fallocate(memfd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        5 * kPageSize, kPageSize),
            0);
  EXPECT_EQ(base_[5 * kPageSize], 0);
  EXPECT_EQ(Collected(), Set());
}

// So a vhost-user back-end needs a dirty log of its own.
TEST_F(OwnMemoryTest, WritesThroughAnotherMappingAreNotSeen) {
  const UniqueFd memfd = *CreateMemfd("ram", kSmall, 0);
  TRACK(kSmall, Mode::kTakeAtOnce, memfd.get());
  Write(5);
  EXPECT_EQ(Collected(), Set({5}));
  const SharedMapping other = *SharedMapping::Map(
      memfd.get(), ByteCount(0), kSmall, SharedMapping::Access::kReadWrite);
  other.data()[5 * kPageSize] = 99;
  ASSERT_EQ(::pwrite(memfd.get(), "x", 1, 6 * kPageSize), 1);
  EXPECT_EQ(base_[5 * kPageSize], 99);
  EXPECT_EQ(Collected(), Set());
}

TEST_F(OwnMemoryTest, WritesByTheKernelOnBehalfOfTheProcessAreSeen) {
  TRACK(kSmall, Mode::kTakeAtOnce);
  const UniqueFd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::read(zero.get(), PageAt(8), kPageSize),
            static_cast<ssize_t>(kPageSize));
  EXPECT_EQ(Collected(), Set({8}));
}

// --- Use ---------------------------------------------------------------------

TEST_F(OwnMemoryTest, HasToBeStartedOnce) {
  TRACK(kSmall, Mode::kClearBeforeRead);
  EXPECT_TRUE(
      Is(source_->Start(), StatusCode::kFailedPrecondition, "already started"));
  ASSERT_TRUE(source_->Stop().ok());
  EXPECT_TRUE(source_->Stop().ok());
  const PageBitmapView all = into_.view();
  for (const absl::Status& status :
       {source_->Collect(all).status(), source_->Restore(all),
        source_->Clear(all, {PageIndex(0), PageCount(1)})}) {
    EXPECT_TRUE(Is(status, StatusCode::kFailedPrecondition, "not started"));
  }
}

TEST_F(OwnMemoryTest, RefusesABitmapThatIsTooSmall) {
  TRACK(kSmall, Mode::kClearBeforeRead);
  const PageBitmapView small(into_.view().words(),
                             into_.pages() - PageCount(1));
  for (const absl::Status& status :
       {source_->Collect(small).status(), source_->Restore(small),
        source_->Clear(small, {PageIndex(0), PageCount(1)})}) {
    EXPECT_TRUE(Is(status, StatusCode::kInvalidArgument, "too small"));
  }
}

TEST_F(OwnMemoryTest, MemoryThatIsNotMappedIsRefused) {
  TRACK(kSmall, Mode::kTakeAtOnce);
  // A hole in the middle, and a source that has not seen the memory whole.
  ASSERT_EQ(::munmap(PageAt(100), kPageSize), 0);
  ASSERT_TRUE(source_->Stop().ok());
  const absl::Status status = source_->Start();
  EXPECT_TRUE(Is(status, StatusCode::kFailedPrecondition, "nothing is mapped"));
  EXPECT_TRUE(absl::StrContains(
      status.message(), ToString(address() + ByteCount(100 * kPageSize))))
      << status;
}

absl::Status StartOn(std::vector<HostRegion> regions, const char* path,
                     ByteCount bytes = kSmall) {
  absl::StatusOr<std::unique_ptr<PagemapScanSource>> source =
      PagemapScanSource::Create(LayoutOf(bytes), std::move(regions),
                                UniqueFd(::open(path, O_RDONLY | O_CLOEXEC)),
                                Mode::kTakeAtOnce);
  return source.ok() ? (*source)->Start() : source.status();
}

constexpr char kPagemap[] = "/proc/self/pagemap";
constexpr HostAddress kAddress{0x10000000};

TEST(PagemapScanSourceTest, MemoryThatIsNotRegisteredIsRefused) {
  absl::StatusOr<std::unique_ptr<TrackedChild>> child =
      TrackedChild::Start(Memory::kAnonymous, kSmall, /*tracked=*/false);
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::Status status =
      (*PagemapScanSource::Create(LayoutOf(kSmall), {{(*child)->address()}},
                                  (*child)->TakePagemap(), Mode::kTakeAtOnce))
          ->Start();
  if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  EXPECT_TRUE(Is(status, StatusCode::kFailedPrecondition,
                 "has to register it with a userfaultfd"));
}

TEST(PagemapScanSourceTest, AddressesOutsideOfProcessesAreRefused) {
  const absl::Status status =
      StartOn({{HostAddress(0xffff800000000000)}}, kPagemap);
  if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  EXPECT_TRUE(
      Is(status, StatusCode::kInvalidArgument, "not memory of a process"));
}

TEST(PagemapScanSourceTest, OtherDescriptorsAreRefused) {
  EXPECT_TRUE(Is(StartOn({{kAddress}}, "/dev/null"),
                 StatusCode::kInvalidArgument, "/proc/self/pagemap"));
  EXPECT_TRUE(Is(StartOn({{kAddress}}, "/does/not/exist"),
                 StatusCode::kInvalidArgument, "/proc/self/pagemap"));
  // As a kernel before 6.7 answers for a pagemap.
  EXPECT_TRUE(Is(StartOn({{kAddress}}, "/proc/self/maps"),
                 StatusCode::kUnimplemented, "Linux 6.7"));
}

TEST(PagemapScanSourceTest, RegionsHaveToFitTheLayout) {
  const auto refused = [](std::vector<HostRegion> regions,
                          absl::string_view why, ByteCount bytes = kSmall) {
    return Is(StartOn(std::move(regions), kPagemap, bytes),
              StatusCode::kInvalidArgument, why);
  };
  EXPECT_TRUE(refused({}, "1 regions and 0 host addresses"));
  EXPECT_TRUE(refused({{kAddress}, {kAddress}}, "2 host addresses"));
  EXPECT_TRUE(refused({{HostAddress(0x1001)}}, "whole pages of 4KiB"));
  EXPECT_TRUE(refused({{kAddress, ByteCount(8192)}}, "only 4KiB and 2MiB"));
  EXPECT_TRUE(refused({{kAddress, ByteCount(0)}}, "only 4KiB and 2MiB"));
  EXPECT_TRUE(refused({{kAddress, kHuge}}, "whole pages of 2MiB"));
  EXPECT_TRUE(
      refused({{HostAddress(0x1000), kHuge}}, "whole pages of 2MiB", kHuge));
  EXPECT_TRUE(refused({{HostAddress(UINT64_MAX - 4095)}}, "last address"));
}

TEST(PagemapScanSourceTest, RegionsMustNotOverlap) {
  const RamLayout layout =
      *RamLayout::Create({{"low", RamOffset(0), kSmall},
                          {"high", RamOffset(kSmall.value()), kSmall}});
  const auto create = [&](HostAddress low, HostAddress high) {
    return PagemapScanSource::Create(
               layout, {{low}, {high}},
               UniqueFd(::open(kPagemap, O_RDONLY | O_CLOEXEC)),
               Mode::kTakeAtOnce)
        .status();
  };
  const HostAddress behind = kAddress + kSmall;
  EXPECT_TRUE(create(kAddress, behind).ok());
  EXPECT_TRUE(create(behind, kAddress).ok());
  EXPECT_TRUE(Is(create(kAddress, HostAddress(behind.value() - kPageSize)),
                 StatusCode::kInvalidArgument, "'low' and 'high' overlap"));
  EXPECT_TRUE(Is(create(HostAddress(behind.value() - kPageSize), kAddress),
                 StatusCode::kInvalidArgument, "'low' and 'high' overlap"));
}

TEST(PagemapScanSourceTest, LargerPagesThanToldAreAnError) {
  const ReservedHugePages reserved(1);
  absl::StatusOr<std::unique_ptr<TrackedChild>> child =
      TrackedChild::Start(Memory::kHugeAnonymous, kHuge);
  if (IsLackOfThisMachine(child.status())) GTEST_SKIP() << child.status();
  ASSERT_TRUE(child.ok()) << child.status();
  std::unique_ptr<PagemapScanSource> source = *PagemapScanSource::Create(
      LayoutOf(kHuge), {{(*child)->address(), ByteCount(kPageSize)}},
      (*child)->TakePagemap(), Mode::kClearBeforeRead);
  EXPECT_TRUE(Is(source->Start(), StatusCode::kFailedPrecondition,
                 "is mapped in huge pages"));
}

// --- A VMM that goes away
// -----------------------------------------------------

class ChildTest : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<TrackedChild>> child =
        TrackedChild::Start(Memory::kAnonymous, kSmall);
    if (IsLackOfThisMachine(child.status())) GTEST_SKIP() << child.status();
    ASSERT_TRUE(child.ok()) << child.status();
    child_ = *std::move(child);
    source_ =
        *PagemapScanSource::Create(LayoutOf(kSmall), {{child_->address()}},
                                   child_->TakePagemap(), GetParam());
    dirty_ = *PageBitmap::Create(PagesIn(kSmall));
    const absl::Status started = source_->Start();
    ASSERT_TRUE(started.ok()) << started;
    child_->Poke(PageIndex(5));
    dirty_.view().TestAndSet(PageIndex(5));
  }

  // What each method that asks the kernel answers.
  std::vector<absl::Status> Answers() {
    std::vector<absl::Status> answers;
    answers.push_back(source_->Collect(dirty_.view()).status());
    if (GetParam() == Mode::kClearBeforeRead) {
      answers.push_back(
          source_->Clear(dirty_.view(), {PageIndex(0), dirty_.pages()}));
    }
    EXPECT_TRUE(source_->Stop().ok());
    answers.push_back(source_->Start());
    return answers;
  }

  std::unique_ptr<TrackedChild> child_;
  std::unique_ptr<PagemapScanSource> source_;
  PageBitmap dirty_;
};

TEST_P(ChildTest, ItsDeathIsTold) {
  child_->Kill();
  for (const absl::Status& status : Answers()) {
    EXPECT_TRUE(Is(status, StatusCode::kAborted, "the VMM has ended"));
  }
}

// A daemon of another user, to which the VMM has sent its pagemap.
TEST_P(ChildTest, WhoHasTheDescriptorNeedsNoPermission) {
  constexpr id_t kNobody = 65534;
  enum Answer { kWorks, kFails, kCouldHaveOpenedIt, kCannotBecomeNobody };
  const pid_t daemon = ::fork();
  ASSERT_GE(daemon, 0);
  if (daemon == 0) {
    if (::setresgid(kNobody, kNobody, kNobody) != 0 ||
        ::setresuid(kNobody, kNobody, kNobody) != 0) {
      ::_exit(kCannotBecomeNobody);
    }
    const std::string path =
        "/proc/" + std::to_string(child_->pid()) + "/pagemap";
    if (::open(path.c_str(), O_RDONLY) >= 0) ::_exit(kCouldHaveOpenedIt);
    dirty_.Reset();
    const bool works =
        source_->Collect(dirty_.view()).ok() &&
        PagesOf(dirty_.view()) == Set({5}) &&
        source_->Clear(dirty_.view(), {PageIndex(0), dirty_.pages()}).ok() &&
        source_->Stop().ok() && source_->Start().ok();
    ::_exit(works ? kWorks : kFails);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(daemon, &status, 0), daemon);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kCannotBecomeNobody) {
    GTEST_SKIP() << "not permitted to change the user";
  }
  EXPECT_EQ(WEXITSTATUS(status), kWorks);
}

TEST_P(ChildTest, EndingItsTrackingIsTold) {
  child_->EndTracking();
  for (const absl::Status& status : Answers()) {
    EXPECT_TRUE(Is(status, StatusCode::kFailedPrecondition,
                   "UFFD_FEATURE_WP_ASYNC in mode WP, and keep that open"));
  }
}

std::string NameOf(const testing::TestParamInfo<Mode>& info) {
  return info.param == Mode::kTakeAtOnce ? "TakeAtOnce" : "ClearBeforeRead";
}

INSTANTIATE_TEST_SUITE_P(Modes, ChildTest,
                         testing::Values(Mode::kTakeAtOnce,
                                         Mode::kClearBeforeRead),
                         NameOf);

// --- What the kernel does not do on demand -----------------------------------

class AnsweredScanTest : public testing::TestWithParam<Mode> {
 protected:
  AnsweredScanTest() {
    absl::StatusOr<std::unique_ptr<PagemapScanSource>> source =
        PagemapScanSource::CreateWithScan(
            LayoutOf(kSmall), {{kAddress}},
            UniqueFd(::open(kPagemap, O_RDONLY | O_CLOEXEC)), GetParam(),
            [this](PagemapScanArg* arg) { return answer_(arg); });
    EXPECT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    into_ = *PageBitmap::Create(PagesIn(kSmall));
    answer_ = AllClean;
    EXPECT_TRUE(source_->Start().ok());
  }

  // Registered, and not written.
  static int AllClean(PagemapScanArg* arg) {
    arg->walk_end = arg->end;
    if (arg->category_mask != kPageIsWpAllowed) return 0;
    return Found(arg, arg->start, arg->end);
  }
  static int Found(PagemapScanArg* arg, uint64_t start, uint64_t end) {
    *reinterpret_cast<PagemapRegion*>(arg->vec) = {start, end,
                                                   arg->category_mask};
    return 1;
  }
  static int Fail(int error) {
    errno = error;
    return -1;
  }

  std::function<int(PagemapScanArg*)> answer_;
  std::unique_ptr<PagemapScanSource> source_;
  PageBitmap into_;
};

TEST_P(AnsweredScanTest, ErrorsAreSentences) {
  const struct {
    int error;
    StatusCode code;
    const char* part;
  } kErrors[] = {
      {EPERM, StatusCode::kFailedPrecondition, "register"},
      {ESRCH, StatusCode::kAborted, "the VMM has ended"},
      {EFAULT, StatusCode::kInvalidArgument, "not memory"},
      {EINVAL, StatusCode::kInvalidArgument, "/proc/self/pagemap"},
      {ENOTTY, StatusCode::kUnimplemented, "use a dirty log"},
      {ENOMEM, StatusCode::kResourceExhausted, "page tables"},
      {EIO, StatusCode::kInternal, "region 'ram' at host address 0x10000000"},
  };
  for (const auto& expected : kErrors) {
    answer_ = [&](PagemapScanArg*) { return Fail(expected.error); };
    EXPECT_TRUE(Is(source_->Collect(into_.view()).status(), expected.code,
                   expected.part));
  }
}

TEST_P(AnsweredScanTest, AnswersThatDoNotFitTheQuestionAreErrors) {
  using Answer = std::function<int(PagemapScanArg*)>;
  const Answer kAnswers[] = {
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->end + kPageSize;
        return 0;
      },
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->start - kPageSize;
        return 0;
      },
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->start + 1;
        return 0;
      },
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->end;
        return static_cast<int>(arg->vec_len) + 1;
      },
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->end;
        return Found(arg, arg->start - kPageSize, arg->start + kPageSize);
      },
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->end;
        return Found(arg, arg->start, arg->end + kPageSize);
      },
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->end;
        return Found(arg, arg->start, arg->start);
      },
      [](PagemapScanArg* arg) {
        arg->walk_end = arg->end;
        return Found(arg, arg->start + 1, arg->start + kPageSize);
      },
      [](PagemapScanArg* arg) {  // the same page twice
        arg->walk_end = arg->end;
        Found(arg, arg->start, arg->start + kPageSize);
        auto* found = reinterpret_cast<PagemapRegion*>(arg->vec);
        found[1] = found[0];
        return 2;
      },
  };
  for (const Answer& answer : kAnswers) {
    ASSERT_TRUE(source_->Stop().ok());
    answer_ = AllClean;
    ASSERT_TRUE(source_->Start().ok());
    answer_ = answer;
    EXPECT_TRUE(Is(source_->Collect(into_.view()).status(),
                   StatusCode::kInternal, "not asked for"))
        << "answer " << &answer - kAnswers;
    EXPECT_FALSE(into_.view().Any());
  }
}

TEST_P(AnsweredScanTest, AnAnswerWithoutProgressEndsTheLoop) {
  answer_ = [](PagemapScanArg* arg) {
    arg->walk_end = arg->start;
    return 0;
  };
  EXPECT_TRUE(Is(source_->Collect(into_.view()).status(),
                 StatusCode::kFailedPrecondition, "larger pages"));
}

// As Linux 6.18 does when it has gathered runs more than once.
TEST_P(AnsweredScanTest, RunsMayGoFurtherThanTheEndOfTheWalk) {
  std::vector<uint64_t> starts;
  answer_ = [&](PagemapScanArg* arg) {
    starts.push_back(arg->start);
    arg->walk_end =
        arg->start == kAddress.value() ? arg->start + kPageSize : arg->end;
    if (arg->start != kAddress.value()) return 0;
    return Found(arg, arg->start, arg->start + 3 * kPageSize);
  };
  ASSERT_TRUE(source_->Collect(into_.view()).ok());
  EXPECT_EQ(PagesOf(into_.view()), Set({0, 1, 2}));
  EXPECT_EQ(starts, std::vector<uint64_t>(
                        {kAddress.value(), kAddress.value() + 3 * kPageSize}));
}

// The kernel may have protected pages that it did not get to report.
TEST_P(AnsweredScanTest, WhatAFailedCallMayHaveTakenIsReported) {
  int calls = 0;
  answer_ = [&](PagemapScanArg* arg) {
    if (++calls > 1) return Fail(ENOMEM);
    arg->walk_end = arg->start + 100 * kPageSize;
    return Found(arg, arg->start, arg->start + kPageSize);
  };
  const PageRun all = {PageIndex(0), into_.pages()};
  if (GetParam() == Mode::kTakeAtOnce) {
    EXPECT_FALSE(source_->Collect(into_.view()).ok());
    EXPECT_EQ(PagesOf(into_.view()), Set({0}));
  } else {
    PageBitmap named = *PageBitmap::Create(into_.pages());
    named.view().TestAndSet(PageIndex(0));
    named.view().TestAndSet(PageIndex(255));
    EXPECT_FALSE(source_->Clear(named.view(), all).ok());
  }
  answer_ = AllClean;
  into_.Reset();
  ASSERT_TRUE(source_->Collect(into_.view()).ok());
  const uint64_t first = GetParam() == Mode::kTakeAtOnce ? 100 : 0;
  EXPECT_TRUE(into_.view().Test(PageIndex(first)));
  EXPECT_EQ(into_.view().CountRun({PageIndex(100), PageCount(156)}).value(),
            156);
  EXPECT_EQ(into_.view().Count().value(), first == 0 ? 157 : 156);
}

// Kernels that do not look whether the process lives find no memory.
TEST_P(AnsweredScanTest, ADeadProcessWithoutMemoryIsNotTakenForACleanOne) {
  absl::StatusOr<std::unique_ptr<TrackedChild>> child =
      TrackedChild::Start(Memory::kAnonymous, kSmall, /*tracked=*/false);
  ASSERT_TRUE(child.ok()) << child.status();
  std::unique_ptr<PagemapScanSource> source =
      *PagemapScanSource::CreateWithScan(
          LayoutOf(kSmall), {{(*child)->address()}}, (*child)->TakePagemap(),
          GetParam(), AllClean);
  ASSERT_TRUE(source->Start().ok());
  EXPECT_TRUE(source->Collect(into_.view()).ok());
  (*child)->Kill();
  EXPECT_TRUE(Is(source->Collect(into_.view()).status(), StatusCode::kAborted,
                 "the VMM has ended"));
}

INSTANTIATE_TEST_SUITE_P(Modes, AnsweredScanTest,
                         testing::Values(Mode::kTakeAtOnce,
                                         Mode::kClearBeforeRead),
                         NameOf);

}  // namespace
}  // namespace postcopy
