// What a handle of postcopy_vmm.h is made of.
#ifndef CMD_VMM_LIBRARY_VMM_HANDLE_H_
#define CMD_VMM_LIBRARY_VMM_HANDLE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cmd/vmm_channel/vmm_client.h"
#include "cmd/vmm_library/address_table.h"
#include "cmd/vmm_library/postcopy_vmm.h"
#include "dirtytrack/dirty_log.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/unique_fd.h"
#include "dirtytrack/write_tracking.h"

namespace postcopy {

// What a guest is attached with, made anew for each attempt.
struct AttachMeans {
  // Source with a dirty log.
  std::optional<DirtyLogSet> dirty_log{};
  std::shared_ptr<const AddressTable> addresses{};
  // Source without.
  std::optional<WriteTracking> write_tracking{};
  UniqueFd pagemap{};
  // Source with private regions.
  UniqueFd process_memory{};
  // Destination.
  UniqueFd userfaultfd{};
};

}  // namespace postcopy

// The methods are the functions of postcopy_vmm.h of like names; see there for
// what they do, their errors and threads. None lets an exception out.
// NOLINTNEXTLINE(readability-identifier-naming): as C knows it
struct postcopy_vmm final : private postcopy::VmmHandler {
 public:
  int AddRegion(const postcopy_vmm_region* region);
  int AddSlot(const postcopy_vmm_slot* slot);
  int Attach(const postcopy_vmm_options* options,
             const postcopy_vmm_callbacks* callbacks);
  int fd() const;
  int Process();
  int Run();
  void Stop();
  int guest_place() const { return place_; }
  int Explain(const char* sentence);
  int AppendDeviceState(const void* bytes, size_t length);
  int DiscardGuest();
  int NewMarker(postcopy_vmm_marker** marker) const;
  const char* message() const { return message_; }
  // Deletes `vmm`, unless a call is running.
  static int Free(postcopy_vmm* vmm);

 private:
  // What the VMM is being asked for, if anything.
  enum class Asking { kNothing, kSomething, kDeviceState };

  // Runs `call`, unless another call is running, and keeps its message.
  int InTurn(absl::FunctionRef<absl::Status()> call);
  // The same without regard to turns.
  int Report(absl::FunctionRef<absl::Status()> call);

  absl::Status AddRegionNow(const postcopy_vmm_region* region);
  absl::Status AddSlotNow(const postcopy_vmm_slot* slot);
  absl::Status AttachNow(const postcopy_vmm_options* options,
                         const postcopy_vmm_callbacks* callbacks);
  absl::Status RequireNew() const;
  absl::Status PrepareDirtyLog(postcopy::GuestToAttach& guest,
                               postcopy::AttachMeans& means) const;
  absl::Status PreparePagemap(postcopy::GuestToAttach& guest,
                              postcopy::AttachMeans& means) const;
  absl::Status PreparePrivateSource(postcopy::GuestToAttach& guest,
                                    postcopy::AttachMeans& means) const;
  absl::Status PrepareDestination(const postcopy_vmm_options& options,
                                  postcopy::GuestToAttach& guest,
                                  postcopy::AttachMeans& means) const;
  absl::Status Prepare(const postcopy_vmm_options& options,
                       postcopy::GuestToAttach& guest,
                       postcopy::AttachMeans& means) const;
  // Process and Run: `serve` until it fails, but only while the connection has
  // not ended.
  int Serve(absl::FunctionRef<absl::Status()> serve);
  // Ends the connection, if it has not ended, and remembers that `code` and the
  // message say why.
  void End(int code);

  // Calls `callback`, which is called `name` in the header, as `asking`.
  absl::Status Ask(absl::string_view name, Asking asking,
                   absl::FunctionRef<int()> callback);
  // The same for a callback without arguments, if it is not null.
  absl::Status AskSimply(absl::string_view name,
                         int (*callback)(void*, postcopy_vmm*));
  // FAILED_PRECONDITION if the guest is another host's.
  absl::Status RequireGuest() const;

  absl::Status StartDirtyLogging() override;
  absl::Status SyncDirtyLog() override;
  absl::Status StopDirtyLogging() override;
  absl::Status PauseGuest() override;
  absl::StatusOr<std::string> SaveDeviceState() override;
  absl::Status LoadDeviceState(absl::string_view state) override;
  absl::Status ResumeGuest() override;
  void MigrationEnded(bool completed) override;

  // A call is running.
  std::atomic<bool> busy_{false};
  std::atomic<bool> stopping_{false};
  // Of client_; null until the guest is attached.
  std::atomic<postcopy::VmmClient*> attached_{nullptr};

  // Constant once attached.
  std::vector<postcopy::RegionToAttach> regions_;
  std::vector<postcopy::Slot> slots_;
  uint32_t role_ = 0;
  postcopy_vmm_callbacks callbacks_{};
  postcopy::AttachMeans means_;
  std::unique_ptr<postcopy::VmmClient> client_;

  // Of the thread that uses the handle.
  const char* message_ = "";
  std::string message_text_;
  int place_ = POSTCOPY_VMM_GUEST_HERE;
  // What process and run say when the connection has ended; OK before.
  int end_code_ = POSTCOPY_VMM_OK;
  const char* end_message_ = "";
  std::string end_text_;
  // Destination: the guest may have run and miss pages.
  bool pages_may_be_missing_ = false;
  // Of the callback that is running.
  Asking asking_ = Asking::kNothing;
  std::string explanation_;
  std::string device_state_;
  absl::Status device_state_error_;
};

// A writer of the dirty log, and where addresses are in it.
// NOLINTNEXTLINE(readability-identifier-naming): as C knows it
struct postcopy_vmm_marker {
  postcopy::DirtyLogWriter writer;
  std::shared_ptr<const postcopy::AddressTable> addresses;
  // Of `addresses`: where was marked last.
  const postcopy::AddressTable::Part* last = nullptr;
};

#endif  // CMD_VMM_LIBRARY_VMM_HANDLE_H_
