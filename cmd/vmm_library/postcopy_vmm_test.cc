// The library as a VMM in C sees it (test_vmm.c), against the daemon's end of
// the channel.

#include "cmd/vmm_library/postcopy_vmm.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "cmd/vmm_channel/packet_socket.h"
#include "cmd/vmm_channel/test_support.h"
#include "cmd/vmm_channel/vmm_listener.h"
#include "cmd/vmm_library/test_vmm.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/memfd.h"
#include "dirtytrack/pagemap_scan_source.h"
#include "dirtytrack/slot_table.h"
#include "dirtytrack/userfaultfd.h"
#include "gtest/gtest.h"
#include "uffd/kernel_uffd.h"

namespace postcopy {
namespace {

using absl::StatusCode;

constexpr char kVm[] = "guest";

// How many userfaultfds this process has open.
int OpenUserfaultfds() {
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;
    const auto target = std::filesystem::read_symlink(entry.path(), ignored);
    count += target == "anon_inode:[userfaultfd]" ? 1 : 0;
  }
  return count;
}

std::string WhyNoUserfaultfd() {
  const auto uffd = CreateUserfaultfd();
  return uffd.ok() ? "" : std::string(uffd.status().message());
}

// A daemon of either role, and a VMM in C.
class LibraryTest : public testing::Test {
 protected:
  LibraryTest() {
    for (VmmRole role : {VmmRole::kSource, VmmRole::kDestination}) {
      auto listener =
          VmmListener::Create({.socket_path = SocketOf(role), .role = role});
      EXPECT_TRUE(listener.ok()) << listener.status();
      Listener(role) = *std::move(listener);
    }
    EXPECT_EQ(test_vmm_make(&vmm_), POSTCOPY_VMM_OK);
  }
  ~LibraryTest() override {
    End();
    test_vmm_end(&vmm_);
  }

  std::string SocketOf(VmmRole role) const {
    return dir_ / (role == VmmRole::kSource ? "source" : "destination");
  }
  std::unique_ptr<VmmListener>& Listener(VmmRole role) {
    return role == VmmRole::kSource ? source_ : destination_;
  }

  // Attaches the VMM, which then answers on a thread.
  int AttachSource(uint32_t tracking = POSTCOPY_VMM_DIRTY_LOG) {
    role_ = VmmRole::kSource;
    return Attached(test_vmm_attach(&vmm_, SocketOf(role_).c_str(), kVm,
                                    POSTCOPY_VMM_SOURCE, tracking));
  }
  int AttachDestination() {
    role_ = VmmRole::kDestination;
    return Attached(test_vmm_attach(&vmm_, SocketOf(role_).c_str(), kVm,
                                    POSTCOPY_VMM_DESTINATION, 0));
  }
  int Attached(int code) {
    if (code == POSTCOPY_VMM_OK) {
      daemon_ = Listener(role_)->Find(kVm);
      serving_ = std::async(std::launch::async, loop_);
    }
    return code;
  }
  // The daemon ends, in the middle of whatever it was doing, and with it all
  // descriptors it had.
  void EndDaemon() {
    daemon_.reset();
    Listener(role_).reset();
  }
  // Why serving ended.
  int End() {
    if (!serving_.valid()) return POSTCOPY_VMM_OK;
    daemon_.reset();
    postcopy_vmm_stop(vmm_.handle);
    return serving_.get();
  }
  std::string message() const { return postcopy_vmm_message(vmm_.handle); }
  int place() const { return postcopy_vmm_guest_place(vmm_.handle); }

  TempDir dir_;
  VmmRole role_ = VmmRole::kSource;
  std::unique_ptr<VmmListener> source_;
  std::unique_ptr<VmmListener> destination_;
  test_vmm vmm_;
  std::shared_ptr<VmmConnection> daemon_;
  std::function<int()> loop_ = [this] { return test_vmm_loop(&vmm_); };
  std::future<int> serving_;
};

// --- A migration's commands, on both sides -----------------------------------

class LoopTest : public LibraryTest, public testing::WithParamInterface<bool> {
 protected:
  LoopTest() {
    if (GetParam()) loop_ = [this] { return postcopy_vmm_run(vmm_.handle); };
  }
};

INSTANTIATE_TEST_SUITE_P(Either, LoopTest, testing::Bool(),
                         [](const testing::TestParamInfo<bool>& run) {
                           return run.param ? "Run" : "PollAndProcess";
                         });

TEST_P(LoopTest, SourceAnswersAllCommands) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK) << message();
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_HERE);
  EXPECT_TRUE(daemon_->StartDirtyLogging().ok());
  EXPECT_TRUE(daemon_->SyncDirtyLog().ok());
  EXPECT_TRUE(daemon_->PauseGuest().ok());
  EXPECT_EQ(*daemon_->SaveDeviceState(), "the state");
  EXPECT_TRUE(daemon_->ResumeGuest().ok());
  EXPECT_TRUE(daemon_->StopDirtyLogging().ok());
  EXPECT_TRUE(daemon_->MigrationEnded(false).ok());
  EXPECT_EQ(End(), POSTCOPY_VMM_CANCELLED);
  EXPECT_STREQ(vmm_.journal, "start sync pause save resume stop given-up ");
}

TEST_P(LoopTest, DestinationAnswersAllCommands) {
  if (const std::string why = WhyNoUserfaultfd(); !why.empty()) {
    GTEST_SKIP() << why;
  }
  ASSERT_EQ(AttachDestination(), POSTCOPY_VMM_OK) << message();
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_ELSEWHERE);
  EXPECT_TRUE(daemon_->LoadDeviceState("what was saved").ok());
  EXPECT_TRUE(daemon_->ResumeGuest().ok());
  EXPECT_TRUE(daemon_->MigrationEnded(true).ok());
  EXPECT_EQ(daemon_->PauseGuest().code(), StatusCode::kUnimplemented);
  EXPECT_EQ(daemon_->SaveDeviceState().status().code(),
            StatusCode::kUnimplemented);
  EndDaemon();
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_UNAVAILABLE);
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_HERE);
  EXPECT_STREQ(vmm_.journal, "load resume completed ");
  EXPECT_STREQ(vmm_.loaded, "what was saved");
}

TEST_P(LoopTest, TheEndIsToldAgainAndAgain) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EndDaemon();
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_UNAVAILABLE);
  EXPECT_EQ(message(), "the daemon closed the connection");
  const std::string why = message();
  EXPECT_EQ(postcopy_vmm_add_region(vmm_.handle, nullptr),
            POSTCOPY_VMM_FAILED_PRECONDITION);
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_UNAVAILABLE);
  EXPECT_EQ(message(), why);
  EXPECT_EQ(postcopy_vmm_run(vmm_.handle), POSTCOPY_VMM_UNAVAILABLE);
  EXPECT_GE(postcopy_vmm_fd(vmm_.handle), 0);  // no other file's number
}

TEST_F(LibraryTest, ASourceWithoutCallbacksForTheLogIsAlwaysUpToDate) {
  postcopy_vmm_callbacks callbacks = test_vmm_callbacks(&vmm_);
  callbacks.start_dirty_logging = nullptr;
  callbacks.sync_dirty_log = nullptr;
  callbacks.stop_dirty_logging = nullptr;
  callbacks.migration_ended = nullptr;
  const std::string socket = SocketOf(VmmRole::kSource);
  const postcopy_vmm_options options = {
      .size = sizeof(options),
      .socket_path = socket.c_str(),
      .vm_name = kVm,
      .role = POSTCOPY_VMM_SOURCE,
      .dirty_tracking = POSTCOPY_VMM_DIRTY_LOG};
  ASSERT_EQ(Attached(postcopy_vmm_attach(vmm_.handle, &options, &callbacks)),
            POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->StartDirtyLogging().ok());
  EXPECT_TRUE(daemon_->SyncDirtyLog().ok());
  EXPECT_TRUE(daemon_->StopDirtyLogging().ok());
  EXPECT_TRUE(daemon_->MigrationEnded(false).ok());
  EXPECT_STREQ(vmm_.journal, "");
}

// --- Whose the guest is ------------------------------------------------------

// Nobody has its device state, so it runs nowhere else.
TEST_F(LibraryTest, ThePausedGuestIsHereIfTheDaemonVanishesBeforeItIsSaved) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->PauseGuest().ok());
  EndDaemon();
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_UNAVAILABLE);
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_HERE);
}

