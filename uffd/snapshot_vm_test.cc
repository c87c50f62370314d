// A VM resumed from a snapshot, on the kernel's userfaultfd and io_uring; this
// process is the VMM.
#include "uffd/snapshot_vm.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dirtytrack/memfd.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "uffd/forwarding_uffd.h"
#include "uffd/kernel_guest.h"
#include "uffd/simulated_uffd.h"
#include "uffd/snapshot_source.h"
#include "uffd/working_set.h"

namespace postcopy {
namespace {

// Of the file's first page that belongs to a region: not where the RAM begins.
constexpr uint64_t kFileOffset = 3 * kPageSize;

class SnapshotVmTest : public testing::TestWithParam<MemoryKind> {
 protected:
  ~SnapshotVmTest() override {
    vm_.reset();
    if (!path_.empty()) ::unlink(path_.c_str());
  }

  static uint64_t Unit() {
    return GetParam() == MemoryKind::kHugetlb ? 512 : 1;
  }

  void MakeGuest(uint64_t units) {
    std::string reason;
    guest_ = KernelGuest::Create(
        {GuestRegion{GetParam(), PageCount(units * Unit())},
         GuestRegion{MemoryKind::kAnonymous, PageCount(20)}},
        UFFD_FEATURE_EVENT_REMOVE, &reason);
    if (guest_ == nullptr) GTEST_SKIP() << reason;
    path_ = testing::TempDir() + "/snapshot." + std::to_string(::getpid());
    file_ = UniqueFd(
        ::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    ASSERT_TRUE(file_.valid());
    const uint64_t pages = guest_->layout().pages().value();
    for (uint64_t page = 0; page < pages; ++page) {
      if (IsHole(page)) continue;
      const std::vector<uint8_t> bytes = PatternOf(PageIndex(page));
      ASSERT_EQ(::pwrite(file_.get(), bytes.data(), bytes.size(),
                         static_cast<off_t>(kFileOffset + page * kPageSize)),
                static_cast<ssize_t>(bytes.size()));
    }
    ASSERT_EQ(::ftruncate(file_.get(),
                          static_cast<off_t>(kFileOffset + pages * kPageSize)),
              0);
  }
  // The second page of each region, huge or not.
  static bool IsHole(uint64_t page) { return page / Unit() == 1; }

  std::vector<SnapshotRegion> Regions() const {
    std::vector<SnapshotRegion> regions;
    for (size_t i = 0; i < guest_->layout().regions().size(); ++i) {
      const Region& region = guest_->layout().regions()[i];
      regions.push_back(
          {.host_address = guest_->regions()[i].host_address,
           .length = region.length,
           .file_offset = kFileOffset + (region.start - RamOffset(0)).value(),
           .page_size = region.page_size});
    }
    return regions;
  }
  absl::Status Serve(bool prefetch = false) {
    return Serve(SnapshotVm::Options{.prefetch = prefetch});
  }
  absl::Status Serve(SnapshotVm::Options options) {
    options.on_end = [this](const absl::Status& end) { end_.set_value(end); };
    auto vm = SnapshotVm::Create(
        OpenSnapshotAt(path_, SnapshotAccess::kBuffered), Regions(),
        guest_->TakeOps(), std::move(options), Clock::Monotonic());
    if (!vm.ok()) return vm.status();
    vm_ = *std::move(vm);
    return absl::OkStatus();
  }
  void ExpectRight(uint64_t page) const {
    const uint8_t* const bytes = guest_->at(PageIndex(page));
    if (IsHole(page)) {
      EXPECT_TRUE(std::all_of(bytes, bytes + kPageSize, [](uint8_t byte) {
        return byte == 0;
      })) << page;
    } else {
      EXPECT_TRUE(HasPattern(bytes, PageIndex(page))) << page;
    }
  }

  std::string path_;
  UniqueFd file_;
  std::unique_ptr<KernelGuest> guest_;
  std::promise<absl::Status> end_;
  std::unique_ptr<SnapshotVm> vm_;
};

TEST_P(SnapshotVmTest, BringsWhatIsTouched) {
  MakeGuest(4);
  if (guest_ == nullptr) return;
  ASSERT_TRUE(Serve().ok());
  ExpectRight(0);
  ExpectRight(Unit());
  const uint64_t pages = guest_->layout().pages().value();
  ExpectRight(pages - 1);
  vm_->Stop();  // pages are counted behind what lets the guest go on
  EXPECT_EQ(vm_->counters().background, PageCount(0));
  EXPECT_EQ(vm_->counters().missing, PageCount(pages - 2 * Unit() - 1));
  EXPECT_EQ(vm_->FaultLatency().count(), 3u);
}

TEST_P(SnapshotVmTest, PrefetchBringsTheRest) {
  MakeGuest(8);
  if (guest_ == nullptr) return;
  ASSERT_TRUE(Serve(/*prefetch=*/true).ok());
  std::vector<std::thread> vcpus;
  const uint64_t pages = guest_->layout().pages().value();
  for (uint64_t vcpu = 0; vcpu < 4; ++vcpu) {
    vcpus.emplace_back([&, vcpu] {
      for (uint64_t page = vcpu; page < pages; page += 4) ExpectRight(page);
    });
  }
  for (std::thread& vcpu : vcpus) vcpu.join();
  const absl::Status end = end_.get_future().get();
  EXPECT_TRUE(end.ok()) << end;
  // The balloon still works.
  guest_->GiveUp({PageIndex(pages - 1), PageCount(1)});
  EXPECT_EQ(*guest_->at(PageIndex(pages - 1)), 0);
}

TEST_P(SnapshotVmTest, RecordsWhatIsTouchedAndFetchesNothingAhead) {
  MakeGuest(4);
  if (guest_ == nullptr) return;
  ASSERT_TRUE(Serve({.prefetch = true, .record_working_set = true}).ok());
  const uint64_t pages = guest_->layout().pages().value();
  ExpectRight(pages - 1);
  ExpectRight(3 * Unit());
  ExpectRight(0);
  ExpectRight(Unit());
  vm_->Stop();
  EXPECT_EQ(vm_->counters().background, PageCount(0));
  const WorkingSet set = vm_->recorded();
  EXPECT_EQ(set.pages, PageCount(pages));
  EXPECT_EQ(set.runs,
            (std::vector<PageRun>{{PageIndex(pages - 1), PageCount(1)},
                                  {PageIndex(3 * Unit()), PageCount(Unit())},
                                  {PageIndex(0), PageCount(2 * Unit())}}));
}

TEST_P(SnapshotVmTest, FetchesAWorkingSetAndNothingElse) {
  MakeGuest(4);
  if (guest_ == nullptr) return;
  const uint64_t pages = guest_->layout().pages().value();
  const auto set = std::make_shared<const WorkingSet>(
      WorkingSet{.pages = PageCount(pages),
                 .runs = {{PageIndex(pages - 1), PageCount(1)},
                          {PageIndex(2 * Unit()), PageCount(2 * Unit())}}});
  ASSERT_TRUE(Serve({.working_set = set}).ok());
  const PageCount wanted(1 + 2 * Unit());
  while (vm_->counters().background < wanted) std::this_thread::yield();
  ExpectRight(pages - 1);
  ExpectRight(3 * Unit());
  ExpectRight(0);
  vm_->Stop();
  EXPECT_FALSE(vm_->ignored_working_set());
  EXPECT_TRUE(vm_->recorded().runs.empty());
  EXPECT_EQ(vm_->counters().background, wanted);
  EXPECT_EQ(vm_->counters().faulted, PageCount(Unit()));
}

TEST_P(SnapshotVmTest, AWorkingSetOfAnotherVmIsNotUsed) {
  MakeGuest(4);
  if (guest_ == nullptr) return;
  const PageCount pages = guest_->layout().pages();
  const auto set = std::make_shared<const WorkingSet>(
      WorkingSet{.pages = pages + PageCount(1),
                 .runs = {{PageIndex(pages.value()), PageCount(1)}}});
  ASSERT_TRUE(Serve({.working_set = set}).ok());
  EXPECT_TRUE(vm_->ignored_working_set());
  ExpectRight(0);
  vm_->Stop();
  EXPECT_EQ(vm_->counters().background, PageCount(0));
}

TEST_P(SnapshotVmTest, WhatTheBalloonTookIsNotBroughtBack) {
  MakeGuest(4);
  if (guest_ == nullptr) return;
  ASSERT_TRUE(Serve().ok());
  const PageRun run{PageIndex(2 * Unit()), PageCount(Unit())};
  guest_->GiveUp(run);
  EXPECT_EQ(*guest_->at(run.first), 0);
  ExpectRight(3 * Unit());
}

// Zeros would be a silent loss.
TEST_P(SnapshotVmTest, ASnapshotThatCannotBeReadPoisons) {
  MakeGuest(4);
  if (guest_ == nullptr) return;
  ASSERT_TRUE(Serve().ok());
  ExpectRight(0);
  ASSERT_EQ(::ftruncate(file_.get(), kFileOffset), 0);
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(3 * Unit()))));
  const absl::Status end = end_.get_future().get();
  EXPECT_TRUE(absl::IsDataLoss(end)) << end;
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(2 * Unit()))));
  ExpectRight(0);
}

