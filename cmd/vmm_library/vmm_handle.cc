#include "cmd/vmm_library/vmm_handle.h"

#include <fcntl.h>
#include <string.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/vmm_channel/attachment.h"
#include "cmd/vmm_channel/device_state.h"
#include "cmd/vmm_library/private_memory.h"
#include "cmd/vmm_library/versioned_struct.h"
#include "dirtytrack/slot_table.h"
#include "dirtytrack/userfaultfd.h"

using postcopy::AttachMeans;
using postcopy::ByteCount;
using postcopy::CopyVersioned;
using postcopy::GuestToAttach;
using postcopy::HostAddress;
using postcopy::RamLayout;
using postcopy::RamOffset;
using postcopy::Region;
using postcopy::RegionToAttach;
using postcopy::Slot;
using postcopy::VmmRole;

namespace {

// What the structs had in version 1 of the header. Never changed.
constexpr size_t kRegionBytesV1 = 48;
constexpr size_t kSlotBytesV1 = 40;
constexpr size_t kOptionsBytesV1 = 56;
constexpr size_t kCallbacksBytesV1 = 80;
static_assert(sizeof(postcopy_vmm_region) == kRegionBytesV1);
static_assert(sizeof(postcopy_vmm_slot) == kSlotBytesV1);
static_assert(sizeof(postcopy_vmm_options) == kOptionsBytesV1);
static_assert(sizeof(postcopy_vmm_callbacks) == kCallbacksBytesV1);

static_assert(POSTCOPY_VMM_PAGE_BYTES == postcopy::kPageSize);
static_assert(POSTCOPY_VMM_HUGE_PAGE_BYTES == postcopy::kHugePageSize.value());
static_assert(POSTCOPY_VMM_REGIONS_MAX == postcopy::kMaxRegions);
static_assert(POSTCOPY_VMM_SLOTS_MAX == postcopy::kMaxSlots);
static_assert(POSTCOPY_VMM_NAME_BYTES_MAX == postcopy::kMaxNameBytes);
static_assert(POSTCOPY_VMM_MARKERS_MAX == postcopy::kMaxDirtyLogWriters);
static_assert(POSTCOPY_VMM_DEVICE_STATE_BYTES_MAX ==
              postcopy::kMaxDeviceStateBytes);

constexpr char kNoMemory[] = "there is no memory";
constexpr char kThrown[] = "a C++ exception was thrown; see the callbacks";

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status CheckIsOpen(int fd, absl::string_view what) {
  if (::fcntl(fd, F_GETFD) >= 0) return absl::OkStatus();
  return Invalid(what, " is ", fd, ", which is no open descriptor");
}

absl::Status CheckIsZero(uint64_t value, absl::string_view what) {
  if (value == 0) return absl::OkStatus();
  return Invalid(what, " is 0x", absl::Hex(value),
                 ", which means nothing to this libpostcopy_vmm: leave it 0");
}

// What can be told before the rest of the guest is known.
absl::Status CheckRegion(const postcopy_vmm_region& region) {
  constexpr uint32_t kKnown =
      POSTCOPY_VMM_REGION_PRIVATE | POSTCOPY_VMM_REGION_HUGE_PAGES;
  absl::Status known =
      CheckIsZero(region.flags & ~kKnown, "postcopy_vmm_region.flags");
  if (!known.ok()) return known;
  if ((region.flags & POSTCOPY_VMM_REGION_PRIVATE) == 0) {
    return CheckIsOpen(region.memory_fd, "postcopy_vmm_region.memory_fd");
  }
  if (region.memory_fd != -1 || region.memory_offset != 0 ||
      region.address == nullptr) {
    return Invalid(
        "a private postcopy_vmm_region has an address, memory_fd -1 ",
        "and memory_offset 0");
  }
  return absl::OkStatus();
}

absl::Status CheckSourceOptions(const postcopy_vmm_options& options) {
  if (options.dirty_tracking != POSTCOPY_VMM_DIRTY_LOG &&
      options.dirty_tracking != POSTCOPY_VMM_DIRTY_PAGEMAP) {
    return Invalid("postcopy_vmm_options.dirty_tracking is ",
                   options.dirty_tracking, "; a source chooses ",
                   "POSTCOPY_VMM_DIRTY_LOG or POSTCOPY_VMM_DIRTY_PAGEMAP");
  }
  if (options.userfaultfd_features != 0) {
    return Invalid("postcopy_vmm_options.userfaultfd_features is for a ",
                   "destination; leave it 0 at a source");
  }
  return absl::OkStatus();
}

absl::Status CheckRole(const postcopy_vmm_options& options) {
  switch (options.role) {
    case POSTCOPY_VMM_SOURCE:
      return CheckSourceOptions(options);
    case POSTCOPY_VMM_DESTINATION:
      return CheckIsZero(options.dirty_tracking,
                         "a destination's postcopy_vmm_options.dirty_tracking");
    default:
      return Invalid("postcopy_vmm_options.role is ", options.role,
                     "; it must be POSTCOPY_VMM_SOURCE or ",
                     "POSTCOPY_VMM_DESTINATION");
  }
}

absl::Status CheckOptions(const postcopy_vmm_options& options) {
  if (options.socket_path == nullptr || options.vm_name == nullptr) {
    return Invalid("postcopy_vmm_options needs a socket_path and a vm_name");
  }
  if (absl::Status s = CheckRole(options); !s.ok()) return s;
  absl::Status flags = CheckIsZero(options.flags, "postcopy_vmm_options.flags");
  if (!flags.ok()) return flags;
  return CheckIsZero(options.reserved, "postcopy_vmm_options.reserved");
}

absl::Status CheckCallbacks(const postcopy_vmm_callbacks& callbacks,
                            uint32_t role) {
  if (role == POSTCOPY_VMM_SOURCE && (callbacks.pause_guest == nullptr ||
                                      callbacks.save_device_state == nullptr ||
                                      callbacks.resume_guest == nullptr)) {
    return Invalid("a source needs the callbacks pause_guest, ",
                   "save_device_state and resume_guest");
  }
  if (role == POSTCOPY_VMM_DESTINATION &&
      (callbacks.load_device_state == nullptr ||
       callbacks.resume_guest == nullptr)) {
    return Invalid("a destination needs the callbacks load_device_state and ",
                   "resume_guest");
  }
  return absl::OkStatus();
}

absl::StatusOr<RamLayout> LayoutOf(absl::Span<const RegionToAttach> regions) {
  std::vector<Region> result;
  uint64_t start = 0;
  for (const RegionToAttach& region : regions) {
    result.push_back(
        {region.name, RamOffset(start), region.length, region.page_size});
    // May wrap: such a layout is refused, with a better message.
    start += region.length.value();
  }
  return RamLayout::Create(std::move(result),
                           postcopy::RegionPages::kSmallOrHuge);
}

// A slot for each region.
std::vector<Slot> SlotsOf(const RamLayout& layout) {
  std::vector<Slot> slots;
  for (const Region& region : layout.regions()) {
    slots.push_back({{0, static_cast<uint16_t>(slots.size())},
                     region.start.value(),
                     region.start,
                     region.length});
  }
  return slots;
}

bool IsPrivate(const RegionToAttach& region) { return region.memory_fd < 0; }

std::vector<HostAddress> AddressesOf(absl::Span<const RegionToAttach> regions) {
  std::vector<HostAddress> addresses;
  for (const RegionToAttach& region : regions) {
    addresses.push_back(region.host_address);
  }
  return addresses;
}

absl::StatusCode ToStatusCode(int code) {
  return code > POSTCOPY_VMM_OK && code <= POSTCOPY_VMM_UNAUTHENTICATED
             ? static_cast<absl::StatusCode>(code)
             : absl::StatusCode::kUnknown;
}

// Puts a value back at the end of its life, on every way out.
template <typename T>
class Restored {
 public:
  Restored(T& place, T now) : place_(place), before_(place) { place_ = now; }
  ~Restored() { place_ = before_; }
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;

