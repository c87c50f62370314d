// The program must be bytes and nothing else, whatever the build adds to the
// rest: it runs where no other byte of this process is.
#include "cmd/demovm/guest_program.h"

#include <cstdint>
#include <set>

#include "gtest/gtest.h"

namespace postcopy::demovm {
namespace {

TEST(GuestProgramTest, LiesInOnePiece) {
  const GuestCode code = GuestProgram();
  ASSERT_GT(code.end, code.begin);
  // More would not fit into its pages in guest RAM.
  EXPECT_LE(code.end - code.begin, 4 * 4096);
  EXPECT_LT(code.entry, static_cast<uint64_t>(code.end - code.begin));
}

TEST(GuestAbiTest, TwoVersionsDifferInEveryWord) {
  for (const uint32_t entry : {1u, 2u, 77u}) {
    for (uint64_t j = 0; j < kWordsPerPage; ++j) {
      EXPECT_NE(PageSeed(5, entry) + j * PageStride(entry),
                PageSeed(5, entry + 1) + j * PageStride(entry + 1));
      EXPECT_NE(PageSeed(5, entry) + j * PageStride(entry),
                PageSeed(6, entry) + j * PageStride(entry));
    }
  }
}

TEST(GuestAbiTest, EntriesCountAndNeverComeBackToZero) {
  EXPECT_EQ(NextEntry(0, false), 1u);
  EXPECT_EQ(NextEntry(1, true), 2u | kZeroedBit);
  EXPECT_EQ(NextEntry(2 | kZeroedBit, false), 3u);
  EXPECT_EQ(NextEntry(~kZeroedBit, false), 1u);
  EXPECT_EQ(TableTerm(9, 0), 0u);
  EXPECT_NE(TableTerm(9, 1), TableTerm(9, 1 | kZeroedBit));
}

TEST(GuestAbiTest, EveryPageHasOneOwner) {
  GuestParams params{};
  params.first_data_page = 100;
  params.data_pages = 50;
  params.vcpus = 4;
  std::set<uint64_t> pages;
  for (uint32_t vcpu = 0; vcpu < params.vcpus; ++vcpu) {
    for (uint64_t own = 0; own < OwnedPages(params, vcpu); ++own) {
      EXPECT_TRUE(pages.insert(OwnedPage(params, vcpu, own)).second);
    }
  }
  EXPECT_EQ(pages.size(), params.data_pages);
  EXPECT_EQ(*pages.begin(), params.first_data_page);
  EXPECT_EQ(*pages.rbegin(), params.first_data_page + params.data_pages - 1);
}

}  // namespace
}  // namespace postcopy::demovm