// Says ENOMEM to the first calls, as a host that is short of memory.
class ShortOfMemory final : public ForwardingUffd {
 public:
  ShortOfMemory(std::unique_ptr<UffdOps> ops, int times)
      : ForwardingUffd(ops.get()), ops_(std::move(ops)), times_(times) {}

  UffdResult Copy(HostAddress address, const uint8_t* source, ByteCount length,
                  bool wake) override {
    if (times_.fetch_sub(1) > 0) return {.error = ENOMEM, .done = ByteCount(0)};
    return ForwardingUffd::Copy(address, source, length, wake);
  }

 private:
  const std::unique_ptr<UffdOps> ops_;
  std::atomic<int> times_;
};

TEST_P(SnapshotVmTest, AHostShortOfMemoryIsNoLoss) {
  MakeGuest(4);
  if (guest_ == nullptr) return;
  auto vm = SnapshotVm::Create(
      OpenSnapshotAt(path_, SnapshotAccess::kBuffered), Regions(),
      std::make_unique<ShortOfMemory>(guest_->TakeOps(), 3), {},
      Clock::Monotonic());
  ASSERT_TRUE(vm.ok()) << vm.status();
  vm_ = *std::move(vm);
  ExpectRight(0);
  ExpectRight(3 * Unit());
}

