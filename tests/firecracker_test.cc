// Firecracker's way of restoring a VM, end to end: its handshake over a real
// socket, its kind of memory, faultd's service behind it.
#include <fcntl.h>
#include <grpcpp/security/server_credentials.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cmd/daemon/grpc_listener.h"
#include "cmd/faultd/fault_recorder.h"
#include "cmd/faultd/snapshot_service.h"
#include "cmd/log/log.h"
#include "cmd/pageserverd/source_daemon.h"
#include "cmd/security/client_security.h"
#include "cmd/trace/trace_codec.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/types.h"
#include "dirtytrack/unique_fd.h"
#include "gtest/gtest.h"
#include "postcopy/v1/data_plane.grpc.pb.h"
#include "tests/fault_proxy.h"
#include "tests/firecracker_vmm.h"
#include "uffd/bulk_share.h"
#include "uffd/kernel_guest.h"
#include "uffd/working_set.h"

namespace postcopy {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHuge = 2 << 20;
constexpr size_t kSnapshotPages = 4096;  // 16 MiB

// Where the snapshot is: a file of this host, or with a source.
enum class Place { kFile, kSource };

class FirecrackerFixture : public testing::Test {
 protected:
  explicit FirecrackerFixture(Place place) : place_(place) {}

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
    if (place_ == Place::kSource) StartSource();
  }
  void TearDown() override {
    vmms_.clear();
    service_.reset();
    source_.reset();
    ::unlink((directory_ + "/source.lock").c_str());
    ::unlink(snapshot_.c_str());
    ::unlink(working_set_.c_str());
    ::unlink((socket_ + ".lock").c_str());
    ::rmdir(directory_.c_str());
  }

