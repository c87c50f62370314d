#include "uffd/simulated_uffd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "dirtytrack/check.h"
#include "uffd/forwarding_uffd.h"

namespace postcopy {
namespace {

constexpr ByteCount kOnePage{kPageSize};
constexpr std::array<uint8_t, kPageSize> kZeros{};

// What the kernel can do in anonymous and shmem memory.
constexpr uint64_t kRangeIoctls = uint64_t{1} << _UFFDIO_COPY |
                                  uint64_t{1} << _UFFDIO_ZEROPAGE |
                                  uint64_t{1} << _UFFDIO_WAKE;

UffdResult Error(int error) { return {.error = error, .done = ByteCount(0)}; }

uffd_msg RemovalOf(HostAddress address, ByteCount length) {
  uffd_msg message = {};
  message.event = UFFD_EVENT_REMOVE;
  message.arg.remove.start = address.value();
  message.arg.remove.end = (address + length).value();
  return message;
}

bool Holds(HostAddress start, ByteCount length, HostAddress address) {
  return address >= start && address < start + length;
}

uffd_msg FaultAt(HostAddress page, uint64_t flags, uint32_t thread) {
  uffd_msg message = {};
  message.event = UFFD_EVENT_PAGEFAULT;
  message.arg.pagefault.flags = flags;
  message.arg.pagefault.address = page.value();
  message.arg.pagefault.feat.ptid = thread;
  return message;
}

}  // namespace

SimulatedUffd::SimulatedUffd()
    : event_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  POSTCOPY_CHECK(event_fd_.valid());
}

void SimulatedUffd::Map(HostAddress address, ByteCount length, int fd,
                        uint64_t offset) {
  const std::lock_guard<std::mutex> lock(mutex_);
  mappings_.push_back({address, length, fd, offset});
}

void SimulatedUffd::Unmap(HostAddress address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(mappings_, [address](const Mapping& mapping) {
    return mapping.address == address;
  });
}

void SimulatedUffd::KillProcess() {
  const std::lock_guard<std::mutex> lock(mutex_);
  process_alive_ = false;
}

SimulatedUffd::Touch SimulatedUffd::TouchPage(int thread, HostAddress address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Touch touch = TouchLocked(thread, address);
  SignalIfReadable();
  return touch;
}

SimulatedUffd::Touch SimulatedUffd::TouchLocked(int thread, HostAddress page) {
  const Mapping* mapping = Find(page, kOnePage);
  POSTCOPY_CHECK(mapping != nullptr);
  if (poisoned_.contains(page.value())) return Touch::kPoisoned;
  uint64_t flags = 0;
  if (protected_.contains(page.value())) {
    flags = UFFD_PAGEFAULT_FLAG_WP;
  } else if (IsMapped(*mapping, page)) {
    return Touch::kPresent;
  } else if (!IsRegistered(page)) {
    WriteNewPage(*mapping, page, kZeros.data());
    return Touch::kZeroFilled;
  } else if (IsPresent(*mapping, page)) {
    flags = UFFD_PAGEFAULT_FLAG_MINOR;
  }
  waiters_.push_back({thread, page, flags, /*message_read=*/false});
  return Touch::kWaiting;
}

void SimulatedUffd::Protect(HostAddress address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  protected_.insert(address.value());
}

bool SimulatedUffd::IsWaiting(int thread) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::any_of(
      waiters_.begin(), waiters_.end(),
      [thread](const Waiter& waiter) { return waiter.thread == thread; });
}

size_t SimulatedUffd::waiting() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return waiters_.size();
}

void SimulatedUffd::FailNext(Call call, int error, int times) {
  const std::lock_guard<std::mutex> lock(mutex_);
  failures_[static_cast<size_t>(call)] = {error, times};
}

void SimulatedUffd::BeforeNext(Call call, std::function<void()> action) {
  const std::lock_guard<std::mutex> lock(mutex_);
  before_[static_cast<size_t>(call)] = std::move(action);
}

