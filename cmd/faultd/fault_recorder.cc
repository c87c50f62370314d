#include "cmd/faultd/fault_recorder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cmd/faultd/fault_recording.h"
#include "cmd/faultd/trace_window.h"
#include "cmd/trace/trace.h"
#include "cmd/trace/trace_file.h"
#include "dirtytrack/start_thread.h"

namespace postcopy {
namespace {

constexpr char kSuffix[] = ".trace";
// VMs of one name in one second.
constexpr int kNamesTriedMax = 100;

absl::Status SystemError(const std::string& what, int error) {
  const std::string why = absl::StrCat(what, ": ", ::strerrordesc_np(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(why);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(why);
    default:
      return absl::InternalError(why);
  }
}

absl::Status Annotate(const std::string& directory,
                      const absl::Status& status) {
  return absl::Status(
      status.code(),
      absl::StrCat("--trace_dir=", directory, ": ", status.message(),
                   "; name a directory in which this daemon may write"));
}

}  // namespace

absl::Status CheckTraceEvents(size_t events) {
  if (events >= 1 && events <= kTraceEventsMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--trace_events_max must be 1 to ", kTraceEventsMax, ", not ", events));
}

std::string TraceStem(const std::string& vm_name) {
  std::string stem = vm_name.substr(0, kTraceNameBytesMax);
  for (char& c : stem) {
    if (!absl::ascii_isalnum(c) && c != '-' && c != '.') c = '_';
  }
  if (stem.empty() || stem[0] == '.') stem.insert(0, 1, '_');
  return stem;
}

absl::StatusOr<std::unique_ptr<FaultRecorder>> FaultRecorder::Create(
    Options options) {
  const std::string& path = options.directory;
  UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) {
    return Annotate(path, SystemError("cannot be opened", errno));
  }
  // As the file system sees it: access(2) knows nothing of its being read-only.
  UniqueFd probe(
      ::openat(directory.get(), ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
  if (!probe.valid() && errno != EOPNOTSUPP && errno != EISDIR) {
    return Annotate(path, SystemError("cannot be written to", errno));
  }
  return std::unique_ptr<FaultRecorder>(
      new FaultRecorder(std::move(options), std::move(directory)));
}

absl::Status FaultRecorder::CheckRoom() const {
  // Of its own, so that threads that look at once share no position.
  const int fd =
      ::openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* const listing = fd < 0 ? nullptr : ::fdopendir(fd);
  if (listing == nullptr) {
    const int error = errno;
    if (fd >= 0) ::close(fd);
    return SystemError("cannot be read", error);
  }
  size_t traces = 0;
  while (const dirent* entry = ::readdir(listing)) {
    if (absl::EndsWith(entry->d_name, kSuffix)) ++traces;
  }
  ::closedir(listing);
  if (traces < kTraceFilesMax) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("it has ", traces, " traces already: move or remove some"));
}

absl::StatusOr<std::pair<UniqueFd, std::string>> FaultRecorder::NewFile(
    const std::string& vm_name) const {
  const std::string stem = absl::StrCat(
      TraceStem(vm_name), "-",
      absl::FormatTime("%Y%m%dT%H%M%SZ", absl::Now(), absl::UTCTimeZone()));
  for (int i = 1; i <= kNamesTriedMax; ++i) {
    const std::string name =
        absl::StrCat(stem, i == 1 ? "" : absl::StrCat("-", i), kSuffix);
    UniqueFd fd(::openat(directory_.get(), name.c_str(),
                         O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                         0600));
    if (fd.valid()) return std::make_pair(std::move(fd), name);
    if (errno != EEXIST) return SystemError("a file cannot be made", errno);
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("too many VMs of one name in one second: ", stem));
}

absl::StatusOr<std::pair<TraceFile, std::string>> FaultRecorder::Open(
    const std::string& vm_name, PageCount pages) {
  const std::lock_guard<std::mutex> lock(open_mutex_);
  const absl::Status room = CheckRoom();
  if (!room.ok()) return room;
  auto made = NewFile(vm_name);
  if (!made.ok()) return made.status();
  const std::string& name = made->second;
  auto file = TraceFile::Begin(
      std::move(made->first), pages,
      absl::StrCat("faultd, VM ", TraceStem(vm_name), ", ",
                   absl::FormatTime(absl::RFC3339_sec, absl::Now(),
                                    absl::UTCTimeZone())));
  if (!file.ok()) {
    // So that nothing is left that tells of no fault.
    ::unlinkat(directory_.get(), name.c_str(), 0);
    return file.status();
  }
  return std::make_pair(*std::move(file),
                        absl::StrCat(options_.directory, "/", name));
}

absl::StatusOr<std::shared_ptr<FaultRecording>> FaultRecorder::Begin(
    const std::string& vm_name, PageCount pages,
    std::shared_ptr<const std::atomic<bool>> wanted) {
  if (pages.value() > kTracePagesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a trace is of at most ", kTracePagesMax,
                     " pages, this VM has ", pages.value()));
  }
  auto recording = std::make_shared<FaultRecording>(FaultRecording::Parts{
      .vm_name = vm_name,
      .open = [this, vm_name,
               pages]() -> absl::StatusOr<FaultRecording::Opened> {
        auto opened = Open(vm_name, pages);
        if (!opened.ok()) return Annotate(options_.directory, opened.status());
        return FaultRecording::Opened{std::move(opened->first),
                                      std::move(opened->second)};
      },
      .wanted = std::move(wanted),
      .window = TraceWindow(pages, options_.events_max),
      .totals = &totals_,
      .log = options_.log});
  JoinEnded();
  const std::lock_guard<std::mutex> lock(mutex_);
  const absl::Status started = StartLocked(recording);
  if (!started.ok()) return started;
  return recording;
}

absl::Status FaultRecorder::StartLocked(
    const std::shared_ptr<FaultRecording>& recording) {
  if (closed_) return absl::UnavailableError("this daemon is ending");
  if (running_.size() >= options_.recordings_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        running_.size(), " VMs are recorded, or their traces still written to ",
        options_.directory, ": is its disk too slow?"));
  }
  const uint64_t id = next_id_++;
  absl::StatusOr<std::thread> thread = StartThread([this, id, recording] {
    recording->Run();
    Ended(id);
  });
  if (!thread.ok()) return thread.status();
  running_[id] = {recording, *std::move(thread)};
  return absl::OkStatus();
}

