#include "cmd/postcopyctl/progress.h"

#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

MigrationView Precopy() {
  MigrationView view;
  v1::Migration& source = view.source.migration;
  source.set_state(v1::MIGRATION_STATE_PRECOPY);
  source.set_rounds(2);
  source.mutable_pages()->set_total(131072);
  source.mutable_pages()->set_remaining(12000);
  source.set_precopy_bytes_per_second(251658240);
  view.destination.migration.set_state(v1::MIGRATION_STATE_PRECOPY);
  return view;
}

MigrationView Postcopy() {
  MigrationView view;
  view.source.migration.set_state(v1::MIGRATION_STATE_POSTCOPY);
  v1::Migration& destination = view.destination.migration;
  destination.set_state(v1::MIGRATION_STATE_POSTCOPY);
  destination.mutable_pages()->set_total(131072);
  destination.mutable_pages()->set_remaining(5000);
  destination.mutable_pages()->set_faulted(1234);
  destination.mutable_fault_latency()->set_count(1234);
  destination.mutable_fault_latency()->set_p99_us(310);
  return view;
}

TEST(FormatProgressTest, Precopy) {
  EXPECT_EQ(FormatProgress(Precopy(), 0),
            "PRECOPY round 2  left 12,000/131,072 pages  240.0 MiB/s");
}

TEST(FormatProgressTest, PrecopySeenFromTheDestinationOnly) {
  MigrationView view = Postcopy();
  view.source = SideView();
  view.destination.migration.set_state(v1::MIGRATION_STATE_PRECOPY);
  EXPECT_EQ(FormatProgress(view, 0), "PRECOPY  missing 5,000/131,072 pages");
}

TEST(FormatProgressTest, Postcopy) {
  EXPECT_EQ(FormatProgress(Postcopy(), 104857600),
            "POSTCOPY  missing 5,000/131,072 pages  100.0 MiB/s  faults 1,234"
            "  p99 310 us");
}

TEST(FormatProgressTest, NoLatencyBeforeTheFirstFault) {
  MigrationView view = Postcopy();
  view.destination.migration.mutable_pages()->set_faulted(0);
  view.destination.migration.clear_fault_latency();
  EXPECT_EQ(FormatProgress(view, 0),
            "POSTCOPY  missing 5,000/131,072 pages  0 B/s  faults 0");
}

TEST(FormatProgressTest, SaysWhoIsNotHeard) {
  MigrationView view = Precopy();
  view.destination.stream = absl::UnavailableError("reset");
  EXPECT_THAT(FormatProgress(view, 0),
              HasSubstr("(no word from the destination)"));
  // Who has ended need not be heard.
  view.destination.migration.set_state(v1::MIGRATION_STATE_COMPLETED);
  EXPECT_THAT(FormatProgress(view, 0), Not(HasSubstr("no word")));
}

TEST(FormatProgressTest, OtherStatesAreTheirNames) {
  MigrationView view;
  view.source.migration.set_state(v1::MIGRATION_STATE_PREPARING);
  EXPECT_EQ(FormatProgress(view, 0), "PREPARING");
  view.source.migration.set_state(v1::MIGRATION_STATE_SWITCHING);
  EXPECT_EQ(FormatProgress(view, 0), "SWITCHING");
}

TEST(RateMeterTest, MeasuresBetweenSamples) {
  RateMeter meter;
  EXPECT_EQ(meter.Update(100, absl::Seconds(10)), 0u);
  EXPECT_EQ(meter.Update(356, absl::Seconds(11)), 256u * 4096);
  // Too soon for a new figure.
  EXPECT_EQ(meter.Update(900, absl::Seconds(11.1)), 256u * 4096);
  EXPECT_EQ(meter.Update(356, absl::Seconds(13)), 0u);
}

TEST(RateMeterTest, StartsAnewWhenTheCounterDoes) {
  RateMeter meter;
  meter.Update(100, absl::Seconds(1));
  EXPECT_EQ(meter.Update(10, absl::Seconds(2)), 0u);
  EXPECT_EQ(meter.Update(266, absl::Seconds(3)), 256u * 4096);
}

TEST(LiveLineTest, NeverWraps) {
  EXPECT_EQ(LiveLine("abc", 80), "\rabc\033[K");
  EXPECT_EQ(LiveLine("abcdef", 4), "\rabc\033[K");
  EXPECT_EQ(LiveLine("abcdef", 0), "\r\033[K");
}

TEST(ProgressPrinterTest, PlainOutputHasALineForEachChangeAndSecond) {
  std::ostringstream out;
  ProgressPrinter printer(&out, 0, "tool: ");
  printer.OnView(Precopy(), absl::Seconds(0));
  printer.OnView(Precopy(), absl::Seconds(0.5));
  printer.OnView(Precopy(), absl::Seconds(1));
  printer.OnMessage("switching over");
  printer.OnView(Postcopy(), absl::Seconds(1.2));
  EXPECT_EQ(out.str(),
            "[   0.0s] PRECOPY round 2  left 12,000/131,072 pages  240.0 MiB/s"
            "\n"
            "[   1.0s] PRECOPY round 2  left 12,000/131,072 pages  240.0 MiB/s"
            "\n"
            "tool: switching over\n"
            "[   1.2s] POSTCOPY  missing 5,000/131,072 pages  0 B/s"
            "  faults 1,234  p99 310 us\n");
}

TEST(ProgressPrinterTest, ATerminalHasOneLiveLine) {
  std::ostringstream out;
  {
    ProgressPrinter printer(&out, 20, "tool: ");
    printer.OnView(Precopy(), absl::Seconds(0));
    printer.OnView(Precopy(), absl::Seconds(0.5));
    printer.OnMessage("hello");
  }
  EXPECT_EQ(out.str(),
            "\r[   0.0s] PRECOPY r\033[K"
            "\r[   0.5s] PRECOPY r\033[K"
            "\ntool: hello\n");
}

}  // namespace
}  // namespace postcopy
