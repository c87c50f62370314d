#include "pageserver/snapshot_sessions.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"
#include "pageserver/test_guest.h"

namespace postcopy {
namespace {

using Lane = SnapshotSessions::Lane;

class SnapshotSessionsTest : public testing::Test {
 protected:
  SnapshotSessionsTest() { EXPECT_TRUE(Serve("s").ok()); }

  absl::Status Serve(const std::string& name) {
    auto snapshot =
        ServedSnapshot::Open(name, absl::StrCat("/proc/self/fd/", guest_.fd()));
    if (!snapshot.ok()) return snapshot.status();
    return sessions_.Add(*std::move(snapshot));
  }
  SessionKey Open(SessionKey lost = {}) {
    const auto opened = sessions_.Open("s", lost);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? opened->key : SessionKey();
  }
  absl::StatusOr<SnapshotSessions::Stream> Attach(SessionKey key,
                                                  Lane lane = Lane::kUrgent) {
    return sessions_.Attach(key, lane, [this] { ++aborts_; });
  }

  TestGuest guest_{{2}};
  SimulatedClock clock_;
  SnapshotSessions sessions_{&clock_};
  int aborts_ = 0;
};

TEST_F(SnapshotSessionsTest, ALimitOfSnapshotsWithNamesOfTheirOwn) {
  EXPECT_TRUE(absl::IsAlreadyExists(Serve("s")));
  for (size_t i = 1; i < kMaxServedSnapshots; ++i) {
    ASSERT_TRUE(Serve(absl::StrCat("s", i)).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(Serve("t")));
}

TEST_F(SnapshotSessionsTest, ASessionIsItsOpeners) {
  const SessionKey key = sessions_.Open("s", {}, "opener")->key;
  for (const char* peer : {"other", ""}) {
    EXPECT_TRUE(absl::IsPermissionDenied(
        sessions_.Attach(key, Lane::kBulk, [] {}, peer).status()));
    EXPECT_TRUE(
        absl::IsPermissionDenied(sessions_.Open("s", key, peer).status()));
  }
  EXPECT_TRUE(sessions_.Attach(key, Lane::kBulk, [] {}, "opener").ok());
  EXPECT_NE(sessions_.Open("s", {}, "other")->key.id, key.id);
}

TEST_F(SnapshotSessionsTest, ALimitOfSessions) {
  std::vector<SnapshotSessions::Stream> streams;
  SessionKey key;
  for (size_t i = 0; i < kMaxSnapshotSessions; ++i) {
    key = Open();
    auto stream = Attach(key);
    ASSERT_TRUE(stream.ok());
    streams.push_back(*std::move(stream));
  }
  clock_.Advance(2 * kSnapshotAttachNanos);
  EXPECT_TRUE(absl::IsResourceExhausted(sessions_.Open("s", {}).status()));
  // Who comes back needs no new place.
  EXPECT_EQ(Open(key).epoch, 2u);
  streams.erase(streams.begin());
  Open();
  EXPECT_TRUE(absl::IsResourceExhausted(sessions_.Open("s", {}).status()));
}

TEST_F(SnapshotSessionsTest, WhoOpensAndVanishesIsForgotten) {
  const SessionKey first = Open();
  for (size_t i = 1; i < kMaxSnapshotSessions; ++i) Open();
  clock_.Advance(kSnapshotAttachNanos);
  EXPECT_TRUE(absl::IsResourceExhausted(sessions_.Open("s", {}).status()));
  auto stream = Attach(first);
  ASSERT_TRUE(stream.ok());
  clock_.Advance(1);
  const SessionKey last = Open();
  EXPECT_EQ(sessions_.sessions(), 2u);
  EXPECT_TRUE(stream->Check(first).ok());
  EXPECT_TRUE(Attach(last).ok());
}

TEST_F(SnapshotSessionsTest, AnAnswerThatWasLostDoesNotLoseTheSession) {
  const SessionKey first = Open();
  EXPECT_EQ(Open(first).epoch, 2u);
  const SessionKey third = Open(first);
  EXPECT_EQ(third.epoch, 3u);
  auto stream = Attach(third);
  ASSERT_TRUE(stream.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(sessions_.Open("s", first).status()));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(sessions_.Open("s", {first.id, 4}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Attach(first).status()));
}

TEST_F(SnapshotSessionsTest, ANewEpochAbortsTheStreamsBefore) {
  const SessionKey key = Open();
  auto urgent = Attach(key, Lane::kUrgent);
  auto bulk = Attach(key, Lane::kBulk);
  ASSERT_TRUE(urgent.ok() && bulk.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Attach(key, Lane::kBulk).status()));
  const SessionKey next = Open(key);
  EXPECT_EQ(aborts_, 2);
  EXPECT_TRUE(absl::IsFailedPrecondition(urgent->Check(key)));
  EXPECT_TRUE(absl::IsFailedPrecondition(urgent->Check(next)));
  auto again = Attach(next);
  ASSERT_TRUE(again.ok());
  {
    const SnapshotSessions::Stream gone = *std::move(urgent);
  }
  EXPECT_TRUE(again->Check(next).ok());
  EXPECT_EQ(sessions_.sessions(), 1u);
}

TEST_F(SnapshotSessionsTest, ALostSessionOfAnotherSnapshotIsRefused) {
  ASSERT_TRUE(Serve("t").ok());
  const SessionKey key = Open();
  EXPECT_TRUE(absl::IsFailedPrecondition(sessions_.Open("t", key).status()));
  EXPECT_TRUE(absl::IsNotFound(sessions_.Open("u", key).status()));
  EXPECT_TRUE(absl::IsNotFound(Attach({key.id + 1, 1}).status()));
}

}  // namespace
}  // namespace postcopy
