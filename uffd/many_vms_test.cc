// VMs of one process that take turns at the bulk lane, on the kernel's
// userfaultfd; this process is all their VMMs.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/clock.h"
#include "dirtytrack/page_bitmap.h"
#include "dirtytrack/types.h"
#include "gtest/gtest.h"
#include "uffd/bulk_share.h"
#include "uffd/destination_vm.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/page_source.h"

namespace postcopy {
namespace {

constexpr size_t kVms = 8;
constexpr PageCount kPages{1024};  // 16 bulk requests

// Answers what is faulted; of the bulk lane nothing is heard again.
class HalfDeafSource final : public PageSource {
 public:
  explicit HalfDeafSource(ServingPageSource* urgent) : urgent_(*urgent) {}

  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override {
    return urgent_.RequestUrgent(pages);
  }
  absl::Status RequestBulk(PageRun run) override {
    return bulk_.RequestBulk(run);
  }
  void AwaitBulk(size_t count) { bulk_.AwaitBulk(count); }

 private:
  ServingPageSource& urgent_;
  FakePageSource bulk_;
};

struct Vm {
  std::unique_ptr<KernelGuest> guest;
  std::promise<absl::Status> end;
  std::unique_ptr<DestinationVm> vm;
  std::unique_ptr<ServingPageSource> source;
};

class ManyVmsTest : public testing::Test {
 protected:
  void SetUp() override {
    for (size_t i = 0; i < kVms; ++i) {
      Vm& vm = vms_.emplace_back();
      std::string reason;
      vm.guest = KernelGuest::Create(std::vector<PageCount>{kPages}, &reason);
      if (vm.guest == nullptr) GTEST_SKIP() << reason;
      auto created =
          DestinationVm::Create(vm.guest->layout(), vm.guest->regions(),
                                vm.guest->TakeOps(), Clock::Monotonic());
      ASSERT_TRUE(created.ok()) << created.status();
      vm.vm = *std::move(created);
      vm.source = std::make_unique<ServingPageSource>(i, std::set<uint64_t>());
      vm.source->Serve(vm.vm.get());
    }
    // Above all VMs that share it; the first one's bulk goes nowhere.
    deaf_ = std::make_unique<HalfDeafSource>(vms_[0].source.get());
  }
  void TearDown() override {
    for (Vm& vm : vms_) {
      if (vm.source != nullptr) vm.source->Stop();
      if (vm.vm != nullptr) vm.vm->Abort();
    }
  }

  void Serve(Vm& vm, PageSource* source) {
    const PageBitmap stale = *PageBitmap::Create(kPages);
    ASSERT_TRUE(vm.vm->DiscardStale(stale.view()).ok());
    const absl::Status serving = vm.vm->StartServing(
        source, 0,
        [&vm](const absl::Status& status) { vm.end.set_value(status); },
        &share_);
    ASSERT_TRUE(serving.ok()) << serving;
    ASSERT_TRUE(vm.vm->StartBackground().ok());
  }
  void ExpectComplete(Vm& vm) {
    const absl::Status end = vm.end.get_future().get();
    EXPECT_TRUE(end.ok()) << end;
    EXPECT_EQ(vm.vm->counters().missing, PageCount(0));
    for (PageIndex page(0); page < PageIndex(0) + kPages;
         page += PageCount(1)) {
      ASSERT_TRUE(HasPattern(vm.guest->at(page), page)) << page.value();
    }
  }

  BulkShare share_{kMinBulkRequests, Clock::Monotonic()};
  std::deque<Vm> vms_;
  std::unique_ptr<HalfDeafSource> deaf_;
};

TEST_F(ManyVmsTest, OneThatIsNeverAnsweredDoesNotHoldUpTheOthers) {
  // It has all permits there are before anybody else comes.
  Serve(vms_[0], deaf_.get());
  deaf_->AwaitBulk(kMinBulkRequests);
  for (size_t i = 1; i < kVms; ++i) Serve(vms_[i], vms_[i].source.get());
  for (size_t i = 1; i < kVms; ++i) ExpectComplete(vms_[i]);
  EXPECT_GE(share_.expired(), kMinBulkRequests);
  // Its own faults do not pass the share.
  EXPECT_TRUE(HasPattern(vms_[0].guest->at(PageIndex(1000)), PageIndex(1000)));
  EXPECT_EQ(vms_[0].vm->counters().bulk_requests, kFullBulkOutstanding);
}

TEST_F(ManyVmsTest, OneThatEndsInTheMiddleGivesItsTurnsAway) {
  Serve(vms_[0], deaf_.get());
  deaf_->AwaitBulk(kMinBulkRequests);
  for (size_t i = 1; i < kVms; ++i) Serve(vms_[i], vms_[i].source.get());
  vms_[0].vm->Abort();
  for (size_t i = 1; i < kVms; ++i) ExpectComplete(vms_[i]);
  EXPECT_EQ(share_.waiting(), 0u);
}

TEST_F(ManyVmsTest, OneWhoseSourceIsLostGoesOnWhenItIsBack) {
  Serve(vms_[0], deaf_.get());
  deaf_->AwaitBulk(kMinBulkRequests);
  vms_[0].vm->OnSourceLost();
  for (size_t i = 1; i < kVms; ++i) Serve(vms_[i], vms_[i].source.get());
  for (size_t i = 1; i < kVms; ++i) ExpectComplete(vms_[i]);
  ASSERT_TRUE(vms_[0].vm->OnSourceBack(vms_[0].source.get()).ok());
  ExpectComplete(vms_[0]);
}

}  // namespace
}  // namespace postcopy
