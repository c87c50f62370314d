// DestinationVm on the kernel's userfaultfd; this process is the VMM.
#include "uffd/destination_vm.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"
#include "uffd/fake_page_source.h"
#include "uffd/kernel_guest.h"
#include "uffd/kernel_uffd.h"
#include "uffd/policy_pull_order.h"

namespace postcopy {
namespace {

PageRun Pages(uint64_t first, uint64_t count) {
  return {PageIndex(first), PageCount(count)};
}

// Waits without sleeping for what another thread is bound to do.
void Until(const std::function<bool()>& condition) {
  while (!condition()) std::this_thread::yield();
}

class DestinationVmTest : public testing::Test {
 protected:
  void SetUp() override { Begin({PageCount(64), PageCount(192)}); }

  void Begin(const std::vector<PageCount>& sizes) {
    vm_.reset();
    std::string reason;
    guest_ = KernelGuest::Create(sizes, &reason);
    if (guest_ == nullptr) GTEST_SKIP() << reason;
    auto vm = DestinationVm::Create(guest_->layout(), guest_->regions(),
                                    guest_->TakeOps(), Clock::Monotonic());
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    stale_ = *PageBitmap::Create(guest_->layout().pages());
  }

  absl::Status Precopy(PageRun run, const std::set<uint64_t>& zeros = {}) {
    return vm_->StorePrecopied(Answer(run, zeros).runs());
  }
  void Serve(PageSource* source) {
    ASSERT_TRUE(vm_->DiscardStale(stale_.view()).ok());
    ASSERT_TRUE(vm_->StartServing(source, 0,
                                  [this](const absl::Status& status) {
                                    end_.set_value(status);
                                  })
                    .ok());
  }
  absl::Status AnswerUrgent(const std::vector<PageIndex>& pages,
                            const std::set<uint64_t>& zeros = {}) {
    return vm_->OnUrgentPages(Answer(pages, zeros).runs());
  }
  absl::Status AnswerBulk(PageRun run, const std::set<uint64_t>& zeros = {}) {
    return vm_->OnBulkPages(Answer(run, zeros).runs());
  }
  absl::Status AwaitEnd() { return end_.get_future().get(); }

  bool IsRight(uint64_t page, const std::set<uint64_t>& zeros = {}) const {
    const uint8_t* bytes = guest_->at(PageIndex(page));
    if (!zeros.contains(page)) return HasPattern(bytes, PageIndex(page));
    return std::all_of(bytes, bytes + kPageSize,
                       [](uint8_t byte) { return byte == 0; });
  }
  void ExpectSums() const {
    const DestinationCounters now = vm_->counters();
    EXPECT_EQ(now.total + now.discarded,
              now.missing + now.precopied + now.faulted + now.background);
  }

  std::unique_ptr<KernelGuest> guest_;
  FakePageSource source_;
  std::promise<absl::Status> end_;
  PageBitmap stale_;
  std::unique_ptr<DestinationVm> vm_;
};

TEST_F(DestinationVmTest, BringsEveryPageOnce) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  Begin({PageCount(100), PageCount(1000), PageCount(948)});
  std::set<uint64_t> zeros;
  for (int i = 0; i < 700; ++i) zeros.insert(random() % 2048);
  ASSERT_TRUE(Precopy(Pages(300, 700), zeros).ok());
  for (int i = 0; i < 200; ++i) {
    stale_.view().TestAndSet(PageIndex(random() % 2048));
  }

