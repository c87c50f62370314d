// Many writers, in threads and in processes of their own, against one reader
// that switches all the time. Every page carries a version that its writer
// raises before it marks the page; the reader notes the version of each page it
// drains. A mark that is lost, or seen before the write it stands for, leaves
// an old version noted.

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <random>
#include <thread>
#include <vector>

#include "dirtytrack/check.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/dirty_log_layout.h"
#include "dirtytrack/memfd.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr SlotId kSlots[] = {{0, 0}, {0, 5}, {1, 0}};
constexpr uint64_t kPagesPerSlot = 777;
constexpr uint64_t kPages = std::size(kSlots) * kPagesPerSlot;
constexpr int kWriters = 4;
constexpr int kMarksPerWriter = 3000;

// What writers in all processes share besides the log.
struct Guest {
  std::atomic<uint64_t> version[kPages];
  std::atomic<int> writers_left;
};

// Time runs out as soon as anybody asks, so that every switch that has to
// wait for a preempted writer is left pending.
class ImpatientClock final : public Clock {
 public:
  int64_t NowNanos() override { return now_ += 2 * kGracePeriodMaxNanos; }
  void SleepFor(int64_t) override {}

 private:
  int64_t now_ = 0;
};

// A writer that knows nothing but dirty_log_layout.h, as one in a VMM of
// another language. It dawdles where it does most harm: between its look at
// `active` and the bit.
class LayoutWriter {
 public:
  LayoutWriter(int fd, size_t record, const std::function<void()>& dawdle)
      : mapping_(*SharedMapping::Map(fd, ByteCount(0), *FileSize(fd),
                                     SharedMapping::Access::kReadWrite)),
        writer_(At<dirty_log_layout::WriterRecord>(
                    dirty_log_layout::kWritersOffset) +
                record),
        dawdle_(dawdle) {
    uint32_t free = 0;
    POSTCOPY_CHECK(writer_->owner_pid.compare_exchange_strong(
        free, static_cast<uint32_t>(::getpid())));
  }
  ~LayoutWriter() { writer_->owner_pid = 0; }

  // `slot` counts the slots in ascending order of their ids.
  void Mark(size_t slot, uint64_t page) {
    auto* record =
        At<dirty_log_layout::SlotRecord>(dirty_log_layout::kSlotsOffset) + slot;
    writer_->sequence.exchange(++sequence_);
    const uint32_t active = record->active & 1;
    dawdle_();
    At<std::atomic<uint64_t>>(record->bitmap_offset[active])[page / 64]
        .fetch_or(uint64_t{1} << (page % 64));
    record->dirty[active].store(1, std::memory_order_release);
    writer_->sequence.store(++sequence_, std::memory_order_release);
  }

 private:
  template <typename T>
  T* At(uint64_t offset) {
    return reinterpret_cast<T*>(mapping_.data() + offset);
  }

  SharedMapping mapping_;
  dirty_log_layout::WriterRecord* const writer_;
  const std::function<void()>& dawdle_;
  uint64_t sequence_ = 0;
};