 private:
  T& place_;
  const T before_;
};

}  // namespace

// --- Calls -------------------------------------------------------------------

int postcopy_vmm::Report(absl::FunctionRef<absl::Status()> call) {
  try {
    const absl::Status status = call();
    message_text_ = std::string(status.message());
    message_ = message_text_.c_str();
    return static_cast<int>(status.code());
  } catch (const std::bad_alloc&) {
    message_ = kNoMemory;
    return POSTCOPY_VMM_RESOURCE_EXHAUSTED;
  } catch (...) {
    message_ = kThrown;
    return POSTCOPY_VMM_INTERNAL;
  }
}

int postcopy_vmm::InTurn(absl::FunctionRef<absl::Status()> call) {
  if (busy_.exchange(true, std::memory_order_acquire)) {
    return POSTCOPY_VMM_FAILED_PRECONDITION;
  }
  const int code = Report(call);
  busy_.store(false, std::memory_order_release);
  return code;
}

int postcopy_vmm::AddRegion(const postcopy_vmm_region* region) {
  return InTurn([&] { return AddRegionNow(region); });
}

int postcopy_vmm::AddSlot(const postcopy_vmm_slot* slot) {
  return InTurn([&] { return AddSlotNow(slot); });
}

int postcopy_vmm::Attach(const postcopy_vmm_options* options,
                         const postcopy_vmm_callbacks* callbacks) {
  return InTurn([&] { return AttachNow(options, callbacks); });
}

