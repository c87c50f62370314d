// Random operations against references that a reader can check in a minute. A
// failure prints the steps that led there; POSTCOPY_SEED=N repeats one seed.

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/dirty_views.h"
#include "dirtytrack/merged_source.h"
#include "dirtytrack/page_set.h"
#include "dirtytrack/shared_log_source.h"
#include "dirtytrack/simulated_clock.h"
#include "dirtytrack/slot_table.h"
#include "dirtytrack/vhost_log.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using Set = std::set<uint64_t>;

// The seeds to run: the one of the environment, or 1 to `count`.
std::vector<uint32_t> Seeds(uint32_t count) {
  if (const char* one = std::getenv("POSTCOPY_SEED")) {
    return {static_cast<uint32_t>(std::strtoul(one, nullptr, 10))};
  }
  std::vector<uint32_t> seeds;
  for (uint32_t seed = 1; seed <= count; ++seed) seeds.push_back(seed);
  return seeds;
}

std::string ToText(const Set& pages) { return absl::StrJoin(pages, ","); }

// --------------------------------------------------------------- the dirty log

// One slot as the RFC describes it: two sets, which of them is active, and
// whether each may have anything in it.
struct SlotReference {
  uint64_t pages;
  Set bitmaps[2];
  bool dirty[2] = {false, false};
  int active = 0;
  bool logging = true;

  void Mark(uint64_t page) {
    if (!logging) return;
    bitmaps[active].insert(page);
    dirty[active] = true;
  }
  bool Switch() {
    if (!dirty[active]) return false;
    active ^= 1;
    return true;
  }
  Set& retired() { return bitmaps[active ^ 1]; }
  Set Drain() {
    dirty[active ^ 1] = false;
    return std::exchange(retired(), {});
  }
  Set Get() {
    Set all = Drain();
    Switch();
    all.merge(Drain());
    return all;
  }
  void Stop() {
    logging = false;
    for (int i = 0; i < 2; ++i) {
      bitmaps[i].clear();
      dirty[i] = false;
    }
  }
};

class LogModel {
 public:
  explicit LogModel(uint32_t seed)
      : random_(seed), log_(*DirtyLogSet::Create(Slots(), &clock_)) {
    for (const DirtyLogSlot& slot : Slots()) {
      reference_[slot.id].pages = slot.pages.value();
    }
    for (int i = 0; i < 3; ++i) writers_.push_back(*log_.NewWriter());
  }

  // The first thing that is not as the reference has it, or nothing.
  std::optional<std::string> Run(int steps) {
    for (int i = 0; i < steps && !wrong_.has_value(); ++i) Step();
    return wrong_;
  }
  const std::string& steps() const { return steps_; }

 private:
  static std::vector<DirtyLogSlot> Slots() {
    return {{{0, 0}, PageCount(70)},
            {{0, 3}, PageCount(64)},
            {{1, 0}, PageCount(130)}};
  }

  uint64_t Below(uint64_t n) { return random_() % n; }

  template <typename... Parts>
  void Say(const Parts&... parts) {
    absl::StrAppend(&steps_, "  ", parts..., "\n");
  }
  void Expect(const Set& found, const Set& expected) {
    if (found == expected) return;
    wrong_ = absl::StrCat("found {", ToText(found), "}, expected {",
                          ToText(expected), "}");
  }
  void ExpectOk(const absl::Status& status, bool ok) {
    if (status.ok() != ok) wrong_ = status.ToString();
  }

  void Step() {
    const SlotId id = Slots()[Below(3)].id;
    SlotReference& slot = reference_[id];
    switch (Below(12)) {
      case 0:
      case 1:
      case 2:
        return Mark(id, slot);
      case 3:
        return MarkRun(id, slot);
      case 4:
        return Switch(id, slot);
      case 5:
        return SwitchAll();
      case 6:
        return Get(id, slot);
      case 7:
      case 8:
        return Drain(id, slot);
      case 9:
        return TakeOne(id, slot);
      case 10:
        return Below(3) == 0 ? Stop(id, slot) : Start(id, slot);
      default:
        return Below(4) == 0 ? NextReader() : Start(id, slot);
    }
  }