class DirtyLogStressTest : public testing::Test {
 protected:
  DirtyLogStressTest() : noted_(kPages, 0) {
    guest_ = static_cast<Guest*>(::mmap(nullptr, sizeof(Guest),
                                        PROT_READ | PROT_WRITE,
                                        MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    guest_->writers_left = kWriters;
  }
  ~DirtyLogStressTest() override { ::munmap(guest_, sizeof(Guest)); }

  static DirtyLogSet MakeLog(Clock* clock = Clock::Monotonic()) {
    std::vector<DirtyLogSlot> slots;
    for (SlotId id : kSlots) slots.push_back({id, PageCount(kPagesPerSlot)});
    return *DirtyLogSet::Create(slots, clock);
  }

  void Write(uint64_t slot, uint64_t first, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      guest_->version[slot * kPagesPerSlot + first + i].fetch_add(
          1, std::memory_order_relaxed);
    }
  }

  // One of the three ways to mark, at random.
  void WriteAndMark(DirtyLogWriter& writer, std::mt19937_64& random) {
    const uint64_t slot = random() % std::size(kSlots);
    const uint64_t page = random() % kPagesPerSlot;
    switch (random() % 8) {
      case 0: {
        const uint64_t count = 1 + random() % (kPagesPerSlot - page);
        Write(slot, page, count);
        writer.MarkRun(kSlots[slot], {PageIndex(page), PageCount(count)});
        break;
      }
      case 1: {
        const uint64_t word = 1 + 2 * page % 8;
        Write(slot, word * 64 + 3, 2);
        const uint64_t bits[] = {0b11000, 0};
        writer.MergeWords(kSlots[slot], word, bits);
        break;
      }
      default:
        Write(slot, page, 1);
        writer.Mark(kSlots[slot], PageIndex(page));
    }
  }

  void WriterMain(const DirtyLogSet& log, int seed) {
    DirtyLogWriter writer = *log.NewWriter(entry_);
    std::mt19937_64 random(seed);
    for (int i = 0; i < kMarksPerWriter; ++i) WriteAndMark(writer, random);
    guest_->writers_left.fetch_sub(1, std::memory_order_release);
  }

  // Looks twice: nothing may change in between.
  static void ExpectQuiet(PageBitmapView retired) {
    std::vector<uint64_t> words;
    for (size_t i = 0; i < retired.word_count(); ++i) {
      words.push_back(retired.LoadWord(i));
    }
    std::this_thread::yield();
    for (size_t i = 0; i < retired.word_count(); ++i) {
      ASSERT_EQ(retired.LoadWord(i), words[i]);
    }
  }

  // Drains what is settled and notes the versions.
  void Note(DirtyLogSet& log) {
    const PageBitmap into = *PageBitmap::Create(PageCount(kPages));
    for (size_t i = 0; i < std::size(kSlots); ++i) {
      const absl::StatusOr<PageBitmapView> retired = log.Retired(kSlots[i]);
      if (!retired.ok()) continue;
      ExpectQuiet(*retired);
      ASSERT_TRUE(
          log.Drain(kSlots[i], into.view(), PageIndex(i * kPagesPerSlot)).ok());
    }
    PageIndex at;
    while (auto run = into.view().NextSetRun(at, PageCount(1))) {
      const uint64_t page = run->first.value();
      noted_[page] = guest_->version[page].load(std::memory_order_relaxed);
      at = run->end();
    }
  }

  void ReaderMain(DirtyLogSet& log) {
    for (uint64_t round = 0;; ++round) {
      if (round % 7 == 0) log.ReapDeadWriters();
      const bool last =
          guest_->writers_left.load(std::memory_order_acquire) == 0;
      if (last) {
        // As a last round does: leave nothing pending behind.
        while (!log.Settle().ok()) ++unavailable_;
        Note(log);
      }
      const absl::StatusOr<SwitchResult> result =
          round % 3 != 0 ? log.SwitchAll()
                         : log.Switch(kSlots[round % std::size(kSlots)]);
      if (!result.ok()) {
        ASSERT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
        ++unavailable_;
        continue;
      }
      // Sometimes leave everything, or some pages, unread.
      if (last || round % 5 != 0) Note(log);
      if (last && *result == SwitchResult::kClean && round % 3 != 0) return;
    }
  }

  void ExpectEveryVersionNoted() {
    for (uint64_t page = 0; page < kPages; ++page) {
      ASSERT_EQ(noted_[page], guest_->version[page].load()) << page;
    }
  }

  void RunThreads() {
    DirtyLogSet log = MakeLog();
    std::vector<std::thread> threads;
    for (int t = 0; t < kWriters; ++t) {
      threads.emplace_back([&, t] { WriterMain(log, t); });
    }
    ReaderMain(log);
    for (std::thread& thread : threads) thread.join();
    ExpectEveryVersionNoted();
  }

  // Calls `dawdle` in every section, and `before_reading` once the writers
  // have been started.
  void RunDawdlers(Clock* clock, const std::function<void()>& dawdle,
                   const std::function<void()>& before_reading) {
    DirtyLogSet log = MakeLog(clock);
    // So that the first switch has something to exchange.
    log.NewWriter()->Mark(kSlots[0], PageIndex(0));
    std::vector<std::thread> threads;
    for (int t = 0; t < kWriters; ++t) {
      threads.emplace_back([&, t] {
        LayoutWriter writer(log.fd(), t, dawdle);
        std::mt19937_64 random(t);
        for (int i = 0; i < kMarksPerWriter; ++i) {
          const uint64_t slot = random() % std::size(kSlots);
          const uint64_t page = random() % kPagesPerSlot;
          Write(slot, page, 1);
          writer.Mark(slot, page);
        }
        guest_->writers_left.fetch_sub(1, std::memory_order_release);
      });
    }
    before_reading();
    ReaderMain(log);
    for (std::thread& thread : threads) thread.join();
    ExpectEveryVersionNoted();
  }

  WriterEntry entry_ = WriterEntry::kLightIfPossible;
  Guest* guest_;
  std::vector<uint64_t> noted_;  // parallel to guest_->version
  std::atomic<int> unavailable_ = 0;
};

TEST_F(DirtyLogStressTest, WritersInThreads) { RunThreads(); }

TEST_F(DirtyLogStressTest, WritersThatEnterByALockedInstruction) {
  entry_ = WriterEntry::kLocked;
  RunThreads();
}

TEST_F(DirtyLogStressTest, WritersThatDawdleInTheirSections) {
  RunDawdlers(Clock::Monotonic(), std::this_thread::yield, [] {});
}

// Every writer stays in its first section until a switch has given up, and
// sleeps in some of the later ones.
TEST_F(DirtyLogStressTest, WritersThatSleepAndAReaderWithoutPatience) {
  ImpatientClock clock;
  std::atomic<int> inside = 0;
  const auto dawdle = [&] {
    thread_local int calls = 0;
    if (++calls == 1) {
      ++inside;
      while (unavailable_ == 0) std::this_thread::yield();
    } else if (calls % 64 == 0) {
      Clock::Monotonic()->SleepFor(kNanosPerMilli);
    }
  };
  RunDawdlers(&clock, dawdle, [&] {
    while (inside < kWriters) std::this_thread::yield();
  });
  EXPECT_GT(unavailable_, 0);
}

// Each writer marks every fourth page of the same word, all at once.
TEST_F(DirtyLogStressTest, WritersOfOneWord) {
  constexpr int kRounds = 1000;
  DirtyLogSet log = MakeLog();
  const PageBitmap into = *PageBitmap::Create(PageCount(kPagesPerSlot));
  std::atomic<int> round = 0;
  std::atomic<int> finished = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kWriters; ++t) {
    threads.emplace_back([&, t] {
      DirtyLogWriter writer = *log.NewWriter();
      for (int i = 1; i <= kRounds; ++i) {
        while (round < i) std::this_thread::yield();
        for (uint64_t page = t; page < 64; page += kWriters) {
          writer.Mark(kSlots[0], PageIndex(page));
        }
        ++finished;
      }
    });
  }
  for (int i = 1; i <= kRounds; ++i) {
    round = i;
    while (finished < i * kWriters) std::this_thread::yield();
    const absl::StatusOr<SwitchResult> result = log.Switch(kSlots[0]);
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(*log.Drain(kSlots[0], into.view(), PageIndex(0)), PageCount(64));
    into.view().ClearRun({PageIndex(0), PageCount(64)});
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DirtyLogStressTest, WritersInProcesses) {
  DirtyLogSet log = MakeLog();
  std::vector<pid_t> children;
  for (int t = 0; t < kWriters; ++t) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      // As a VMM does: maps what it was passed.
      absl::StatusOr<DirtyLogSet> own =
          DirtyLogSet::Open(UniqueFd(::dup(log.fd())), log.slots());
      if (!own.ok()) ::_exit(1);
      WriterMain(*own, t);
      ::_exit(0);
    }
    children.push_back(child);
  }
  ReaderMain(log);
  for (pid_t child : children) {
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  ExpectEveryVersionNoted();
}

TEST_F(DirtyLogStressTest, WritersComeAndGo) {
  DirtyLogSet log = MakeLog();
  std::vector<std::thread> threads;
  for (int t = 0; t < kWriters; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 300; ++i) {
        DirtyLogWriter writer = *log.NewWriter();
        WriteAndMark(writer, random);
      }
      guest_->writers_left.fetch_sub(1, std::memory_order_release);
    });
  }
  ReaderMain(log);
  for (std::thread& thread : threads) thread.join();
  ExpectEveryVersionNoted();
}

}  // namespace
}  // namespace postcopy
