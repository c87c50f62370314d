#include "cmd/faultreplay/program_recording.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cmd/faultreplay/emptying_answers.h"
#include "cmd/faultreplay/process_memory.h"
#include "cmd/faultreplay/recording_faultd.h"
#include "cmd/faultreplay/traced_process.h"
#include "cmd/trace/trace_check.h"
#include "cmd/trace/trace_codec.h"
#include "dirtytrack/ram_layout.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr char kDevice[] = "/dev/userfaultfd";
constexpr absl::Duration kLook = absl::Milliseconds(5);
// What the program does with its memory that faultd has to know of.
constexpr uint64_t kFeatures =
    UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
    UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_THREAD_ID;

absl::Status SystemError(const std::string& what, int error) {
  const std::string text = absl::StrCat(what, ": ", ::strerrordesc_np(error));
  if (error == EPERM || error == EACCES) {
    return absl::PermissionDeniedError(
        absl::StrCat(text, "; the program must be permitted to use ", kDevice,
                     " or userfaultfd(2), and we to take its descriptors"));
  }
  return absl::InternalError(text);
}

// Of a file that is removed with everything in its directory.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const char* const base = ::getenv("TMPDIR");
    path_ = absl::StrCat(base == nullptr || *base == '\0' ? "/tmp" : base,
                         "/faultreplay-XXXXXX");
    if (::mkdtemp(path_.data()) == nullptr) path_.clear();
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// One recording, from the start of its program to the end.
class ProgramRecording {
 public:
  explicit ProgramRecording(const RecordOptions& options) : options_(options) {}

  absl::StatusOr<RecordedProgram> Record();

 private:
  absl::Status AwaitBeginning();
  // All of it is at a standstill in these.
  absl::Status TakeMemory();
  absl::Status Save();
  absl::Status MakeUserfaultfd();
  absl::StatusOr<int> MakeInProgram();
  absl::StatusOr<int64_t> OpenDevice();
  absl::Status TakeDescriptor(int theirs);
  bool Register(const RecordedRegion& region) const;
  // False if that region cannot be taken, and is as it was.
  absl::StatusOr<bool> Take(const RecordedRegion& region);
  absl::Status TakeRegions();
  absl::Status StartFaultd();
  absl::Status Finish(int wait_status);

  const RecordOptions& options_;
  const TemporaryDirectory directory_;
  std::unique_ptr<TracedProcess> program_;
  std::vector<RecordedRegion> regions_;
  UniqueFd snapshot_;
  // Ours, so that no page becomes zeros if faultd should die.
  UniqueFd userfaultfd_;
  // Its thread calls the program: it goes first.
  std::unique_ptr<RecordingFaultd> faultd_;
  RecordedProgram result_;
};

absl::StatusOr<RecordedProgram> ProgramRecording::Record() {
  if (directory_.path().empty()) {
    return absl::ErrnoToStatus(errno, "mkdtemp in $TMPDIR");
  }
  auto program = TracedProcess::Start(options_.command);
  if (!program.ok()) return program.status();
  program_ = *std::move(program);
  absl::Status status = AwaitBeginning();
  if (status.ok()) status = program_->Freeze();
  if (status.ok()) status = TakeMemory();
  if (status.ok()) status = program_->Thaw();
  if (!status.ok()) return status;
  if (options_.on_recording) options_.on_recording();
  const absl::StatusOr<int> ended = program_->Wait();
  status = ended.status();
  if (status.ok()) status = Finish(*ended);
  if (!status.ok()) return status;
  return std::move(result_);
}

absl::Status ProgramRecording::AwaitBeginning() {
  const absl::Time at = absl::Now() + options_.after;
  const std::string& file = options_.after_file;
  while (file.empty() ? absl::Now() < at : ::access(file.c_str(), F_OK) != 0) {
    if (program_->HasEnded()) return program_->Freeze();  // which says so
    absl::SleepFor(file.empty() ? std::min(kLook, at - absl::Now()) : kLook);
  }
  return absl::OkStatus();
}