void SimulatedUffd::RunBefore(Call call) {
  std::function<void()> action;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    action = std::exchange(before_[static_cast<size_t>(call)], nullptr);
  }
  if (action) action();
}

void SimulatedUffd::StopNextAfter(PageCount pages) {
  const std::lock_guard<std::mutex> lock(mutex_);
  stop_after_ = pages;
}

void SimulatedUffd::Inject(const uffd_msg& message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  injected_.push_back(message);
  SignalIfReadable();
}

int SimulatedUffd::calls(Call call) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return calls_[static_cast<size_t>(call)];
}

void SimulatedUffd::GiveUp(HostAddress address, ByteCount length) {
  const std::lock_guard<std::mutex> lock(mutex_);
  removals_.push_back({address, length});
  SignalIfReadable();
}

bool SimulatedUffd::EndGivingUp() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (removals_.empty() || !removals_.front().message_read) return false;
  const Removal removal = removals_.front();
  removals_.pop_front();
  const Mapping* const mapping = Find(removal.address, removal.length);
  POSTCOPY_CHECK(mapping != nullptr);
  POSTCOPY_CHECK(::fallocate(mapping->fd,
                             FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                             OffsetOf(*mapping, removal.address),
                             static_cast<off_t>(removal.length.value())) == 0);
  mapped_.erase(
      mapped_.lower_bound(removal.address.value()),
      mapped_.lower_bound((removal.address + removal.length).value()));
  return true;
}

bool SimulatedUffd::IsChanging() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return IsChangingLocked();
}

bool SimulatedUffd::IsChangingLocked() const {
  return std::any_of(
      removals_.begin(), removals_.end(),
      [](const Removal& removal) { return !removal.message_read; });
}

UffdRegistration SimulatedUffd::Register(HostAddress address, ByteCount length,
                                         uint64_t modes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = TakeFailure(Call::kRegister)) return {.error = error};
  if (!process_alive_) return {.error = ENOMEM};
  if (Find(address, length) == nullptr) return {.error = EINVAL};
  for (uint64_t at = 0; at < length.value(); at += kPageSize) {
    registered_.insert(address.value() + at);
  }
  if ((modes & UFFDIO_REGISTER_MODE_MINOR) == 0) {
    return {.error = 0, .ioctls = kRangeIoctls};
  }
  for (uint64_t at = 0; at < length.value(); at += kPageSize) {
    minor_.insert(address.value() + at);
  }
  return {.error = 0, .ioctls = kRangeIoctls | uint64_t{1} << _UFFDIO_CONTINUE};
}

UffdResult SimulatedUffd::Unregister(HostAddress address, ByteCount length) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = TakeFailure(Call::kUnregister)) return Error(error);
  if (!process_alive_) return Error(ENOMEM);
  registered_.erase(registered_.lower_bound(address.value()),
                    registered_.lower_bound((address + length).value()));
  minor_.erase(minor_.lower_bound(address.value()),
               minor_.lower_bound((address + length).value()));
  WakeLocked(address, length);
  return {.error = 0, .done = length};
}

UffdResult SimulatedUffd::Copy(HostAddress address, const uint8_t* source,
                               ByteCount length, bool wake) {
  RunBefore(Call::kCopy);
  const std::lock_guard<std::mutex> lock(mutex_);
  return Insert(Call::kCopy, address, source, length, wake);
}

UffdResult SimulatedUffd::ZeroPage(HostAddress address, ByteCount length,
                                   bool wake) {
  RunBefore(Call::kZeroPage);
  const std::lock_guard<std::mutex> lock(mutex_);
  return Insert(Call::kZeroPage, address, nullptr, length, wake);
}

