// Firecracker's way of restoring a VM, end to end: its handshake over a real
// socket, its kind of memory, faultd's service behind it.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "cmd/faultd/snapshot_service.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "tests/firecracker_vmm.h"
#include "uffd/bulk_share.h"
#include "uffd/kernel_guest.h"
#include "uffd/working_set.h"

namespace postcopy {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHuge = 2 << 20;
constexpr size_t kSnapshotPages = 4096;  // 16 MiB

class FirecrackerTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string base =
        testing::TempDir() + "/fc." + std::to_string(::getpid());
    snapshot_ = base + ".mem";
    // Short enough for a socket's address, as TempDir() need not be.
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    socket_ = directory_ + "/socket";
    working_set_ = directory_ + "/working_set";
    file_ = UniqueFd(::open(snapshot_.c_str(),
                            O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    ASSERT_TRUE(file_.valid());
    const std::vector<uint8_t> bytes =
        PatternOf(PageRun{PageIndex(0), PageCount(kSnapshotPages)});
    ASSERT_EQ(::pwrite(file_.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
  }
  void TearDown() override {
    vmms_.clear();
    service_.reset();
    ::unlink(snapshot_.c_str());
    ::unlink(working_set_.c_str());
    ::unlink((socket_ + ".lock").c_str());
    ::rmdir(directory_.c_str());
  }

  void Serve(bool prefetch = false) {
    auto service = SnapshotService::Create(
        {.socket_path = socket_,
         .snapshot_path = snapshot_,
         .prefetch = prefetch,
         .bulk_share = &share_,
         .log = [this](const std::string& sentence) { Log(sentence); }});
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }
  absl::Status ServeWithWorkingSet(bool prefetch = false) {
    auto service = SnapshotService::Create(
        {.socket_path = socket_,
         .snapshot_path = snapshot_,
         .prefetch = prefetch,
         .working_set_path = working_set_,
         .log = [this](const std::string& sentence) { Log(sentence); }});
    if (!service.ok()) return service.status();
    service_ = *std::move(service);
    return absl::OkStatus();
  }
  // Serves a VM of `pages` that touches those, in that order, and goes.
  void ServeAndTouch(size_t pages, const std::vector<size_t>& touched) {
    FirecrackerVmm* const vmm = NewVmm({{.bytes = pages * kPage}});
    if (vmm == nullptr) return;
    ASSERT_TRUE(vmm->Connect(socket_, {}));
    for (const size_t page : touched) {
      EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, page)) << page;
    }
    vmm->Disconnect();
  }
  // Null if the machine cannot, and then the test is skipped.
  FirecrackerVmm* NewVmm(std::vector<FirecrackerVmm::Region> regions) {
    std::string reason;
    auto vmm = FirecrackerVmm::Create(std::move(regions), &reason);
    if (vmm == nullptr) skip_reason_ = reason;
    vmms_.push_back(std::move(vmm));
    return vmms_.back().get();
  }
  static bool IsRight(const uint8_t* at, uint64_t page_of_file) {
    return HasPattern(at, PageIndex(page_of_file));
  }
  static bool IsZero(const uint8_t* at) {
    return std::all_of(at, at + kPage, [](uint8_t byte) { return byte == 0; });
  }

  void Log(const std::string& sentence) {
    const std::lock_guard<std::mutex> lock(mutex_);
    said_.push_back(sentence);
    changed_.notify_all();
  }
  // Waits until some sentence holds `part`; returns that.
  std::string AwaitSaid(const std::string& part) {
    std::unique_lock<std::mutex> lock(mutex_);
    std::string found;
    const bool in_time = changed_.wait_for(lock, std::chrono::seconds(30), [&] {
      for (const std::string& sentence : said_) {
        if (sentence.find(part) != std::string::npos) found = sentence;
      }
      return !found.empty();
    });
    EXPECT_TRUE(in_time) << "nothing said of \"" << part << "\"";
    return found;
  }

  std::string directory_ = "/tmp/firecracker-test.XXXXXX";
  std::string snapshot_;
  std::string socket_;
  std::string working_set_;
  UniqueFd file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> said_;
  SimulatedClock share_clock_;  // nothing expires
  BulkShare share_{kMinBulkRequests, &share_clock_};
  std::unique_ptr<SnapshotService> service_;
  std::vector<std::unique_ptr<FirecrackerVmm>> vmms_;
  std::string skip_reason_;
};

TEST_F(FirecrackerTest, RestoresFromASnapshot) {
  Serve();
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  for (const size_t page : {0, 63, 7}) {
    EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, page)) << page;
  }
  AwaitSaid("is served from");
  EXPECT_EQ(service_->vms(), 1u);
  vmm->Disconnect();
  const std::string gone = AwaitSaid("has gone");
  EXPECT_NE(gone.find("3 pages on demand"), std::string::npos) << gone;
  EXPECT_NE(gone.find("61 never wanted"), std::string::npos) << gone;
  EXPECT_NE(gone.find("; waited "), std::string::npos) << gone;
  EXPECT_NE(gone.find(" us in all (p99: read "), std::string::npos) << gone;
  // This thread, which the kernel names.
  const std::string waited =
      ", most of all thread " + std::to_string(::gettid()) + ": ";
  EXPECT_NE(gone.find(waited), std::string::npos) << gone;
  EXPECT_NE(gone.find(" us in 3 faults"), std::string::npos) << gone;
}