TEST_F(LibraryTest, WhereItIsIsUnknownIfTheDaemonVanishesBehindTheSave) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->PauseGuest().ok());
  EXPECT_TRUE(daemon_->SaveDeviceState().ok());
  EndDaemon();
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_UNAVAILABLE);
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_UNKNOWN);
}

TEST_F(LibraryTest, ItIsHereAgainWhenItIsResumed) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->SaveDeviceState().ok());
  EXPECT_TRUE(daemon_->ResumeGuest().ok());
  End();
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_HERE);
}

TEST_F(LibraryTest, AFailedResumeLeavesItUnknown) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  vmm_.failing = "resume";
  vmm_.code = POSTCOPY_VMM_INTERNAL;
  EXPECT_TRUE(daemon_->SaveDeviceState().ok());
  EXPECT_FALSE(daemon_->ResumeGuest().ok());
  End();
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_UNKNOWN);
}

TEST_F(LibraryTest, AMigrationThatWasGivenUpLeavesItHere) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->SaveDeviceState().ok());
  EXPECT_TRUE(daemon_->MigrationEnded(false).ok());
  End();
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_HERE);
}

TEST_F(LibraryTest, WhatWasHandedOverMustNotRun) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->SaveDeviceState().ok());
  EXPECT_TRUE(daemon_->MigrationEnded(true).ok());
  for (const absl::Status& status :
       {daemon_->PauseGuest(), daemon_->SaveDeviceState().status(),
        daemon_->ResumeGuest()}) {
    EXPECT_TRUE(Is(status, StatusCode::kFailedPrecondition, "must not run"));
  }
  End();
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_ELSEWHERE);
  EXPECT_STREQ(vmm_.journal, "save completed ");
}

// --- Callbacks that fail -----------------------------------------------------

TEST_F(LibraryTest, EveryCodeOfACallbackGoesToTheDaemon) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  vmm_.failing = "pause";
  vmm_.explanation = "a vCPU is stuck";
  for (int code = 1; code <= POSTCOPY_VMM_UNAUTHENTICATED; ++code) {
    vmm_.code = code;
    EXPECT_TRUE(Is(daemon_->PauseGuest(), static_cast<StatusCode>(code),
                   "a vCPU is stuck"));
  }
  for (int code : {-1, POSTCOPY_VMM_UNAUTHENTICATED + 1, 1 << 20}) {
    vmm_.code = code;
    EXPECT_TRUE(
        Is(daemon_->PauseGuest(), StatusCode::kUnknown, "a vCPU is stuck"));
  }
  vmm_.failing = nullptr;
  EXPECT_TRUE(daemon_->PauseGuest().ok());  // the connection stays
}

TEST_F(LibraryTest, ASentenceIsNotUsedTwice) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  vmm_.failing = "pause";
  vmm_.code = POSTCOPY_VMM_INTERNAL;
  vmm_.explanation = "a vCPU is stuck";
  EXPECT_FALSE(daemon_->PauseGuest().ok());
  vmm_.explanation = nullptr;
  EXPECT_TRUE(Is(daemon_->PauseGuest(), StatusCode::kInternal,
                 "the VMM's pause_guest failed and does not say why"));
}

TEST_F(LibraryTest, ASentenceMayBeAsLongAsTheDaemonKeeps) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  vmm_.failing = "pause";
  vmm_.code = POSTCOPY_VMM_INTERNAL;
  for (size_t length : {POSTCOPY_VMM_EXPLANATION_BYTES_MAX,
                        POSTCOPY_VMM_EXPLANATION_BYTES_MAX + 1}) {
    const std::string sentence(length, 'x');
    vmm_.explanation = sentence.c_str();
    const std::string got(daemon_->PauseGuest().message());
    EXPECT_EQ(std::count(got.begin(), got.end(), 'x'),
              POSTCOPY_VMM_EXPLANATION_BYTES_MAX);
  }
}

TEST_F(LibraryTest, EachCallbackCanFail) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  vmm_.code = POSTCOPY_VMM_ABORTED;
  const auto failing = [this](const char* name) {
    vmm_.failing = name;
    return daemon_.get();
  };
  EXPECT_TRUE(absl::IsAborted(failing("start")->StartDirtyLogging()));
  EXPECT_TRUE(absl::IsAborted(failing("sync")->SyncDirtyLog()));
  EXPECT_TRUE(absl::IsAborted(failing("stop")->StopDirtyLogging()));
  EXPECT_TRUE(absl::IsAborted(failing("save")->SaveDeviceState().status()));
  EXPECT_TRUE(absl::IsAborted(failing("resume")->ResumeGuest()));
  End();
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_HERE);  // nobody has its state
}

TEST_F(LibraryTest, LoadingCanFail) {
  if (const std::string why = WhyNoUserfaultfd(); !why.empty()) {
    GTEST_SKIP() << why;
  }
  ASSERT_EQ(AttachDestination(), POSTCOPY_VMM_OK);
  vmm_.failing = "load";
  vmm_.code = POSTCOPY_VMM_INVALID_ARGUMENT;
  EXPECT_TRUE(absl::IsInvalidArgument(daemon_->LoadDeviceState("x")));
}

// A callback in C++ that forgot itself. The daemon sees the connection end.
template <typename Exception>
int Throw(void* /*context*/, postcopy_vmm* /*handle*/) {
  throw Exception();
}
struct Thrown : std::runtime_error {
  Thrown() : std::runtime_error("thrown") {}
};

class ThrowingTest : public LibraryTest {
 protected:
  int AttachWith(int (*pause)(void*, postcopy_vmm*)) {
    postcopy_vmm_callbacks callbacks = test_vmm_callbacks(&vmm_);
    callbacks.pause_guest = pause;
    const std::string socket = SocketOf(VmmRole::kSource);
    const postcopy_vmm_options options = {
        .size = sizeof(options),
        .socket_path = socket.c_str(),
        .vm_name = kVm,
        .role = POSTCOPY_VMM_SOURCE,
        .dirty_tracking = POSTCOPY_VMM_DIRTY_LOG};
    return Attached(postcopy_vmm_attach(vmm_.handle, &options, &callbacks));
  }
};

TEST_F(ThrowingTest, AnExceptionEndsTheConnection) {
  ASSERT_EQ(AttachWith(&Throw<Thrown>), POSTCOPY_VMM_OK);
  EXPECT_TRUE(absl::IsUnavailable(daemon_->PauseGuest()));
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_INTERNAL);
  EXPECT_TRUE(absl::StrContains(message(), "exception"));
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_INTERNAL);
  EXPECT_TRUE(absl::StrContains(message(), "exception"));
  EXPECT_EQ(postcopy_vmm_explain(vmm_.handle, "no callback runs"),
            POSTCOPY_VMM_FAILED_PRECONDITION);
}

TEST_F(ThrowingTest, MemoryThatIsNotToBeHadEndsTheConnection) {
  ASSERT_EQ(AttachWith(&Throw<std::bad_alloc>), POSTCOPY_VMM_OK);
  EXPECT_TRUE(absl::IsUnavailable(daemon_->PauseGuest()));
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_RESOURCE_EXHAUSTED);
  EXPECT_EQ(message(), "there is no memory");
}

// --- What a callback may call ------------------------------------------------

// What each function said when it was called from pause_guest.
struct FromCallback {
  int free, add_region, attach, process, run, discard, append, explain_null;
  int marker, fd, place;
};
FromCallback from_callback;

int CallEverything(void* /*context*/, postcopy_vmm* vmm) {
  postcopy_vmm_marker* marker;
  from_callback = {.free = postcopy_vmm_free(vmm),
                   .add_region = postcopy_vmm_add_region(vmm, nullptr),
                   .attach = postcopy_vmm_attach(vmm, nullptr, nullptr),
                   .process = postcopy_vmm_process(vmm),
                   .run = postcopy_vmm_run(vmm),
                   .discard = postcopy_vmm_discard_guest(vmm),
                   .append = postcopy_vmm_append_device_state(vmm, "", 0),
                   .explain_null = postcopy_vmm_explain(vmm, nullptr),
                   .marker = postcopy_vmm_marker_new(vmm, &marker),
                   .fd = postcopy_vmm_fd(vmm),
                   .place = postcopy_vmm_guest_place(vmm)};
  postcopy_vmm_marker_free(marker);
  return POSTCOPY_VMM_OK;
}