int postcopy_vmm::Process() {
  return Serve([this] { return client_->ServeReady(*this); });
}

int postcopy_vmm::Run() {
  return Serve([this] {
    const absl::Status end = client_->Serve(*this);
    return end.ok() ? absl::UnavailableError("the daemon closed the connection")
                    : end;
  });
}

int postcopy_vmm::Serve(absl::FunctionRef<absl::Status()> serve) {
  if (attached_.load(std::memory_order_acquire) == nullptr) {
    return InTurn([] {
      return absl::FailedPreconditionError(
          "the guest is not attached: call postcopy_vmm_attach first");
    });
  }
  if (busy_.exchange(true, std::memory_order_acquire)) {
    return POSTCOPY_VMM_FAILED_PRECONDITION;
  }
  if (end_code_ == POSTCOPY_VMM_OK) {
    const int code = Report([&] {
      absl::Status status = serve();
      if (status.ok() || !stopping_.load()) return status;
      return absl::CancelledError("postcopy_vmm_stop was called");
    });
    if (code != POSTCOPY_VMM_OK) End(code);
  }
  message_ = end_message_;
  const int code = end_code_;
  busy_.store(false, std::memory_order_release);
  return code;
}

void postcopy_vmm::End(int code) {
  end_code_ = code;
  // An exception has left it open.
  client_->Shutdown();
  // Without a copy, for which there may be no memory.
  const bool is_text = message_ == message_text_.c_str();
  end_text_.swap(message_text_);
  end_message_ = is_text ? end_text_.c_str() : message_;
}

void postcopy_vmm::Stop() {
  // Signal handlers must leave it as it was.
  const int error = errno;
  stopping_.store(true);
  // Whichever of this and Attach comes second sees what the first one stored.
  if (postcopy::VmmClient* client = attached_.load()) client->Shutdown();
  errno = error;
}

int postcopy_vmm::fd() const {
  const postcopy::VmmClient* client = attached_.load(std::memory_order_acquire);
  return client == nullptr ? -1 : client->fd();
}

int postcopy_vmm::Free(postcopy_vmm* vmm) {
  if (vmm->busy_.exchange(true, std::memory_order_acquire)) {
    return POSTCOPY_VMM_FAILED_PRECONDITION;
  }
  if (vmm->pages_may_be_missing_) vmm->means_.userfaultfd.Release();
  delete vmm;
  return POSTCOPY_VMM_OK;
}

int postcopy_vmm::DiscardGuest() {
  return InTurn([this] {
    pages_may_be_missing_ = false;
    means_.userfaultfd.Reset();
    return absl::OkStatus();
  });
}

int postcopy_vmm::NewMarker(postcopy_vmm_marker** marker) const {
  if (marker == nullptr) return POSTCOPY_VMM_INVALID_ARGUMENT;
  *marker = nullptr;
  if (attached_.load(std::memory_order_acquire) == nullptr ||
      !means_.dirty_log.has_value()) {
    return POSTCOPY_VMM_FAILED_PRECONDITION;
  }
  try {
    auto writer = means_.dirty_log->NewWriter();
    if (!writer.ok()) return static_cast<int>(writer.status().code());
    *marker = new postcopy_vmm_marker{*std::move(writer), means_.addresses};
    return POSTCOPY_VMM_OK;
  } catch (const std::exception&) {
    return POSTCOPY_VMM_RESOURCE_EXHAUSTED;
  }
}

// --- Attaching ---------------------------------------------------------------