void FaultRecorder::Ended(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ended_.push_back(std::move(running_.extract(id).mapped().thread));
  if (running_.empty()) none_running_.notify_all();
}

void FaultRecorder::JoinEnded() {
  std::vector<std::thread> ended;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended.swap(ended_);
  }
  for (std::thread& thread : ended) thread.join();
}

void FaultRecorder::Shutdown() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    closed_ = true;
    for (const auto& [id, running] : running_) running.recording->End();
    none_running_.wait(lock, [this] { return running_.empty(); });
  }
  JoinEnded();
}

std::shared_ptr<FaultRecords> FaultRecorder::Record(
    const std::string& vm_name, PageCount pages,
    std::shared_ptr<const std::atomic<bool>> wanted) {
  totals_.recordings.fetch_add(1);
  auto begun = Begin(vm_name, pages, std::move(wanted));
  if (begun.ok()) {
    return {&(*begun)->records(),
            [recording = *begun](FaultRecords*) { recording->End(); }};
  }
  totals_.failures.fetch_add(1);
  WriteTo(options_.log, LogSeverity::kWarning,
          absl::StrCat("the faults of this VM are not recorded: ",
                       begun.status().message()),
          {{kVmNameField, vm_name}});
  return nullptr;
}

void FaultRecorder::AddMetrics(MetricFamilies& families) const {
  families.Counter("postcopy_traces_total",
                   "VMs whose faults were to be recorded.",
                   static_cast<double>(totals_.recordings.load()));
  families.Counter("postcopy_trace_failures_total",
                   "Of these, traces not begun, or ended early.",
                   static_cast<double>(totals_.failures.load()));
  families.Counter("postcopy_trace_faults_total", "Faults written into traces.",
                   static_cast<double>(totals_.events.load()));
  families.Counter("postcopy_trace_faults_dropped_total",
                   "Faults for which a trace had no room.",
                   static_cast<double>(totals_.dropped.load()));
}

}  // namespace postcopy