TEST_F(FirecrackerTest, OneThatTouchesNothingHasNotWaited) {
  Serve();
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  AwaitSaid("is served from");
  vmm->Disconnect();
  const std::string gone = AwaitSaid("has gone");
  EXPECT_EQ(gone.find("waited"), std::string::npos) << gone;
}

// The memory of one VM around the hole below 4 GiB, each where the file has it.
TEST_F(FirecrackerTest, EveryRegionHasItsOffset) {
  Serve();
  std::vector<FirecrackerVmm::Region> regions;
  for (size_t i = 0; i < 64; ++i) {
    regions.push_back({.bytes = (1 + i % 3) * kPage,
                       .file_offset = (i * 37 % 64) * 4 * kPage});
  }
  FirecrackerVmm* const vmm = NewVmm(regions);
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {.old_page_size_key = true}));
  for (size_t i = 0; i < 64; ++i) {
    for (size_t page = 0; page < regions[i].bytes / kPage; ++page) {
      EXPECT_TRUE(IsRight(vmm->memory(i) + page * kPage,
                          regions[i].file_offset / kPage + page))
          << i;
    }
  }
}

TEST_F(FirecrackerTest, HugePages) {
  Serve();
  FirecrackerVmm* const vmm =
      NewVmm({{.bytes = 3 * kHuge, .huge = true, .file_offset = kHuge},
              {.bytes = 16 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  for (const size_t page : {512 + 511, 0, 1536 - 1}) {
    EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, 512 + page)) << page;
  }
  EXPECT_TRUE(IsRight(vmm->memory(1) + 15 * kPage, 15));
  ASSERT_TRUE(vmm->Inflate(0, kHuge, kHuge));
  EXPECT_TRUE(IsZero(vmm->memory(0) + kHuge + 7 * kPage));
}

TEST_F(FirecrackerTest, JsonInPiecesWithKeysOfTheFuture) {
  Serve();
  FirecrackerVmm* const vmm =
      NewVmm({{.bytes = kPage}, {.bytes = kPage, .file_offset = 5 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {.unknown_keys = true, .piece = 1}));
  EXPECT_TRUE(IsRight(vmm->memory(1), 5));
}

TEST_F(FirecrackerTest, TheBalloonGetsZeros) {
  Serve(/*prefetch=*/true);
  FirecrackerVmm* const vmm = NewVmm({{.bytes = kSnapshotPages * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  // Beside the prefetch: some of these pages have come, others have not.
  for (size_t page = 1; page < kSnapshotPages; page += 64) {
    ASSERT_TRUE(vmm->Inflate(0, page * kPage, 3 * kPage));
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(IsZero(vmm->memory(0) + (page + i) * kPage)) << page + i;
    }
    EXPECT_TRUE(IsRight(vmm->memory(0) + (page + 3) * kPage, page + 3));
  }
  AwaitSaid("has all its pages");
  EXPECT_TRUE(IsZero(vmm->memory(0) + kPage));
}

TEST_F(FirecrackerTest, ThePrefetchTakesTurnsWithOtherVms) {
  Serve(/*prefetch=*/true);
  FirecrackerVmm* const vmm = NewVmm({{.bytes = kSnapshotPages * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  BulkShare::Member others;
  std::vector<BulkShare::Permit> taken;
  for (size_t i = 0; i < kMinBulkRequests; ++i) {
    taken.push_back(*share_.Acquire(&others));
  }
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  while (share_.waiting() == 0) std::this_thread::yield();
  EXPECT_TRUE(IsRight(vmm->memory(0) + 7 * kPage, 7));  // not its faults
  for (const BulkShare::Permit& permit : taken) share_.Release(permit);
  AwaitSaid("has all its pages");
  EXPECT_TRUE(IsRight(vmm->memory(0) + 4095 * kPage, 4095));
  service_.reset();
  EXPECT_EQ(share_.in_flight(), 0u);
}

// Clones of one snapshot, one of which goes while the others are served.
TEST_F(FirecrackerTest, ManyVmsFromOneSnapshot) {
  Serve();
  constexpr size_t kVms = 8;
  std::vector<FirecrackerVmm*> vmms;
  for (size_t i = 0; i < kVms; ++i) {
    vmms.push_back(NewVmm({{.bytes = 512 * kPage}}));
    if (vmms.back() == nullptr) GTEST_SKIP() << skip_reason_;
    ASSERT_TRUE(vmms.back()->Connect(socket_, {}));
  }
  EXPECT_TRUE(IsRight(vmms[0]->memory(0), 0));
  vmms[0]->Disconnect();
  std::vector<std::thread> guests;
  for (size_t i = 1; i < kVms; ++i) {
    guests.emplace_back([vmm = vmms[i]] {
      for (size_t page = 0; page < 512; ++page) {
        uint8_t* const at = vmm->memory(0) + page * kPage;
        EXPECT_TRUE(IsRight(at, page)) << page;
        *at = 1;  // its own from now on
      }
    });
  }
  for (std::thread& guest : guests) guest.join();
  AwaitSaid("(process " + std::to_string(::getpid()) + ") has gone");
}

TEST_F(FirecrackerTest, AVmThatTheSnapshotIsTooShortForIsTurnedAway) {
  Serve();
  FirecrackerVmm* const vmm =
      NewVmm({{.bytes = 2 * kPage, .file_offset = kSnapshotPages * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(vmm->IsTurnedAway());
  AwaitSaid("is refused");
  EXPECT_EQ(service_->vms(), 0u);
}

// Whoever connects in a loop must not fill the disk.
TEST_F(FirecrackerTest, RefusalsAreNotAllTold) {
  Serve();
  FirecrackerVmm* const vmm =
      NewVmm({{.bytes = kPage, .file_offset = kSnapshotPages * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  for (int i = 0; i < 10 * SnapshotService::kRefusalsLoggedPerSecond; ++i) {
    ASSERT_TRUE(vmm->Connect(socket_, {}));
    EXPECT_TRUE(vmm->IsTurnedAway());
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  EXPECT_GE(said_.size(),
            static_cast<size_t>(SnapshotService::kRefusalsLoggedPerSecond));
  EXPECT_LT(said_.size(), 5u * SnapshotService::kRefusalsLoggedPerSecond);
}

// Proves that what the first VM touches is fetched for the next, in that order,
// and nothing else without prefetch; in the same daemon and in the next.
TEST_F(FirecrackerTest, WhatTheFirstVmTouchesIsThereForTheNext) {
  for (const bool restart : {false, true}) {
    said_.clear();
    ::unlink(working_set_.c_str());
    ASSERT_TRUE(ServeWithWorkingSet().ok());
    ServeAndTouch(64, {63, 0, 7, 8, 9});
    if (vmms_.back() == nullptr) GTEST_SKIP() << skip_reason_;
    AwaitSaid("recorded in " + working_set_ + ": 3 runs");
    AwaitSaid("has gone");
    const auto set = ReadWorkingSet(working_set_);
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->pages, PageCount(64));
    EXPECT_EQ(set->snapshot_bytes, ByteCount(kSnapshotPages * kPage));
    EXPECT_EQ(set->runs, (std::vector<PageRun>{{PageIndex(63), PageCount(1)},
                                               {PageIndex(0), PageCount(1)},
                                               {PageIndex(7), PageCount(3)}}));
    if (restart) {
      service_.reset();
      ASSERT_TRUE(ServeWithWorkingSet().ok());
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      said_.clear();
    }
    FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
    ASSERT_TRUE(vmm->Connect(socket_, {}));
    AwaitSaid("is served from");
    for (const size_t page : {63, 0, 7, 8, 9}) {
      while (!vmm->IsPresent(0, page * kPage)) std::this_thread::yield();
      EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, page)) << page;
    }
    vmm->Disconnect();
    const std::string gone = AwaitSaid("has gone");
    EXPECT_NE(gone.find("0 pages on demand"), std::string::npos) << gone;
    EXPECT_NE(gone.find("5 ahead of it"), std::string::npos) << gone;
    EXPECT_NE(gone.find("59 never wanted"), std::string::npos) << gone;
    service_.reset();
  }
}

// Proves that with prefetch the rest comes too, and that the VM that is
// recorded is not helped by it.
TEST_F(FirecrackerTest, AWorkingSetComesBeforeTheRest) {
  ASSERT_TRUE(ServeWithWorkingSet(/*prefetch=*/true).ok());
  ServeAndTouch(64, {63, 0});
  if (vmms_.back() == nullptr) GTEST_SKIP() << skip_reason_;
  EXPECT_NE(AwaitSaid("has gone").find("62 never wanted"), std::string::npos);
  AwaitSaid("recorded in");
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  AwaitSaid("has all its pages");
  EXPECT_TRUE(IsRight(vmm->memory(0) + 30 * kPage, 30));
}

// Only the first VM is recorded, and one that touches nothing leaves it to the
// next.
TEST_F(FirecrackerTest, OneVmAtATimeIsRecorded) {
  ASSERT_TRUE(ServeWithWorkingSet().ok());
  ServeAndTouch(64, {});
  if (vmms_.back() == nullptr) GTEST_SKIP() << skip_reason_;
  AwaitSaid("has gone");
  FirecrackerVmm* first = NewVmm({{.bytes = 64 * kPage}});
  FirecrackerVmm* second = NewVmm({{.bytes = 64 * kPage}});
  ASSERT_TRUE(first->Connect(socket_, {}));
  ASSERT_TRUE(second->Connect(socket_, {}));
  EXPECT_TRUE(IsRight(first->memory(0) + 5 * kPage, 5));
  EXPECT_TRUE(IsRight(second->memory(0) + 6 * kPage, 6));
  second->Disconnect();
  AwaitSaid("1 pages on demand");
  EXPECT_TRUE(absl::IsNotFound(ReadWorkingSet(working_set_).status()));
  first->Disconnect();
  AwaitSaid("recorded in");
  EXPECT_EQ(ReadWorkingSet(working_set_)->runs,
            (std::vector<PageRun>{{PageIndex(5), PageCount(1)}}));
}

// The end of the daemon is the end of its VMs.
TEST_F(FirecrackerTest, WhatIsRecordedOutlivesTheDaemon) {
  ASSERT_TRUE(ServeWithWorkingSet().ok());
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(IsRight(vmm->memory(0) + 5 * kPage, 5));
  service_->Shutdown();
  EXPECT_EQ(ReadWorkingSet(working_set_)->runs,
            (std::vector<PageRun>{{PageIndex(5), PageCount(1)}}));
}

TEST_F(FirecrackerTest, AVmOfAnotherSizeIsServedWithoutTheWorkingSet) {
  WorkingSet set = {.pages = PageCount(63),
                    .snapshot_bytes = ByteCount(kSnapshotPages * kPage),
                    .runs = {{PageIndex(62), PageCount(1)}}};
  ASSERT_TRUE(WriteWorkingSet(working_set_, set).ok());
  ASSERT_TRUE(ServeWithWorkingSet().ok());
  ServeAndTouch(64, {7});
  if (vmms_.back() == nullptr) GTEST_SKIP() << skip_reason_;
  AwaitSaid("without the working set");
  EXPECT_NE(AwaitSaid("has gone").find("0 ahead of it"), std::string::npos);
}

TEST_F(FirecrackerTest, AForeignWorkingSetIsToldAtOnce) {
  WorkingSet set = {.pages = PageCount(64),
                    .snapshot_bytes = ByteCount(kSnapshotPages * kPage - 1),
                    .runs = {{PageIndex(62), PageCount(1)}}};
  ASSERT_TRUE(WriteWorkingSet(working_set_, set).ok());
  const absl::Status other = ServeWithWorkingSet();
  EXPECT_TRUE(absl::IsFailedPrecondition(other)) << other;
  EXPECT_NE(other.message().find("remove this one"), std::string::npos);
  ASSERT_EQ(::truncate(working_set_.c_str(), 50), 0);
  const absl::Status damaged = ServeWithWorkingSet();
  EXPECT_TRUE(absl::IsDataLoss(damaged)) << damaged;
  ::unlink(working_set_.c_str());
  working_set_ = directory_ + "/no/working_set";
  EXPECT_TRUE(absl::IsNotFound(ServeWithWorkingSet()));
}

// What cannot be written is told, and serves those who come all the same.
TEST_F(FirecrackerTest, AWorkingSetThatCannotBeWrittenIsToldAndUsed) {
  ASSERT_TRUE(ServeWithWorkingSet().ok());
  ASSERT_EQ(::mkdir(working_set_.c_str(), 0700), 0);
  ServeAndTouch(64, {7});
  if (vmms_.back() == nullptr) GTEST_SKIP() << skip_reason_;
  AwaitSaid("cannot put it in place");
  AwaitSaid("has gone");
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    said_.clear();
  }
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  while (!vmm->IsPresent(0, 7 * kPage)) std::this_thread::yield();
  vmm->Disconnect();
  EXPECT_NE(AwaitSaid("has gone").find("1 ahead of it"), std::string::npos);
  EXPECT_EQ(::rmdir(working_set_.c_str()), 0);
}

TEST_F(FirecrackerTest, ASnapshotThatIsNotThereIsToldAtOnce) {
  const auto service = SnapshotService::Create(
      {.socket_path = socket_, .snapshot_path = snapshot_ + ".not"});
  EXPECT_FALSE(service.ok());
}

}  // namespace
}  // namespace postcopy
