// PageSources that keep what they are asked until the test lets them answer.
// Test-only.
#ifndef UFFD_FAKE_PAGE_SOURCE_H_
#define UFFD_FAKE_PAGE_SOURCE_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dirtytrack/types.h"
#include "uffd/destination_vm.h"
#include "uffd/page_source.h"

namespace postcopy {

// The bytes of consecutive pages.
using ContentOf = std::function<std::vector<uint8_t>(PageRun)>;

// Runs with the bytes they point to.
class Answer {
 public:
  // PatternOf the pages; zeros for those in `zeros`.
  Answer(absl::Span<const PageIndex> pages, const std::set<uint64_t>& zeros);
  Answer(PageRun run, const std::set<uint64_t>& zeros);
  // Huge pages, which are zeros if their first page is in `zeros`, and else
  // what `content` says.
  Answer(const std::vector<PageRun>& units, const std::set<uint64_t>& zeros,
         const ContentOf& content);

  absl::Span<const ReceivedRun> runs() const { return runs_; }

 private:
  void Add(PageRun unit, const std::set<uint64_t>& zeros,
           const ContentOf& content);

  std::deque<std::vector<uint8_t>> bytes_;
  std::vector<ReceivedRun> runs_;
};

// Records requests. Thread-safe.
class FakePageSource : public PageSource {
 public:
  using UrgentRequest = std::vector<PageIndex>;

  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override;
  absl::Status RequestBulk(PageRun run) override;

  // Blocks until `count` requests have been made since the start.
  void AwaitUrgent(size_t count);
  void AwaitBulk(size_t count);

  std::vector<UrgentRequest> urgent();
  std::vector<PageRun> bulk();
  // How often `page` was asked for on the urgent lane.
  int TimesAsked(PageIndex page);

  // From now on requests are recorded, and refused with this.
  void Refuse(absl::Status status);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status refusal_;
  std::vector<UrgentRequest> urgent_;
  std::vector<PageRun> bulk_;
};

// Answers by itself, each lane with a thread of its own, each time one of the
// requests that wait, drawn by the seed. Thread-safe.
class ServingPageSource final : public PageSource {
 public:
  // `zeros`: the pages that are zeros, as numbers. `content` says what the
  // others are, PatternOf if it is null; called by both threads.
  ServingPageSource(uint64_t seed, std::set<uint64_t> zeros,
                    ContentOf content = nullptr);
  // Stops, dropping what was not answered.
  ~ServingPageSource() override;

  // Begins to answer to `vm`, which outlives the serving. Call once.
  void Serve(DestinationVm* vm);
  void Stop();

  absl::Status RequestUrgent(absl::Span<const PageIndex> pages) override;
  absl::Status RequestBulk(PageRun run) override;

  // The first error of an answer.
  absl::Status status();

 private:
  struct Lane {
    std::deque<std::vector<PageRun>> requests;
    std::mt19937_64 random;
    std::thread thread;
  };

  absl::Status Push(Lane* lane, std::vector<PageRun> units);
  void Run(Lane* lane, bool urgent);
  // What one request is for; empty: stopped.
  std::vector<PageRun> Pop(Lane* lane);

  const std::set<uint64_t> zeros_;
  const ContentOf content_;
  DestinationVm* vm_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  absl::Status status_;
  Lane urgent_;
  Lane bulk_;
};

}  // namespace postcopy

#endif  // UFFD_FAKE_PAGE_SOURCE_H_
