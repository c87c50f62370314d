#include "uffd/fake_page_source.h"

#include <algorithm>
#include <utility>

#include "uffd/kernel_guest.h"

namespace postcopy {
namespace {

std::vector<uint8_t> Pattern(PageRun run) { return PatternOf(run); }

}  // namespace

Answer::Answer(absl::Span<const PageIndex> pages,
               const std::set<uint64_t>& zeros) {
  for (const PageIndex page : pages) Add({page, PageCount(1)}, zeros, Pattern);
}

Answer::Answer(PageRun run, const std::set<uint64_t>& zeros) {
  for (uint64_t i = 0; i < run.count.value(); ++i) {
    Add({run.first + PageCount(i), PageCount(1)}, zeros, Pattern);
  }
}

Answer::Answer(const std::vector<PageRun>& units,
               const std::set<uint64_t>& zeros, const ContentOf& content) {
  for (const PageRun unit : units) Add(unit, zeros, content);
}

void Answer::Add(PageRun unit, const std::set<uint64_t>& zeros,
                 const ContentOf& content) {
  bytes_.push_back(zeros.contains(unit.first.value()) ? std::vector<uint8_t>()
                                                      : content(unit));
  runs_.push_back({unit, bytes_.back()});
}

absl::Status FakePageSource::RequestUrgent(absl::Span<const PageIndex> pages) {
  const std::lock_guard<std::mutex> lock(mutex_);
  urgent_.emplace_back(pages.begin(), pages.end());
  changed_.notify_all();
  return refusal_;
}

absl::Status FakePageSource::RequestBulk(PageRun run) {
  const std::lock_guard<std::mutex> lock(mutex_);
  bulk_.push_back(run);
  changed_.notify_all();
  return refusal_;
}

void FakePageSource::AwaitUrgent(size_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return urgent_.size() >= count; });
}

void FakePageSource::AwaitBulk(size_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return bulk_.size() >= count; });
}

std::vector<FakePageSource::UrgentRequest> FakePageSource::urgent() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return urgent_;
}

std::vector<PageRun> FakePageSource::bulk() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bulk_;
}

int FakePageSource::TimesAsked(PageIndex page) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int times = 0;
  for (const UrgentRequest& request : urgent_) {
    times += static_cast<int>(std::count(request.begin(), request.end(), page));
  }
  return times;
}

void FakePageSource::Refuse(absl::Status status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  refusal_ = std::move(status);
}

ServingPageSource::ServingPageSource(uint64_t seed, std::set<uint64_t> zeros,
                                     ContentOf content)
    : zeros_(std::move(zeros)),
      content_(content == nullptr ? Pattern : std::move(content)) {
  urgent_.random.seed(seed);
  bulk_.random.seed(seed + 1);
}

ServingPageSource::~ServingPageSource() { Stop(); }

void ServingPageSource::Serve(DestinationVm* vm) {
  vm_ = vm;
  urgent_.thread = std::thread([this] { Run(&urgent_, /*urgent=*/true); });
  bulk_.thread = std::thread([this] { Run(&bulk_, /*urgent=*/false); });
}

void ServingPageSource::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (urgent_.thread.joinable()) urgent_.thread.join();
  if (bulk_.thread.joinable()) bulk_.thread.join();
}

absl::Status ServingPageSource::RequestUrgent(
    absl::Span<const PageIndex> pages) {
  std::vector<PageRun> units;
  for (const PageIndex page : pages) units.push_back(vm_->ram().UnitOf(page));
  return Push(&urgent_, std::move(units));
}

absl::Status ServingPageSource::RequestBulk(PageRun run) {
  std::vector<PageRun> units;
  for (PageIndex page = run.first; page < run.end();
       page = units.back().end()) {
    units.push_back(vm_->ram().UnitOf(page));
  }
  return Push(&bulk_, std::move(units));
}

absl::Status ServingPageSource::status() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

absl::Status ServingPageSource::Push(Lane* lane, std::vector<PageRun> units) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stopping_) return absl::UnavailableError("the source is stopped");
  lane->requests.push_back(std::move(units));
  changed_.notify_all();
  return absl::OkStatus();
}

void ServingPageSource::Run(Lane* lane, bool urgent) {
  for (std::vector<PageRun> units; !(units = Pop(lane)).empty();) {
    const Answer answer(units, zeros_, content_);
    const absl::Status taken = urgent
                                   ? vm_->OnUrgentPagesStandingIn(answer.runs())
                                   : vm_->OnBulkPages(answer.runs());
    const std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok()) status_ = taken;
  }
}

std::vector<PageRun> ServingPageSource::Pop(Lane* lane) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return stopping_ || !lane->requests.empty(); });
  if (stopping_) return {};
  const auto drawn =
      lane->requests.begin() +
      static_cast<ptrdiff_t>(lane->random() % lane->requests.size());
  std::vector<PageRun> units = std::move(*drawn);
  lane->requests.erase(drawn);
  return units;
}

}  // namespace postcopy