  ServingPageSource source(seed, zeros);
  source.Serve(vm_.get());
  Serve(&source);
  std::vector<std::thread> vcpus;
  for (int i = 0; i < 4; ++i) {
    vcpus.emplace_back([&, i] {
      std::mt19937_64 order(seed + i);
      for (int touch = 0; touch < 3000; ++touch) {
        const uint64_t page = order() % 2048;
        EXPECT_TRUE(IsRight(page, zeros)) << page;
      }
    });
  }
  ASSERT_TRUE(vm_->StartBackground().ok());
  for (std::thread& vcpu : vcpus) vcpu.join();
  EXPECT_TRUE(AwaitEnd().ok());
  source.Stop();
  EXPECT_TRUE(source.status().ok()) << source.status();
  EXPECT_TRUE(vm_->Finish().ok());
  for (uint64_t page = 0; page < 2048; ++page) {
    EXPECT_TRUE(IsRight(page, zeros)) << page;
  }
  ExpectSums();
  const DestinationCounters counters = vm_->counters();
  EXPECT_EQ(counters.missing, PageCount(0));
  EXPECT_EQ(counters.lost_pages, 0u);
  EXPECT_EQ(counters.zero, PageCount(zeros.size()));
}

TEST_F(DestinationVmTest, WhatIsKeptGoesWithIt) {
  auto held = std::make_shared<int>();
  const std::weak_ptr<int> seen = held;
  vm_->Keep(std::move(held));
  vm_->Abort();
  EXPECT_FALSE(seen.expired()) << "it has its memory still";
  vm_.reset();
  EXPECT_TRUE(seen.expired());
}

TEST_F(DestinationVmTest, KeepsWhatTheGuestWrites) {
  // Each thread owns pages, counts in them, and must never see an old count.
  ServingPageSource source(1, {});
  source.Serve(vm_.get());
  Serve(&source);
  std::vector<std::thread> vcpus;
  for (uint64_t i = 0; i < 4; ++i) {
    vcpus.emplace_back([&, i] {
      for (uint64_t round = 1; round <= 20; ++round) {
        for (uint64_t page = i; page < 256; page += 4) {
          uint64_t count = 0;
          uint8_t* const at = guest_->at(PageIndex(page));
          std::memcpy(&count, at, sizeof(count));
          if (round > 1) {
            EXPECT_EQ(count, round - 1) << page;
          }
          std::memcpy(at, &round, sizeof(round));
        }
      }
    });
  }
  ASSERT_TRUE(vm_->StartBackground().ok());
  for (std::thread& vcpu : vcpus) vcpu.join();
  EXPECT_TRUE(AwaitEnd().ok());
  source.Stop();
  EXPECT_TRUE(vm_->Finish().ok());
}

TEST_F(DestinationVmTest, SixtyFourThreadsOnePageOneRequest) {
  Serve(&source_);
  std::vector<std::thread> vcpus;
  for (int i = 0; i < 64; ++i) {
    vcpus.emplace_back([&] { EXPECT_TRUE(IsRight(77)); });
  }
  Until([&] { return vm_->counters().duplicate_faults == 63; });
  source_.AwaitUrgent(1);
  EXPECT_EQ(vm_->counters().faults, 64u);
  EXPECT_EQ(vm_->counters().outstanding_faults, 1u);
  EXPECT_TRUE(AnswerUrgent({PageIndex(77)}).ok());
  for (std::thread& vcpu : vcpus) vcpu.join();
  EXPECT_EQ(source_.urgent().size(), 1u);
  EXPECT_EQ(vm_->FaultLatency().count(), 1u);
  EXPECT_GT(vm_->FaultLatency().max_ns(), 0u);
}

TEST_F(DestinationVmTest, AnswersMayComeInAnyOrder) {
  Serve(&source_);
  std::vector<std::thread> vcpus;
  for (uint64_t page = 0; page < 8; ++page) {
    vcpus.emplace_back([&, page] { EXPECT_TRUE(IsRight(page)); });
    source_.AwaitUrgent(page + 1);
  }
  for (uint64_t page = 8; page-- > 0;) {
    EXPECT_TRUE(AnswerUrgent({PageIndex(page)}).ok());
    vcpus[page].join();
  }
}

TEST_F(DestinationVmTest, AnAnswerAcrossRegions) {
  Serve(&source_);
  EXPECT_TRUE(AnswerBulk(Pages(50, 30)).ok());
  const std::vector<uint8_t> bytes = PatternOf(Pages(62, 4));
  EXPECT_TRUE(vm_->OnUrgentPages({{Pages(62, 4), bytes}}).ok());
  for (uint64_t page = 50; page < 80; ++page) EXPECT_TRUE(IsRight(page));
  EXPECT_EQ(vm_->counters().background, PageCount(30));
  EXPECT_EQ(vm_->counters().faulted, PageCount(0));
}

TEST_F(DestinationVmTest, PrecopiedPagesDoNotFault) {
  ASSERT_TRUE(Precopy(Pages(0, 256), {5}).ok());
  Serve(&source_);
  for (uint64_t page = 0; page < 256; ++page) EXPECT_TRUE(IsRight(page, {5}));
  EXPECT_TRUE(AwaitEnd().ok());
  EXPECT_TRUE(vm_->Finish().ok());
  EXPECT_TRUE(source_.urgent().empty());
  // Zeros are left a hole, and filled here when touched.
  EXPECT_EQ(vm_->counters().faults, 1u);
  EXPECT_EQ(vm_->counters().local_faults, 1u);
  ExpectSums();
}

TEST_F(DestinationVmTest, ZerosFromBulkStayHolesUntilTouched) {
  Serve(&source_);
  EXPECT_TRUE(vm_->OnBulkPages({{Pages(0, 256), {}}}).ok());
  EXPECT_TRUE(AwaitEnd().ok());
  EXPECT_FALSE(guest_->HasData(PageIndex(9)));
  EXPECT_TRUE(IsRight(9, {9}));
  EXPECT_TRUE(guest_->HasData(PageIndex(9)));
  EXPECT_TRUE(vm_->Finish().ok());
  EXPECT_TRUE(IsRight(10, {10}));
  EXPECT_TRUE(source_.urgent().empty());
}

TEST_F(DestinationVmTest, AThreadThatWaitsIsGivenZerosFromBulk) {
  Serve(&source_);
  std::thread vcpu([&] { EXPECT_TRUE(IsRight(9, {9})); });
  source_.AwaitUrgent(1);
  EXPECT_TRUE(vm_->OnBulkPages({{Pages(0, 20), {}}}).ok());
  vcpu.join();
  EXPECT_EQ(vm_->counters().local_faults, 1u);
}

TEST_F(DestinationVmTest, StalePagesAreFetchedAgain) {
  const std::vector<uint8_t> old(kPageSize * 256, 0xee);
  ASSERT_TRUE(vm_->StorePrecopied({{Pages(0, 256), old}}).ok());
  stale_.view().SetRun(Pages(60, 10));
  Serve(&source_);
  EXPECT_EQ(vm_->counters().discarded, PageCount(10));
  EXPECT_EQ(*guest_->at(PageIndex(59)), 0xee);
  std::thread vcpu([&] { EXPECT_TRUE(IsRight(60)); });
  source_.AwaitUrgent(1);
  EXPECT_TRUE(AnswerUrgent({PageIndex(60)}).ok());
  vcpu.join();
  ExpectSums();
}

TEST_F(DestinationVmTest, WhatTheVmmLoadedItselfIsReplaced) {
  guest_->WriteFile(PageIndex(200), PatternOf(PageIndex(1)));  // a ROM, say
  Serve(&source_);
  std::thread vcpu([&] { EXPECT_TRUE(IsRight(200)); });
  source_.AwaitUrgent(1);
  EXPECT_TRUE(AnswerUrgent({PageIndex(200)}).ok());
  vcpu.join();
}

TEST_F(DestinationVmTest, APageThatIsThereIsLeftAlone) {
  Serve(&source_);
  guest_->WriteFile(PageIndex(4), PatternOf(PageIndex(5)));
  EXPECT_TRUE(AnswerBulk(Pages(0, 8)).ok());
  EXPECT_TRUE(HasPattern(guest_->at(PageIndex(4)), PageIndex(5)));
  EXPECT_EQ(vm_->counters().already_present, 1u);
  EXPECT_EQ(vm_->counters().missing, PageCount(248));
}

TEST_F(DestinationVmTest, ALostPageIsPoisonedAndNeverZero) {
  ASSERT_TRUE(Precopy(Pages(0, 256)).ok());
  Serve(&source_);
  EXPECT_TRUE(AwaitEnd().ok());
  guest_->Punch(PageIndex(3));
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(3))));
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(3))));
  EXPECT_TRUE(KernelCanRead(guest_->at(PageIndex(4))));
  Until([&] { return vm_->counters().lost_pages > 0; });  // counted after it
  EXPECT_EQ(vm_->counters().lost_pages, 1u);
  EXPECT_TRUE(vm_->Finish().ok());
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(3))));
}

