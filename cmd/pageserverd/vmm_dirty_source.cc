#include "cmd/pageserverd/vmm_dirty_source.h"

#include <fcntl.h>

#include <utility>

#include "dirtytrack/dirty_log.h"
#include "dirtytrack/slot_table.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {

absl::StatusOr<std::unique_ptr<VmmDirtySource>> VmmDirtySource::Create(
    const std::shared_ptr<VmmConnection>& vmm) {
  const Attachment& attachment = vmm->attachment();
  absl::StatusOr<UniqueFd> fd = Duplicate(attachment.dirty_log.get());
  if (!fd.ok()) return fd.status();
  absl::StatusOr<DirtyLogSet> log =
      DirtyLogSet::Open(*std::move(fd), LogSlotsOf(attachment.slots));
  if (!log.ok()) return log.status();
  const WeakVmm weak(vmm);
  absl::StatusOr<std::unique_ptr<SharedLogSource>> source =
      SharedLogSource::Create(
          attachment.layout, attachment.slots, *std::move(log),
          [weak] { return weak.Call(&VmmConnection::SyncDirtyLog); });
  if (!source.ok()) return source.status();
  return std::unique_ptr<VmmDirtySource>(
      new VmmDirtySource(weak, *std::move(source)));
}

absl::Status VmmDirtySource::Start() {
  if (absl::Status s = log_->Start(); !s.ok()) return s;
  absl::Status status = vmm_.Call(&VmmConnection::StartDirtyLogging);
  started_ = status.ok();
  if (!started_) log_->Stop().IgnoreError();
  return status;
}

absl::StatusOr<PageCount> VmmDirtySource::Collect(PageBitmapView into) {
  return log_->Collect(into);
}

absl::Status VmmDirtySource::Clear(PageBitmapView pages, PageRun run) {
  return log_->Clear(pages, run);
}

absl::Status VmmDirtySource::Restore(PageBitmapView unsent) {
  return log_->Restore(unsent);
}

absl::Status VmmDirtySource::Stop() {
  if (!started_) return absl::OkStatus();
  started_ = false;
  const absl::Status stopped = vmm_.Call(&VmmConnection::StopDirtyLogging);
  const absl::Status closed = log_->Stop();
  return stopped.ok() ? closed : stopped;
}

}  // namespace postcopy
