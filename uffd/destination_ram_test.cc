#include "uffd/destination_ram.h"

#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"

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

TEST_F(DestinationRamTest, RefusesWhatIsNoRam) {
  std::vector<DestinationRegion> regions = Good();
  regions[0].memory_fd = -1;
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
