#include "dirtytrack/dirty_views.h"

#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dirtytrack/page_set.h"
#include "dirtytrack/simulated_dirty_source.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using Set = std::set<uint64_t>;
using View = DirtyViews::View;

constexpr uint64_t kPages = 200;
constexpr PageRun kAll{PageIndex(0), PageCount(kPages)};

PageBitmap BitmapOf(const Set& pages) {
  PageBitmap bitmap = *PageBitmap::Create(PageCount(kPages));
  for (uint64_t page : pages) bitmap.view().TestAndSet(PageIndex(page));
  return bitmap;
}

// A guest whose pages are numbers, over a log in the manner of KVM's with
// manual protection: Collect looks, Clear takes.
class DirtyViewsTest : public testing::Test {
 protected:
  DirtyViewsTest()
      : source_(PageCount(kPages), SimulatedDirtySource::Tracking::kTwoSteps),
        guest_(kPages, 0) {
    EXPECT_TRUE(source_.Start().ok());
    views_ = *DirtyViews::Create(&source_, PageCount(kPages));
  }

  void Write(uint64_t page) {
    ++guest_[page];
    source_.Mark(PageIndex(page));
  }

  // A view whose consumer has cleared everything once.
  std::unique_ptr<View> NewViewThatIsClean() {
    std::unique_ptr<View> view = *views_->NewView();
    Clear(*view, PagesOf(view->dirty()));
    return view;
  }

  static void Clear(View& view, const Set& pages, PageRun run = kAll) {
    const PageBitmap bitmap = BitmapOf(pages);
    ASSERT_TRUE(view.Clear(bitmap.view(), run).ok());
  }

  SimulatedDirtySource source_;
  std::vector<uint64_t> guest_;
  std::unique_ptr<DirtyViews> views_;
};

TEST_F(DirtyViewsTest, ANewViewHasEveryPage) {
  const std::unique_ptr<View> view = *views_->NewView();
  EXPECT_EQ(view->dirty().Count(), PageCount(kPages));
}

TEST_F(DirtyViewsTest, EachConsumerIsToldOnceAndClearsForItself) {
  const auto migration = NewViewThatIsClean();
  const auto display = NewViewThatIsClean();
  Write(3);
  Write(150);
  ASSERT_TRUE(views_->Sync().ok());
  EXPECT_EQ(PagesOf(migration->dirty()), (Set{3, 150}));
  EXPECT_EQ(PagesOf(display->dirty()), (Set{3, 150}));
  Clear(*migration, {3, 150});
  EXPECT_EQ(PagesOf(migration->dirty()), Set());
  EXPECT_EQ(PagesOf(display->dirty()), (Set{3, 150}));
  ASSERT_TRUE(views_->Sync().ok());
  EXPECT_EQ(PagesOf(migration->dirty()), Set()) << "told twice";
}

// --- The naive design, and the write that it loses.

// "Clear all ones for the range that I am about to read."
TEST_F(DirtyViewsTest, TheNaiveClearLosesAWrite) {
  const PageBitmap all = BitmapOf({});
  all.view().SetRun(kAll);
  ASSERT_TRUE(source_.Clear(all.view(), kAll).ok());
  std::vector<uint64_t> sent = guest_;

  Write(5);
  const PageBitmap known = BitmapOf({});
  ASSERT_TRUE(source_.Collect(known.view()).ok());
  Write(6);  // after the look, and before the clear
  ASSERT_TRUE(source_.Clear(all.view(), {PageIndex(0), PageCount(64)}).ok());
  for (uint64_t page : PagesOf(known.view())) sent[page] = guest_[page];

  ASSERT_TRUE(source_.Collect(known.view()).ok());
  for (uint64_t page : PagesOf(known.view())) sent[page] = guest_[page];
  EXPECT_NE(sent, guest_) << "this design is expected to lose page 6";
  EXPECT_EQ(sent[5], guest_[5]);
  EXPECT_NE(sent[6], guest_[6]);
}

