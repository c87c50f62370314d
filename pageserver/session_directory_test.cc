#include "pageserver/session_directory.h"

#include <memory>
#include <utility>

#include "dirtytrack/clock.h"
#include "dirtytrack/simulated_dirty_source.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

std::shared_ptr<SourceMigration> MakeMigration() {
  TestGuest guest({4});
  SourceGuest vmm = {.pause = [] { return absl::OkStatus(); },
                     .save_device_state = [] { return std::string(); },
                     .resume = [] { return absl::OkStatus(); },
                     .ended = [](bool) {}};
  absl::StatusOr<std::unique_ptr<SourceMigration>> migration =
      SourceMigration::Create(
          guest.OpenMemory(),
          std::make_unique<SimulatedDirtySource>(PageCount(4)), std::move(vmm),
          SourceOptions(), Clock::Monotonic());
  EXPECT_TRUE(migration.ok()) << migration.status();
  return *std::move(migration);
}

TEST(SessionDirectoryTest, FindsByNameAndBySession) {
  SessionDirectory directory;
  const auto a = MakeMigration();
  const auto b = MakeMigration();
  directory.Add("migration-a", "vm-a", a);
  directory.Add("migration-b", "vm-b", b);
  EXPECT_EQ(*directory.Find("migration-a", "vm-a"), a);
  EXPECT_EQ(*directory.Find("migration-b", "vm-b"), b);
  EXPECT_EQ(*directory.FindSession(a->session_id()), a);
  EXPECT_EQ(*directory.FindSession(b->session_id()), b);
}

TEST(SessionDirectoryTest, SaysWhatIsNotThere) {
  SessionDirectory directory;
  const auto a = MakeMigration();
  directory.Add("migration-a", "vm-a", a);
  EXPECT_EQ(directory.Find("migration-x", "vm-a").status(),
            absl::NotFoundError("the source knows no migration \"migration-x\""
                                ": create it there first"));
  EXPECT_EQ(directory.Find("migration-a", "vm-x").status(),
            absl::FailedPreconditionError(
                "migration \"migration-a\" is of VM \"vm-a\" at the source, "
                "not of \"vm-x\""));
  EXPECT_EQ(directory.FindSession(a->session_id() + 1).status(),
            absl::NotFoundError("no such session: open one"));
  // The id of no session.
  EXPECT_FALSE(directory.FindSession(0).ok());
}

TEST(SessionDirectoryTest, RemoveForgets) {
  SessionDirectory directory;
  const auto a = MakeMigration();
  directory.Add("migration-a", "vm-a", a);
  directory.Remove("migration-x");
  EXPECT_TRUE(directory.Find("migration-a", "vm-a").ok());
  directory.Remove("migration-a");
  EXPECT_FALSE(directory.Find("migration-a", "vm-a").ok());
  EXPECT_FALSE(directory.FindSession(a->session_id()).ok());
  directory.Remove("migration-a");
  // The name is free again.
  directory.Add("migration-a", "vm-a", MakeMigration());
  EXPECT_TRUE(directory.Find("migration-a", "vm-a").ok());
}

// Who has found a migration keeps it, whatever the directory does.
TEST(SessionDirectoryTest, FoundStaysAlive) {
  SessionDirectory directory;
  directory.Add("migration-a", "vm-a", MakeMigration());
  const auto found = *directory.Find("migration-a", "vm-a");
  directory.Remove("migration-a");
  EXPECT_EQ(found->Snapshot().total, PageCount(4));
}

TEST(SessionDirectoryDeathTest, AnIdIsGivenOnce) {
  SessionDirectory directory;
  directory.Add("migration-a", "vm-a", MakeMigration());
  EXPECT_DEATH(directory.Add("migration-a", "vm-b", MakeMigration()),
               "check failed");
}

}  // namespace
}  // namespace postcopy