absl::Status postcopy_vmm::RequireNew() const {
  if (attached_.load() == nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the guest was attached with this handle; make a new one");
}

absl::Status postcopy_vmm::AddRegionNow(const postcopy_vmm_region* region) {
  if (absl::Status s = RequireNew(); !s.ok()) return s;
  auto copy = CopyVersioned(region, kRegionBytesV1, "postcopy_vmm_region");
  if (!copy.ok()) return copy.status();
  if (regions_.size() == POSTCOPY_VMM_REGIONS_MAX) {
    return Invalid("a guest has at most ", POSTCOPY_VMM_REGIONS_MAX,
                   " regions; lay some together");
  }
  if (copy->name == nullptr) {
    return Invalid("postcopy_vmm_region.name is null");
  }
  if (absl::Status s = CheckRegion(*copy); !s.ok()) return s;
  const bool huge = (copy->flags & POSTCOPY_VMM_REGION_HUGE_PAGES) != 0;
  regions_.push_back(
      {.name = copy->name,
       .length = ByteCount(copy->length),
       .memory_fd = copy->memory_fd,
       .fd_offset = copy->memory_offset,
       .host_address = HostAddress(reinterpret_cast<uintptr_t>(copy->address)),
       .page_size =
           huge ? postcopy::kHugePageSize : ByteCount(postcopy::kPageSize)});
  return absl::OkStatus();
}

absl::Status postcopy_vmm::AddSlotNow(const postcopy_vmm_slot* slot) {
  if (absl::Status s = RequireNew(); !s.ok()) return s;
  auto copy = CopyVersioned(slot, kSlotBytesV1, "postcopy_vmm_slot");
  if (!copy.ok()) return copy.status();
  if (slots_.size() == POSTCOPY_VMM_SLOTS_MAX) {
    return Invalid("a guest has at most ", POSTCOPY_VMM_SLOTS_MAX, " slots");
  }
  absl::Status checked = CheckIsZero(copy->flags, "postcopy_vmm_slot.flags");
  if (!checked.ok()) return checked;
  slots_.push_back({{copy->address_space, copy->slot},
                    copy->guest_physical_address,
                    RamOffset(copy->ram_offset),
                    ByteCount(copy->length)});
  return absl::OkStatus();
}

absl::Status postcopy_vmm::PrepareDirtyLog(GuestToAttach& guest,
                                           AttachMeans& means) const {
  absl::StatusOr<RamLayout> layout = LayoutOf(guest.regions);
  if (!layout.ok()) return layout.status();
  if (guest.slots.empty()) guest.slots = SlotsOf(*layout);
  absl::Status checked = postcopy::CheckSlots(*layout, guest.slots);
  if (!checked.ok()) return checked;
  auto cover = postcopy::CoverRam(*layout, guest.slots);
  if (!cover.ok()) return cover.status();
  auto log = postcopy::DirtyLogSet::Create(postcopy::LogSlotsOf(guest.slots));
  if (!log.ok()) return log.status();
  means.addresses = std::make_shared<postcopy::AddressTable>(
      *layout, AddressesOf(guest.regions), *cover);
  means.dirty_log.emplace(*std::move(log));
  guest.dirty_log_fd = means.dirty_log->fd();
  return absl::OkStatus();
}

absl::Status postcopy_vmm::PreparePagemap(GuestToAttach& guest,
                                          AttachMeans& means) const {
  std::vector<postcopy::HostRange> ranges;
  for (const RegionToAttach& region : guest.regions) {
    if (region.host_address.value() == 0) {
      return Invalid("the address of region ", region.name, " is null; ",
                     "POSTCOPY_VMM_DIRTY_PAGEMAP needs it");
    }
    ranges.push_back({region.host_address, region.length});
  }
  auto tracking = postcopy::WriteTracking::Create(ranges);
  if (!tracking.ok()) return tracking.status();
  means.write_tracking.emplace(*std::move(tracking));
  means.pagemap = means.write_tracking->TakePagemap();
  guest.pagemap_fd = means.pagemap.get();
  return absl::OkStatus();
}

absl::Status postcopy_vmm::PreparePrivateSource(GuestToAttach& guest,
                                                AttachMeans& means) const {
  if (std::none_of(regions_.begin(), regions_.end(), IsPrivate)) {
    return absl::OkStatus();
  }
  means.process_memory =
      postcopy::UniqueFd(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
  if (!means.process_memory.valid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("/proc/self/mem, by which the daemon is to read private "
                     "regions, cannot "
                     "be opened: ",
                     ::strerrordesc_np(errno)));
  }
  guest.process_memory_fd = means.process_memory.get();
  return absl::OkStatus();
}

absl::Status postcopy_vmm::PrepareDestination(
    const postcopy_vmm_options& options, GuestToAttach& guest,
    AttachMeans& means) const {
  guest.role = VmmRole::kDestination;
  auto uffd = postcopy::CreateUserfaultfd(options.userfaultfd_features);
  if (!uffd.ok()) return uffd.status();
  means.userfaultfd = std::move(uffd->fd);
  guest.userfaultfd = means.userfaultfd.get();
  for (const RegionToAttach& region : guest.regions) {
    if (!IsPrivate(region)) continue;
    absl::Status emptied = postcopy::EmptyPrivateMemory(
        guest.userfaultfd, region.name, region.host_address, region.length);
    if (!emptied.ok()) return emptied;
  }
  return absl::OkStatus();
}

absl::Status postcopy_vmm::Prepare(const postcopy_vmm_options& options,
                                   GuestToAttach& guest,
                                   AttachMeans& means) const {
  guest.regions = regions_;
  guest.slots = slots_;
  if (options.role == POSTCOPY_VMM_DESTINATION) {
    return PrepareDestination(options, guest, means);
  }
  guest.role = VmmRole::kSource;
  if (absl::Status s = PreparePrivateSource(guest, means); !s.ok()) return s;
  return options.dirty_tracking == POSTCOPY_VMM_DIRTY_LOG
             ? PrepareDirtyLog(guest, means)
             : PreparePagemap(guest, means);
}

absl::Status postcopy_vmm::AttachNow(const postcopy_vmm_options* options,
                                     const postcopy_vmm_callbacks* callbacks) {
  if (absl::Status s = RequireNew(); !s.ok()) return s;
  auto how = CopyVersioned(options, kOptionsBytesV1, "postcopy_vmm_options");
  if (!how.ok()) return how.status();
  auto answers =
      CopyVersioned(callbacks, kCallbacksBytesV1, "postcopy_vmm_callbacks");
  if (!answers.ok()) return answers.status();
  absl::Status checked = CheckOptions(*how);
  if (checked.ok()) checked = CheckCallbacks(*answers, how->role);
  if (!checked.ok()) return checked;

  GuestToAttach guest{.vm_name = how->vm_name};
  AttachMeans means;
  if (absl::Status s = Prepare(*how, guest, means); !s.ok()) return s;
  auto client = postcopy::VmmClient::Attach(
      how->socket_path, guest,
      absl::Milliseconds(how->timeout_ms == 0 ? POSTCOPY_VMM_TIMEOUT_DEFAULT_MS
                                              : how->timeout_ms));
  if (!client.ok()) return client.status();

  role_ = how->role;
  place_ = role_ == POSTCOPY_VMM_SOURCE ? POSTCOPY_VMM_GUEST_HERE
                                        : POSTCOPY_VMM_GUEST_ELSEWHERE;
  callbacks_ = *answers;
  means_ = std::move(means);
  client_ = *std::move(client);
  attached_.store(client_.get());
  if (stopping_.load()) client_->Shutdown();
  return absl::OkStatus();
}

// --- What the daemon asks ----------------------------------------------------

absl::Status postcopy_vmm::Ask(absl::string_view name, Asking asking,
                               absl::FunctionRef<int()> callback) {
  if (stopping_.load()) {
    return absl::CancelledError("the VMM is detaching the guest");
  }
  explanation_.clear();
  int code;
  {
    const Restored<Asking> scope(asking_, asking);
    code = callback();
  }
  if (code == POSTCOPY_VMM_OK) return absl::OkStatus();
  return absl::Status(
      ToStatusCode(code),
      explanation_.empty()
          ? absl::StrCat("the VMM's ", name, " failed and does not say why")
          : explanation_);
}

absl::Status postcopy_vmm::AskSimply(absl::string_view name,
                                     int (*callback)(void*, postcopy_vmm*)) {
  if (callback == nullptr) return absl::OkStatus();
  return Ask(name, Asking::kSomething,
             [&] { return callback(callbacks_.context, this); });
}

int postcopy_vmm::Explain(const char* sentence) {
  if (asking_ == Asking::kNothing) return POSTCOPY_VMM_FAILED_PRECONDITION;
  if (sentence == nullptr) return POSTCOPY_VMM_INVALID_ARGUMENT;
  try {
    explanation_.assign(
        sentence, ::strnlen(sentence, POSTCOPY_VMM_EXPLANATION_BYTES_MAX));
    return POSTCOPY_VMM_OK;
  } catch (const std::bad_alloc&) {
    return POSTCOPY_VMM_RESOURCE_EXHAUSTED;
  }
}

int postcopy_vmm::AppendDeviceState(const void* bytes, size_t length) {
  if (asking_ != Asking::kDeviceState) return POSTCOPY_VMM_FAILED_PRECONDITION;
  const auto fail = [this](int code, const char* why) {
    device_state_error_ = absl::Status(ToStatusCode(code), why);
    return code;
  };
  try {
    if (bytes == nullptr && length > 0) {
      return fail(POSTCOPY_VMM_INVALID_ARGUMENT,
                  "the VMM gave a null pointer for device state");
    }
    if (length > postcopy::kMaxDeviceStateBytes - device_state_.size()) {
      return fail(POSTCOPY_VMM_INVALID_ARGUMENT,
                  "the device state has more than 64 MiB");
    }
    if (length > 0) {
      device_state_.append(static_cast<const char*>(bytes), length);
    }
    return POSTCOPY_VMM_OK;
  } catch (const std::bad_alloc&) {
    return fail(POSTCOPY_VMM_RESOURCE_EXHAUSTED, kNoMemory);
  }
}

absl::Status postcopy_vmm::RequireGuest() const {
  if (role_ != POSTCOPY_VMM_SOURCE || place_ != POSTCOPY_VMM_GUEST_ELSEWHERE) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "the guest has been handed over: what is left here must not run");
}