TEST_F(ThrowingTest, FromACallbackWhatIsNotAllowedIsRefused) {
  ASSERT_EQ(AttachWith(&CallEverything), POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->PauseGuest().ok());
  constexpr int kRefused = POSTCOPY_VMM_FAILED_PRECONDITION;
  EXPECT_EQ(from_callback.free, kRefused);
  EXPECT_EQ(from_callback.add_region, kRefused);
  EXPECT_EQ(from_callback.attach, kRefused);
  EXPECT_EQ(from_callback.process, kRefused);
  EXPECT_EQ(from_callback.run, kRefused);
  EXPECT_EQ(from_callback.discard, kRefused);
  EXPECT_EQ(from_callback.append, kRefused);  // not in save_device_state
  EXPECT_EQ(from_callback.explain_null, POSTCOPY_VMM_INVALID_ARGUMENT);
  EXPECT_EQ(from_callback.marker, POSTCOPY_VMM_OK);
  EXPECT_EQ(from_callback.fd, postcopy_vmm_fd(vmm_.handle));
  EXPECT_EQ(from_callback.place, POSTCOPY_VMM_GUEST_HERE);
}

int StopThere(void* /*context*/, postcopy_vmm* vmm) {
  postcopy_vmm_stop(vmm);
  return POSTCOPY_VMM_OK;
}

TEST_F(ThrowingTest, StopFromACallbackEndsServing) {
  ASSERT_EQ(AttachWith(&StopThere), POSTCOPY_VMM_OK);
  EXPECT_TRUE(absl::IsUnavailable(daemon_->PauseGuest()));
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_CANCELLED);
  EXPECT_EQ(message(), "postcopy_vmm_stop was called");
}

TEST_F(LibraryTest, NoCallbackBeginsAfterStop) {
  loop_ = [] { return POSTCOPY_VMM_OK; };
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  auto asked = std::async(std::launch::async,
                          [daemon = daemon_] { return daemon->PauseGuest(); });
  // The command has come, and nobody has read it.
  pollfd ready = {.fd = postcopy_vmm_fd(vmm_.handle), .events = POLLIN};
  ASSERT_EQ(::poll(&ready, 1, -1), 1);
  postcopy_vmm_stop(vmm_.handle);
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_CANCELLED);
  EXPECT_FALSE(asked.get().ok());
  EXPECT_STREQ(vmm_.journal, "");
}

TEST_F(LibraryTest, StopBeforeAttachIsRemembered) {
  postcopy_vmm_stop(vmm_.handle);
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_CANCELLED);
}

postcopy_vmm* to_stop;

TEST_F(LibraryTest, ASignalHandlerMayStop) {
  loop_ = [this] { return postcopy_vmm_run(vmm_.handle); };
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  to_stop = vmm_.handle;
  struct sigaction action = {};
  action.sa_handler = [](int) { postcopy_vmm_stop(to_stop); };
  struct sigaction before;
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  errno = EXDEV;
  ::raise(SIGUSR1);
  EXPECT_EQ(errno, EXDEV);
  EXPECT_EQ(serving_.get(), POSTCOPY_VMM_CANCELLED);
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(LibraryTest, WithoutACommandProcessDoesNotWait) {
  loop_ = [] { return POSTCOPY_VMM_OK; };
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_OK);
}

// --- Device state ------------------------------------------------------------

TEST_F(LibraryTest, DeviceStateMayHave64MiBAndNotOneByteMore) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  const std::string state(POSTCOPY_VMM_DEVICE_STATE_BYTES_MAX + 1, 's');
  vmm_.state = state.data();
  vmm_.state_bytes = POSTCOPY_VMM_DEVICE_STATE_BYTES_MAX;
  const absl::StatusOr<std::string> whole = daemon_->SaveDeviceState();
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->size(), vmm_.state_bytes);
  // The callback says that all went well, and the state is never cut off.
  ++vmm_.state_bytes;
  EXPECT_TRUE(Is(daemon_->SaveDeviceState().status(),
                 StatusCode::kInvalidArgument, "more than 64 MiB"));
  vmm_.state_bytes = 9;
  EXPECT_EQ(daemon_->SaveDeviceState()->size(), 9u);
}

TEST_F(LibraryTest, NoDeviceStateIsAStateToo) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  vmm_.state = nullptr;
  vmm_.state_bytes = 0;
  const absl::StatusOr<std::string> state = daemon_->SaveDeviceState();
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(*state, "");
}

TEST_F(LibraryTest, ANullPointerIsNoDeviceState) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  vmm_.state = nullptr;
  EXPECT_TRUE(Is(daemon_->SaveDeviceState().status(),
                 StatusCode::kInvalidArgument, "null pointer"));
}

// --- Dirty pages -------------------------------------------------------------

using Pages = std::vector<uint64_t>;

class MarkingTest : public LibraryTest {
 protected:
  // Opens the log as pageserverd does.
  void Open() {
    const Attachment& attachment = daemon_->attachment();
    auto log = DirtyLogSet::Open(*Duplicate(attachment.dirty_log.get()),
                                 LogSlotsOf(attachment.slots));
    ASSERT_TRUE(log.ok()) << log.status();
    log_.emplace(*std::move(log));
  }
  // The pages of each slot that were marked since the last call.
  std::map<SlotId, Pages> Take() {
    EXPECT_TRUE(log_->SwitchAll().ok());
    std::map<SlotId, Pages> marked;
    for (const DirtyLogSlot& slot : log_->slots()) {
      uint64_t word = 0;
      const PageBitmapView pages(
          reinterpret_cast<std::atomic<uint64_t>*>(&word), PageCount(64));
      EXPECT_TRUE(log_->Drain(slot.id, pages, PageIndex(0)).ok());
      for (uint64_t i = 0; i < 64; ++i) {
        if (word >> i & 1) marked[slot.id].push_back(i);
      }
    }
    return marked;
  }
  // The same for the only slot.
  Pages Marked() { return Take()[{0, 0}]; }
  int MarkAddress(uint64_t offset, uint64_t length) {
    // As a number: no pointer may be made that points nowhere.
    const auto address = reinterpret_cast<uintptr_t>(vmm_.ram) + offset;
    return postcopy_vmm_mark_address(
        vmm_.marker, reinterpret_cast<const void*>(address), length);
  }

  std::optional<DirtyLogSet> log_;
};

TEST_F(MarkingTest, ByPageByRunByBitmap) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  Open();
  EXPECT_EQ(postcopy_vmm_mark(vmm_.marker, 0, 0), POSTCOPY_VMM_OK);
  EXPECT_EQ(postcopy_vmm_mark(vmm_.marker, 0, 63), POSTCOPY_VMM_OK);
  EXPECT_EQ(Marked(), (Pages{0, 63}));
  EXPECT_EQ(postcopy_vmm_mark_pages(vmm_.marker, 0, 3, 2), POSTCOPY_VMM_OK);
  EXPECT_EQ(postcopy_vmm_mark_pages(vmm_.marker, 0, 64, 0), POSTCOPY_VMM_OK);
  EXPECT_EQ(Marked(), (Pages{3, 4}));
  const uint64_t word = 1u << 9 | 1u << 2;
  EXPECT_EQ(postcopy_vmm_mark_bitmap(vmm_.marker, 0, 0, &word, 1),
            POSTCOPY_VMM_OK);
  EXPECT_EQ(Marked(), (Pages{2, 9}));
}

TEST_F(MarkingTest, NothingIsMarkedBehindTheEnd) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  Open();
  constexpr int kOutside = POSTCOPY_VMM_OUT_OF_RANGE;
  const uint64_t words[] = {1, 1};
  EXPECT_EQ(postcopy_vmm_mark(vmm_.marker, 0, 64), kOutside);
  EXPECT_EQ(postcopy_vmm_mark(vmm_.marker, 0, UINT64_MAX), kOutside);
  EXPECT_EQ(postcopy_vmm_mark(vmm_.marker, 1, 0), kOutside);
  EXPECT_EQ(postcopy_vmm_mark(vmm_.marker, 1u << 16, 0), kOutside);
  EXPECT_EQ(postcopy_vmm_mark_pages(vmm_.marker, 0, 63, 2), kOutside);
  EXPECT_EQ(postcopy_vmm_mark_pages(vmm_.marker, 0, 1, UINT64_MAX), kOutside);
  EXPECT_EQ(postcopy_vmm_mark_pages(vmm_.marker, 2, 0, 1), kOutside);
  EXPECT_EQ(postcopy_vmm_mark_bitmap(vmm_.marker, 0, 0, words, 2), kOutside);
  EXPECT_EQ(postcopy_vmm_mark_bitmap(vmm_.marker, 0, 2, words, 0), kOutside);
  EXPECT_EQ(postcopy_vmm_mark_bitmap(vmm_.marker, 9, 0, words, 1), kOutside);
  EXPECT_EQ(MarkAddress(TEST_VMM_BYTES - 1, 2), kOutside);
  EXPECT_EQ(MarkAddress(TEST_VMM_BYTES, 1), kOutside);
  EXPECT_EQ(MarkAddress(-1, 1), kOutside);
  EXPECT_EQ(MarkAddress(0, UINT64_MAX), kOutside);
  EXPECT_EQ(Marked(), Pages());
}