TEST_F(DestinationVmTest, LostPagesAreToldAtTheEnd) {
  ASSERT_TRUE(Precopy(Pages(0, 255)).ok());
  Serve(&source_);
  guest_->Punch(PageIndex(3));
  EXPECT_FALSE(KernelCanRead(guest_->at(PageIndex(3))));
  Until([&] { return vm_->counters().lost_pages > 0; });  // counted after it
  EXPECT_TRUE(AnswerBulk(Pages(255, 1)).ok());
  EXPECT_TRUE(absl::IsDataLoss(AwaitEnd()));
  EXPECT_TRUE(vm_->Finish().ok());
}

TEST_F(DestinationVmTest, ASourceThatComesBackIsAskedForWhatIsMissing) {
  Serve(&source_);
  std::vector<std::thread> vcpus;
  for (uint64_t page = 0; page < 3; ++page) {
    vcpus.emplace_back([&, page] { EXPECT_TRUE(IsRight(page)); });
    source_.AwaitUrgent(page + 1);
  }
  ASSERT_TRUE(vm_->StartBackground().ok());
  source_.AwaitBulk(2);
  EXPECT_TRUE(AnswerUrgent({PageIndex(1)}).ok());
  vcpus[1].join();
  vm_->OnSourceLost();
  vcpus.emplace_back([&] { EXPECT_TRUE(IsRight(100)); });
  Until([&] { return vm_->counters().faults == 4; });
  EXPECT_EQ(source_.TimesAsked(PageIndex(100)), 0);

  ServingPageSource back(1, {});
  back.Serve(vm_.get());
  EXPECT_TRUE(vm_->OnSourceBack(&back).ok());
  for (std::thread& vcpu : vcpus) {
    if (vcpu.joinable()) vcpu.join();
  }
  EXPECT_TRUE(AwaitEnd().ok());
  back.Stop();
  EXPECT_TRUE(vm_->Finish().ok());
  ExpectSums();
}