absl::Status postcopy_vmm::StartDirtyLogging() {
  return AskSimply("start_dirty_logging", callbacks_.start_dirty_logging);
}

absl::Status postcopy_vmm::SyncDirtyLog() {
  return AskSimply("sync_dirty_log", callbacks_.sync_dirty_log);
}

absl::Status postcopy_vmm::StopDirtyLogging() {
  return AskSimply("stop_dirty_logging", callbacks_.stop_dirty_logging);
}

absl::Status postcopy_vmm::PauseGuest() {
  if (role_ != POSTCOPY_VMM_SOURCE) return VmmHandler::PauseGuest();
  if (absl::Status s = RequireGuest(); !s.ok()) return s;
  return AskSimply("pause_guest", callbacks_.pause_guest);
}

absl::StatusOr<std::string> postcopy_vmm::SaveDeviceState() {
  if (role_ != POSTCOPY_VMM_SOURCE) return VmmHandler::SaveDeviceState();
  if (absl::Status s = RequireGuest(); !s.ok()) return s;
  device_state_.clear();
  device_state_error_ = absl::OkStatus();
  absl::Status saved = Ask("save_device_state", Asking::kDeviceState, [this] {
    return callbacks_.save_device_state(callbacks_.context, this);
  });
  std::string state = std::exchange(device_state_, std::string());
  if (saved.ok()) saved = device_state_error_;
  if (!saved.ok()) return saved;
  // The answer may arrive, and then the guest may run elsewhere.
  place_ = POSTCOPY_VMM_GUEST_UNKNOWN;
  return state;
}

