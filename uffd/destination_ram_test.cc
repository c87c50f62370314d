#include "uffd/destination_ram.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"
#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr HostAddress kLow{0x10000000};
constexpr HostAddress kHigh{0x7f0000000000};

RamLayout TwoRegions() {
  return *RamLayout::Create(
      {{.name = "a", .start = RamOffset(0), .length = ByteCount(kMiB)},
       {.name = "b", .start = RamOffset(kMiB), .length = ByteCount(kMiB)}});
}

class DestinationRamTest : public testing::Test {
 protected:
  // The first region lies above the second in the VMM.
  std::vector<DestinationRegion> Good() {
    return {{kHigh, a_.get(), 0}, {kLow, b_.get(), kPageSize}};
  }
  std::string ErrorOf(const std::vector<DestinationRegion>& regions) {
    const absl::Status status =
        DestinationRam::Create(TwoRegions(), regions).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

  UniqueFd a_ = *CreateMemfd("a", ByteCount(kMiB), 0);
  UniqueFd b_ = *CreateMemfd("b", ByteCount(2 * kMiB), 0);
};

TEST_F(DestinationRamTest, CutsRunsAtTheEndsOfRegions) {
  const DestinationRam ram = *DestinationRam::Create(TwoRegions(), Good());
  const DestinationRam::Piece first =
      ram.FirstPiece({PageIndex(250), PageCount(20)});
  EXPECT_EQ(first.pages, (PageRun{PageIndex(250), PageCount(6)}));
  EXPECT_EQ(first.address, kHigh + ByteCount(250 * kPageSize));
  EXPECT_EQ(first.file_offset, static_cast<off_t>(250 * kPageSize));
  const DestinationRam::Piece second =
      ram.FirstPiece({PageIndex(256), PageCount(14)});
  EXPECT_EQ(second.pages, (PageRun{PageIndex(256), PageCount(14)}));
  EXPECT_EQ(second.address, kLow);
  EXPECT_EQ(second.file_offset, static_cast<off_t>(kPageSize));
}

// Else pwrite(2) would write at the end of the file, wherever it is told to.
TEST_F(DestinationRamTest, AVmmThatSetsAppendLaterChangesNothing) {
  const DestinationRam ram = *DestinationRam::Create(TwoRegions(), Good());
  ASSERT_EQ(::fcntl(a_.get(), F_SETFL, O_APPEND), 0);
  const DestinationRam::Piece piece =
      ram.FirstPiece({PageIndex(3), PageCount(1)});
  const std::vector<uint8_t> bytes(kPageSize, 0x5a);
  ByteCount done;
  EXPECT_EQ(piece.Write(bytes.data(), &done), 0);
  EXPECT_EQ(done, ByteCount(kPageSize));
  EXPECT_TRUE(ram.HasData(PageIndex(3)));
  EXPECT_EQ(*FileSize(a_.get()), ByteCount(kMiB));
  EXPECT_EQ(piece.PunchHole(), 0);
  EXPECT_FALSE(ram.HasData(PageIndex(3)));
}

TEST_F(DestinationRamTest, TellsWhyAPageCannotBeWritten) {
  const DestinationRam ram = *DestinationRam::Create(TwoRegions(), Good());
  ASSERT_EQ(::fcntl(a_.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  const DestinationRam::Piece piece =
      ram.FirstPiece({PageIndex(3), PageCount(1)});
  const std::vector<uint8_t> bytes(kPageSize, 0x5a);
  ByteCount done(1);
  EXPECT_EQ(piece.Write(bytes.data(), &done), EPERM);
  EXPECT_EQ(done, ByteCount(0));
  EXPECT_EQ(piece.PunchHole(), EPERM);
}

TEST_F(DestinationRamTest, FindsPagesByAddress) {
  const DestinationRam ram = *DestinationRam::Create(TwoRegions(), Good());
  EXPECT_EQ(ram.PageAt(kHigh), PageIndex(0));
  EXPECT_EQ(ram.PageAt(kHigh + ByteCount(kMiB - 1)), PageIndex(255));
  EXPECT_EQ(ram.PageAt(kHigh + ByteCount(kMiB)), std::nullopt);
  EXPECT_EQ(ram.PageAt(kLow + ByteCount(4097)), PageIndex(257));
  EXPECT_EQ(ram.PageAt(kLow + ByteCount(kMiB)), std::nullopt);
  EXPECT_EQ(ram.PageAt(HostAddress(kLow.value() - 1)), std::nullopt);
  EXPECT_EQ(ram.PageAt(HostAddress(0)), std::nullopt);
  EXPECT_EQ(ram.PageAt(HostAddress(UINT64_MAX)), std::nullopt);
}

TEST_F(DestinationRamTest, TellsHolesFromData) {
  const DestinationRam ram = *DestinationRam::Create(TwoRegions(), Good());
  EXPECT_FALSE(ram.HasData(PageIndex(256)));
  EXPECT_FALSE(ram.HasData(PageIndex(511)));
  ASSERT_EQ(::pwrite(b_.get(), "x", 1, 2 * kPageSize), 1);
  EXPECT_FALSE(ram.HasData(PageIndex(256)));
  EXPECT_TRUE(ram.HasData(PageIndex(257)));
}

TEST_F(DestinationRamTest, KeepsItsOwnDescriptors) {
  const DestinationRam ram = *DestinationRam::Create(TwoRegions(), Good());
  a_.Reset();
  b_.Reset();
  EXPECT_FALSE(ram.HasData(PageIndex(0)));
}

TEST_F(DestinationRamTest, NamesWhatDoesNotFit) {
  std::vector<DestinationRegion> regions = Good();
  regions.pop_back();
  EXPECT_NE(ErrorOf(regions).find("2 regions"), std::string::npos);

  regions = Good();
  regions[1].host_address = HostAddress(kLow.value() + 1);
  EXPECT_NE(ErrorOf(regions).find("\"b\""), std::string::npos);

  regions = Good();
  regions[1].host_address = HostAddress(UINT64_MAX - kPageSize + 1);
  EXPECT_NE(ErrorOf(regions).find("too large"), std::string::npos);

  regions = Good();
  regions[1].fd_offset = INT64_MAX - kPageSize + 1;
  EXPECT_NE(ErrorOf(regions).find("too large"), std::string::npos);

  regions = Good();
  regions[1].fd_offset = kMiB + kPageSize;
  EXPECT_NE(ErrorOf(regions).find("ends before"), std::string::npos);

  regions = Good();
  regions[1].host_address = kHigh + ByteCount(kMiB - kPageSize);
  EXPECT_NE(ErrorOf(regions).find("overlap"), std::string::npos);

  regions = Good();
  const UniqueFd same_file(::dup(b_.get()));
  regions[0] = {kHigh, same_file.get(), kMiB};
  EXPECT_NE(ErrorOf(regions).find("shares pages"), std::string::npos);
  regions[0].fd_offset = kMiB + kPageSize;  // side by side is fine
  ASSERT_EQ(::ftruncate(b_.get(), 3 * kMiB), 0);
  EXPECT_TRUE(DestinationRam::Create(TwoRegions(), regions).ok());
}

TEST_F(DestinationRamTest, PartsMoveAndGo) {
  DestinationRam ram = *DestinationRam::Create(TwoRegions(), Good());
  const auto bytes = [](uint64_t pages) { return BytesIn(PageCount(pages)); };
  constexpr HostAddress kElsewhere{0x700000000000};
  EXPECT_TRUE(ram.Remap(kHigh + bytes(10), kElsewhere, bytes(5)).ok());
  EXPECT_EQ(ram.PageAt(kHigh + bytes(9)), PageIndex(9));
  EXPECT_EQ(ram.PageAt(kHigh + bytes(10)), std::nullopt);
  EXPECT_EQ(ram.PageAt(kHigh + bytes(15)), PageIndex(15));
  EXPECT_EQ(ram.PageAt(kElsewhere + bytes(4)), PageIndex(14));
  EXPECT_EQ(ram.PageAt(kElsewhere + bytes(5)), std::nullopt);
  const DestinationRam::Piece piece =
      ram.FirstPiece({PageIndex(12), PageCount(20)});
  EXPECT_EQ(piece.address, kElsewhere + bytes(2));
  EXPECT_EQ(piece.pages, (PageRun{PageIndex(12), PageCount(3)}));
  EXPECT_EQ(piece.file_offset,
            ram.region(0).file_offset + static_cast<off_t>(12 * kPageSize));

  // Moved onto other RAM, it takes its place.
  EXPECT_TRUE(ram.Remap(kElsewhere + bytes(1), kLow, bytes(1)).ok());
  EXPECT_EQ(ram.PageAt(kLow), PageIndex(11));
  EXPECT_FALSE(ram.FirstPiece({PageIndex(256), PageCount(1)}).mapped());
  EXPECT_TRUE(ram.FirstPiece({PageIndex(257), PageCount(1)}).mapped());

  EXPECT_TRUE(ram.Unmap(kLow, bytes(1)).ok());
  EXPECT_EQ(ram.PageAt(kLow), std::nullopt);
  EXPECT_TRUE(ram.PagesAt(kLow, bytes(1)).empty());
  EXPECT_EQ(ram.PagesAt(kLow + bytes(1), bytes(2)),
            (std::vector<PageRun>{{PageIndex(257), PageCount(2)}}));
  // What is no RAM is nobody's business.
  EXPECT_TRUE(ram.Unmap(HostAddress(kPageSize), bytes(1)).ok());
}

TEST(DestinationRamPartsTest, AreLimited) {
  constexpr HostAddress kBase{1 << 30};
  constexpr uint64_t kPages = 2 * kMaxMappedParts;
  DestinationRam ram =
      *DestinationRam::Create(LayoutOf({PageCount(kPages)}), {{kBase}});
  const auto punch = [&](uint64_t page) {
    return ram.Unmap(kBase + BytesIn(PageCount(page)), ByteCount(kPageSize));
  };
  // Each leaves two parts more: itself, and what lies behind it.
  uint64_t page = 1;
  for (size_t parts = 1; parts + 2 <= kMaxMappedParts; parts += 2, page += 2) {
    ASSERT_TRUE(punch(page).ok()) << parts;
  }
  const absl::Status status = punch(page);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
}

TEST(DestinationRamUnitTest, AreThoseOfTheRegion) {
  const DestinationRam ram = *DestinationRam::Create(
      LayoutOf({GuestRegion{MemoryKind::kAnonymous, PageCount(3)},
                GuestRegion{MemoryKind::kHugetlb, PageCount(1024)}}),
      {{HostAddress(1 << 30)}, {HostAddress(1u << 31)}});
  const PageRun huge{PageIndex(515), PageCount(512)};
  EXPECT_EQ(ram.UnitOf(PageIndex(2)), (PageRun{PageIndex(2), PageCount(1)}));
  EXPECT_EQ(ram.UnitOf(PageIndex(515)), huge);
  EXPECT_EQ(ram.UnitOf(PageIndex(1026)), huge);
  EXPECT_EQ(ram.largest_unit(), PageCount(512));
  EXPECT_FALSE(ram.has_files());
  // Not into the next region, and huge pages whole.
  EXPECT_EQ(ram.RequestFor({PageIndex(1), PageCount(64)}),
            (PageRun{PageIndex(1), PageCount(2)}));
  EXPECT_EQ(ram.RequestFor({PageIndex(600), PageCount(64)}), huge);
}

TEST_F(DestinationRamTest, RefusesAddressesThatCannotBe) {
  std::vector<DestinationRegion> regions = Good();
  regions[0].host_address = HostAddress(0);
  EXPECT_NE(ErrorOf(regions).find("is 0"), std::string::npos);
}

TEST(DestinationRamUnitTest, HugePagesAreAlignedAndOfAFileOfTheirKind) {
  const RamLayout layout =
      LayoutOf({GuestRegion{MemoryKind::kHugetlb, PageCount(512)}});
  const auto error = [&](DestinationRegion region) {
    return std::string(
        DestinationRam::Create(layout, {region}).status().message());
  };
  EXPECT_NE(error({HostAddress((1 << 30) + kPageSize)}).find("2097152"),
            std::string::npos);
  const UniqueFd fd = *CreateMemfd("m", kHugePageSize, 0);
  EXPECT_NE(error({HostAddress(1 << 30), fd.get(), 0}).find("2MiB"),
            std::string::npos);
  const UniqueFd huge(::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB));
  if (!huge.valid() || ::ftruncate(huge.get(), int64_t{1} << 50) != 0) {
    GTEST_SKIP() << "no hugetlbfs";
  }
  EXPECT_NE(
      error({HostAddress(1 << 30), huge.get(), kPageSize}).find("2097152"),
      std::string::npos);
  // Too few, whatever the host has: 512 TiB.
  const RamLayout vast =
      LayoutOf({GuestRegion{MemoryKind::kHugetlb, PagesIn(kMaxRamBytes)}});
  const absl::Status status =
      DestinationRam::Create(vast, {{HostAddress(1 << 30), huge.get(), 0}})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("raise vm.nr_hugepages"),
            absl::string_view::npos);
}

// Pages wait in a file of this process, if that is wanted.
TEST(DestinationRamUnitTest, StagedRegionsHaveAFile) {
  const RamLayout layout = LayoutOf({PageCount(4), PageCount(2)});
  const DestinationRam ram = *DestinationRam::Create(
      layout, {{.host_address = HostAddress(1 << 30), .staged = true},
               {.host_address = HostAddress(1 << 20)}});
  EXPECT_TRUE(ram.has_staging());
  EXPECT_FALSE(ram.has_files());
  EXPECT_FALSE(ram.AnyStaged());
  const DestinationRam::Piece piece =
      ram.FirstPiece({PageIndex(1), PageCount(2)});
  EXPECT_TRUE(piece.staged);
  EXPECT_TRUE(piece.tells_holes());
  EXPECT_FALSE(piece.has_small_file());
  const std::vector<uint8_t> bytes = PatternOf(piece.pages);
  ByteCount done;
  ASSERT_EQ(piece.Write(bytes.data(), &done), 0);
  EXPECT_EQ(done, piece.bytes());
  EXPECT_TRUE(ram.AnyStaged());
  EXPECT_TRUE(ram.HasData(PageIndex(2)));
  EXPECT_FALSE(ram.HasData(PageIndex(3)));
  ASSERT_EQ(piece.PunchHole(), 0);
  EXPECT_FALSE(ram.AnyStaged());
  EXPECT_FALSE(ram.region(1).has_file());
}

// A store there would be SIGBUS.
TEST(DestinationRamUnitTest, AShortenedFileOfHugePagesIsAnError) {
  const UniqueFd huge(::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB));
  if (!huge.valid() || ::ftruncate(huge.get(), 2 << 20) != 0) {
    GTEST_SKIP() << "no hugetlbfs";
  }
  const auto ram = DestinationRam::Create(
      LayoutOf({GuestRegion{MemoryKind::kHugetlb, PageCount(512)}}),
      {{HostAddress(1 << 30), huge.get(), 0}});
  if (absl::IsResourceExhausted(ram.status())) GTEST_SKIP() << ram.status();
  ASSERT_TRUE(ram.ok()) << ram.status();
  const DestinationRam::Piece piece =
      ram->FirstPiece({PageIndex(1), PageCount(2)});
  const std::vector<uint8_t> bytes = PatternOf(piece.pages);
  ByteCount done;
  EXPECT_EQ(piece.Write(bytes.data(), &done), 0);
  ASSERT_EQ(::ftruncate(huge.get(), 0), 0);
  EXPECT_EQ(piece.Write(bytes.data(), &done), ENOMEM);
  EXPECT_EQ(done, ByteCount(0));
  EXPECT_EQ(piece.Clear(), ENOMEM);
}

TEST_F(DestinationRamTest, RefusesWhatIsNoRam) {
  std::vector<DestinationRegion> regions = Good();
  {
    const UniqueFd closed(::dup(a_.get()));
    regions[0].memory_fd = closed.get();
  }
  EXPECT_NE(ErrorOf(regions).find("not open"), std::string::npos);

  const std::string path = "/proc/self/fd/" + std::to_string(a_.get());
  const UniqueFd read_only(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  regions[0].memory_fd = read_only.get();
  EXPECT_NE(ErrorOf(regions).find("O_RDWR"), std::string::npos);

  const UniqueFd append(::open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC));
  regions[0].memory_fd = append.get();
  EXPECT_NE(ErrorOf(regions).find("O_APPEND"), std::string::npos);

  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  regions[0].memory_fd = null.get();
  ErrorOf(regions);
}

}  // namespace
}  // namespace postcopy
