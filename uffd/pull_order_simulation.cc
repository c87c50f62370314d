#include "uffd/pull_order_simulation.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "uffd/background_pull.h"
#include "uffd/page_source.h"
#include "uffd/page_state.h"
#include "uffd/pull_order.h"

namespace postcopy {
namespace {

constexpr uint64_t kPages = 64 << 10;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

using Touches = std::vector<PageIndex>;

// `count` pages from `first`, each `step` after the one before, around the end.
Touches Walk(uint64_t first, int64_t step, uint64_t count) {
  Touches touches;
  int64_t page = static_cast<int64_t>(first);
  for (uint64_t i = 0; i < count; ++i, page += step) {
    constexpr auto kEnd = static_cast<int64_t>(kPages);
    touches.emplace_back(static_cast<uint64_t>((page % kEnd + kEnd) % kEnd));
  }
  return touches;
}

Touches AtRandom(std::mt19937_64& random, uint64_t count) {
  Touches touches;
  for (uint64_t i = 0; i < count; ++i) touches.emplace_back(random() % kPages);
  return touches;
}

// Runs of pages here and there, most of them short: what is hot in a guest.
std::vector<PageRun> HotRuns(std::mt19937_64& random, uint64_t count) {
  std::vector<PageRun> runs;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t length = 1 + random() % 16;
    runs.push_back(
        {PageIndex(random() % (kPages - length)), PageCount(length)});
  }
  return runs;
}

Touches Through(const std::vector<PageRun>& runs) {
  Touches touches;
  for (const PageRun& run : runs) {
    for (PageIndex page = run.first; page < run.end(); page += PageCount(1)) {
      touches.push_back(page);
    }
  }
  return touches;
}

// Nine touches of ten on `hot`, the rest anywhere.
Touches MostlyOf(const Touches& hot, std::mt19937_64& random, uint64_t count) {
  Touches touches;
  for (uint64_t i = 0; i < count; ++i) {
    const bool of_hot = random() % 10 != 0;
    touches.push_back(of_hot ? hot[random() % hot.size()]
                             : PageIndex(random() % kPages));
  }
  return touches;
}

std::vector<Touches> Streams(std::mt19937_64& random, int count,
                             uint64_t length) {
  std::vector<Touches> vcpus;
  for (int i = 0; i < count; ++i) {
    vcpus.push_back(Walk(random() % kPages, i % 3 == 2 ? -1 : 1, length));
  }
  return vcpus;
}

// One vCPU: a simulated clock says when it touches its next page.
struct Vcpu {
  const Touches* touches = nullptr;
  size_t next = 0;
  int64_t at_us = 0;
};

// A request on its way.
struct Bulk {
  PageRun run;
  int64_t done_us = 0;
};

class Simulation {
 public:
  Simulation(PullOrderKind kind, const GuestTrace& trace, SimulatedLink link)
      : link_(link),
        state_(*PageState::Create(trace.pages)),
        order_(NewPullOrder(kind, trace.working_set)),
        asked_(trace.pages.value(), false) {
    if (!trace.missing.empty()) {
      state_->MarkReceived({PageIndex(0), trace.pages}, false);
      for (const PageRun& run : trace.missing) state_->MarkMissing(run);
    }
    order_->OnRecentlyDirtied(trace.dirtied);
    for (const Touches& touches : trace.vcpus) vcpus_.push_back({&touches});
  }

  SimulatedPull Run() {
    while (!state_->missing().empty() || Next(vcpus_) != nullptr) {
      while (Ask()) {
      }
      Step();
    }
    return result_;
  }

 private:
  // Who touches next; nullptr if all have done.
  static Vcpu* Next(std::vector<Vcpu>& vcpus) {
    Vcpu* next = nullptr;
    for (Vcpu& vcpu : vcpus) {
      if (vcpu.next == vcpu.touches->size()) continue;
      if (next == nullptr || vcpu.at_us < next->at_us) next = &vcpu;
    }
    return next;
  }

  bool Ask() {
    std::vector<PageRun> requested;
    for (const Bulk& bulk : bulk_) requested.push_back(bulk.run);
    if (!RoomForBulk(requested)) return false;
    const auto run = order_->NextRun(*state_, requested, kMaxBulkPages);
    if (!run.has_value()) return false;
    for (PageIndex page = run->first; page < run->end(); page += PageCount(1)) {
      ++result_.asked;
      if (asked_[page.value()]) ++result_.asked_again;
      asked_[page.value()] = true;
    }
    const int64_t sent_us =
        std::max(link_free_us_, now_us_ + link_.round_trip_us);
    link_free_us_ =
        sent_us + link_.page_us * static_cast<int64_t>(run->count.value());
    bulk_.push_back({*run, link_free_us_});
    return true;
  }