TEST_F(MarkingTest, ByAddress) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  Open();
  EXPECT_EQ(MarkAddress(0, 1), POSTCOPY_VMM_OK);
  EXPECT_EQ(MarkAddress(2 * 4096 + 4095, 1), POSTCOPY_VMM_OK);
  EXPECT_EQ(MarkAddress(9 * 4096, 0), POSTCOPY_VMM_OK);
  EXPECT_EQ(Marked(), (Pages{0, 2}));
  EXPECT_EQ(MarkAddress(4096 + 4095, 2), POSTCOPY_VMM_OK);
  EXPECT_EQ(MarkAddress(62 * 4096, 2 * 4096), POSTCOPY_VMM_OK);
  EXPECT_EQ(Marked(), (Pages{1, 2, 62, 63}));
}

TEST_F(MarkingTest, SyncMarksWhatIsNew) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  Open();
  vmm_.marks_in_sync = 17;
  EXPECT_TRUE(daemon_->SyncDirtyLog().ok());
  EXPECT_EQ(Marked(), (Pages{17}));
}

// Two regions whose addresses adjoin, and slots that cut across.
TEST_F(MarkingTest, BySlotsOfKvm) {
  test_vmm parts;
  ASSERT_EQ(test_vmm_make(&parts), POSTCOPY_VMM_OK);
  postcopy_vmm_free(parts.handle);
  parts.handle = postcopy_vmm_new();
  for (uint64_t half : {0, 1}) {
    const uint64_t bytes = TEST_VMM_BYTES / 2;
    const postcopy_vmm_region region = {.size = sizeof(region),
                                        .name = half == 0 ? "low" : "high",
                                        .address = parts.ram + half * bytes,
                                        .length = bytes,
                                        .memory_fd = parts.memory_fd,
                                        .memory_offset = half * bytes};
    ASSERT_EQ(postcopy_vmm_add_region(parts.handle, &region), POSTCOPY_VMM_OK);
  }
  const uint64_t first = 10 * uint64_t{4096};
  const postcopy_vmm_slot slots[] = {{.size = sizeof(postcopy_vmm_slot),
                                      .address_space = 1,
                                      .slot = 7,
                                      .length = first},
                                     {.size = sizeof(postcopy_vmm_slot),
                                      .slot = 3,
                                      .guest_physical_address = 1u << 30,
                                      .ram_offset = first,
                                      .length = TEST_VMM_BYTES - first}};
  for (const postcopy_vmm_slot& slot : slots) {
    ASSERT_EQ(postcopy_vmm_add_slot(parts.handle, &slot), POSTCOPY_VMM_OK);
  }
  ASSERT_EQ(test_vmm_attach(&parts, SocketOf(VmmRole::kSource).c_str(), kVm,
                            POSTCOPY_VMM_SOURCE, POSTCOPY_VMM_DIRTY_LOG),
            POSTCOPY_VMM_OK)
      << postcopy_vmm_message(parts.handle);
  daemon_ = source_->Find(kVm);
  Open();
  EXPECT_EQ(postcopy_vmm_mark(parts.marker, 1u << 16 | 7, 9), POSTCOPY_VMM_OK);
  EXPECT_EQ(postcopy_vmm_mark(parts.marker, 1u << 16 | 7, 10),
            POSTCOPY_VMM_OUT_OF_RANGE);
  EXPECT_EQ(postcopy_vmm_mark(parts.marker, 3, 53), POSTCOPY_VMM_OK);
  using Taken = std::map<SlotId, Pages>;
  EXPECT_EQ(Take(), (Taken{{{1, 7}, {9}}, {{0, 3}, {53}}}));
  // Pages 9 to 32 of RAM: over the border of slots and that of regions.
  EXPECT_EQ(
      postcopy_vmm_mark_address(parts.marker, parts.ram + 9 * size_t{4096},
                                24 * uint64_t{4096}),
      POSTCOPY_VMM_OK);
  Pages rest(23);
  std::iota(rest.begin(), rest.end(), 0);
  EXPECT_EQ(Take(), (Taken{{{1, 7}, {9}}, {{0, 3}, rest}}));
  daemon_.reset();
  test_vmm_end(&parts);
}

TEST_F(MarkingTest, AMarkerOutlivesTheHandle) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  Open();
  postcopy_vmm_marker* marker = std::exchange(vmm_.marker, nullptr);
  End();
  EXPECT_EQ(postcopy_vmm_free(std::exchange(vmm_.handle, nullptr)),
            POSTCOPY_VMM_OK);
  EXPECT_EQ(postcopy_vmm_mark(marker, 0, 5), POSTCOPY_VMM_OK);
  EXPECT_EQ(Marked(), (Pages{5}));
  postcopy_vmm_marker_free(marker);
}

TEST_F(MarkingTest, ThereAre64Markers) {
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  std::vector<postcopy_vmm_marker*> markers = {vmm_.marker};
  vmm_.marker = nullptr;
  postcopy_vmm_marker* marker;
  while (markers.size() < POSTCOPY_VMM_MARKERS_MAX) {
    ASSERT_EQ(postcopy_vmm_marker_new(vmm_.handle, &marker), POSTCOPY_VMM_OK);
    markers.push_back(marker);
  }
  EXPECT_EQ(postcopy_vmm_marker_new(vmm_.handle, &marker),
            POSTCOPY_VMM_RESOURCE_EXHAUSTED);
  EXPECT_EQ(marker, nullptr);
  postcopy_vmm_marker_free(markers.back());
  ASSERT_EQ(postcopy_vmm_marker_new(vmm_.handle, &markers.back()),
            POSTCOPY_VMM_OK);
  for (postcopy_vmm_marker* each : markers) postcopy_vmm_marker_free(each);
}

TEST_F(MarkingTest, WithoutALogThereAreNoMarkers) {
  postcopy_vmm_marker* marker = nullptr;
  EXPECT_EQ(postcopy_vmm_marker_new(vmm_.handle, &marker),
            POSTCOPY_VMM_FAILED_PRECONDITION);
  EXPECT_EQ(postcopy_vmm_marker_new(vmm_.handle, nullptr),
            POSTCOPY_VMM_INVALID_ARGUMENT);
}

TEST_F(LibraryTest, WithAPagemapTheKernelTellsWhatIsWritten) {
  const int code = AttachSource(POSTCOPY_VMM_DIRTY_PAGEMAP);
  if (code == POSTCOPY_VMM_UNIMPLEMENTED ||
      code == POSTCOPY_VMM_PERMISSION_DENIED) {
    GTEST_SKIP() << message();
  }
  ASSERT_EQ(code, POSTCOPY_VMM_OK) << message();
  const Attachment& attachment = daemon_->attachment();
  auto pagemap = PagemapScanSource::Create(
      attachment.layout, {{attachment.memory[0].host_address}},
      *Duplicate(attachment.pagemap.get()),
      PagemapScanSource::Mode::kTakeAtOnce);
  ASSERT_TRUE(pagemap.ok()) << pagemap.status();
  ASSERT_TRUE((*pagemap)->Start().ok());
  vmm_.ram[5 * size_t{4096}] = 1;
  uint64_t words[1] = {};
  const PageBitmapView pages(reinterpret_cast<std::atomic<uint64_t>*>(words),
                             PageCount(TEST_VMM_PAGES));
  EXPECT_TRUE((*pagemap)->Collect(pages).ok());
  EXPECT_EQ(words[0], uint64_t{1} << 5);
  postcopy_vmm_marker* marker;
  EXPECT_EQ(postcopy_vmm_marker_new(vmm_.handle, &marker),
            POSTCOPY_VMM_FAILED_PRECONDITION);
  // While this handle lives no other can track the same memory.
  test_vmm other = vmm_;
  other.handle = postcopy_vmm_new();
  const postcopy_vmm_region region = {.size = sizeof(region),
                                      .name = "ram",
                                      .address = vmm_.ram,
                                      .length = TEST_VMM_BYTES,
                                      .memory_fd = vmm_.memory_fd};
  ASSERT_EQ(postcopy_vmm_add_region(other.handle, &region), POSTCOPY_VMM_OK);
  EXPECT_EQ(test_vmm_attach(&other, SocketOf(VmmRole::kSource).c_str(), "other",
                            POSTCOPY_VMM_SOURCE, POSTCOPY_VMM_DIRTY_PAGEMAP),
            POSTCOPY_VMM_FAILED_PRECONDITION);
  postcopy_vmm_free(other.handle);
}

