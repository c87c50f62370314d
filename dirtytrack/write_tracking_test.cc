#include "dirtytrack/write_tracking.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/pagemap_scan_abi.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr ByteCount kBytes{16 * kPageSize};

class WriteTrackingTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::Status possible = WriteTracking::Create({}).status();
    if (absl::IsPermissionDenied(possible) || absl::IsUnimplemented(possible)) {
      GTEST_SKIP() << possible;
    }
    ASSERT_TRUE(possible.ok()) << possible;
  }
  void TearDown() override { Unmap(); }

  void Map(int protection, int flags, int fd) {
    void* base = ::mmap(nullptr, kBytes.value(), protection, flags, fd, 0);
    ASSERT_NE(base, MAP_FAILED);
    base_ = static_cast<uint8_t*>(base);
  }
  void MapAnonymous() {
    Map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  }
  void Unmap() {
    if (base_ != nullptr) ::munmap(base_, kBytes.value());
    base_ = nullptr;
  }

  HostRange range() const {
    return {HostAddress(reinterpret_cast<uintptr_t>(base_)), kBytes};
  }
  absl::StatusOr<WriteTracking> Create() const { return Create(range()); }
  static absl::StatusOr<WriteTracking> Create(const HostRange& range) {
    return WriteTracking::Create({&range, 1});
  }
  absl::Status Refusal() const { return Create().status(); }

  // What ioctl(PAGEMAP_SCAN) for written pages returns.
  int Scan(int pagemap, uint64_t flags, PagemapRegion* found) const {
    PagemapScanArg arg = {.size = sizeof(arg),
                          .flags = flags | kPmScanCheckWpAsync,
                          .start = range().address.value(),
                          .end = range().address.value() + kBytes.value(),
                          .vec = reinterpret_cast<uintptr_t>(found),
                          .vec_len = 1,
                          .category_mask = kPageIsWritten,
                          .return_mask = kPageIsWritten};
    return ::ioctl(pagemap, kPagemapScan, &arg);
  }

  uint8_t* base_ = nullptr;
};

// True if `status` has that code, names `range` and has `part` in it.
testing::AssertionResult Is(const absl::Status& status, absl::StatusCode code,
                            const HostRange& range, absl::string_view part) {
  if (status.code() == code && absl::StrContains(status.message(), part) &&
      absl::StrContains(status.message(), ToString(range.address))) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << status;
}

TEST_F(WriteTrackingTest, LetsThePagemapTellWrites) {
  MapAnonymous();
  absl::StatusOr<WriteTracking> tracking = Create();
  ASSERT_TRUE(tracking.ok()) << tracking.status();
  const UniqueFd pagemap = tracking->TakePagemap();
  ASSERT_TRUE(pagemap.valid());
  EXPECT_NE(::fcntl(pagemap.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_FALSE(tracking->TakePagemap().valid());
  PagemapRegion found = {};
  // Registered and never protected: all of it.
  ASSERT_EQ(Scan(pagemap.get(), kPmScanWpMatching, &found), 1);
  EXPECT_EQ(found.end - found.start, kBytes.value());
  EXPECT_EQ(Scan(pagemap.get(), 0, &found), 0);
  base_[3 * kPageSize] = 1;
  ASSERT_EQ(Scan(pagemap.get(), 0, &found), 1);
  EXPECT_EQ(found.start, range().address.value() + 3 * kPageSize);
  EXPECT_EQ(found.end - found.start, kPageSize);
}

TEST_F(WriteTrackingTest, EndsWithTheObject) {
  MapAnonymous();
  UniqueFd pagemap;
  PagemapRegion found = {};
  {
    absl::StatusOr<WriteTracking> tracking = Create();
    ASSERT_TRUE(tracking.ok()) << tracking.status();
    pagemap = tracking->TakePagemap();
    WriteTracking moved = *std::move(tracking);
    EXPECT_EQ(Scan(pagemap.get(), 0, &found), 1);
  }
  EXPECT_EQ(Scan(pagemap.get(), 0, &found), -1);
  EXPECT_EQ(errno, EPERM);
  base_[0] = 1;  // nobody has to serve the fault
  EXPECT_TRUE(Create().ok());
}

TEST_F(WriteTrackingTest, TracksAMemfd) {
  const UniqueFd memfd = *CreateMemfd("ram", kBytes, 0);
  Map(PROT_READ | PROT_WRITE, MAP_SHARED, memfd.get());
  EXPECT_TRUE(Create().ok());
}

TEST_F(WriteTrackingTest, RefusesWhatIsNotWholePages) {
  MapAnonymous();
  for (const HostRange& bad :
       {HostRange{range().address + ByteCount(1), kBytes},
        HostRange{range().address, ByteCount(100)},
        HostRange{range().address, ByteCount(0)}}) {
    EXPECT_TRUE(Is(Create(bad).status(), absl::StatusCode::kInvalidArgument,
                   bad, "whole pages"));
  }
}

TEST_F(WriteTrackingTest, RefusesWhatIsNotMapped) {
  MapAnonymous();
  const HostRange gone = range();
  Unmap();
  EXPECT_TRUE(Is(Create(gone).status(), absl::StatusCode::kInvalidArgument,
                 gone, "mapped"));
}

TEST_F(WriteTrackingTest, RefusesMemoryOfAnotherUserfaultfd) {
  MapAnonymous();
  const absl::StatusOr<WriteTracking> first = Create();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(Is(Refusal(), absl::StatusCode::kFailedPrecondition, range(),
                 "another userfaultfd"));
}

TEST_F(WriteTrackingTest, RefusesAFileThatMustNotBeWritten) {
  const UniqueFd memfd = *CreateMemfd("ram", kBytes, 0);
  const std::string path = "/proc/self/fd/" + std::to_string(memfd.get());
  const UniqueFd read_only(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  Map(PROT_READ, MAP_SHARED, read_only.get());
  EXPECT_TRUE(Is(Refusal(), absl::StatusCode::kPermissionDenied, range(),
                 "opened for writing"));
}

}  // namespace
}  // namespace postcopy