absl::Status postcopy_vmm::LoadDeviceState(absl::string_view state) {
  if (role_ != POSTCOPY_VMM_DESTINATION) {
    return VmmHandler::LoadDeviceState(state);
  }
  // Before the callback: the guest is this host's now, whatever becomes of it.
  place_ = POSTCOPY_VMM_GUEST_HERE;
  pages_may_be_missing_ = true;
  return Ask("load_device_state", Asking::kSomething, [&] {
    return callbacks_.load_device_state(callbacks_.context, this, state.data(),
                                        state.size());
  });
}

absl::Status postcopy_vmm::ResumeGuest() {
  if (absl::Status s = RequireGuest(); !s.ok()) return s;
  absl::Status resumed = AskSimply("resume_guest", callbacks_.resume_guest);
  if (resumed.ok()) place_ = POSTCOPY_VMM_GUEST_HERE;
  return resumed;
}

void postcopy_vmm::MigrationEnded(bool completed) {
  if (role_ == POSTCOPY_VMM_SOURCE) {
    place_ = completed ? POSTCOPY_VMM_GUEST_ELSEWHERE : POSTCOPY_VMM_GUEST_HERE;
  }
  if (completed) pages_may_be_missing_ = false;
  if (callbacks_.migration_ended == nullptr) return;
  Ask("migration_ended", Asking::kSomething, [&] {
    callbacks_.migration_ended(callbacks_.context, this, completed ? 1 : 0);
    return static_cast<int>(POSTCOPY_VMM_OK);
  }).IgnoreError();
}