TEST_F(DestinationVmTest, ARefusedRequestWaitsForTheSource) {
  source_.Refuse(absl::UnavailableError("gone"));
  Serve(&source_);
  std::thread vcpu([&] { EXPECT_TRUE(IsRight(7)); });
  source_.AwaitUrgent(1);
  Until([&] { return vm_->counters().urgent_request_failures == 1; });
  EXPECT_TRUE(absl::IsUnavailable(vm_->OnSourceBack(&source_)));
  FakePageSource back;
  EXPECT_TRUE(vm_->OnSourceBack(&back).ok());
  EXPECT_EQ(back.TimesAsked(PageIndex(7)), 1);
  EXPECT_TRUE(AnswerUrgent({PageIndex(7)}).ok());
  vcpu.join();
}

TEST_F(DestinationVmTest, AHostilePeerIsRefusedAndNothingTaken) {
  Serve(&source_);
  const std::vector<uint8_t> page(kPageSize, 1);
  const ReceivedRun good = {Pages(0, 1), page};
  const std::vector<uint8_t> short_data(kPageSize - 1, 1);
  const std::vector<uint8_t> long_data(kPageSize + 1, 1);
  const std::vector<ReceivedRun> outside = {
      {Pages(256, 1), page},
      {Pages(255, 2), {}},
      {Pages(UINT64_MAX, 1), page},
      {Pages(1, UINT64_MAX), {}},
      {Pages(0, uint64_t{1} << 52), page},
  };
  const std::vector<ReceivedRun> malformed = {
      {Pages(1, 1), short_data}, {Pages(1, 1), long_data}, {Pages(1, 2), page},
      {Pages(1, 0), {}},         {Pages(1, 0), page},
  };
  for (const ReceivedRun& bad : outside) {
    EXPECT_TRUE(absl::IsOutOfRange(vm_->OnUrgentPages({good, bad})));
    EXPECT_TRUE(absl::IsOutOfRange(vm_->OnBulkPages({good, bad})));
  }
  for (const ReceivedRun& bad : malformed) {
    EXPECT_TRUE(absl::IsInvalidArgument(vm_->OnUrgentPages({good, bad})));
    EXPECT_TRUE(absl::IsInvalidArgument(vm_->OnBulkPages({good, bad})));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(vm_->OnUrgentPages({})));
  EXPECT_TRUE(absl::IsInvalidArgument(vm_->OnBulkPages({})));
  EXPECT_TRUE(absl::IsInvalidArgument(
      vm_->OnUrgentPages({{Pages(0, kMaxUrgentPages + 1), {}}})));
  EXPECT_EQ(vm_->counters().missing, PageCount(256));
  EXPECT_TRUE(vm_->OnUrgentPages({{Pages(0, kMaxUrgentPages), {}}}).ok());
}