TEST_F(DirtyViewsTest, OursDoesNot) {
  const auto view = NewViewThatIsClean();
  std::vector<uint64_t> sent = guest_;
  Write(5);
  ASSERT_TRUE(views_->Sync().ok());
  Write(6);
  // All ones: only what this view has been told of is cleared.
  const PageBitmap all = BitmapOf({});
  all.view().SetRun(kAll);
  const Set known = PagesOf(view->dirty());
  ASSERT_TRUE(view->Clear(all.view(), {PageIndex(0), PageCount(64)}).ok());
  for (uint64_t page : known) sent[page] = guest_[page];
  ASSERT_TRUE(views_->Sync().ok());
  for (uint64_t page : PagesOf(view->dirty())) sent[page] = guest_[page];
  EXPECT_EQ(sent, guest_);
}

// "Each consumer clears the source for itself": the second clear of a page
// takes a write away that neither has been told of.
TEST_F(DirtyViewsTest, TwoNaiveConsumersLoseAWriteAndOursDoNot) {
  const auto one = NewViewThatIsClean();
  const auto other = NewViewThatIsClean();
  Write(9);
  ASSERT_TRUE(views_->Sync().ok());
  Clear(*one, {9});
  const uint64_t read_by_one = guest_[9];
  Write(9);
  EXPECT_TRUE(source_.IsPending(PageIndex(9)));
  Clear(*other, {9});
  EXPECT_TRUE(source_.IsPending(PageIndex(9)))
      << "the naive design would have cleared it";
  ASSERT_TRUE(views_->Sync().ok());
  EXPECT_TRUE(one->dirty().Test(PageIndex(9)));
  EXPECT_NE(guest_[9], read_by_one);
}

// --- Dirt that the source does not see.

// A device and the guest write a page; it is sent once, since what the
// migration is about to send is cleared in the source whoever dirtied it.
TEST_F(DirtyViewsTest, MergedPagesAreSentOnce) {
  const auto migration = NewViewThatIsClean();
  Write(7);  // not told yet
  const PageBitmap device = BitmapOf({7});
  views_->Merge(device.view());
  EXPECT_EQ(PagesOf(migration->dirty()), Set{7});
  Clear(*migration, {7});
  ASSERT_TRUE(views_->Sync().ok());
  EXPECT_EQ(PagesOf(migration->dirty()), Set()) << "would be sent twice";
}

// The same with a second consumer: nothing is taken from it.
TEST_F(DirtyViewsTest, MergedPagesAreToldToAll) {
  const auto migration = NewViewThatIsClean();
  const auto display = NewViewThatIsClean();
  Write(7);
  const PageBitmap device = BitmapOf({7});
  views_->Merge(device.view());
  Clear(*migration, {7});
  EXPECT_TRUE(display->dirty().Test(PageIndex(7)));
}

// --- Calls.

TEST_F(DirtyViewsTest, OnlyTheRunIsCleared) {
  const auto view = NewViewThatIsClean();
  for (uint64_t page : {62, 63, 64, 130}) Write(page);
  ASSERT_TRUE(views_->Sync().ok());
  Clear(*view, {62, 63, 64, 130}, {PageIndex(63), PageCount(2)});
  EXPECT_EQ(PagesOf(view->dirty()), (Set{62, 130}));
  EXPECT_FALSE(source_.IsPending(PageIndex(63)));
  EXPECT_TRUE(source_.IsPending(PageIndex(62)));
}

TEST_F(DirtyViewsTest, AFailedClearClearsNothing) {
  const auto view = NewViewThatIsClean();
  Write(1);
  ASSERT_TRUE(views_->Sync().ok());
  source_.FailNextClear(absl::UnavailableError("injected"));
  const PageBitmap pages = BitmapOf({1});
  EXPECT_EQ(view->Clear(pages.view(), kAll),
            absl::UnavailableError("injected"));
  EXPECT_EQ(PagesOf(view->dirty()), Set{1});
  Clear(*view, {1});
  EXPECT_FALSE(source_.IsPending(PageIndex(1)));
}

TEST_F(DirtyViewsTest, AFailedSyncTellsWhatWasReported) {
  const auto view = NewViewThatIsClean();
  Write(1);
  Write(2);
  source_.FailNextCollect(absl::UnavailableError("injected"), PageCount(1));
  EXPECT_EQ(views_->Sync(), absl::UnavailableError("injected"));
  EXPECT_EQ(PagesOf(view->dirty()), Set{1});
}

