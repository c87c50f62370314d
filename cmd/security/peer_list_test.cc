#include "cmd/security/peer_list.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

PeerList Parse(const std::string& text) {
  absl::StatusOr<PeerList> list = PeerList::Parse("--control_peers", text);
  EXPECT_TRUE(list.ok()) << list.status();
  return *list;
}

bool Takes(const PeerList& list, const std::vector<std::string>& presented) {
  return list.Check(presented).ok();
}

TEST(PeerListTest, OneOfTheNamesIsEnough) {
  const PeerList list = Parse("b.example, spiffe://example/orchestrator");
  EXPECT_TRUE(Takes(list, {"b.example"}));
  EXPECT_TRUE(Takes(list, {"other", "spiffe://example/orchestrator"}));
  EXPECT_FALSE(Takes(list, {"a.example", "c.example"}));
  EXPECT_FALSE(Takes(list, {}));
}

TEST(PeerListTest, NoNamesMeansEverybody) {
  EXPECT_TRUE(Parse("").empty());
  EXPECT_TRUE(Takes(Parse(""), {}));
  EXPECT_TRUE(Takes(PeerList(), {"any"}));
}

TEST(PeerListTest, HostNamesHaveNoCaseAndUrisDo) {
  EXPECT_TRUE(Takes(Parse("Host.Example"), {"hOST.eXAMPLE"}));
  EXPECT_FALSE(Takes(Parse("spiffe://example/A"), {"spiffe://example/a"}));
}

// Names are no patterns, on neither side.
TEST(PeerListTest, NothingIsAPattern) {
  EXPECT_FALSE(Takes(Parse("*.example"), {"a.example"}));
  EXPECT_FALSE(Takes(Parse("a.example"), {"*.example"}));
  EXPECT_TRUE(Takes(Parse("*.example"), {"*.example"}));
  EXPECT_FALSE(Takes(Parse("a.example"), {"a.example.evil"}));
  EXPECT_FALSE(Takes(Parse("a.example"), {"a"}));
  EXPECT_FALSE(Takes(Parse("a.example"), {std::string("a.example\0evil", 14)}));
}

TEST(PeerListTest, SaysWhatWasPresentedAndWhichFlag) {
  const absl::Status status = Parse("a").Check({"b", "spiffe://x/y"});
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(status.message(),
            "a peer whose certificate names b, spiffe://x/y may not do this: "
            "--control_peers has none of these names");
  EXPECT_THAT(std::string(Parse("a").Check({}).message()),
              HasSubstr("no DNS name and no URI"));
}

TEST(PeerListTest, AMessageIsBoundedAndPrintable) {
  std::vector<std::string> names(kPeerNamesTold, "x");
  EXPECT_THAT(std::string(Parse("a").Check(names).message()),
              Not(HasSubstr("more")));
  names.emplace_back("last");
  names[0] = "line\nbreak";
  names[1] = std::string(kPeerNameBytesMax + 1, 'y');
  const std::string message(Parse("a").Check(names).message());
  EXPECT_THAT(message,
              AllOf(HasSubstr("and 1 more"), Not(HasSubstr("last")),
                    HasSubstr("line\\nbreak"), Not(HasSubstr(names[1]))));
}

TEST(PeerListTest, LimitsOfANameAndOfTheList) {
  EXPECT_TRUE(PeerList::Parse("--f", std::string(kPeerNameBytesMax, 'a')).ok());
  for (const std::string& text :
       {std::string(kPeerNameBytesMax + 1, 'a'), std::string("a,,b"),
        std::string("a,"), std::string(" ")}) {
    const absl::Status status = PeerList::Parse("--f", text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--f"));
  }
  std::vector<std::string> names(kPeersMax, "a");
  EXPECT_TRUE(PeerList::Parse("--f", absl::StrJoin(names, ",")).ok());
  names.emplace_back("a");
  EXPECT_FALSE(PeerList::Parse("--f", absl::StrJoin(names, ",")).ok());
}

}  // namespace
}  // namespace postcopy