// --- The userfaultfd ---------------------------------------------------------

class UserfaultfdTest : public LibraryTest {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoUserfaultfd(); !why.empty()) {
      GTEST_SKIP() << why;
    }
    before_ = OpenUserfaultfds();
  }
  // The library's alone: the daemon, in this process too, has ended.
  int OfTheLibrary() const { return OpenUserfaultfds() - before_; }
  void Free() {
    End();
    EndDaemon();
    ASSERT_EQ(postcopy_vmm_free(std::exchange(vmm_.handle, nullptr)),
              POSTCOPY_VMM_OK);
  }

  int before_ = 0;
};

TEST_F(UserfaultfdTest, ItIsClosedIfTheGuestNeverCame) {
  ASSERT_EQ(AttachDestination(), POSTCOPY_VMM_OK);
  EXPECT_GT(OfTheLibrary(), 0);
  EXPECT_TRUE(daemon_->MigrationEnded(false).ok());
  Free();
  EXPECT_EQ(OfTheLibrary(), 0);
}

TEST_F(UserfaultfdTest, ItIsClosedWhenEveryPageHasCome) {
  ASSERT_EQ(AttachDestination(), POSTCOPY_VMM_OK);
  EXPECT_TRUE(daemon_->LoadDeviceState("x").ok());
  EXPECT_TRUE(daemon_->MigrationEnded(true).ok());
  Free();
  EXPECT_EQ(OfTheLibrary(), 0);
}

// Nobody else could.
TEST_F(UserfaultfdTest, PrivateMemoryIsEmptiedBeforeItIsAttached) {
  void* const memory = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  *static_cast<uint8_t*>(memory) = 42;
  const postcopy_vmm_region region = {.size = sizeof(region),
                                      .name = "private",
                                      .address = memory,
                                      .length = kPageSize,
                                      .memory_fd = -1,
                                      .flags = POSTCOPY_VMM_REGION_PRIVATE};
  ASSERT_EQ(postcopy_vmm_add_region(vmm_.handle, &region), POSTCOPY_VMM_OK);
  ASSERT_EQ(AttachDestination(), POSTCOPY_VMM_OK) << message();
  EXPECT_EQ(daemon_->attachment().memory_fd(1), -1);
  EXPECT_TRUE(daemon_->MigrationEnded(false).ok());
  Free();
  EXPECT_EQ(*static_cast<uint8_t*>(memory), 0);
  ::munmap(memory, kPageSize);
}

// Closing it would let missing pages read as zeros.
TEST_F(UserfaultfdTest, ItStaysOpenForAGuestThatMayMissPages) {
  ASSERT_EQ(AttachDestination(), POSTCOPY_VMM_OK);
  vmm_.failing = "load";  // touched RAM, perhaps, before it failed
  vmm_.code = POSTCOPY_VMM_INTERNAL;
  EXPECT_FALSE(daemon_->LoadDeviceState("x").ok());
  Free();
  EXPECT_EQ(OfTheLibrary(), 1);
}

TEST_F(UserfaultfdTest, DiscardingTheGuestLetsThreadsGoOn) {
  ASSERT_EQ(AttachDestination(), POSTCOPY_VMM_OK);
  UniqueFd uffd = *Duplicate(daemon_->attachment().userfaultfd.get());
  uffdio_register request = {
      .range = {.start = reinterpret_cast<uintptr_t>(vmm_.ram),
                .len = TEST_VMM_BYTES},
      .mode = UFFDIO_REGISTER_MODE_MISSING,
      .ioctls = 0};
  ASSERT_EQ(::ioctl(uffd.get(), UFFDIO_REGISTER, &request), 0);
  EXPECT_TRUE(daemon_->LoadDeviceState("x").ok());
  auto touch = std::async(std::launch::async, [this] {
    return *static_cast<volatile unsigned char*>(vmm_.ram);
  });
  pollfd fault = {.fd = uffd.get(), .events = POLLIN};
  ASSERT_EQ(::poll(&fault, 1, -1), 1);  // it waits
  End();
  EndDaemon();
  EXPECT_EQ(postcopy_vmm_discard_guest(vmm_.handle), POSTCOPY_VMM_OK);
  uffd.Reset();
  EXPECT_EQ(touch.get(), 0);
  EXPECT_EQ(OfTheLibrary(), 0);
}

TEST_F(UserfaultfdTest, HasTheFeaturesThatWereAskedFor) {
  postcopy_vmm_callbacks callbacks = test_vmm_callbacks(&vmm_);
  const std::string socket = SocketOf(VmmRole::kDestination);
  role_ = VmmRole::kDestination;
  postcopy_vmm_options options = {.size = sizeof(options),
                                  .socket_path = socket.c_str(),
                                  .vm_name = kVm,
                                  .role = POSTCOPY_VMM_DESTINATION,
                                  .userfaultfd_features = UFFD_FEATURE_SIGBUS};
  EXPECT_EQ(postcopy_vmm_attach(vmm_.handle, &options, &callbacks),
            POSTCOPY_VMM_FAILED_PRECONDITION);
  EXPECT_TRUE(absl::StrContains(message(), "SIGBUS")) << message();
  options.userfaultfd_features = uint64_t{1} << 62;
  EXPECT_EQ(postcopy_vmm_attach(vmm_.handle, &options, &callbacks),
            POSTCOPY_VMM_UNIMPLEMENTED);
  options.userfaultfd_features =
      UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MINOR_SHMEM;
  ASSERT_EQ(Attached(postcopy_vmm_attach(vmm_.handle, &options, &callbacks)),
            POSTCOPY_VMM_OK)
      << message();
  auto uffd =
      KernelUffd::Adopt(*Duplicate(daemon_->attachment().userfaultfd.get()));
  ASSERT_TRUE(uffd.ok()) << uffd.status();
  EXPECT_EQ((*uffd)->features() & options.userfaultfd_features,
            options.userfaultfd_features);
}

// --- What cannot be attached -------------------------------------------------

class RefusalTest : public LibraryTest {
 protected:
  RefusalTest() { options_.socket_path = socket_.c_str(); }
  int Attach() {
    return postcopy_vmm_attach(vmm_.handle, &options_, &callbacks_);
  }
  testing::AssertionResult IsRefused(int code, const std::string& part) {
    const int got = Attach();
    if (got == code && absl::StrContains(message(), part)) {
      return testing::AssertionSuccess();
    }
    return testing::AssertionFailure()
           << postcopy_vmm_code_name(got) << ": " << message();
  }

  std::string socket_ = SocketOf(VmmRole::kSource);
  postcopy_vmm_options options_ = {.size = sizeof(postcopy_vmm_options),
                                   .vm_name = kVm,
                                   .role = POSTCOPY_VMM_SOURCE,
                                   .dirty_tracking = POSTCOPY_VMM_DIRTY_LOG};
  postcopy_vmm_callbacks callbacks_ = test_vmm_callbacks(&vmm_);
};

TEST_F(RefusalTest, OptionsThatMakeNoSense) {
  constexpr int kInvalid = POSTCOPY_VMM_INVALID_ARGUMENT;
  const postcopy_vmm_options good = options_;
  const auto with = [&](auto member, auto value) {
    options_ = good;
    options_.*member = value;
    return kInvalid;
  };
  using O = postcopy_vmm_options;
  const char* const none = nullptr;
  EXPECT_TRUE(IsRefused(with(&O::socket_path, none), "socket_path"));
  EXPECT_TRUE(IsRefused(with(&O::vm_name, none), "vm_name"));
  EXPECT_TRUE(IsRefused(with(&O::vm_name, "a b"), "is not a name"));
  EXPECT_TRUE(IsRefused(with(&O::role, 0u), "role is 0"));
  EXPECT_TRUE(IsRefused(with(&O::role, 3u), "role is 3"));
  EXPECT_TRUE(IsRefused(with(&O::dirty_tracking, 0u), "dirty_tracking is 0"));
  EXPECT_TRUE(IsRefused(with(&O::dirty_tracking, 3u), "dirty_tracking is 3"));
  EXPECT_TRUE(IsRefused(with(&O::flags, 1u), "flags is 0x1"));
  EXPECT_TRUE(IsRefused(with(&O::reserved, 1u), "reserved is 0x1"));
  EXPECT_TRUE(
      IsRefused(with(&O::userfaultfd_features, 1u), "userfaultfd_features"));
  // A destination tracks nothing.
  EXPECT_TRUE(IsRefused(with(&O::role, uint32_t{POSTCOPY_VMM_DESTINATION}),
                        "dirty_tracking is 0x1"));
  options_ = good;
  EXPECT_EQ(Attach(), POSTCOPY_VMM_OK);  // none of them has left a trace
}

