// What a VMM does when its daemon vanishes in the middle of a hand-over.

#include "cmd/demovm/demo_vmm.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "cmd/demovm/guest_ram.h"
#include "cmd/demovm/machine.h"
#include "cmd/vmm_channel/vmm_listener.h"

namespace postcopy {
namespace {

constexpr char kVm[] = "guest";

class DemoVmmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/postcopy-test-XXXXXX";
    directory_ = ::mkdtemp(path);
    const std::string socket = directory_ + "/source.sock";
    auto listener =
        VmmListener::Create({.socket_path = socket, .role = VmmRole::kSource});
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    auto ram = demovm::GuestRam::Create(ByteCount(16 << 20));
    ASSERT_TRUE(ram.ok()) << ram.status();
    auto machine = demovm::CreateProcessMachine({.vcpus = 1}, *std::move(ram));
    ASSERT_TRUE(machine.ok()) << machine.status();
    machine_ = machine->get();
    ASSERT_TRUE(machine_->Start().ok());
    auto vmm = demovm::DemoVmm::Attach(*std::move(machine),
                                       {.name = kVm, .socket_path = socket});
    ASSERT_TRUE(vmm.ok()) << vmm.status();
    vmm_ = *std::move(vmm);
  }
  ~DemoVmmTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::shared_ptr<VmmConnection> daemon() { return listener_->Find(kVm); }
  uint64_t Steps() { return machine_->Progress().steps; }

  std::string directory_;
  std::unique_ptr<VmmListener> listener_;
  std::unique_ptr<demovm::DemoVmm> vmm_;
  demovm::Machine* machine_ = nullptr;
};

// Nobody has the device state: the guest runs nowhere else, so it goes on.
TEST_F(DemoVmmTest, GoesOnIfTheDaemonVanishesBeforeTheStateIsSaved) {
  ASSERT_TRUE(daemon()->PauseGuest().ok());
  const uint64_t before = Steps();
  listener_->Shutdown();
  // Ends when the guest runs; the test's time limit is the only other end.
  while (Steps() == before) {
  }
  const auto report = vmm_->Finish();
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_TRUE(report->verdict.has_value());
  EXPECT_TRUE(report->verdict->ok());
}

// Somebody may have it: two guests would be worse than none.
TEST_F(DemoVmmTest, StaysPausedIfTheDaemonVanishesBehindTheSavedState) {
  ASSERT_TRUE(daemon()->PauseGuest().ok());
  ASSERT_TRUE(daemon()->SaveDeviceState().ok());
  const uint64_t before = Steps();
  listener_->Shutdown();
  const auto report = vmm_->Finish();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->progress.steps, before);
}

TEST_F(DemoVmmTest, ResumesWhenTheHandOverIsGivenUp) {
  ASSERT_TRUE(daemon()->PauseGuest().ok());
  ASSERT_TRUE(daemon()->SaveDeviceState().ok());
  ASSERT_TRUE(daemon()->ResumeGuest().ok());
  const uint64_t before = Steps();
  while (Steps() == before) {
  }
}

// What is left of a guest that has gone must not run again.
TEST_F(DemoVmmTest, RefusesToRunWhatWasHandedOver) {
  ASSERT_TRUE(daemon()->PauseGuest().ok());
  ASSERT_TRUE(daemon()->SaveDeviceState().ok());
  ASSERT_TRUE(daemon()->MigrationEnded(/*completed=*/true).ok());
  for (const absl::Status& status :
       {daemon()->PauseGuest(), daemon()->SaveDeviceState().status(),
        daemon()->ResumeGuest()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find("must not run"), absl::string_view::npos)
        << status;
  }
  const auto report = vmm_->Finish();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->verdict.has_value());
}

}  // namespace
}  // namespace postcopy
