// The fault loop, the installer and the pull order, with a VMM that gives
// memory up meanwhile, under interleavings drawn from a seed, in one thread and
// without the kernel: a seed that fails, fails again. POSTCOPY_SEED=N runs that
// one alone.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "dirtytrack/memfd.h"
#include "dirtytrack/simulated_clock.h"
#include "gtest/gtest.h"
#include "uffd/fake_page_source.h"
#include "uffd/fault_loop.h"
#include "uffd/kernel_guest.h"
#include "uffd/simulated_uffd.h"

namespace postcopy {
namespace {

using Call = SimulatedUffd::Call;
using Touch = SimulatedUffd::Touch;

constexpr uint64_t kFirstPages = 70;
constexpr uint64_t kPages = 200;
constexpr int kVcpus = 8;
constexpr HostAddress kFirst{0x900000000};
constexpr HostAddress kSecond{0x100000000};

// One life of a VM after the switch-over.
class Simulation {
 public:
  Simulation(uint64_t seed, uint64_t features) : random_(seed) {
    for (uint64_t page = 0; page < kPages; ++page) {
      if (Draw(4) == 0) zeros_.insert(page);
    }
    uffd_.SetFeatures(UFFD_FEATURE_EVENT_REMOVE | features);
    uffd_.Map(kFirst, first_, fd_.get(), 0);
    uffd_.Map(kSecond, second_, fd_.get(), first_.value());
    strategies_ = StrategiesFor(ram_, uffd_);
    if (strategies_.front()->replaces()) Precopy();
    EXPECT_TRUE(loop_->SetSource(&source_).ok());
  }