absl::Status ProgramRecording::TakeMemory() {
  absl::Status status = Save();
  if (status.ok()) status = MakeUserfaultfd();
  if (status.ok()) status = StartFaultd();
  if (status.ok()) status = TakeRegions();
  if (status.ok()) status = faultd_->Attach(userfaultfd_.get(), regions_);
  return status;
}

absl::Status ProgramRecording::Save() {
  absl::StatusOr<std::vector<Mapping>> mappings = ReadMappings(program_->pid());
  if (!mappings.ok()) return mappings.status();
  const auto memory = ProcessMemory::Open(program_->pid());
  if (!memory.ok()) return memory.status();
  const std::string path = directory_.path() + "/snapshot";
  snapshot_ = UniqueFd(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!snapshot_.valid()) return SystemError(path, errno);
  uint64_t offset = 0;
  for (const Mapping& mapping :
       ChooseRecorded(*std::move(mappings), options_.region_min, kMaxRegions)) {
    const ByteCount length(mapping.end - mapping.begin);
    const auto saved = memory->Save(mapping, snapshot_.get(), offset);
    if (!saved.ok()) return saved.status();
    regions_.push_back({.address = HostAddress(mapping.begin),
                        .length = length,
                        .offset = offset});
    offset += length.value();
    result_.pages_saved += *saved;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ProgramRecording::OpenDevice() {
  const auto page =
      program_->Call(SYS_mmap, {0, kPageSize, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, ~uint64_t{0}, 0});
  if (!page.ok() || *page < 0) return page;
  const auto scratch = static_cast<uint64_t>(*page);
  const auto memory = ProcessMemory::Open(program_->pid());
  if (!memory.ok()) return memory.status();
  absl::Status status = memory->Write(scratch, kDevice, sizeof(kDevice));
  if (!status.ok()) return status;
  const auto device = program_->Call(
      SYS_openat,
      {static_cast<uint64_t>(AT_FDCWD), scratch, O_RDWR | O_CLOEXEC, 0, 0, 0});
  if (!device.ok()) return device;
  const auto unmapped =
      program_->Call(SYS_munmap, {scratch, kPageSize, 0, 0, 0, 0});
  return unmapped.ok() ? device : unmapped;
}

absl::StatusOr<int> ProgramRecording::MakeInProgram() {
  constexpr uint64_t kFlags = O_CLOEXEC | O_NONBLOCK;
  const auto device = OpenDevice();
  if (!device.ok()) return device.status();
  int64_t made = *device;
  if (*device >= 0) {
    const auto fd = static_cast<uint64_t>(*device);
    const auto created =
        program_->Call(SYS_ioctl, {fd, USERFAULTFD_IOC_NEW, kFlags, 0, 0, 0});
    if (!created.ok()) return created.status();
    const auto closed = program_->Call(SYS_close, {fd, 0, 0, 0, 0, 0});
    if (!closed.ok()) return closed.status();
    made = *created;
  }
  if (made < 0) {
    // Where there is no such device.
    const auto called =
        program_->Call(SYS_userfaultfd, {kFlags, 0, 0, 0, 0, 0});
    if (!called.ok()) return called.status();
    made = *called;
  }
  if (made >= 0) return static_cast<int>(made);
  return SystemError("a userfaultfd of the program", static_cast<int>(-made));
}

absl::Status ProgramRecording::TakeDescriptor(int theirs) {
  const UniqueFd process(
      static_cast<int>(::syscall(SYS_pidfd_open, program_->pid(), 0)));
  if (!process.valid()) return SystemError("pidfd_open", errno);
  userfaultfd_ = UniqueFd(
      static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), theirs, 0)));
  if (!userfaultfd_.valid()) return SystemError("pidfd_getfd", errno);
  return absl::OkStatus();
}

absl::Status ProgramRecording::MakeUserfaultfd() {
  const absl::StatusOr<int> theirs = MakeInProgram();
  if (!theirs.ok()) return theirs.status();
  absl::Status status = TakeDescriptor(*theirs);
  // The program finds no descriptor that it has not opened.
  const auto closed = program_->Call(
      SYS_close, {static_cast<uint64_t>(*theirs), 0, 0, 0, 0, 0});
  if (!status.ok()) return status;
  if (!closed.ok()) return closed.status();
  uffdio_api api = {.api = UFFD_API, .features = kFeatures, .ioctls = 0};
  if (::ioctl(userfaultfd_.get(), UFFDIO_API, &api) != 0) {
    return SystemError("UFFDIO_API", errno);
  }
  return absl::OkStatus();
}