  void Mark(SlotId id, SlotReference& slot) {
    const uint64_t page = Below(slot.pages);
    Say("writer.Mark(", ToString(id), ", ", page, ")");
    writers_[Below(3)].Mark(id, PageIndex(page));
    slot.Mark(page);
  }
  void MarkRun(SlotId id, SlotReference& slot) {
    const uint64_t first = Below(slot.pages);
    const uint64_t count = Below(slot.pages - first + 1);
    Say("writer.MarkRun(", ToString(id), ", ", first, ", ", count, ")");
    writers_[Below(3)].MarkRun(id, {PageIndex(first), PageCount(count)});
    for (uint64_t i = 0; i < count; ++i) slot.Mark(first + i);
  }
  void Switch(SlotId id, SlotReference& slot) {
    Say("log.Switch(", ToString(id), ")");
    const absl::StatusOr<SwitchResult> result = log_.Switch(id);
    ExpectOk(result.status(), slot.logging);
    if (!result.ok()) return;
    if ((*result == SwitchResult::kSwitched) != slot.Switch()) {
      wrong_ = "kSwitched where kClean is expected, or the other way round";
    }
  }
  void SwitchAll() {
    Say("log.SwitchAll()");
    ExpectOk(log_.SwitchAll().status(), true);
    for (auto& [id, slot] : reference_) {
      if (slot.logging) slot.Switch();
    }
  }
  void Get(SlotId id, SlotReference& slot) {
    Say("log.GetDirtyLog(", ToString(id), ")");
    const PageBitmap copy = *PageBitmap::Create(PageCount(slot.pages));
    const absl::Status status =
        log_.GetDirtyLog(id, {reinterpret_cast<uint64_t*>(copy.view().words()),
                              copy.view().word_count()});
    ExpectOk(status, slot.logging);
    if (status.ok()) Expect(PagesOf(copy.view()), slot.Get());
  }
  void Drain(SlotId id, SlotReference& slot) {
    Say("log.Drain(", ToString(id), ")");
    const PageBitmap into = *PageBitmap::Create(PageCount(slot.pages));
    const absl::Status status =
        log_.Drain(id, into.view(), PageIndex(0)).status();
    ExpectOk(status, slot.logging);
    if (status.ok()) Expect(PagesOf(into.view()), slot.Drain());
  }
  // A reader that walks the retired bitmap in place, and fails after a page.
  void TakeOne(SlotId id, SlotReference& slot) {
    const absl::StatusOr<PageBitmapView> retired = log_.Retired(id);
    ExpectOk(retired.status(), slot.logging);
    if (!retired.ok()) return;
    Expect(PagesOf(*retired), slot.retired());
    const auto run = retired->NextSetRun(PageIndex(0), PageCount(1));
    if (!run.has_value()) return;
    Say("log.Retired(", ToString(id), ").TestAndClear(", run->first.value(),
        ")");
    retired->TestAndClear(run->first);
    slot.retired().erase(run->first.value());
  }
  void Stop(SlotId id, SlotReference& slot) {
    Say("log.StopLogging(", ToString(id), ")");
    ExpectOk(log_.StopLogging(id), true);
    slot.Stop();
  }
  void Start(SlotId id, SlotReference& slot) {
    Say("log.StartLogging(", ToString(id), ")");
    ExpectOk(log_.StartLogging(id), true);
    slot.logging = true;
  }
  void NextReader() {
    Say("log = DirtyLogSet::Open(...); log.Settle()");
    log_ = *DirtyLogSet::Open(UniqueFd(::dup(log_.fd())), Slots(), &clock_);
    ExpectOk(log_.Settle(), true);
  }

  std::mt19937 random_;
  SimulatedClock clock_;
  DirtyLogSet log_;
  std::vector<DirtyLogWriter> writers_;
  std::map<SlotId, SlotReference> reference_;
  std::string steps_;
  std::optional<std::string> wrong_;
};

TEST(DirtyModelTest, TheLogIsTwoSetsAndASwitch) {
  for (uint32_t seed : Seeds(300)) {
    LogModel model(seed);
    const std::optional<std::string> wrong = model.Run(150);
    ASSERT_FALSE(wrong.has_value())
        << "seed " << seed << ": " << *wrong << " after\n"
        << model.steps();
  }
}