// The guest may run already: it must not read zeros.
TEST_P(SnapshotVmTest, ARefusalLeavesTheMemoryRegistered) {
  SimulatedUffd uffd;
  const UniqueFd memory = *CreateMemfd("ram", kHugePageSize, 0);
  constexpr HostAddress kMapped{uint64_t{1} << 30};
  uffd.Map(kMapped, ByteCount(kPageSize), memory.get(), 0);
  const std::vector<SnapshotRegion> regions = {
      {.host_address = kMapped, .length = ByteCount(kPageSize)},
      {.host_address = HostAddress(uint64_t{1} << 31),
       .length = ByteCount(kPageSize)}};
  const auto vm =
      SnapshotVm::Create(OpenSnapshotAt("/dev/null", SnapshotAccess::kBuffered),
                         regions, Share(&uffd), {}, Clock::Monotonic());
  EXPECT_FALSE(vm.ok());
  EXPECT_EQ(uffd.calls(SimulatedUffd::Call::kUnregister), 0);
  EXPECT_EQ(uffd.TouchPage(1, kMapped), SimulatedUffd::Touch::kWaiting);
}

TEST_P(SnapshotVmTest, RefusesWhatDoesNotFit) {
  MakeGuest(2);
  if (guest_ == nullptr) return;
  ASSERT_EQ(::ftruncate(file_.get(), kFileOffset), 0);
  const absl::Status status = Serve();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST_P(SnapshotVmTest, RefusesRegionsThatOverflow) {
  MakeGuest(2);
  if (guest_ == nullptr) return;
  std::vector<SnapshotRegion> regions = Regions();
  regions[0].length = ByteCount(UINT64_MAX - kPageSize + 1);
  const auto vm =
      SnapshotVm::Create(OpenSnapshotAt(path_, SnapshotAccess::kBuffered),
                         regions, guest_->TakeOps(), {}, Clock::Monotonic());
  EXPECT_TRUE(absl::IsInvalidArgument(vm.status())) << vm.status();
}

// A source that brings nothing.
class SilentPages final : public SnapshotPages {
 public:
  absl::Status RequestUrgent(absl::Span<const PageIndex> /*pages*/) override {
    return absl::OkStatus();
  }
  absl::Status RequestBulk(PageRun /*run*/) override {
    return absl::OkStatus();
  }
  void Stop() override {}
};

// One bad page is asked for many times a second, for as long as it takes.
TEST_P(SnapshotVmTest, ErrorsOfTheSourceAreCountedAndToldNowAndThen) {
  MakeGuest(2);
  if (guest_ == nullptr) return;
  SimulatedClock clock;
  SnapshotSink sink;
  std::vector<uint64_t> told;
  auto vm = SnapshotVm::Create(
      [&](std::vector<SnapshotExtent> /*extents*/, SnapshotSink given)
          -> absl::StatusOr<std::unique_ptr<SnapshotPages>> {
        sink = std::move(given);
        return std::make_unique<SilentPages>();
      },
      Regions(), guest_->TakeOps(),
      {.on_source_error =
           [&](const absl::Status& why, uint64_t errors) {
             EXPECT_EQ(why, absl::InternalError("bad page"));
             told.push_back(errors);
           }},
      &clock);
  ASSERT_TRUE(vm.ok()) << vm.status();
  EXPECT_FALSE((*vm)->source_fails());
  const auto fail = [&] { sink.on_error(absl::InternalError("bad page")); };
  for (int i = 0; i < 100; ++i) fail();
  EXPECT_TRUE((*vm)->source_fails());
  clock.Advance(SnapshotVm::kSourceErrorNanos - 1);
  EXPECT_TRUE((*vm)->source_fails());
  fail();
  clock.Advance(1);
  fail();
  EXPECT_EQ(told, (std::vector<uint64_t>{1, 102}));
  clock.Advance(SnapshotVm::kSourceErrorNanos);
  EXPECT_FALSE((*vm)->source_fails());
  EXPECT_EQ((*vm)->source_errors(), 102u);
  (*vm)->Stop();
  fail();
  EXPECT_EQ((*vm)->source_errors(), 102u);
}

INSTANTIATE_TEST_SUITE_P(Kinds, SnapshotVmTest,
                         testing::Values(MemoryKind::kAnonymous,
                                         MemoryKind::kHugetlb),
                         [](const auto& kind) { return NameOf(kind.param); });

}  // namespace
}  // namespace postcopy