  void Run() {
    while (!state_->missing().empty()) Step();
    // Nobody may be left waiting once the last messages have been read. Twice:
    // a failure of the first read may be in store.
    while (Serve() || Serve() || EndGivingUp()) {
    }
    EXPECT_EQ(uffd_.waiting(), 0u);
    for (uint64_t page = 0; page < kPages; ++page) Touched(page);
    EXPECT_EQ(loop_->counters().lost, 0u);
    EXPECT_EQ(received_ + changes_.counters().removed_pages, kPages);
    zeros_.merge(given_up_);
    EXPECT_EQ(state_->zero(), PageCount(zeros_.size()));
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  HostAddress at(uint64_t page) const {
    return page < kFirstPages
               ? kFirst + BytesIn(PageCount(page))
               : kSecond + BytesIn(PageCount(page - kFirstPages));
  }

  // Some pages are stale, some have come before and wait to be shown.
  void Precopy() {
    for (uint64_t page = 0; page < kPages; ++page) {
      const uint64_t kind = Draw(3);
      if (kind == 0) Write(page, std::vector<uint8_t>(kPageSize, 0xee));
      if (kind == 1 && !zeros_.contains(page)) {
        Write(page, PatternOf(PageIndex(page)));
        received_ +=
            state_->MarkReceived({PageIndex(page), PageCount(1)}, false)
                .value();
      }
    }
  }

  void Write(uint64_t page, const std::vector<uint8_t>& bytes) {
    ASSERT_EQ(::pwrite(fd_.get(), bytes.data(), kPageSize,
                       static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(kPageSize));
  }

  // What the thread that maps ahead does.
  void MapSome() {
    if (uffd_.IsChanging()) return;
    const auto run =
        state_->NextContentRun(PageIndex(Draw(kPages)), PageCount(8));
    if (run.has_value()) installer_.RevealSome(*run);
  }

  void Step() {
    switch (Draw(11)) {
      case 10:
        return MapSome();
      case 0:
      case 1:
        return TouchSome();
      case 2:
      case 3:
        Serve();
        return;
      case 4:
        return AnswerUrgent();
      case 5:
        return AskForBulk();
      case 6:
        return AnswerBulk();
      case 7:
        return GiveUpSome();
      case 8:
        EndGivingUp();
        return;
      default:
        return Disturb();
    }
  }

  void TouchSome() {
    const int vcpu = static_cast<int>(Draw(kVcpus));
    const uint64_t page = Draw(kPages);
    if (uffd_.IsWaiting(vcpu)) return;
    const Touch touch = uffd_.TouchPage(vcpu, at(page));
    EXPECT_TRUE(touch == Touch::kPresent || touch == Touch::kWaiting) << page;
    if (touch == Touch::kPresent) CheckContent(page);
  }

  // The balloon takes a page or a few.
  void GiveUpSome() {
    if (Draw(4) != 0) return;
    const uint64_t first = Draw(kPages);
    const uint64_t end = first < kFirstPages ? kFirstPages : kPages;
    const uint64_t count = 1 + Draw(std::min<uint64_t>(8, end - first));
    uffd_.GiveUp(at(first), BytesIn(PageCount(count)));
    giving_up_.push_back({PageIndex(first), PageCount(count)});
  }

  bool EndGivingUp() {
    if (!uffd_.EndGivingUp()) return false;
    const PageRun run = giving_up_.front();
    giving_up_.pop_front();
    for (uint64_t i = 0; i < run.count.value(); ++i) {
      given_up_.insert(run.first.value() + i);
    }
    return true;
  }

  bool IsBeingGivenUp(uint64_t page) const {
    return std::any_of(
        giving_up_.begin(), giving_up_.end(),
        [page](PageRun run) { return run.Contains(PageIndex(page)); });
  }

  // At the end each page is there, or a hole that the loop fills with zeros.
  void Touched(uint64_t page) {
    uffd_.TouchPage(0, at(page));
    while (uffd_.IsWaiting(0) && (Serve() || Serve())) {
    }
    EXPECT_FALSE(uffd_.IsWaiting(0)) << page;
    CheckContent(page);
  }

  bool Serve() {
    const absl::StatusOr<bool> served = loop_->ServeOnce();
    EXPECT_TRUE(served.ok()) << served.status();
    return served.ok() && *served;
  }

  // Any request that was ever made, answered before or not.
  void AnswerUrgent() {
    const auto requests = source_.urgent();
    // While memory is given up the installer would wait for a read, which
    // another thread does.
    if (requests.empty() || uffd_.IsChanging()) return;
    const size_t back = std::min<size_t>(requests.size(), 1 + Draw(6));
    for (const PageIndex page : requests[requests.size() - back]) {
      const Answer answer(std::vector<PageIndex>{page}, zeros_);
      const ReceivedRun& run = answer.runs().front();
      Received(run.data.empty() ? installer_.InstallZero(run.pages)
                                : installer_.InstallData(run.pages, run.data));
      loop_->Resolve(page);
    }
  }

  void AskForBulk() {
    if (bulk_.size() >= 2) return;
    const auto run = order_.NextRun(*state_, bulk_, PageCount(1 + Draw(20)));
    if (run.has_value()) bulk_.push_back(*run);
  }

  void AnswerBulk() {
    if (bulk_.empty() || uffd_.IsChanging()) return;
    const size_t index = Draw(bulk_.size());
    const Answer answer(bulk_[index], zeros_);
    bulk_.erase(bulk_.begin() + static_cast<ptrdiff_t>(index));
    if (Draw(10) == 0) return;  // damaged: never mind, it is asked for again
    for (const ReceivedRun& run : answer.runs()) {
      Received(run.data.empty() ? installer_.AdmitZero(run.pages)
                                : installer_.InstallData(run.pages, run.data));
    }
  }

  void Received(const ReceiveResult& result) {
    EXPECT_TRUE(result.status.ok()) << result.status;
    received_ += result.received.value();
  }

  void Disturb() {
    switch (Draw(7)) {
      case 6:
        return uffd_.FailNext(Call::kContinue, EAGAIN,
                              1 + static_cast<int>(Draw(3)));
      case 0:
        return uffd_.FailNext(Call::kCopy, EAGAIN,
                              1 + static_cast<int>(Draw(3)));
      case 1:
        return uffd_.FailNext(Call::kZeroPage, EAGAIN,
                              1 + static_cast<int>(Draw(3)));
      case 2:
        return uffd_.FailNext(Call::kRead, EAGAIN);
      case 3:
        return uffd_.StopNextAfter(PageCount(1 + Draw(5)));
      case 4:
        EXPECT_TRUE(loop_->SetSource(nullptr).ok());
        return;
      default:
        EXPECT_TRUE(loop_->SetSource(&source_).ok());
        bulk_.clear();
    }
  }

  void CheckContent(uint64_t page) {
    if (IsBeingGivenUp(page)) return;  // it may still be what it was
    std::vector<uint8_t> bytes(kPageSize);
    ASSERT_EQ(::pread(fd_.get(), bytes.data(), kPageSize,
                      static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(kPageSize));
    const bool zero = zeros_.contains(page) || given_up_.contains(page);
    EXPECT_EQ(bytes, zero ? std::vector<uint8_t>(kPageSize)
                          : PatternOf(PageIndex(page)))
        << "page " << page;
  }

  std::mt19937_64 random_;
  std::set<uint64_t> zeros_;
  std::deque<PageRun> giving_up_;  // as SimulatedUffd has them
  std::set<uint64_t> given_up_;
  const ByteCount first_ = BytesIn(PageCount(kFirstPages));
  const ByteCount second_ = BytesIn(PageCount(kPages - kFirstPages));
  const UniqueFd fd_ = *CreateMemfd("ram", first_ + second_, 0);
  DestinationRam ram_ = *DestinationRam::Create(
      LayoutOf({PageCount(kFirstPages), PageCount(kPages - kFirstPages)}),
      {{kFirst, fd_.get(), 0}, {kSecond, fd_.get(), first_.value()}});
  const std::unique_ptr<PageState> state_ =
      *PageState::Create(PageCount(kPages));
  SimulatedClock clock_;
  SimulatedUffd uffd_;
  InstallGate gate_{/*needed=*/true};
  InstallStrategies strategies_;
  MemoryChanges changes_{&ram_, state_.get(), &strategies_};
  Installer installer_{&ram_, &uffd_, state_.get(), &gate_, &strategies_};
  AfterFaultOrder order_;
  FakePageSource source_;
  const std::unique_ptr<FaultLoop> loop_ =
      *FaultLoop::Create({.ram = &ram_,
                          .ops = &uffd_,
                          .state = state_.get(),
                          .gate = &gate_,
                          .changes = &changes_,
                          .installer = &installer_,
                          .order = &order_,
                          .clock = &clock_,
                          .on_given_up = [] {},
                          .on_end = [](const absl::Status&) {}});
  std::vector<PageRun> bulk_;
  uint64_t received_ = 0;
};

class FaultSimulationTest : public testing::TestWithParam<uint64_t> {};

TEST_P(FaultSimulationTest, HoldsUnderRandomInterleavings) {
  const char* const given = std::getenv("POSTCOPY_SEED");
  const uint64_t first =
      given != nullptr ? std::stoull(given) : std::random_device()();
  const uint64_t count = given != nullptr ? 1 : 100;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    SCOPED_TRACE(testing::Message() << "POSTCOPY_SEED=" << seed);
    Simulation(seed, GetParam()).Run();
    if (testing::Test::HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, FaultSimulationTest,
                         testing::Values(uint64_t{0},
                                         uint64_t{UFFD_FEATURE_MINOR_SHMEM}),
                         [](const auto& info) {
                           return info.param == 0 ? "Copy" : "Continue";
                         });

}  // namespace
}  // namespace postcopy
