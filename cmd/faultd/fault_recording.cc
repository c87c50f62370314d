#include "cmd/faultd/fault_recording.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "dirtytrack/clock.h"

namespace postcopy {

void FaultRecording::End() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ends_ = true;
  ending_.notify_all();
}

void FaultRecording::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ends_) {
    ending_.wait_for(lock, std::chrono::nanoseconds(kTraceDrainNanos),
                     [this] { return ends_; });
    lock.unlock();
    Drain(/*all=*/false);
    lock.lock();
  }
  lock.unlock();
  Drain(/*all=*/true);
  TellEnd();
}

void FaultRecording::TellEnd() const {
  if (!opened_.has_value()) return;
  std::string sentence = absl::StrCat("trace ", opened_->path, " has ",
                                      written_ - taken_back_, " faults");
  const uint64_t dropped = Dropped();
  if (dropped > 0) {
    absl::StrAppend(&sentence, "; there was no room for ", dropped, " more");
  }
  if (records_.lost_ends() > 0) {
    absl::StrAppend(&sentence, "; the times of ", records_.lost_ends(),
                    " are not known");
  }
  WriteTo(parts_.log, LogSeverity::kInfo, sentence);
}

void FaultRecording::Drain(bool all) {
  const int64_t now_ns = Clock::Monotonic()->NowNanos();
  // So many, and not as long as there are some: events are to be written too.
  for (size_t i = 0; i < kFaultRecordsMax; ++i) {
    const std::optional<FaultRecord> record = records_.Take();
    if (!record.has_value()) break;
    any_ = true;
    if (parts_.window.Full()) WriteReady(now_ns, /*all=*/false);
    parts_.window.Add(*record);
  }
  if (any_ || (parts_.wanted != nullptr && parts_.wanted->load())) Open();
  if (all || now_ns - wrote_ns_ >= kTraceWriteNanos) WriteReady(now_ns, all);
  // What was dropped is said in the file with the next events, or in the end.
  if (all) SayDropped();
  Count();
}

void FaultRecording::Open() {
  if (tried_) return;
  tried_ = true;
  absl::StatusOr<Opened> opened = parts_.open();
  if (opened.ok()) {
    opened_ = *std::move(opened);
    return;
  }
  parts_.totals->failures.fetch_add(1);
  WriteTo(parts_.log, LogSeverity::kWarning,
          absl::StrCat("the faults of this VM are not recorded: ",
                       opened.status().message()),
          {{kVmNameField, parts_.vm_name}});
}

void FaultRecording::Append(absl::Span<const TraceEvent> events) {
  absl::Status status;
  if (opened_.has_value() && !cut_short_) {
    status = opened_->file.Append(events, Dropped());
  }
  const bool there = opened_.has_value() && !cut_short_ && status.ok();
  (there ? written_ : unwritten_) += events.size();
  if (!status.ok()) CutShort(status);
}

void FaultRecording::SayDropped() {
  if (!cut_short_) return Append({});
  // What cannot be said ends the trace without its end, and the reader says so.
  taken_back_ += opened_->file.EndEarly(Dropped()).value_or(0);
}

void FaultRecording::WriteReady(int64_t now_ns, bool all) {
  wrote_ns_ = now_ns;
  while (true) {
    const auto events = parts_.window.Ready(now_ns, all);
    if (events.empty()) return;
    Open();
    Append(events);
    parts_.window.Pop(events.size());
  }
}

void FaultRecording::CutShort(const absl::Status& why) {
  cut_short_ = true;
  parts_.totals->failures.fetch_add(1);
  SayDropped();
  WriteTo(parts_.log, LogSeverity::kWarning,
          absl::StrCat("trace ", opened_->path,
                       " ends early, the VM goes on: ", why.message(),
                       "; make room in --trace_dir for the next one"));
}

uint64_t FaultRecording::Dropped() const {
  return records_.lost() + parts_.window.dropped() + unwritten_ + taken_back_;
}

void FaultRecording::Count() {
  const uint64_t dropped = Dropped();
  parts_.totals->events.fetch_add(written_ - counted_written_);
  parts_.totals->dropped.fetch_add(dropped - counted_dropped_);
  counted_written_ = written_;
  counted_dropped_ = dropped;
}

}  // namespace postcopy