TEST_F(RefusalTest, NamesAndPathsMayBeAsLongAsTheyMay) {
  const std::string name(POSTCOPY_VMM_NAME_BYTES_MAX + 1, 'n');
  options_.vm_name = name.c_str();
  EXPECT_TRUE(IsRefused(POSTCOPY_VMM_INVALID_ARGUMENT, "128"));
  options_.vm_name = name.c_str() + 1;
  const std::string path(108, 'x');
  options_.socket_path = path.c_str();
  EXPECT_TRUE(IsRefused(POSTCOPY_VMM_INVALID_ARGUMENT, "107"));
  options_.socket_path = socket_.c_str();
  EXPECT_EQ(Attach(), POSTCOPY_VMM_OK) << message();
}

TEST_F(RefusalTest, CallbacksThatAreMissing) {
  const postcopy_vmm_callbacks good = callbacks_;
  const auto without = [&](auto member) {
    callbacks_ = good;
    callbacks_.*member = nullptr;
    return int{POSTCOPY_VMM_INVALID_ARGUMENT};
  };
  using C = postcopy_vmm_callbacks;
  EXPECT_TRUE(IsRefused(without(&C::pause_guest), "a source needs"));
  EXPECT_TRUE(IsRefused(without(&C::save_device_state), "a source needs"));
  EXPECT_TRUE(IsRefused(without(&C::resume_guest), "a source needs"));
  options_.role = POSTCOPY_VMM_DESTINATION;
  options_.dirty_tracking = 0;
  EXPECT_TRUE(IsRefused(without(&C::load_device_state), "a destination needs"));
  EXPECT_TRUE(IsRefused(without(&C::resume_guest), "a destination needs"));
}

TEST_F(RefusalTest, TheDaemonsRefusalComesBack) {
  test_vmm first;
  ASSERT_EQ(test_vmm_make(&first), POSTCOPY_VMM_OK);
  ASSERT_EQ(test_vmm_attach(&first, socket_.c_str(), kVm, POSTCOPY_VMM_SOURCE,
                            POSTCOPY_VMM_DIRTY_LOG),
            POSTCOPY_VMM_OK);
  EXPECT_TRUE(IsRefused(POSTCOPY_VMM_ALREADY_EXISTS, kVm));
  test_vmm_end(&first);
  const std::string destination = SocketOf(VmmRole::kDestination);
  options_.socket_path = destination.c_str();
  EXPECT_TRUE(IsRefused(POSTCOPY_VMM_INVALID_ARGUMENT, "this is faultd"));
}

TEST_F(RefusalTest, NobodyListens) {
  EndDaemon();
  EXPECT_TRUE(IsRefused(POSTCOPY_VMM_UNAVAILABLE, "cannot connect"));
}

// A daemon that is the test.
class StrangeDaemonTest : public RefusalTest {
 protected:
  StrangeDaemonTest() {
    const sockaddr_un address = *UnixAddress(path_);
    EXPECT_EQ(
        ::bind(listening_.get(), reinterpret_cast<const sockaddr*>(&address),
               sizeof(address)),
        0);
    EXPECT_EQ(::listen(listening_.get(), 4), 0);
    options_.socket_path = path_.c_str();
  }
  // Attaches, and the daemon answers `answer`.
  int AttachWithAnswer(const std::string& answer) {
    auto code = std::async(std::launch::async, [this] { return Attach(); });
    strange_ = PacketSocket(
        UniqueFd(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC)),
        "the VMM");
    EXPECT_TRUE(strange_.Receive(Deadline::Infinite()).ok());
    EXPECT_TRUE(strange_.Send(answer, {}, Deadline::Infinite()).ok());
    return code.get();
  }

  const std::string path_ = dir_ / "strange";
  UniqueFd listening_{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
  PacketSocket strange_;
};

// DaemonMessage { attach_result {} }
const std::string kAttachedOk("\x0a\0", 2);

TEST_F(StrangeDaemonTest, ThatDoesNotAnswer) {
  options_.timeout_ms = 20;
  EXPECT_TRUE(IsRefused(POSTCOPY_VMM_DEADLINE_EXCEEDED, "did not answer"));
}

TEST_F(StrangeDaemonTest, ThatAnswersSomethingElse) {
  EXPECT_EQ(AttachWithAnswer("garbage"), POSTCOPY_VMM_INTERNAL);
  EXPECT_TRUE(absl::StrContains(message(), "something else than AttachResult"));
}

TEST_F(StrangeDaemonTest, ThatSendsGarbage) {
  ASSERT_EQ(AttachWithAnswer(kAttachedOk), POSTCOPY_VMM_OK) << message();
  EXPECT_TRUE(strange_.Send("garbage", {}, Deadline::Infinite()).ok());
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_INTERNAL);
  EXPECT_TRUE(absl::StrContains(message(), "something else than a command"));
  EXPECT_TRUE(strange_.closed());
}

TEST_F(StrangeDaemonTest, ThatSendsTooMuch) {
  ASSERT_EQ(AttachWithAnswer(kAttachedOk), POSTCOPY_VMM_OK);
  SendRaw(strange_.fd(), std::string(kMaxPacketBytes + 1, 'x'), {});
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_INVALID_ARGUMENT);
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_INVALID_ARGUMENT);
}

// A newer one.
TEST_F(StrangeDaemonTest, ThatAsksForWhatNobodyKnows) {
  ASSERT_EQ(AttachWithAnswer(kAttachedOk), POSTCOPY_VMM_OK);
  // Command { command_id: 7 }
  EXPECT_TRUE(strange_.Send("\x12\x02\x08\x07", {}, Deadline::Infinite()).ok());
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle), POSTCOPY_VMM_OK);
  const absl::StatusOr<Packet> answer = strange_.Receive(Deadline::Infinite());
  ASSERT_TRUE(answer.ok());
  EXPECT_TRUE(absl::StrContains(answer->bytes, "too old"));
}

TEST_F(RefusalTest, ASecondTime) {
  ASSERT_EQ(Attach(), POSTCOPY_VMM_OK);
  constexpr int kTooLate = POSTCOPY_VMM_FAILED_PRECONDITION;
  EXPECT_TRUE(IsRefused(kTooLate, "make a new one"));
  const postcopy_vmm_region region = {.size = sizeof(region)};
  const postcopy_vmm_slot slot = {.size = sizeof(slot)};
  EXPECT_EQ(postcopy_vmm_add_region(vmm_.handle, &region), kTooLate);
  EXPECT_EQ(postcopy_vmm_add_slot(vmm_.handle, &slot), kTooLate);
}

TEST_F(LibraryTest, BeforeItIsAttachedThereIsNothingToProcess) {
  EXPECT_EQ(postcopy_vmm_fd(vmm_.handle), -1);
  EXPECT_EQ(place(), POSTCOPY_VMM_GUEST_HERE);
  EXPECT_EQ(postcopy_vmm_process(vmm_.handle),
            POSTCOPY_VMM_FAILED_PRECONDITION);
  EXPECT_EQ(message(),
            "the guest is not attached: call postcopy_vmm_attach first");
  EXPECT_EQ(postcopy_vmm_run(vmm_.handle), POSTCOPY_VMM_FAILED_PRECONDITION);
}