TEST_F(DestinationVmTest, HostileStatisticsAreRefusedAndNoneTaken) {
  const PageRun good = Pages(200, 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(vm_->OnRecentlyDirtied({good})));
  Serve(&source_);
  for (const PageRun bad : {Pages(256, 1), Pages(255, 2), Pages(UINT64_MAX, 1),
                            Pages(1, UINT64_MAX)}) {
    EXPECT_TRUE(absl::IsOutOfRange(vm_->OnRecentlyDirtied({good, bad})));
  }
  EXPECT_TRUE(
      absl::IsInvalidArgument(vm_->OnRecentlyDirtied({good, Pages(1, 0)})));
  const std::vector<PageRun> most(kRecentlyDirtiedRunsMax - 1, Pages(100, 1));
  EXPECT_TRUE(vm_->OnRecentlyDirtied(most).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(vm_->OnRecentlyDirtied({good, good})));
  EXPECT_TRUE(vm_->OnRecentlyDirtied({good}).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(vm_->OnRecentlyDirtied({good})));
  EXPECT_TRUE(vm_->OnRecentlyDirtied({}).ok());
  // Only what was taken comes first.
  ASSERT_TRUE(vm_->StartBackground().ok());
  source_.AwaitBulk(2);
  EXPECT_EQ(source_.bulk()[0], Pages(100, 1));
  EXPECT_EQ(source_.bulk()[1], Pages(200, 1));
}

// A list that names all pages over and over is not gone through without end.
TEST_F(DestinationVmTest, DirtiedPagesAreTakenUpToALimit) {
  Serve(&source_);
  const uint64_t most = 4 * 256 + kRecentlyDirtiedRunsMax;
  const std::vector<PageRun> all(most / 256, Pages(0, 256));
  ASSERT_EQ(all.size() * 256, most);
  EXPECT_TRUE(vm_->OnRecentlyDirtied(all).ok());
  EXPECT_TRUE(vm_->OnRecentlyDirtied({Pages(200, 1)}).ok());  // not taken
  ASSERT_TRUE(vm_->StartBackground().ok());
  source_.AwaitBulk(2);
  EXPECT_EQ(source_.bulk()[0].first, PageIndex(0));
  EXPECT_EQ(source_.bulk()[1].first, PageIndex(64));
}