  // At the port of the one before, if there was one.
  void StartSource() {
    auto source = SourceDaemon::Create(
        {.control_address = "127.0.0.1:0",
         .data_address = source_address_,
         .security = {.insecure_control = true, .insecure_data = true},
         .vmm_socket = directory_ + "/source",
         .snapshots = {{"web", snapshot_}}});
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    source_address_ = source_->data_address();
  }
  SnapshotService::Options ServiceOptions() {
    SnapshotService::Options options;
    options.socket_path = socket_;
    if (place_ == Place::kFile) {
      options.snapshot_path = snapshot_;
    } else {
      options.source_address = source_address_;
      options.source_name = "web";
      options.dialling = ClientSecurity::Plaintext();
    }
    options.log = [this](LogSeverity severity, const std::string& sentence) {
      Log(absl::StrCat(LogSeverityName(severity), ": ", sentence));
    };
    return options;
  }
  absl::Status Serve(const SnapshotService::Options& options) {
    auto service = SnapshotService::Create(options);
    if (!service.ok()) return service.status();
    service_ = *std::move(service);
    return absl::OkStatus();
  }
  void Serve(bool prefetch = false) {
    SnapshotService::Options options = ServiceOptions();
    options.prefetch = prefetch;
    options.bulk_share = &share_;
    const absl::Status status = Serve(options);
    ASSERT_TRUE(status.ok()) << status;
  }
  absl::Status ServeWithWorkingSet(bool prefetch = false) {
    SnapshotService::Options options = ServiceOptions();
    options.prefetch = prefetch;
    options.working_set_path = working_set_;
    return Serve(options);
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

  const Place place_;
  std::string directory_ = "/tmp/firecracker-test.XXXXXX";
  std::string source_address_ = "127.0.0.1:0";
  std::unique_ptr<SourceDaemon> source_;
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

// What holds wherever the snapshot is.
class FirecrackerTest : public FirecrackerFixture,
                        public testing::WithParamInterface<Place> {
 protected:
  FirecrackerTest() : FirecrackerFixture(GetParam()) {}
};

TEST_P(FirecrackerTest, RestoresFromASnapshot) {
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

TEST_P(FirecrackerTest, OneThatTouchesNothingHasNotWaited) {
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
TEST_P(FirecrackerTest, EveryRegionHasItsOffset) {
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

TEST_P(FirecrackerTest, HugePages) {
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

TEST_P(FirecrackerTest, JsonInPiecesWithKeysOfTheFuture) {
  Serve();
  FirecrackerVmm* const vmm =
      NewVmm({{.bytes = kPage}, {.bytes = kPage, .file_offset = 5 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {.unknown_keys = true, .piece = 1}));
  EXPECT_TRUE(IsRight(vmm->memory(1), 5));
}

TEST_P(FirecrackerTest, TheBalloonGetsZeros) {
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

TEST_P(FirecrackerTest, ThePrefetchTakesTurnsWithOtherVms) {
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
TEST_P(FirecrackerTest, ManyVmsFromOneSnapshot) {
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

TEST_P(FirecrackerTest, AVmThatTheSnapshotIsTooShortForIsTurnedAway) {
  Serve();
  FirecrackerVmm* const vmm =
      NewVmm({{.bytes = 2 * kPage, .file_offset = kSnapshotPages * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(vmm->IsTurnedAway());
  AwaitSaid("warning: a VM is refused");
  EXPECT_EQ(service_->vms(), 0u);
}

// One that has gone has its descriptors until it has been let go, which may
// wait for a disk.
TEST_P(FirecrackerTest, AVmThatIsBeingLetGoStillCounts) {
  SnapshotService::Options options = ServiceOptions();
  options.vms_max = 1;
  std::promise<void> let_go;
  options.log = [this, may_go = let_go.get_future().share()](
                    LogSeverity /*severity*/, const std::string& sentence) {
    Log(sentence);
    if (absl::StrContains(sentence, "has gone")) may_go.wait();
  };
  ASSERT_TRUE(Serve(options).ok());
  FirecrackerVmm* const first = NewVmm({{.bytes = 4 * kPage}});
  FirecrackerVmm* const second = NewVmm({{.bytes = 4 * kPage}});
  FirecrackerVmm* const third = NewVmm({{.bytes = 4 * kPage}});
  if (third == nullptr) {
    let_go.set_value();
    GTEST_SKIP() << skip_reason_;
  }
  ASSERT_TRUE(first->Connect(socket_, {}));
  EXPECT_TRUE(IsRight(first->memory(0), 0));
  first->Disconnect();
  AwaitSaid("has gone");
  ASSERT_TRUE(second->Connect(socket_, {}));
  EXPECT_TRUE(second->IsTurnedAway());
  AwaitSaid("1 of them have gone and are being let go");
  let_go.set_value();
  while (service_->leaving() > 0) std::this_thread::yield();
  ASSERT_TRUE(third->Connect(socket_, {}));
  EXPECT_TRUE(IsRight(third->memory(0), 0));
}

// Or a stop that waits for the VMs that are there would never end.
TEST_P(FirecrackerTest, AVmThatComesDuringAStopIsTurnedAway) {
  Serve();
  FirecrackerVmm* const vmm = NewVmm({{.bytes = kPage, .file_offset = 0}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  service_->StopTaking();
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(vmm->IsTurnedAway());
  AwaitSaid("this faultd is ending");
  EXPECT_EQ(service_->vms(), 0u);
}

// Whoever connects in a loop must not fill the disk.
TEST_P(FirecrackerTest, RefusalsAreNotAllTold) {
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
TEST_P(FirecrackerTest, WhatTheFirstVmTouchesIsThereForTheNext) {
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
TEST_P(FirecrackerTest, AWorkingSetComesBeforeTheRest) {
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
TEST_P(FirecrackerTest, OneVmAtATimeIsRecorded) {
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

// What a VM touches is in its trace, with the file of pages in the same order.
TEST_P(FirecrackerTest, FaultsAreRecorded) {
  const std::string traces = testing::TempDir() + "/fc.traces";
  std::filesystem::remove_all(traces);
  ASSERT_EQ(::mkdir(traces.c_str(), 0700), 0);
  const auto recorder = FaultRecorder::Create({.directory = traces});
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  SnapshotService::Options options = ServiceOptions();
  options.recorder = recorder->get();
  ASSERT_TRUE(Serve(options).ok());
  ServeAndTouch(64, {63, 0, 7});
  if (vmms_.back() == nullptr) GTEST_SKIP() << skip_reason_;
  AwaitSaid("has gone");
  service_.reset();
  (*recorder)->Shutdown();
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(traces)) {
    files.push_back(entry.path());
  }
  ASSERT_EQ(files.size(), 1u);
  const absl::StatusOr<Trace> trace = ReadTraceFile(files[0]);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->pages, PageCount(64));
  std::vector<uint64_t> touched;
  for (const TraceEvent& event : trace->events) {
    touched.push_back(event.page.value());
    EXPECT_GT(event.stages_ns[2], 0u);
  }
  EXPECT_EQ(touched, (std::vector<uint64_t>{63, 0, 7}));
  std::filesystem::remove_all(traces);
}

// Who is turned away again and again must not take the places of traces.
TEST_P(FirecrackerTest, AVmThatIsTurnedAwayLeavesNoTrace) {
  const std::string traces = testing::TempDir() + "/fc.refused";
  std::filesystem::remove_all(traces);
  ASSERT_EQ(::mkdir(traces.c_str(), 0700), 0);
  const auto recorder = FaultRecorder::Create({.directory = traces});
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  SnapshotService::Options options = ServiceOptions();
  options.recorder = recorder->get();
  ASSERT_TRUE(Serve(options).ok());
  FirecrackerVmm* const vmm =
      NewVmm({{.bytes = 2 * kPage, .file_offset = kSnapshotPages * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(vmm->IsTurnedAway());
  service_.reset();
  (*recorder)->Shutdown();
  EXPECT_EQ((*recorder)->totals().recordings.load(), 1u);
  EXPECT_TRUE(std::filesystem::is_empty(traces));
  std::filesystem::remove_all(traces);
}

// The end of the daemon is the end of its VMs.
TEST_P(FirecrackerTest, WhatIsRecordedOutlivesTheDaemon) {
  ASSERT_TRUE(ServeWithWorkingSet().ok());
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(IsRight(vmm->memory(0) + 5 * kPage, 5));
  service_->Shutdown();
  EXPECT_EQ(ReadWorkingSet(working_set_)->runs,
            (std::vector<PageRun>{{PageIndex(5), PageCount(1)}}));
}

TEST_P(FirecrackerTest, AVmOfAnotherSizeIsServedWithoutTheWorkingSet) {
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

TEST_P(FirecrackerTest, AForeignWorkingSetIsToldAtOnce) {
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
TEST_P(FirecrackerTest, AWorkingSetThatCannotBeWrittenIsToldAndUsed) {
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

TEST_P(FirecrackerTest, ASnapshotThatIsNotThereIsToldAtOnce) {
  SnapshotService::Options options = ServiceOptions();
  if (GetParam() == Place::kFile) options.snapshot_path += ".not";
  if (GetParam() == Place::kSource) options.source_name += ".not";
  EXPECT_TRUE(absl::IsNotFound(Serve(options)));
}

TEST_P(FirecrackerTest, OnePlaceAndNoOther) {
  SnapshotService::Options both = ServiceOptions();
  both.snapshot_path = snapshot_;
  both.source_address = "127.0.0.1:1";
  both.source_name = "web";
  EXPECT_TRUE(absl::IsInvalidArgument(Serve(both)));
  SnapshotService::Options half = ServiceOptions();
  half.source_name = GetParam() == Place::kFile ? "web" : "";
  EXPECT_TRUE(absl::IsInvalidArgument(Serve(half)));
}

INSTANTIATE_TEST_SUITE_P(From, FirecrackerTest,
                         testing::Values(Place::kFile, Place::kSource),
                         [](const auto& place) {
                           return place.param == Place::kFile ? "File"
                                                              : "Source";
                         });

// --- A source on another host, which can be lost.

class RemoteSnapshotTest : public FirecrackerFixture {
 protected:
  RemoteSnapshotTest() : FirecrackerFixture(Place::kSource) {}

  // From now on faultd's connections go through it.
  void ThroughAProxy() {
    auto proxy = FaultProxy::Create(source_address_);
    ASSERT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
  }
  SnapshotService::Options ProxyOptions() {
    SnapshotService::Options options = ServiceOptions();
    options.source_address = proxy_->address();
    return options;
  }
  // One of 64 pages, of which it has the first. Null as of NewVmm.
  FirecrackerVmm* NewServedVmm() {
    FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
    if (vmm == nullptr) return nullptr;
    EXPECT_TRUE(vmm->Connect(socket_, {}));
    EXPECT_TRUE(IsRight(vmm->memory(0), 0));
    return vmm;
  }
  void AwaitNoSessions() const {
    while (source_->snapshot_sessions() > 0) std::this_thread::yield();
  }

  std::unique_ptr<FaultProxy> proxy_;
};

// A guest of small and huge pages reads all of its memory, while its source is
// killed and started again.
TEST_F(RemoteSnapshotTest, ASourceThatIsKilledAndStartedAgain) {
  Serve();
  FirecrackerVmm* vmm =
      NewVmm({{.bytes = 1024 * kPage},
              {.bytes = 2 * kHuge, .huge = true, .file_offset = 2 * kHuge}});
  const bool huge = vmm != nullptr;
  if (!huge) vmm = NewVmm({{.bytes = 1024 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  for (size_t page = 0; page < 100; ++page) {
    EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, page)) << page;
  }
  source_.reset();
  std::thread guest([&] {
    for (size_t page = 100; page < 1024; ++page) {
      EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, page)) << page;
    }
  });
  std::thread other([&] {
    for (size_t page = 0; huge && page < 1024; page += 37) {
      EXPECT_TRUE(IsRight(vmm->memory(1) + page * kPage, 1024 + page)) << page;
    }
  });
  AwaitSaid("threads that touch a missing page wait: source " +
            source_address_);
  StartSource();
  guest.join();
  other.join();
  AwaitSaid("the snapshot's source is back");
  EXPECT_EQ(source_->snapshot_sessions(), 1u);
  vmm->Disconnect();
  AwaitNoSessions();
}

TEST_F(RemoteSnapshotTest, ALostConnectionIsMendedInSilence) {
  ThroughAProxy();
  SnapshotService::Options options = ProxyOptions();
  options.prefetch = true;
  ASSERT_TRUE(Serve(options).ok());
  FirecrackerVmm* const vmm = NewVmm({{.bytes = kSnapshotPages * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  for (size_t page = 0; page < kSnapshotPages; ++page) {
    if (page % 1024 == 512) proxy_->Cut();
    EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, page)) << page;
  }
  AwaitSaid("has all its pages");
  // The last of its sessions has taken the place of those before.
  while (source_->snapshot_sessions() != 1) std::this_thread::yield();
}

TEST_F(RemoteSnapshotTest, DamagedBytesReachNoGuest) {
  ThroughAProxy();
  ASSERT_TRUE(Serve(ProxyOptions()).ok());
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 256 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  for (size_t page = 0; page < 256; ++page) {
    if (page % 64 == 0) proxy_->Damage(1);
    EXPECT_TRUE(IsRight(vmm->memory(0) + page * kPage, page)) << page;
  }
}

TEST_F(RemoteSnapshotTest, ManyVmsFromOneSource) {
  Serve(/*prefetch=*/true);
  constexpr size_t kVms = 32;
  std::vector<FirecrackerVmm*> vmms;
  for (size_t i = 0; i < kVms; ++i) {
    vmms.push_back(NewVmm({{.bytes = 128 * kPage}}));
    if (vmms.back() == nullptr) GTEST_SKIP() << skip_reason_;
    ASSERT_TRUE(vmms.back()->Connect(socket_, {}));
  }
  std::vector<std::thread> guests;
  for (FirecrackerVmm* const vmm : vmms) {
    guests.emplace_back([vmm] {
      for (size_t page = 0; page < 128; ++page) {
        uint8_t* const at = vmm->memory(0) + page * kPage;
        EXPECT_TRUE(IsRight(at, page)) << page;
        *at = 1;  // its own from now on
      }
    });
  }
  for (std::thread& guest : guests) guest.join();
  while (service_->vms() < kVms) std::this_thread::yield();
  EXPECT_EQ(source_->snapshot_sessions(), kVms);
  for (FirecrackerVmm* const vmm : vmms) vmm->Disconnect();
  AwaitNoSessions();
}

// Pages of two snapshots in one guest would be a silent loss.
TEST_F(RemoteSnapshotTest, AnotherFileOfThatNameIsNotTaken) {
  Serve();
  FirecrackerVmm* const vmm = NewServedVmm();
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  source_.reset();
  struct stat before = {};
  ASSERT_EQ(::fstat(file_.get(), &before), 0);
  const timespec later[] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT},
                            {.tv_sec = 4711, .tv_nsec = 1}};
  ASSERT_EQ(::futimens(file_.get(), later), 0);
  StartSource();
  AwaitSaid("is another file than before, or has been written to");
  EXPECT_FALSE(vmm->IsPresent(0, kPage));
  source_.reset();
  const timespec same[] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT},
                           before.st_mtim};
  ASSERT_EQ(::futimens(file_.get(), same), 0);
  StartSource();
  EXPECT_TRUE(IsRight(vmm->memory(0) + kPage, 1));
}

TEST_F(RemoteSnapshotTest, ATruncatedFileIsALossAndNeverZeros) {
  Serve();
  FirecrackerVmm* const vmm = NewServedVmm();
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_EQ(::ftruncate(file_.get(), 32 * kPage), 0);
  EXPECT_FALSE(KernelCanRead(vmm->memory(0) + 40 * kPage));
  AwaitSaid("has been truncated");
  EXPECT_FALSE(KernelCanRead(vmm->memory(0) + 63 * kPage));
  EXPECT_TRUE(IsRight(vmm->memory(0), 0));
}

TEST_F(RemoteSnapshotTest, ASourceThatIsNotThereYet) {
  source_.reset();
  Serve();
  AwaitSaid("VMs are refused for now: source " + source_address_);
  EXPECT_TRUE(absl::IsUnavailable(ServeWithWorkingSet()));
  FirecrackerVmm* const vmm = NewVmm({{.bytes = 64 * kPage}});
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(vmm->IsTurnedAway());
  StartSource();
  ASSERT_TRUE(vmm->Connect(socket_, {}));
  EXPECT_TRUE(IsRight(vmm->memory(0) + kPage, 1));
}

TEST_F(RemoteSnapshotTest, ASourceThatDoesNotKnowSnapshotsIsToBeUpgraded) {
  v1::DataPlaneService::Service old;
  auto listener = GrpcListener::Create(
      {.address = "127.0.0.1:0",
       .security = {.credentials = grpc::InsecureServerCredentials()}},
      {&old});
  ASSERT_TRUE(listener.ok());
  SnapshotService::Options options = ServiceOptions();
  options.source_address = (*listener)->address();
  const absl::Status status = Serve(options);
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_NE(status.message().find("upgrade pageserverd there"),
            std::string::npos)
      << status;
}

// The VM that goes first ends though nobody answers at its source.
TEST_F(RemoteSnapshotTest, AVmGoesWhileItsSourceIsLost) {
  Serve();
  FirecrackerVmm* const vmm = NewServedVmm();
  if (vmm == nullptr) GTEST_SKIP() << skip_reason_;
  source_.reset();
  AwaitSaid("threads that touch a missing page wait");
  vmm->Disconnect();
  AwaitSaid("has gone: 1 pages on demand");
}

}  // namespace
}  // namespace postcopy