// ------------------------------------------------------- the whole ground
// floor

// A VM whose pages are version numbers: vCPUs that see it through slots that
// change, a device that logs as vhost does, and consumers that keep copies. The
// promise: whoever clears before it reads ends with the guest's last bytes.
class VmModel {
 public:
  static constexpr uint64_t kPages = 256;
  static constexpr uint64_t kBank = 64;  // pages that slots show together

  explicit VmModel(uint32_t seed)
      : random_(seed),
        layout_(*RamLayout::Create(
            {{"ram", RamOffset(0), BytesIn(PageCount(kPages))}})),
        table_(layout_),
        guest_(kPages, 1) {
    // Four banks in address space 0, each with its slot.
    for (uint16_t bank = 0; bank < kPages / kBank; ++bank) {
      EXPECT_TRUE(table_.Set(SlotFor({0, bank}, bank, bank)).ok());
    }
    auto vhost = *VhostLog::Create(layout_, Slots());
    vhost_ = vhost.get();
    DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(Slots()), &clock_);
    writers_.push_back({*log.NewWriter(), Slots()});
    auto shared = *SharedLogSource::Create(layout_, Slots(), std::move(log),
                                           [] { return absl::OkStatus(); });
    shared_ = shared.get();
    std::vector<std::unique_ptr<DirtySource>> sources;
    sources.push_back(std::move(shared));
    sources.push_back(std::move(vhost));
    source_ = std::make_unique<MergedSource>(std::move(sources));
    EXPECT_TRUE(source_->Start().ok());
    views_ = *DirtyViews::Create(source_.get(), layout_.pages());
    for (int i = 0; i < 2; ++i) {
      consumers_.push_back({*views_->NewView(), std::vector<int>(kPages, 0)});
    }
  }

  void Step() {
    switch (Below(12)) {
      case 0:
      case 1:
      case 2:
        return Write();
      case 3:
        return WriteByDevice();
      case 4:
      case 5:
        return Sync();
      case 6:
      case 7:
      case 8:
        return Read(consumers_[Below(2)]);
      case 9:
        return Abort(consumers_[Below(2)]);
      case 10:
        return ChangeSlots();
      default:
        return OldWriterLeaves();
    }
  }

  // Everything that is dirty is read once more, with the guest stopped.
  bool EndsEqual() {
    Sync();
    for (Consumer& consumer : consumers_) {
      for (uint64_t page : PagesOf(consumer.view->dirty())) {
        consumer.copy[page] = guest_[page];
      }
      if (consumer.copy != guest_) return false;
    }
    return true;
  }
  const std::string& steps() const { return steps_; }

 private:
  struct Consumer {
    std::unique_ptr<DirtyViews::View> view;
    std::vector<int> copy;
  };

  uint64_t Below(uint64_t n) { return random_() % n; }
  template <typename... Parts>
  void Say(const Parts&... parts) {
    absl::StrAppend(&steps_, "  ", parts..., "\n");
  }

  std::vector<Slot> Slots() const {
    return {table_.slots().begin(), table_.slots().end()};
  }
  static Slot SlotFor(SlotId id, uint64_t gpa_bank, uint64_t bank) {
    return {id, gpa_bank * kBank * kPageSize, OffsetOf(PageIndex(bank * kBank)),
            BytesIn(PageCount(kBank))};
  }

  // By a vCPU whose VMM has noticed the latest change of slots, or has not yet.
  void Write() {
    Writer& writer = writers_[Below(writers_.size())];
    const Slot& slot = writer.slots[Below(writer.slots.size())];
    const PageIndex page(Below(slot.pages().count.value()));
    const PageIndex ram = slot.pages().first + PageCount(page.value());
    Say("write ", ram.value(), " by ", ToString(slot.id), " page ",
        page.value());
    ++guest_[ram.value()];
    EXPECT_TRUE(writer.writer.Mark(slot.id, page));
  }
  // The vhost log is of the slots at the beginning, as the device's memory
  // table is: bank by bank.
  void WriteByDevice() {
    const uint64_t page = Below(kPages);
    Say("device writes ", page);
    ++guest_[page];
    const SharedMapping log =
        *SharedMapping::Map(vhost_->fd(), ByteCount(0), vhost_->bytes(),
                            SharedMapping::Access::kReadWrite);
    reinterpret_cast<std::atomic<uint64_t>*>(log.data())[page / 64].fetch_or(
        uint64_t{1} << page % 64);
  }
  void Sync() {
    Say("sync");
    EXPECT_TRUE(views_->Sync().ok());
  }
  void Read(Consumer& consumer) {
    const uint64_t first = Below(kPages);
    const PageRun run{PageIndex(first), PageCount(1 + Below(kPages - first))};
    const PageBitmap pages = *PageBitmap::Create(layout_.pages());
    for (size_t i = 0; i < pages.view().word_count(); ++i) {
      pages.view().OrWord(i, random_() | uint64_t{random_()} << 32);
    }
    Say("clear and read some of ", first, "+", run.count.value());
    const Set known = PagesOf(consumer.view->dirty());
    EXPECT_TRUE(consumer.view->Clear(pages.view(), run).ok());
    unsent_ = {};
    for (uint64_t page : known) {
      const PageIndex index(page);
      if (index < run.first || index >= run.end()) continue;
      if (!pages.view().Test(index)) continue;
      consumer.copy[page] = guest_[page];
      unsent_.insert(page);
    }
  }
  // What was read last never arrived.
  void Abort(Consumer& consumer) {
    Say("abort: {", ToText(unsent_), "} is unsent");
    const PageBitmap unsent = *PageBitmap::Create(layout_.pages());
    for (uint64_t page : unsent_) {
      unsent.view().TestAndSet(PageIndex(page));
      consumer.copy[page] = -1;
    }
    EXPECT_TRUE(consumer.view->Restore(unsent.view()).ok());
  }
  void ChangeSlots() {
    if (shared_->log_count() > kMaxSupersededLogs) return;
    const uint16_t bank = static_cast<uint16_t>(Below(kPages / kBank));
    // In one of two address spaces, where it always was or elsewhere.
    const SlotId id{static_cast<uint16_t>(Below(2)), bank};
    const uint64_t gpa_bank = Below(2) == 0 ? bank : 10 + bank + 4 * Below(9);
    if (Below(2) == 0) {
      EXPECT_TRUE(table_.Set(SlotFor(id, gpa_bank, bank)).ok());
    } else if (table_.slots().size() > 1) {
      table_.Remove(id).IgnoreError();  // there may be none
    }
    Say("slots are now ", table_.slots().size());
    DirtyLogSet log = *DirtyLogSet::Create(LogSlotsOf(Slots()), &clock_);
    DirtyLogWriter writer = *log.NewWriter();
    const absl::Status status = shared_->Replace(Slots(), std::move(log));
    EXPECT_TRUE(status.ok()) << status;
    writers_.push_back({std::move(writer), Slots()});
  }
  void OldWriterLeaves() {
    if (writers_.size() < 2) return;
    Say("the oldest writer leaves");
    writers_.erase(writers_.begin());
  }

  struct Writer {
    DirtyLogWriter writer;
    std::vector<Slot> slots;  // those of its log
  };

  std::mt19937 random_;
  SimulatedClock clock_;
  const RamLayout layout_;
  SlotTable table_;
  std::vector<int> guest_;
  VhostLog* vhost_;
  SharedLogSource* shared_;
  std::unique_ptr<MergedSource> source_;
  std::unique_ptr<DirtyViews> views_;
  std::vector<Writer> writers_;
  std::vector<Consumer> consumers_;
  Set unsent_;
  std::string steps_;
};

TEST(DirtyModelTest, WhoeverClearsBeforeItReadsMissesNothing) {
  for (uint32_t seed : Seeds(300)) {
    VmModel model(seed);
    for (int step = 0; step < 200; ++step) model.Step();
    ASSERT_TRUE(model.EndsEqual()) << "seed " << seed << ": a write was lost\n"
                                   << model.steps();
  }
}

}  // namespace
}  // namespace postcopy