  // The next thing that happens: a bulk answer, a faulted page, or a touch.
  void Step() {
    Vcpu* const vcpu = Next(vcpus_);
    const int64_t touch_us = vcpu == nullptr ? kNever : vcpu->at_us;
    const int64_t bulk_us = bulk_.empty() ? kNever : bulk_.front().done_us;
    const int64_t urgent_us =
        urgent_.empty() ? kNever : urgent_.front().done_us;
    now_us_ = std::min({touch_us, bulk_us, urgent_us});
    if (now_us_ == urgent_us) {
      Receive(urgent_);
    } else if (now_us_ == bulk_us) {
      Receive(bulk_);
    } else {
      Touch(*vcpu);
    }
  }

  void Receive(std::vector<Bulk>& lane) {
    state_->MarkReceived(lane.front().run, false);
    lane.erase(lane.begin());
    if (state_->missing().empty()) result_.complete_us = now_us_;
  }

  void Touch(Vcpu& vcpu) {
    const PageIndex page = (*vcpu.touches)[vcpu.next++];
    vcpu.at_us = now_us_ + link_.touch_us;
    result_.guest_us = std::max(result_.guest_us, vcpu.at_us);
    if (state_->IsReceived(page)) return;
    ++result_.faults;
    const PageRun unit{page, PageCount(1)};
    int64_t here_us = now_us_ + link_.round_trip_us + link_.page_us;
    const auto pending =
        std::find_if(urgent_.begin(), urgent_.end(),
                     [&](const Bulk& urgent) { return urgent.run == unit; });
    if (pending != urgent_.end()) {
      here_us = pending->done_us;
    } else {
      order_->OnFault(unit);
      urgent_.push_back({unit, here_us});
    }
    vcpu.at_us = here_us + link_.touch_us;
    result_.guest_us = std::max(result_.guest_us, vcpu.at_us);
  }

  const SimulatedLink link_;
  const std::unique_ptr<PageState> state_;
  const std::unique_ptr<PullOrder> order_;
  std::vector<bool> asked_;
  std::vector<Vcpu> vcpus_;
  std::vector<Bulk> bulk_;    // in the order they arrive
  std::vector<Bulk> urgent_;  // the same
  int64_t now_us_ = 0;
  int64_t link_free_us_ = 0;
  SimulatedPull result_;
};

}  // namespace

std::vector<GuestTrace> GuestTraces(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<GuestTrace> traces;
  const auto add = [&](std::string name, std::vector<Touches> vcpus) {
    traces.push_back({.name = std::move(name),
                      .pages = PageCount(kPages),
                      .vcpus = std::move(vcpus)});
  };
  const uint64_t somewhere = kPages / 4 + random() % (kPages / 2);
  add("sequential", {Walk(somewhere, 1, 10000)});
  add("backward", {Walk(somewhere, -1, 10000)});
  add("stride of 8", {Walk(somewhere, 8, 4000)});
  add("stride of 1000", {Walk(somewhere, 1000, 4000)});
  add("random", {AtRandom(random, 5000)});
  add("8 streams", Streams(random, 8, 4000));
  add("24 streams", Streams(random, 24, 2000));

  std::vector<Touches> mixed = Streams(random, 4, 4000);
  for (int i = 0; i < 4; ++i) mixed.push_back(AtRandom(random, 2000));
  add("4 streams, 4 random", std::move(mixed));

  add("8 streams, a page of 10 missing", Streams(random, 8, 4000));
  for (uint64_t page = 0; page < kPages; page += 1 + random() % 19) {
    traces.back().missing.push_back({PageIndex(page), PageCount(1)});
  }

  const std::vector<PageRun> hot = HotRuns(random, 800);
  add("hot pages", {MostlyOf(Through(hot), random, 5000),
                    MostlyOf(Through(hot), random, 5000)});
  traces.push_back(traces.back());
  traces.back().name = "hot pages, dirtied told";
  traces.back().dirtied = hot;

  const std::vector<PageRun> started = HotRuns(random, 1000);
  add("a start", {Through(started)});
  traces.push_back(traces.back());
  traces.back().name = "a start, recorded";
  traces.back().working_set = started;
  add("sequential, wrong working set", {Walk(somewhere, 1, 10000)});
  traces.back().working_set = HotRuns(random, 2000);
  add("sequential, wrong dirtied", {Walk(somewhere, 1, 10000)});
  traces.back().dirtied = HotRuns(random, 2000);
  return traces;
}

SimulatedPull SimulatePull(PullOrderKind kind, const GuestTrace& trace,
                           SimulatedLink link) {
  return Simulation(kind, trace, link).Run();
}

}  // namespace postcopy