// What a handle says to RAM that is described wrongly; new for each.
class DescriptionTest : public RefusalTest {
 protected:
  DescriptionTest() { New(); }
  ~DescriptionTest() override { postcopy_vmm_free(handle_); }
  void New() {
    postcopy_vmm_free(handle_);
    handle_ = postcopy_vmm_new();
  }
  int Add(const postcopy_vmm_region& region) {
    return postcopy_vmm_add_region(handle_, &region);
  }
  int Add(const postcopy_vmm_slot& slot) {
    return postcopy_vmm_add_slot(handle_, &slot);
  }
  testing::AssertionResult Says(int got, int code, const std::string& part) {
    const std::string message = postcopy_vmm_message(handle_);
    if (got == code && absl::StrContains(message, part)) {
      return testing::AssertionSuccess();
    }
    return testing::AssertionFailure()
           << postcopy_vmm_code_name(got) << ": " << message;
  }
  testing::AssertionResult AttachSays(const std::string& part) {
    return Says(postcopy_vmm_attach(handle_, &options_, &callbacks_),
                POSTCOPY_VMM_INVALID_ARGUMENT, part);
  }

  postcopy_vmm* handle_ = nullptr;
  postcopy_vmm_region region_ = {.size = sizeof(postcopy_vmm_region),
                                 .name = "ram",
                                 .address = vmm_.ram,
                                 .length = TEST_VMM_BYTES,
                                 .memory_fd = vmm_.memory_fd};
  postcopy_vmm_slot slot_ = {.size = sizeof(postcopy_vmm_slot),
                             .length = TEST_VMM_BYTES};
};

constexpr int kInvalid = POSTCOPY_VMM_INVALID_ARGUMENT;

TEST_F(DescriptionTest, RegionsThatAreRefusedAtOnce) {
  EXPECT_TRUE(Says(postcopy_vmm_add_region(handle_, nullptr), kInvalid,
                   "the postcopy_vmm_region is null"));
  postcopy_vmm_region region = region_;
  region.name = nullptr;
  EXPECT_TRUE(Says(Add(region), kInvalid, "name is null"));
  region = region_;
  region.memory_fd = -1;
  EXPECT_TRUE(Says(Add(region), kInvalid, "memory_fd is -1"));
  region = region_;
  region.flags = 4;
  EXPECT_TRUE(Says(Add(region), kInvalid, "flags is 0x4"));
  EXPECT_TRUE(Says(postcopy_vmm_add_slot(handle_, nullptr), kInvalid,
                   "the postcopy_vmm_slot is null"));
  postcopy_vmm_slot slot = slot_;
  slot.flags = 4;
  EXPECT_TRUE(Says(Add(slot), kInvalid, "flags is 0x4"));
}

TEST_F(DescriptionTest, PrivateRegionsHaveAnAddressAndNoFile) {
  const postcopy_vmm_region good = {.size = sizeof(good),
                                    .name = "ram",
                                    .address = vmm_.ram,
                                    .length = TEST_VMM_BYTES,
                                    .memory_fd = -1,
                                    .flags = POSTCOPY_VMM_REGION_PRIVATE};
  postcopy_vmm_region region = good;
  region.memory_fd = vmm_.memory_fd;
  EXPECT_TRUE(Says(Add(region), kInvalid, "memory_fd -1"));
  region = good;
  region.memory_offset = kPageSize;
  EXPECT_TRUE(Says(Add(region), kInvalid, "memory_offset 0"));
  region = good;
  region.address = nullptr;
  EXPECT_TRUE(Says(Add(region), kInvalid, "has an address"));
  EXPECT_EQ(Add(good), POSTCOPY_VMM_OK);
}

TEST_F(DescriptionTest, HugePagesMustBeHuge) {
  region_.flags = POSTCOPY_VMM_REGION_HUGE_PAGES;
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("make it a positive multiple of 2MiB"));
}

TEST_F(DescriptionTest, ASourceSendsItsMemoryForPrivateRegions) {
  std::vector<uint8_t> bytes(3 * kPageSize);
  const uintptr_t at =
      (reinterpret_cast<uintptr_t>(bytes.data()) + kPageSize - 1) / kPageSize *
      kPageSize;
  const postcopy_vmm_region region = {.size = sizeof(region),
                                      .name = "private",
                                      .address = reinterpret_cast<void*>(at),
                                      .length = kPageSize,
                                      .memory_fd = -1,
                                      .flags = POSTCOPY_VMM_REGION_PRIVATE};
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
  ASSERT_EQ(postcopy_vmm_attach(handle_, &options_, &callbacks_),
            POSTCOPY_VMM_OK);
  const auto attached = source_->Find(options_.vm_name);
  ASSERT_NE(attached, nullptr);
  bytes[at - reinterpret_cast<uintptr_t>(bytes.data())] = 42;
  uint8_t read = 0;
  EXPECT_EQ(
      ::pread(attached->attachment().memory_fd(1), &read, 1,
              static_cast<off_t>(attached->attachment().memory[1].fd_offset)),
      1);
  EXPECT_EQ(read, 42);
}

TEST_F(DescriptionTest, RamThatAttachRefuses) {
  EXPECT_TRUE(AttachSays("region"));  // none
  postcopy_vmm_region region = region_;
  region.length = 4095;
  ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("ram"));
  New();
  region.length = uint64_t{0} - 4096;  // and the next one wraps around
  ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
  ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("ram"));
  New();
  region = region_;
  region.memory_offset = 4096;
  ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("ftruncate"));
  New();
  region = region_;
  region.address = vmm_.ram + 1;
  ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("not a multiple of 4096"));
  New();
  region.address = reinterpret_cast<void*>(~uintptr_t{4095});
  ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("wraps around"));
}

TEST_F(DescriptionTest, SlotsThatAttachRefuses) {
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  postcopy_vmm_slot slot = slot_;
  slot.length = 100;
  ASSERT_EQ(Add(slot), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("slot 0:0"));
  New();
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  slot.length = 4096;
  ASSERT_EQ(Add(slot), POSTCOPY_VMM_OK);
  EXPECT_TRUE(AttachSays("slot"));  // the rest of RAM has none
}

TEST_F(DescriptionTest, ASourceWithALogNeedNotSayWhereRamIs) {
  region_.address = nullptr;
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  ASSERT_EQ(postcopy_vmm_attach(handle_, &options_, &callbacks_),
            POSTCOPY_VMM_OK);
  postcopy_vmm_marker* marker;
  ASSERT_EQ(postcopy_vmm_marker_new(handle_, &marker), POSTCOPY_VMM_OK);
  EXPECT_EQ(postcopy_vmm_mark(marker, 0, 1), POSTCOPY_VMM_OK);
  EXPECT_EQ(postcopy_vmm_mark_address(marker, nullptr, 1),
            POSTCOPY_VMM_OUT_OF_RANGE);
  postcopy_vmm_marker_free(marker);
}

TEST_F(DescriptionTest, OthersMust) {
  region_.address = nullptr;
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  options_.dirty_tracking = POSTCOPY_VMM_DIRTY_PAGEMAP;
  EXPECT_TRUE(AttachSays("the address of region ram is null"));
}

TEST_F(DescriptionTest, ThereAre64RegionsAnd512Slots) {
  const UniqueFd memory = Memfd((POSTCOPY_VMM_REGIONS_MAX + 1) * kPageSize);
  for (uint64_t i = 0; i <= POSTCOPY_VMM_REGIONS_MAX; ++i) {
    const std::string name = "r" + std::to_string(i);
    const postcopy_vmm_region region = {.size = sizeof(region),
                                        .name = name.c_str(),
                                        .length = kPageSize,
                                        .memory_fd = memory.get(),
                                        .memory_offset = i * kPageSize};
    if (i < POSTCOPY_VMM_REGIONS_MAX) {
      ASSERT_EQ(Add(region), POSTCOPY_VMM_OK);
    } else {
      EXPECT_TRUE(Says(Add(region), kInvalid, "at most 64 regions"));
    }
  }
  // The first shows all RAM, the others some of it again.
  for (uint64_t i = 0; i <= POSTCOPY_VMM_SLOTS_MAX; ++i) {
    const postcopy_vmm_slot slot = {
        .size = sizeof(slot),
        .slot = static_cast<uint16_t>(i),
        .guest_physical_address = (i + 1) << 20,
        .length = i == 0 ? POSTCOPY_VMM_REGIONS_MAX * kPageSize : kPageSize};
    if (i < POSTCOPY_VMM_SLOTS_MAX) {
      ASSERT_EQ(Add(slot), POSTCOPY_VMM_OK);
    } else {
      EXPECT_TRUE(Says(Add(slot), kInvalid, "at most 512 slots"));
    }
  }
  EXPECT_EQ(postcopy_vmm_attach(handle_, &options_, &callbacks_),
            POSTCOPY_VMM_OK)
      << postcopy_vmm_message(handle_);
}

