#include "uffd/fault_loop.h"

#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dirtytrack/check.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {
namespace {

constexpr PageCount kOnePage{1};

void Count(std::atomic<uint64_t>* counter, uint64_t by = 1) {
  counter->fetch_add(by, std::memory_order_relaxed);
}

absl::Status SystemError(absl::string_view call, int error) {
  return absl::InternalError(
      absl::StrCat(call, ": ", ::strerrordesc_np(error)));
}

FaultKind KindOf(uint64_t flags) {
  if ((flags & UFFD_PAGEFAULT_FLAG_WP) != 0) return FaultKind::kWriteProtect;
  if ((flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0) return FaultKind::kMinor;
  return (flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0 ? FaultKind::kWrite
                                                  : FaultKind::kRead;
}

absl::Status UnexpectedEvent(const uffd_msg& message) {
  return absl::FailedPreconditionError(absl::StrCat(
      "the userfaultfd reports event 0x", absl::Hex(message.event),
      ", of which nothing is known: the VMM must not enable EVENT_FORK, and "
      "not register its memory again"));
}

absl::Status WrongFile() {
  return absl::FailedPreconditionError(
      "a page that is in the VM's memory file cannot be mapped: the VMM must "
      "give the descriptor of the file that it has mapped there");
}

}  // namespace

absl::StatusOr<std::unique_ptr<FaultLoop>> FaultLoop::Create(Parts parts) {
  UniqueFd wake_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd.valid()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no eventfd for the fault loop: ", ::strerrordesc_np(errno)));
  }
  return std::unique_ptr<FaultLoop>(
      new FaultLoop(std::move(parts), std::move(wake_fd)));
}

FaultLoop::FaultLoop(Parts parts, UniqueFd wake_fd)
    : ram_(*parts.ram),
      ops_(*parts.ops),
      state_(*parts.state),
      gate_(*parts.gate),
      changes_(*parts.changes),
      installer_(*parts.installer),
      order_(*parts.order),
      clock_(*parts.clock),
      records_(parts.records),
      on_given_up_(std::move(parts.on_given_up)),
      on_end_(std::move(parts.on_end)),
      wake_fd_(std::move(wake_fd)) {}

FaultLoop::~FaultLoop() { Stop(); }

absl::Status FaultLoop::Start() {
  auto wait = MessageWait::Create(ops_.poll_fd(), wake_fd_.get());
  if (!wait.ok()) return wait.status();
  wait_ = *std::move(wait);
  runs_.store(true);
  absl::StatusOr<std::thread> thread = StartThread([this] { Run(); });
  if (!thread.ok()) {
    runs_.store(false);
    return thread.status();
  }
  thread_ = *std::move(thread);
  return absl::OkStatus();
}

void FaultLoop::Stop() {
  stopping_.store(true);
  WakeUp();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard<std::mutex> nobody(stand_in_mutex_);
  pending_.EndWaits([](PageIndex) { return true; }, clock_.NowNanos());
}

bool FaultLoop::ShowsLife() {
  return !runs_.load() || life_.Ask([this] { WakeUp(); });
}

absl::Status FaultLoop::SetSource(PageSource* source) {
  const std::lock_guard<std::mutex> lock(source_mutex_);
  source_ = source;
  return source == nullptr ? absl::OkStatus() : AskAgain();
}

std::optional<int64_t> FaultLoop::Resolve(PageIndex page, int64_t answered_ns,
                                          int64_t installed_ns) {
  const std::optional<PendingFaults::Fault> fault =
      pending_.Take(page, installed_ns);
  if (!fault.has_value()) return std::nullopt;
  // Sequentially consistent on both sides: either the loop sees the room, or
  // this sees that the loop wants it.
  if (wants_room_.exchange(false)) WakeUp();
  if (fault->duplicated) installer_.Wake(ram_.UnitOf(page));
  if (!fault->ended) times_.Record(page, *fault, answered_ns, installed_ns);
  return fault->first_read_ns;
}

std::optional<int64_t> FaultLoop::Resolve(PageIndex page) {
  const int64_t now_ns = clock_.NowNanos();
  return Resolve(page, now_ns, now_ns);
}

void FaultLoop::OnReceived(PageRun run, int64_t answered_ns) {
  if (!pending_.SomebodyWaits()) return;
  const auto is_here = [&](PageIndex page) {
    return page >= run.first && page < run.end() && state_.IsReceived(page);
  };
  pending_.PostEnds(is_here, answered_ns, clock_.NowNanos());
}

void FaultLoop::OnPoisoned() {
  poisoned_.store(true);
  pending_.EndWaits([](PageIndex) { return true; }, clock_.NowNanos());
}

void FaultLoop::Run() {
  // For whoever looks why a guest waits: top -H, gdb.
  ::pthread_setname_np(::pthread_self(), "fault-loop");
  absl::Status status = Loop();
  runs_.store(false);
  if (!status.ok() && !stopping_.load()) on_end_(std::move(status));
}

absl::Status FaultLoop::Loop() {
  while (!stopping_.load()) {
    if (absl::Status s = Wait(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status FaultLoop::Wait() {
  int timeout = -1;
  {
    const std::lock_guard<std::mutex> lock(turn_mutex_);
    if (absl::Status s = ListenIfRoom(); !s.ok()) return s;
    if (deferred_count_ > 0) timeout = kRetryMillis;
    if (overflowed_ && HasRoom()) timeout = 0;
  }
  const MessageWait::Woken woken = wait_->Wait(timeout);
  if (woken.wake_fd) {
    eventfd_t ignored = 0;
    ::eventfd_read(wake_fd_.get(), &ignored);
    life_.Answer();
  }
  return Turn(woken);
}

absl::Status FaultLoop::ListenIfRoom() {
  wants_room_.store(true);
  const bool room = HasRoom();
  if (room) wants_room_.store(false);
  // The kernel keeps the faults for which there is no room, and its readiness
  // must not turn this into a busy loop.
  return wait_->Listen(!stood_in_ && (room || gate_.needed()));
}

FaultLoop::StandIn::StandIn(FaultLoop* loop, PageCount pages)
    : loop_(*loop),
      alive_(loop_.stand_in_mutex_),
      small_(pages <= kStandInPagesMax),
      active_(small_ && !loop_.gate_.needed() && !loop_.installer_.Replaces() &&
              loop_.BeginStandIn(pages.value())) {}

FaultLoop::StandIn::~StandIn() {
  if (active_) loop_.EndStandIn();
}

void FaultLoop::StandIn::Serve() {
  active_ = active_ || (small_ && loop_.BeginStandIn(0));
  if (!active_) return;
  const int64_t end_ns =
      loop_.clock_.NowNanos() + kStandInMillis * kNanosPerMilli;
  while (loop_.Idle()) {
    const MessageWait::Woken woken = loop_.wait_->StandIn(kStandInMillis);
    if (!woken.messages && woken.status.ok()) return;
    loop_.Turn(woken).IgnoreError();  // the loop will tell
    if (loop_.clock_.NowNanos() >= end_ns) return;
  }
}

bool FaultLoop::BeginStandIn(size_t outstanding_max) {
  if (!runs_.load()) return false;
  const std::lock_guard<std::mutex> lock(turn_mutex_);
  if (!MayBeStoodIn(outstanding_max)) return false;
  stood_in_ = wait_->Listen(false).ok();
  return stood_in_;
}

bool FaultLoop::MayBeStoodIn(size_t outstanding_max) const {
  return !stopping_.load() && failed_.ok() && deferred_count_ == 0 &&
         !overflowed_ && pending_.size() <= outstanding_max;
}

bool FaultLoop::Idle() {
  const std::lock_guard<std::mutex> lock(turn_mutex_);
  return MayBeStoodIn(0);
}

void FaultLoop::EndStandIn() {
  const std::lock_guard<std::mutex> lock(turn_mutex_);
  stood_in_ = false;
  if (failed_.ok()) failed_ = ListenIfRoom();
  // What is left to be done later is the thread's.
  if (!failed_.ok() || deferred_count_ > 0 || overflowed_) WakeUp();
}

absl::Status FaultLoop::Turn(const MessageWait::Woken& woken) {
  const int64_t woken_ns = woken.messages ? clock_.NowNanos() : 0;
  const std::lock_guard<std::mutex> lock(turn_mutex_);
  if (failed_.ok()) failed_ = woken.status;
  if (failed_.ok()) failed_ = Serve(woken_ns).status();
  return failed_;
}

bool FaultLoop::HasRoom() const {
  if (!overflowed_) return pending_.Room() > 0;
  return pending_.Room() >= kMaxOutstandingFaults / 2 && deferred_count_ == 0;
}

void FaultLoop::TakeBackOverflow() {
  if (!overflowed_ || !HasRoom()) return;
  overflowed_ = false;
  installer_.Wake({PageIndex(0), state_.pages()});
}

absl::StatusOr<bool> FaultLoop::Serve(int64_t woken_ns) {
  woken_ns_ = woken_ns;
  TakeBackOverflow();
  const size_t deferred = deferred_count_;
  absl::Status noted;
  const absl::StatusOr<size_t> read = ReadMessages(&noted);
  if (!read.ok()) return read.status();
  const auto messages = absl::MakeConstSpan(messages_.data(), *read);
  absl::Status handled = HandleAll(messages);
  // Behind the read, which lets the kernel take them.
  if (handled.ok() && deferred > 0) handled = RetryDeferred();
  if (!noted.ok()) return noted;
  if (!handled.ok()) return handled;
  return *read > 0 || deferred > 0;
}

absl::StatusOr<size_t> FaultLoop::ReadMessages(absl::Status* noted) {
  // What has been read cannot be put back: take no more than fits the table.
  const size_t room = gate_.needed()
                          ? messages_.size()
                          : std::min(pending_.Room(), messages_.size());
  if (room == 0) return 0;
  const InstallGate::Closed closed = gate_.Close();
  const UffdReadResult read = ops_.Read(absl::MakeSpan(messages_.data(), room));
  if (read.error == EAGAIN) return 0;
  if (read.error != 0) return SystemError("reading faults", read.error);
  for (size_t i = 0; i < read.messages && gate_.needed(); ++i) {
    if (!MemoryChanges::Is(messages_[i])) continue;
    absl::Status applied = changes_.Apply(messages_[i]);
    if (noted->ok()) *noted = std::move(applied);
  }
  return read.messages;
}

absl::Status FaultLoop::HandleAll(absl::Span<const uffd_msg> messages) {
  if (messages.empty()) return absl::OkStatus();
  const int64_t now_ns = clock_.NowNanos();
  absl::Status status;
  bool given_up = false;
  const std::lock_guard<std::mutex> lock(source_mutex_);
  for (const uffd_msg& message : messages) {
    absl::Status handled;
    if (gate_.needed() && MemoryChanges::Is(message)) {
      const MemoryChanges::Range range = MemoryChanges::WakeAfter(message);
      ops_.Wake(range.address, range.length);
      if (message.event == UFFD_EVENT_REMAP) {
        // Who was quicker there than this message was taken for a stranger.
        ops_.Wake(HostAddress(message.arg.remap.to), range.length);
      }
      given_up = true;
    } else {
      handled = Handle(message, now_ns);
    }
    // All of them, also behind a bad one: their threads wait.
    if (status.ok()) status = std::move(handled);
  }
  AskForNew();
  if (given_up) {
    // Who waited for what has been given up was woken above.
    pending_.EndWaits([&](PageIndex page) { return state_.IsReceived(page); },
                      now_ns);
    on_given_up_();
  }
  return status;
}

absl::Status FaultLoop::Handle(const uffd_msg& message, int64_t now_ns) {
  if (!IsExpected(message)) {
    Count(&counters_.unexpected_events);
    return UnexpectedEvent(message);
  }
  Count(&counters_.faults);
  const std::optional<PageIndex> touched =
      ram_.PageAt(HostAddress(message.arg.pagefault.address));
  if (!touched.has_value()) {
    Count(&counters_.foreign);
    return absl::OkStatus();
  }
  const PageIndex page = ram_.UnitOf(*touched).first;
  const PendingFaults::Message told = {
      .read_ns = now_ns,
      .unread_ns = woken_ns_ == 0 ? 0 : now_ns - woken_ns_,
      .thread = message.arg.pagefault.feat.ptid};
  // Before its end, which another thread may record as soon as it is asked for.
  if (records_ != nullptr) {
    RecordFault(page, message.arg.pagefault.flags, told);
  }
  if ((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
    return Unprotect(page);
  }
  if ((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0) {
    // A VMM that has registered it so by itself: nobody here can show the page.
    if (!installer_.MayBeOutOfSight(page)) {
      Count(&counters_.unexpected_events);
      return UnexpectedEvent(message);
    }
    Count(&counters_.minor);
  }
  if (state_.IsReceived(page)) return HandleReceived(page);
  return Collect(page, told);
}

void FaultLoop::RecordFault(PageIndex page, uint64_t flags,
                            const PendingFaults::Message& message) {
  records_->Add({.page = page,
                 .read_ns = message.read_ns,
                 .stages_ns = {static_cast<uint64_t>(message.unread_ns)},
                 .thread = message.thread,
                 .kind = KindOf(flags)});
}

bool FaultLoop::IsExpected(const uffd_msg& message) const {
  if (message.event != UFFD_EVENT_PAGEFAULT) return false;
  uint64_t kinds = UFFD_PAGEFAULT_FLAG_WRITE;
  if ((ops_.features() & UFFD_FEATURE_MINOR_SHMEM) != 0) {
    kinds |= UFFD_PAGEFAULT_FLAG_MINOR;
  }
  if ((ops_.features() & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) != 0) {
    kinds |= UFFD_PAGEFAULT_FLAG_WP;
  }
  return (message.arg.pagefault.flags & ~kinds) == 0;
}

absl::Status FaultLoop::HandleReceived(PageIndex page) {
  const DestinationRam::Piece piece = ram_.FirstPiece({page, kOnePage});
  if (state_.IsZero(page) || !piece.tells_holes()) return FillLocally(page);
  // Where it waited it is in place already, or has been given up since.
  if (!ram_.HasData(page)) {
    return piece.staged ? FillLocally(page) : Lose(page);
  }
  if (!retrying_) Count(&counters_.late);
  return Show(page);
}

absl::Status FaultLoop::Show(PageIndex page) {
  switch (const int error = installer_.TryReveal(page)) {
    case 0:
      return absl::OkStatus();
    case ESRCH:
      return absl::AbortedError("the VMM's process is gone");
    case EFAULT:
      // Gone since it was looked at; then the next look finds that out.
      if (retrying_) return WrongFile();
      [[fallthrough]];
    case EAGAIN:
    case ENOMEM:
      Defer(page);
      return absl::OkStatus();
    default:
      return SystemError("showing a precopied page", error);
  }
}

absl::Status FaultLoop::Unprotect(PageIndex page) {
  const PageRun unit = ram_.UnitOf(page);
  const DestinationRam::Piece piece = ram_.FirstPiece(unit);
  const UffdResult result = ops_.Unprotect(piece.address, piece.bytes());
  Count(&counters_.write_protect);
  if (result.error == ESRCH) {
    return absl::AbortedError("the VMM's process is gone");
  }
  // Not now: its thread faults again.
  if (!result.ok()) installer_.Wake(unit);
  return absl::OkStatus();
}

absl::Status FaultLoop::FillLocally(PageIndex page) {
  // Before the guest goes on, which may look.
  const bool counted = state_.IsZero(page) && !retrying_;
  if (counted) Count(&counters_.local);
  switch (installer_.TryZero(page)) {
    case 0:
      if (!counted && !retrying_) Count(&counters_.local);
      return absl::OkStatus();
    case EEXIST:
      if (!counted && !retrying_) Count(&counters_.late);
      return absl::OkStatus();
    case ESRCH:
      return absl::AbortedError("the VMM's process is gone");
    default:
      // A message waits to be read, or the host has no memory to spare just
      // now. Neither must keep all other pages waiting.
      Defer(page);
      return absl::OkStatus();
  }
}

void FaultLoop::Defer(PageIndex page) {
  if (!retrying_) Count(&counters_.deferred);
  if (deferred_count_ < deferred_.size()) {
    deferred_[deferred_count_++] = page;
    return;
  }
  Count(&counters_.overflowed);
  overflowed_ = true;
}

absl::Status FaultLoop::RetryDeferred() {
  retrying_ = true;
  absl::Status status;
  const size_t count = std::exchange(deferred_count_, 0);
  for (size_t i = 0; i < count && status.ok(); ++i) {
    // Defers again to a place that has been looked at.
    status = HandleReceived(deferred_[i]);
  }
  retrying_ = false;
  return status;
}

absl::Status FaultLoop::Collect(PageIndex page,
                                const PendingFaults::Message& message) {
  switch (pending_.Add(page, message)) {
    case PendingFaults::AddResult::kDuplicate:
      Count(&counters_.duplicates);
      return absl::OkStatus();
    case PendingFaults::AddResult::kFull:
      Count(&counters_.overflowed);
      overflowed_ = true;
      return absl::OkStatus();
    case PendingFaults::AddResult::kNew:
      break;
  }
  // The page may have come since it was looked at: its receiver marks it, then
  // takes it off the table, where it was not yet.
  if (state_.IsReceived(page)) {
    pending_.Take(page, message.read_ns);
    return HandleReceived(page);
  }
  // Poisoned since the fault, and its thread woken.
  if (poisoned_.load()) pending_.EndWait(page, message.read_ns);
  order_.OnFault(ram_.UnitOf(page));
  new_pages_[new_count_++] = page;
  return absl::OkStatus();
}

absl::Status FaultLoop::Lose(PageIndex page) {
  const DestinationRam::Piece piece = ram_.FirstPiece({page, kOnePage});
  const UffdResult poisoned = ops_.Poison(piece.address, piece.bytes());
  if (poisoned.ok()) {
    Count(&counters_.lost);
    return absl::OkStatus();
  }
  // Poisoned before, or unmapped: its thread finds out.
  if (poisoned.error == EEXIST || poisoned.error == ENOENT) {
    installer_.Wake(piece.pages);
    return absl::OkStatus();
  }
  if (poisoned.error == EAGAIN) {
    Defer(page);
    return absl::OkStatus();
  }
  if (poisoned.error == ESRCH) {
    return absl::AbortedError("the VMM's process is gone");
  }
  return SystemError("poisoning a lost page", poisoned.error);
}

void FaultLoop::AskForNew() {
  if (new_count_ > 0 && source_ != nullptr) {
    // On failure the pages stay pending: SetSource asks again.
    Ask(absl::MakeConstSpan(new_pages_.data(), new_count_)).IgnoreError();
  }
  new_count_ = 0;
}

absl::Status FaultLoop::AskAgain() {
  const size_t pending = pending_.CopyTo(absl::MakeSpan(again_));
  size_t missing = 0;
  for (size_t i = 0; i < pending; ++i) {
    if (state_.IsReceived(again_[i])) {
      Resolve(again_[i]);  // the bulk lane brought it, and ended the waits
    } else {
      again_[missing++] = again_[i];
    }
  }
  const auto rest = absl::MakeConstSpan(again_.data(), missing);
  for (size_t done = 0; done < missing; done += kMaxUrgentPages) {
    const absl::Status status = Ask(rest.subspan(done, kMaxUrgentPages));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status FaultLoop::Ask(absl::Span<const PageIndex> pages) {
  Count(&counters_.requests);
  // Before the call, in which the answer may come.
  pending_.MarkAsked(pages, clock_.NowNanos());
  absl::Status status = source_->RequestUrgent(pages);
  if (!status.ok()) Count(&counters_.request_failures);
  return status;
}

void FaultLoop::WakeUp() {
  // Fails only when the counter is full, and then the loop is woken anyway.
  ::eventfd_write(wake_fd_.get(), 1);
}

}  // namespace postcopy