UffdResult SimulatedUffd::Insert(Call call, HostAddress address,
                                 const uint8_t* source, ByteCount length,
                                 bool wake) {
  if (const int error = TakeFailure(call)) return Error(error);
  if (!process_alive_) return Error(ESRCH);
  if (IsChangingLocked()) return Error(EAGAIN);
  const Mapping* mapping = Find(address, length);
  if (mapping == nullptr || !IsRegistered(address)) return Error(ENOENT);
  const uint64_t stop =
      BytesIn(std::exchange(stop_after_, PageCount())).value();
  UffdResult result;
  while (result.done < length) {
    const HostAddress page = address + result.done;
    if (IsPresent(*mapping, page) || poisoned_.contains(page.value())) {
      // As mfill_atomic(): what came before is told, the reason is not.
      result.error = result.done.empty() ? EEXIST : EAGAIN;
      break;
    }
    const uint8_t* content =
        source == nullptr ? kZeros.data() : source + result.done.value();
    WriteNewPage(*mapping, page, content);
    result.done += kOnePage;
    if (result.done.value() == stop && result.done < length) {
      result.error = EAGAIN;
      break;
    }
  }
  if (wake && !result.done.empty()) WakeLocked(address, result.done);
  return result;
}

UffdResult SimulatedUffd::Continue(HostAddress address, ByteCount length,
                                   bool wake) {
  RunBefore(Call::kContinue);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = TakeFailure(Call::kContinue)) return Error(error);
  if (!process_alive_) return Error(ESRCH);
  if (IsChangingLocked()) return Error(EAGAIN);
  const Mapping* mapping = Find(address, length);
  if (mapping == nullptr || !IsRegistered(address)) return Error(ENOENT);
  POSTCOPY_CHECK(minor_.contains(address.value()));
  const UffdResult result = ContinueLocked(*mapping, address, length);
  if (wake && !result.done.empty()) WakeLocked(address, result.done);
  return result;
}

UffdResult SimulatedUffd::ContinueLocked(const Mapping& mapping,
                                         HostAddress address,
                                         ByteCount length) {
  UffdResult result;
  for (; result.done < length; result.done += kOnePage) {
    const HostAddress page = address + result.done;
    if (!IsPresent(mapping, page)) result.error = EFAULT;
    if (IsMapped(mapping, page)) result.error = EEXIST;
    if (result.error != 0) break;
    poisoned_.erase(page.value());  // which is no page, to the kernel
    mapped_.insert(page.value());
  }
  // As mfill_atomic(): what came before is told, the reason is not.
  if (result.error != 0 && !result.done.empty()) result.error = EAGAIN;
  return result;
}

UffdResult SimulatedUffd::Unprotect(HostAddress address, ByteCount length) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = TakeFailure(Call::kUnprotect)) return Error(error);
  if (!process_alive_) return Error(ESRCH);
  protected_.erase(address.value());
  WakeLocked(address, length);
  return {.error = 0, .done = length};
}

UffdResult SimulatedUffd::Wake(HostAddress address, ByteCount length) {
  const std::lock_guard<std::mutex> lock(mutex_);
  WakeLocked(address, length);
  return {.error = 0, .done = length};
}

UffdResult SimulatedUffd::Poison(HostAddress address, ByteCount length) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = TakeFailure(Call::kPoison)) return Error(error);
  if (!process_alive_) return Error(ESRCH);
  const Mapping* mapping = Find(address, length);
  if (mapping == nullptr) return Error(ENOENT);
  if (IsMapped(*mapping, address)) return Error(EEXIST);
  if (!poisoned_.insert(address.value()).second) return Error(EEXIST);
  WakeLocked(address, length);
  return {.error = 0, .done = length};
}