bool ProgramRecording::Register(const RecordedRegion& region) const {
  uffdio_register request = {
      .range = {.start = region.address.value(), .len = region.length.value()},
      .mode = UFFDIO_REGISTER_MODE_MISSING,
      .ioctls = 0};
  return ::ioctl(userfaultfd_.get(), UFFDIO_REGISTER, &request) == 0;
}

absl::StatusOr<bool> ProgramRecording::Take(const RecordedRegion& region) {
  // Memory that another userfaultfd has stays as it is.
  if (!Register(region)) return false;
  const uint64_t begin = region.address.value();
  const uint64_t bytes = region.length.value();
  const auto emptied =
      program_->Call(SYS_madvise, {begin, bytes, MADV_DONTNEED, 0, 0, 0});
  if (!emptied.ok()) return emptied.status();
  if (*emptied == 0) return true;
  // It is locked, and so nothing of it has been emptied.
  uffdio_range range = {.start = begin, .len = bytes};
  if (::ioctl(userfaultfd_.get(), UFFDIO_UNREGISTER, &range) == 0) return false;
  return SystemError("UFFDIO_UNREGISTER", errno);
}

absl::Status ProgramRecording::TakeRegions() {
  const auto answers =
      EmptyingAnswers::Start(userfaultfd_.get(), snapshot_.get(), regions_);
  if (!answers.ok()) return answers.status();
  std::vector<RecordedRegion> taken;
  for (const RecordedRegion& region : regions_) {
    const absl::StatusOr<bool> is_taken = Take(region);
    if (!is_taken.ok()) return is_taken.status();
    if (!*is_taken) continue;
    taken.push_back(region);
    result_.pages += PagesIn(region.length);
  }
  regions_ = std::move(taken);
  result_.regions = regions_.size();
  if (!regions_.empty()) return absl::OkStatus();
  return absl::NotFoundError(
      "the program has no private anonymous memory that can be recorded: "
      "begin later (--after), or with smaller mappings (--region_min)");
}

absl::Status ProgramRecording::StartFaultd() {
  TracedProcess* const program = program_.get();
  auto faultd = RecordingFaultd::Start(
      {.program = options_.faultd,
       .directory = directory_.path(),
       .events_max = options_.events_max,
       .deadline = options_.duration,
       .on_deadline = [program] { program->Signal(SIGTERM); },
       .on_death = [program] { program->Signal(SIGKILL); }});
  if (!faultd.ok()) return faultd.status();
  faultd_ = *std::move(faultd);
  return absl::OkStatus();
}

absl::Status ProgramRecording::Finish(int wait_status) {
  absl::Status status = faultd_->End();
  if (!status.ok()) return status;
  const absl::StatusOr<std::string> path = faultd_->TracePath();
  if (!path.ok()) return path.status();
  absl::StatusOr<Trace> trace = ReadTraceFile(*path);
  if (!trace.ok()) return trace.status();
  result_.trace = *std::move(trace);
  std::string command = absl::StrJoin(options_.command, " ");
  if (command.size() > kRecordedCommandBytesMax) {
    command.resize(kRecordedCommandBytesMax);
  }
  for (char& c : command) {
    if (c < ' ' || c > '~') c = '?';
  }
  result_.trace.origin =
      absl::StrCat("faultreplay record, ", result_.regions, " regions, ",
                   result_.pages_saved.value(), " pages of content: ", command);
  result_.wait_status = wait_status;
  return CheckTraceHeader(result_.trace.pages.value(), result_.trace.origin);
}

}  // namespace

absl::StatusOr<RecordedProgram> RecordProgram(const RecordOptions& options) {
  return ProgramRecording(options).Record();
}

}  // namespace postcopy