TEST_F(DestinationVmTest, TheOrderIsChosenBeforeServing) {
  ASSERT_TRUE(vm_->SetPullOrder(NewPullOrder(PullOrderKind::kWorkingSetOnly,
                                             {Pages(77, 2), Pages(5, 1)}))
                  .ok());
  Serve(&source_);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      vm_->SetPullOrder(NewPullOrder(PullOrderKind::kLinear))));
  ASSERT_TRUE(vm_->StartBackground().ok());
  source_.AwaitBulk(2);
  ASSERT_TRUE(AnswerBulk(Pages(77, 2)).ok());
  ASSERT_TRUE(AnswerBulk(Pages(5, 1)).ok());
  vm_->Abort();
  EXPECT_EQ(source_.bulk(), (std::vector<PageRun>{Pages(77, 2), Pages(5, 1)}));
}

TEST_F(DestinationVmTest, PrecopyRefusesAHostilePeerToo) {
  const std::vector<uint8_t> page(kPageSize, 1);
  EXPECT_TRUE(absl::IsOutOfRange(
      vm_->StorePrecopied({{Pages(0, 1), page}, {Pages(256, 1), page}})));
  EXPECT_TRUE(absl::IsInvalidArgument(
      vm_->StorePrecopied({{Pages(0, 1), page}, {Pages(1, 2), page}})));
  EXPECT_EQ(vm_->counters().missing, PageCount(256));
  EXPECT_TRUE(vm_->StorePrecopied({}).ok());
  const PageBitmap other = *PageBitmap::Create(PageCount(255));
  EXPECT_TRUE(
      absl::IsInvalidArgument(vm_->DiscardStale(other.view()).status()));
}

TEST_F(DestinationVmTest, GoesItsWayInOrder) {
  const auto is_early = [](const absl::Status& status) {
    return absl::IsFailedPrecondition(status);
  };
  const auto ignore = [](const absl::Status&) {};
  EXPECT_TRUE(is_early(vm_->StartServing(&source_, 0, ignore)));
  EXPECT_TRUE(is_early(vm_->StartBackground()));
  EXPECT_TRUE(is_early(AnswerBulk(Pages(0, 1))));
  EXPECT_TRUE(is_early(AnswerUrgent({PageIndex(0)})));
  EXPECT_TRUE(is_early(vm_->OnSourceBack(&source_)));
  EXPECT_TRUE(is_early(vm_->Finish()));
  vm_->OnSourceLost();
  vm_->SetBulkLimit(5);
  ASSERT_TRUE(vm_->DiscardStale(stale_.view()).ok());
  ASSERT_TRUE(Precopy(Pages(0, 1)).ok());
  EXPECT_TRUE(is_early(vm_->StartServing(&source_, 0, ignore)));
  Serve(&source_);
  EXPECT_TRUE(is_early(Precopy(Pages(0, 1))));
  EXPECT_TRUE(is_early(vm_->DiscardStale(stale_.view()).status()));
  EXPECT_TRUE(is_early(vm_->Finish()));  // pages are missing
  vm_->Abort();
  vm_->Abort();
  EXPECT_TRUE(is_early(AnswerBulk(Pages(0, 1))));
  EXPECT_TRUE(vm_->Finish().ok());  // it has ended
}

TEST_F(DestinationVmTest, AbortWithReleaseLetsTheVmmGo) {
  ASSERT_TRUE(Precopy(Pages(0, 10)).ok());
  vm_->Abort(/*release=*/true);
  EXPECT_TRUE(IsRight(9));
  EXPECT_TRUE(IsRight(200, {200}));
}

TEST_F(DestinationVmTest, FinishUnregisters) {
  ASSERT_TRUE(Precopy(Pages(0, 256)).ok());
  Serve(&source_);
  EXPECT_TRUE(AwaitEnd().ok());
  EXPECT_TRUE(vm_->Finish().ok());
  EXPECT_TRUE(vm_->Finish().ok());
  guest_->Punch(PageIndex(3));  // from now on the VMM's own affair
  EXPECT_TRUE(KernelCanRead(guest_->at(PageIndex(3))));
}

