#include "pageserver/served_snapshot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/types.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

std::string PathOf(const TestGuest& guest) {
  return absl::StrCat("/proc/self/fd/", guest.fd());
}

std::shared_ptr<const ServedSnapshot> Open(const TestGuest& guest) {
  auto snapshot = ServedSnapshot::Open("s", PathOf(guest));
  EXPECT_TRUE(snapshot.ok()) << snapshot.status();
  return *std::move(snapshot);
}

// The file has three pages in front of the guest's first.
TEST(ServedSnapshotTest, HolesAreZerosAndPagesTheFiles) {
  TestGuest guest({20});
  guest.Write(10, 4711);
  const auto snapshot = Open(guest);
  EXPECT_EQ(snapshot->size(), ByteCount(23 * kPageSize));
  PageBatch batch;
  ASSERT_TRUE(snapshot->ReadRange({PageIndex(0), PageCount(23)}, batch).ok());
  ASSERT_EQ(batch.runs().size(), 3u);
  EXPECT_EQ(batch.runs()[0].pages, (PageRun{PageIndex(0), PageCount(13)}));
  EXPECT_TRUE(batch.runs()[0].data.empty());
  EXPECT_EQ(batch.runs()[1].data, PageOfValue(4711));
  EXPECT_TRUE(batch.runs()[2].data.empty());
  EXPECT_EQ(guest.AllocatedBlocks(), 8);
  ASSERT_TRUE(snapshot->ReadUrgent({PageIndex(13), PageIndex(2)}, batch).ok());
  ASSERT_EQ(batch.runs().size(), 2u);
  EXPECT_EQ(batch.runs()[0].data, PageOfValue(4711));
}

TEST(ServedSnapshotTest, WhatIsBehindTheLastWholePageIsNotServed) {
  TestGuest guest({2});
  guest.Truncate(ByteCount(2 * kPageSize - 1));
  const auto snapshot = Open(guest);
  EXPECT_EQ(snapshot->size(), ByteCount(5 * kPageSize - 1));
  PageBatch batch;
  EXPECT_TRUE(snapshot->ReadUrgent({PageIndex(3)}, batch).ok());
  EXPECT_TRUE(absl::IsOutOfRange(snapshot->ReadUrgent({PageIndex(4)}, batch)));
}

TEST(ServedSnapshotTest, ALimitOfPagesAtATime) {
  TestGuest guest({70});
  const auto snapshot = Open(guest);
  PageBatch batch;
  std::vector<PageIndex> pages;
  for (uint64_t i = 0; i < kBatchPagesMax.value(); ++i) {
    pages.push_back(PageIndex(i));
  }
  EXPECT_TRUE(snapshot->ReadUrgent(pages, batch).ok());
  EXPECT_TRUE(snapshot->ReadRange({PageIndex(0), kBatchPagesMax}, batch).ok());
  pages.push_back(PageIndex(69));
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot->ReadUrgent(pages, batch)));
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot->ReadRange(
      {PageIndex(0), kBatchPagesMax + PageCount(1)}, batch)));
}

TEST(ServedSnapshotTest, ItsIdentityIsItsSizeAndWhenItWasWritten) {
  TestGuest guest({2});
  const uint64_t id = Open(guest)->content_id();
  EXPECT_EQ(Open(guest)->content_id(), id);
  const timespec later[] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT},
                            {.tv_sec = 4711, .tv_nsec = 1}};
  ASSERT_EQ(::futimens(guest.fd(), later), 0);
  const uint64_t touched = Open(guest)->content_id();
  EXPECT_NE(touched, id);
  guest.Truncate(ByteCount(kPageSize));
  ASSERT_EQ(::futimens(guest.fd(), later), 0);
  EXPECT_NE(Open(guest)->content_id(), touched);
}

TEST(ServedSnapshotTest, ATruncatedFileIsALoss) {
  TestGuest guest({20});
  const auto snapshot = Open(guest);
  EXPECT_TRUE(snapshot->CheckUnchanged().ok());
  guest.Truncate(ByteCount(20 * kPageSize - 1));
  EXPECT_TRUE(absl::IsDataLoss(snapshot->CheckUnchanged()));
  PageBatch batch;
  EXPECT_TRUE(absl::IsDataLoss(snapshot->ReadUrgent({PageIndex(22)}, batch)));
  EXPECT_TRUE(absl::IsDataLoss(
      snapshot->ReadRange({PageIndex(20), PageCount(3)}, batch)));
  // What is at its end now is not what was.
  guest.Truncate(ByteCount(20 * kPageSize));
  EXPECT_TRUE(absl::IsDataLoss(snapshot->CheckUnchanged()));
}

// Pages of two files would be a VM that never was.
TEST(ServedSnapshotTest, AFileRewrittenInPlaceIsALoss) {
  TestGuest guest({20});
  guest.Write(10, 1);
  const timespec long_ago[] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
  ASSERT_EQ(::futimens(guest.fd(), long_ago), 0);
  const auto snapshot = Open(guest);
  PageBatch batch;
  ASSERT_TRUE(snapshot->ReadUrgent({PageIndex(13)}, batch).ok());
  const std::string other = PageOfValue(2);
  ASSERT_EQ(::pwrite(guest.fd(), other.data(), other.size(), 13 * kPageSize),
            static_cast<ssize_t>(other.size()));
  for (const uint64_t page : {13, 0}) {
    const absl::Status status = snapshot->ReadUrgent({PageIndex(page)}, batch);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                testing::HasSubstr("snapshot \"s\" has been written to"));
    EXPECT_TRUE(absl::IsDataLoss(
        snapshot->ReadRange({PageIndex(page), PageCount(1)}, batch)));
  }
  EXPECT_TRUE(absl::IsDataLoss(snapshot->CheckUnchanged()));
  // It can be served anew, as another.
  EXPECT_NE(Open(guest)->content_id(), snapshot->content_id());
}

TEST(ServedSnapshotTest, RefusesWhatIsNoSnapshot) {
  TestGuest guest({2});
  EXPECT_TRUE(absl::IsInvalidArgument(
      ServedSnapshot::Open("a/b", PathOf(guest)).status()));
  EXPECT_TRUE(
      absl::IsNotFound(ServedSnapshot::Open("s", "/nonexistent").status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(ServedSnapshot::Open("s", "/tmp").status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(ServedSnapshot::Open("s", "/dev/null").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      ServedSnapshot::Open("s", std::string(5000, 'x')).status()));
  const std::string fifo =
      absl::StrCat(testing::TempDir(), "/fifo.", ::getpid());
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_TRUE(
      absl::IsInvalidArgument(ServedSnapshot::Open("s", fifo).status()));
  ::unlink(fifo.c_str());
  ASSERT_EQ(::ftruncate(guest.fd(), kPageSize - 1), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(
      ServedSnapshot::Open("s", PathOf(guest)).status()));
  ASSERT_EQ(::ftruncate(guest.fd(),
                        static_cast<off_t>(kMaxRamBytes.value() + kPageSize)),
            0);
  EXPECT_TRUE(absl::IsInvalidArgument(
      ServedSnapshot::Open("s", PathOf(guest)).status()));
}

}  // namespace
}  // namespace postcopy