TEST_F(DirtyViewsTest, ViewsEndAndOthersGoOn) {
  auto one = NewViewThatIsClean();
  const auto other = NewViewThatIsClean();
  Write(4);
  one.reset();
  ASSERT_TRUE(views_->Sync().ok());
  EXPECT_EQ(PagesOf(other->dirty()), Set{4});
}

TEST_F(DirtyViewsTest, AsManyViewsAsTheLimitAndNotOneMore) {
  std::vector<std::unique_ptr<View>> views;
  for (size_t i = 0; i < kMaxDirtyViews; ++i) {
    views.push_back(*views_->NewView());
  }
  const absl::Status status = views_->NewView().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "the dirty pages of this VM have 8 consumers already; end one of "
            "them first");
  views.pop_back();
  EXPECT_TRUE(views_->NewView().ok());
}

TEST_F(DirtyViewsTest, AViewIsASource) {
  const auto view = NewViewThatIsClean();
  Write(3);
  const PageBitmap into = BitmapOf({1});
  EXPECT_TRUE(view->Start().ok());
  EXPECT_EQ(*view->Collect(into.view()), PageCount(1));
  EXPECT_EQ(PagesOf(into.view()), (Set{1, 3}));
  const PageBitmap unsent = BitmapOf({8});
  ASSERT_TRUE(view->Restore(unsent.view()).ok());
  EXPECT_EQ(PagesOf(view->dirty()), (Set{3, 8}));
  EXPECT_TRUE(view->Stop().ok());
  const PageBitmap small = *PageBitmap::Create(PageCount(kPages - 1));
  EXPECT_EQ(view->Collect(small.view()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// --- The model: consumers that sync, clear and read at random, come and go.

struct Consumer {
  std::unique_ptr<View> view;
  std::vector<uint64_t> read;  // the version of each page that it has
};

TEST_F(DirtyViewsTest, NoConsumerMissesAWrite) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    std::string steps;
    std::vector<Consumer> consumers;
    const auto read_some = [&](Consumer& consumer, PageRun run) {
      const PageBitmap pages = BitmapOf({});
      for (int word = 0; word < 4; ++word) {
        pages.view().OrWord(word, random() | uint64_t{random()} << 32);
      }
      const Set known = PagesOf(consumer.view->dirty());
      ASSERT_TRUE(consumer.view->Clear(pages.view(), run).ok());
      for (uint64_t page : known) {
        if (PageIndex(page) >= run.first && PageIndex(page) < run.end() &&
            pages.view().Test(PageIndex(page))) {
          consumer.read[page] = guest_[page];
        }
      }
    };
    for (int step = 0; step < 120; ++step) {
      const uint32_t what = random() % 8;
      absl::StrAppend(&steps, " ", what);
      if (what < 3) {
        Write(random() % kPages);
      } else if (what == 3) {
        ASSERT_TRUE(views_->Sync().ok());
      } else if (what == 4) {
        const uint64_t page = random() % kPages;
        ++guest_[page];  // by a device
        const PageBitmap device = BitmapOf({page});
        views_->Merge(device.view());
      } else if (what == 5 && consumers.size() < 3) {
        consumers.push_back(
            {*views_->NewView(), std::vector<uint64_t>(kPages, UINT64_MAX)});
      } else if (what == 6 && consumers.size() == 3 && random() % 4 == 0) {
        consumers.erase(consumers.begin());
      } else if (!consumers.empty()) {
        const uint64_t first = random() % kPages;
        read_some(
            consumers[random() % consumers.size()],
            {PageIndex(first), PageCount(1 + random() % (kPages - first))});
      }
    }
    ASSERT_TRUE(views_->Sync().ok());
    for (Consumer& consumer : consumers) {
      for (uint64_t page : PagesOf(consumer.view->dirty())) {
        consumer.read[page] = guest_[page];
      }
      ASSERT_EQ(consumer.read, guest_) << "seed " << seed << ":" << steps;
    }
  }
}

}  // namespace
}  // namespace postcopy