TEST(DestinationVmCreateTest, NamesTheRegionThatIsNotMapped) {
  std::string reason;
  const auto guest = KernelGuest::Create({PageCount(4), PageCount(4)}, &reason);
  if (guest == nullptr) GTEST_SKIP() << reason;
  std::vector<DestinationRegion> regions = guest->regions();
  regions[1].host_address = HostAddress(kPageSize);
  const absl::Status status =
      DestinationVm::Create(guest->layout(), regions, guest->TakeOps(),
                            Clock::Monotonic())
          .status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_NE(status.message().find("\"ram1\""), absl::string_view::npos);
  // The first region is released again.
  EXPECT_TRUE(KernelCanRead(guest->at(PageIndex(0))));
}

// A VMM of its own: sends its userfaultfd and address, then waits.
[[noreturn]] void RunVmm(int memfd, ByteCount size, int channel) {
  void* const memory = ::mmap(nullptr, size.value(), PROT_READ | PROT_WRITE,
                              MAP_SHARED, memfd, 0);
  absl::StatusOr<NewUserfaultfd> uffd = CreateUserfaultfd();
  if (memory == MAP_FAILED || !uffd.ok()) ::_exit(1);
  uint64_t address = reinterpret_cast<uintptr_t>(memory);
  iovec payload = {.iov_base = &address, .iov_len = sizeof(address)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = uffd->fd.get();
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  if (::sendmsg(channel, &message, 0) < 0) ::_exit(1);
  while (true) ::pause();
}

UniqueFd ReceiveUffd(int channel, uint64_t* address) {
  iovec payload = {.iov_base = address, .iov_len = sizeof(*address)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(channel, &message, MSG_CMSG_CLOEXEC) <= 0) return UniqueFd();
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (header == nullptr) return UniqueFd();
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  return UniqueFd(fd);
}

TEST(DestinationVmDeathTest, TellsThatTheVmmIsGone) {
  absl::StatusOr<NewUserfaultfd> probe = CreateUserfaultfd();
  if (!probe.ok()) GTEST_SKIP() << probe.status();
  const ByteCount size = BytesIn(PageCount(16));
  const UniqueFd memfd = *CreateMemfd("ram", size, 0);
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  const pid_t vmm = ::fork();
  if (vmm == 0) RunVmm(memfd.get(), size, theirs.get());
  theirs.Reset();
  uint64_t address = 0;
  UniqueFd fd = ReceiveUffd(ours.get(), &address);
  ASSERT_TRUE(fd.valid());
  auto vm = DestinationVm::Create(
      LayoutOf({PageCount(16)}), {{HostAddress(address), memfd.get(), 0}},
      *KernelUffd::Adopt(std::move(fd)), Clock::Monotonic());
  ASSERT_TRUE(vm.ok()) << vm.status();
  const PageBitmap stale = *PageBitmap::Create(PageCount(16));
  ASSERT_TRUE((*vm)->DiscardStale(stale.view()).ok());
  FakePageSource source;
  std::promise<absl::Status> end;
  ASSERT_TRUE((*vm)
                  ->StartServing(&source, 0,
                                 [&](const absl::Status& status) {
                                   end.set_value(status);
                                 })
                  .ok());
  EXPECT_TRUE((*vm)->OnBulkPages(Answer(Pages(0, 2), {}).runs()).ok());

  ASSERT_EQ(::kill(vmm, SIGKILL), 0);
  ASSERT_EQ(::waitpid(vmm, nullptr, 0), vmm);
  EXPECT_TRUE(
      absl::IsAborted((*vm)->OnBulkPages(Answer(Pages(2, 2), {}).runs())));
  EXPECT_TRUE(absl::IsAborted(end.get_future().get()));
  // Zeros touch no address space, so they end it; leaving says who is gone.
  EXPECT_TRUE((*vm)->OnBulkPages({{Pages(0, 16), {}}}).ok());
  EXPECT_TRUE(absl::IsAborted((*vm)->Finish()));
}

}  // namespace
}  // namespace postcopy