UffdReadResult SimulatedUffd::Read(absl::Span<uffd_msg> messages) {
  RunBefore(Call::kRead);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = TakeFailure(Call::kRead)) {
    return {.error = error, .messages = 0};
  }
  size_t count = 0;
  while (count < messages.size() && !injected_.empty()) {
    messages[count++] = injected_.front();
    injected_.pop_front();
  }
  for (Waiter& waiter : waiters_) {
    if (count == messages.size()) break;
    if (std::exchange(waiter.message_read, true)) continue;
    const bool named = (features_ & UFFD_FEATURE_THREAD_ID) != 0;
    messages[count++] =
        FaultAt(waiter.page, waiter.flags,
                named ? static_cast<uint32_t>(waiter.thread) : 0);
  }
  for (Removal& removal : removals_) {
    if (count == messages.size()) break;
    if (std::exchange(removal.message_read, true)) continue;
    messages[count++] = RemovalOf(removal.address, removal.length);
  }
  eventfd_t ignored = 0;
  ::eventfd_read(event_fd_.get(), &ignored);
  SignalIfReadable();
  if (count == 0) return {.error = EAGAIN, .messages = 0};
  return {.error = 0, .messages = count};
}

int SimulatedUffd::TakeFailure(Call call) {
  const size_t index = static_cast<size_t>(call);
  ++calls_[index];
  if (failures_[index].times == 0) return 0;
  --failures_[index].times;
  return failures_[index].error;
}

const SimulatedUffd::Mapping* SimulatedUffd::Find(HostAddress address,
                                                  ByteCount length) const {
  for (const Mapping& mapping : mappings_) {
    if (address >= mapping.address &&
        address + length <= mapping.address + mapping.length) {
      return &mapping;
    }
  }
  return nullptr;
}

bool SimulatedUffd::IsRegistered(HostAddress page) const {
  return registered_.contains(page.value());
}

off_t SimulatedUffd::OffsetOf(const Mapping& mapping, HostAddress page) {
  return static_cast<off_t>(mapping.offset + (page - mapping.address).value());
}

bool SimulatedUffd::IsPresent(const Mapping& mapping, HostAddress page) const {
  const off_t offset = OffsetOf(mapping, page);
  return ::lseek(mapping.fd, offset, SEEK_DATA) == offset;
}

bool SimulatedUffd::IsMapped(const Mapping& mapping, HostAddress page) const {
  return IsPresent(mapping, page) &&
         (!minor_.contains(page.value()) || mapped_.contains(page.value()));
}

void SimulatedUffd::WriteNewPage(const Mapping& mapping, HostAddress page,
                                 const uint8_t* content) {
  mapped_.insert(page.value());
  const off_t offset = OffsetOf(mapping, page);
  POSTCOPY_CHECK(::pwrite(mapping.fd, content, kPageSize, offset) ==
                 static_cast<ssize_t>(kPageSize));
}

void SimulatedUffd::WakeLocked(HostAddress address, ByteCount length) {
  std::vector<Waiter> woken;
  std::erase_if(waiters_, [&](const Waiter& waiter) {
    if (!Holds(address, length, waiter.page)) return false;
    woken.push_back(waiter);
    return true;
  });
  // They touch again at once: those who find nothing wait anew.
  for (const Waiter& waiter : woken) {
    if (Find(waiter.page, kOnePage) == nullptr) continue;  // SIGSEGV
    TouchLocked(waiter.thread, waiter.page);
  }
  SignalIfReadable();
}

void SimulatedUffd::SignalIfReadable() {
  const bool readable =
      !injected_.empty() ||
      std::any_of(waiters_.begin(), waiters_.end(),
                  [](const Waiter& waiter) { return !waiter.message_read; }) ||
      IsChangingLocked();
  if (readable) ::eventfd_write(event_fd_.get(), 1);
}

InstallStrategies StrategiesFor(const DestinationRam& ram, UffdOps& uffd) {
  InstallStrategies strategies;
  for (size_t i = 0; i < ram.region_count(); ++i) {
    const DestinationRam::Piece region = ram.region(i);
    const UffdRegistration registered = uffd.Register(
        region.address, region.bytes(), RegisterModes(region, uffd.features()));
    POSTCOPY_CHECK(registered.ok());
    strategies.push_back(*ChooseInstallStrategy(region, registered));
  }
  return strategies;
}

std::unique_ptr<UffdOps> Share(SimulatedUffd* uffd) {
  return std::make_unique<ForwardingUffd>(uffd);
}

}  // namespace postcopy