// --- Versions ----------------------------------------------------------------

// A struct as a caller has it that was compiled with a newer header.
template <typename Struct>
struct alignas(8) Newer {
  Struct known;
  std::array<unsigned char, POSTCOPY_VMM_STRUCT_BYTES_MAX + 8 - sizeof(Struct)>
      unknown{};
};

TEST_F(DescriptionTest, ANewerCallersStructsAreTakenIfTheyAskForNothingNew) {
  Newer<postcopy_vmm_region> region = {.known = region_};
  region.known.size = sizeof(postcopy_vmm_region) + 8;
  EXPECT_EQ(Add(region.known), POSTCOPY_VMM_OK);
  region.known.size = POSTCOPY_VMM_STRUCT_BYTES_MAX;
  EXPECT_EQ(Add(region.known), POSTCOPY_VMM_OK);
  region.known.size = POSTCOPY_VMM_STRUCT_BYTES_MAX + 1;
  EXPECT_TRUE(Says(Add(region.known), kInvalid, "size is 4097"));
  region.known.size = sizeof(postcopy_vmm_region) + 8;
  region.unknown[7] = 1;
  EXPECT_TRUE(Says(Add(region.known), POSTCOPY_VMM_UNIMPLEMENTED,
                   "install one as new"));
  region.unknown[7] = 0;
  region.unknown[8] = 1;  // behind the struct
  EXPECT_EQ(Add(region.known), POSTCOPY_VMM_OK);
}

TEST_F(DescriptionTest, SizesThatNoStructHas) {
  for (size_t size : {size_t{0}, sizeof(postcopy_vmm_region) - 1,
                      size_t{POSTCOPY_VMM_STRUCT_BYTES_MAX} + 1, SIZE_MAX}) {
    postcopy_vmm_region region = region_;
    region.size = size;
    EXPECT_TRUE(Says(Add(region), kInvalid, "postcopy_vmm_region.size is"));
  }
  postcopy_vmm_slot slot = slot_;
  slot.size -= 1;
  EXPECT_TRUE(Says(Add(slot), kInvalid, "postcopy_vmm_slot.size is"));
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  options_.size -= 1;
  EXPECT_TRUE(AttachSays("postcopy_vmm_options.size is"));
  options_.size += 1;
  callbacks_.size = 0;
  EXPECT_TRUE(AttachSays("postcopy_vmm_callbacks.size is"));
  EXPECT_TRUE(Says(postcopy_vmm_attach(handle_, nullptr, &callbacks_), kInvalid,
                   "the postcopy_vmm_options is null"));
  EXPECT_TRUE(Says(postcopy_vmm_attach(handle_, &options_, nullptr), kInvalid,
                   "the postcopy_vmm_callbacks is null"));
}

TEST_F(DescriptionTest, NewerOptionsAndCallbacksToo) {
  ASSERT_EQ(Add(region_), POSTCOPY_VMM_OK);
  Newer<postcopy_vmm_options> options = {.known = options_};
  Newer<postcopy_vmm_callbacks> callbacks = {.known = callbacks_};
  options.known.size = sizeof(postcopy_vmm_options) + 4;
  callbacks.known.size = sizeof(postcopy_vmm_callbacks) + 16;
  const auto attach = [&] {
    return postcopy_vmm_attach(handle_, &options.known, &callbacks.known);
  };
  options.unknown[0] = 1;
  EXPECT_TRUE(Says(attach(), POSTCOPY_VMM_UNIMPLEMENTED, "install"));
  options.unknown[0] = 0;
  callbacks.unknown[15] = 1;
  EXPECT_TRUE(Says(attach(), POSTCOPY_VMM_UNIMPLEMENTED, "install"));
  callbacks.unknown[15] = 0;
  EXPECT_EQ(attach(), POSTCOPY_VMM_OK) << postcopy_vmm_message(handle_);
}

TEST(LibraryVersionTest, IsTheHeaders) {
  EXPECT_EQ(postcopy_vmm_version(), uint32_t{POSTCOPY_VMM_VERSION});
}

TEST(CodeNameTest, EveryCodeHasGrpcsName) {
  for (int code = 0; code <= POSTCOPY_VMM_UNAUTHENTICATED; ++code) {
    EXPECT_EQ(postcopy_vmm_code_name(code),
              absl::StatusCodeToString(static_cast<StatusCode>(code)));
  }
  EXPECT_STREQ(postcopy_vmm_code_name(-1), "UNKNOWN");
  EXPECT_STREQ(postcopy_vmm_code_name(17), "UNKNOWN");
}

TEST(NullHandleTest, IsInvalid) {
  const postcopy_vmm_region region = {.size = sizeof(region)};
  const postcopy_vmm_slot slot = {.size = sizeof(slot)};
  const postcopy_vmm_options options = {.size = sizeof(options)};
  const postcopy_vmm_callbacks callbacks = {.size = sizeof(callbacks)};
  EXPECT_EQ(postcopy_vmm_free(nullptr), POSTCOPY_VMM_OK);
  postcopy_vmm_stop(nullptr);
  postcopy_vmm_marker_free(nullptr);
  EXPECT_EQ(postcopy_vmm_fd(nullptr), -1);
  EXPECT_STREQ(postcopy_vmm_message(nullptr), "the handle is null");
  EXPECT_EQ(postcopy_vmm_guest_place(nullptr), POSTCOPY_VMM_GUEST_HERE);
  EXPECT_EQ(postcopy_vmm_add_region(nullptr, &region), kInvalid);
  EXPECT_EQ(postcopy_vmm_add_slot(nullptr, &slot), kInvalid);
  EXPECT_EQ(postcopy_vmm_attach(nullptr, &options, &callbacks), kInvalid);
  EXPECT_EQ(postcopy_vmm_process(nullptr), kInvalid);
  EXPECT_EQ(postcopy_vmm_run(nullptr), kInvalid);
  EXPECT_EQ(postcopy_vmm_explain(nullptr, "x"), kInvalid);
  EXPECT_EQ(postcopy_vmm_append_device_state(nullptr, "x", 1), kInvalid);
  EXPECT_EQ(postcopy_vmm_discard_guest(nullptr), kInvalid);
  postcopy_vmm_marker* marker;
  EXPECT_EQ(postcopy_vmm_marker_new(nullptr, &marker), kInvalid);
  EXPECT_EQ(marker, nullptr);
}

// A program that the VMM starts must hold neither connection nor memory.
TEST_F(LibraryTest, WhatItOpensIsClosedOnExec) {
  const auto open_fds = [] {
    std::set<int> fds;
    for (const auto& entry :
         std::filesystem::directory_iterator("/proc/self/fd")) {
      fds.insert(std::stoi(entry.path().filename()));
    }
    return fds;
  };
  const std::set<int> before = open_fds();
  ASSERT_EQ(AttachSource(), POSTCOPY_VMM_OK);
  test_vmm destination;
  ASSERT_EQ(test_vmm_make(&destination), POSTCOPY_VMM_OK);
  test_vmm_attach(&destination, SocketOf(VmmRole::kDestination).c_str(), kVm,
                  POSTCOPY_VMM_DESTINATION, 0);
  int opened = 0;
  for (int fd : open_fds()) {
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags < 0 || before.count(fd) != 0) continue;
    EXPECT_NE(flags & FD_CLOEXEC, 0) << fd;
    ++opened;
  }
  EXPECT_GT(opened, 2);
  test_vmm_end(&destination);
}

// Nothing is left open, whatever became of the guest.
TEST_F(RefusalTest, DescriptorsAreClosed) {
  postcopy_vmm_message(vmm_.handle);
  const size_t before = OpenFds();
  test_vmm other;
  ASSERT_EQ(test_vmm_make(&other), POSTCOPY_VMM_OK);
  ASSERT_EQ(test_vmm_attach(&other, socket_.c_str(), "a b", POSTCOPY_VMM_SOURCE,
                            POSTCOPY_VMM_DIRTY_LOG),
            POSTCOPY_VMM_INVALID_ARGUMENT);
  ASSERT_EQ(test_vmm_attach(&other, socket_.c_str(), kVm, POSTCOPY_VMM_SOURCE,
                            POSTCOPY_VMM_DIRTY_LOG),
            POSTCOPY_VMM_OK);
  test_vmm_end(&other);
  source_.reset();
  destination_.reset();
  EXPECT_LE(OpenFds(), before);
}

}  // namespace
}  // namespace postcopy
