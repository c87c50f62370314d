#include "cmd/faultreplay/flags.h"

#include "absl/flags/flag.h"

ABSL_FLAG(std::string, pattern, "uniform", "How pages follow each other.");
ABSL_FLAG(postcopy::ByteCount, ram, postcopy::ByteCount(64 << 20), "RAM.");
ABSL_FLAG(uint64_t, touches, 2000, "Touches of all threads.");
ABSL_FLAG(uint32_t, threads, 1, "Threads that touch.");
ABSL_FLAG(uint64_t, seed, 1, "Seed of the trace.");
ABSL_FLAG(absl::Duration, think_time, absl::ZeroDuration(),
          "From one touch of a thread to its next.");
ABSL_FLAG(uint32_t, write_percent, 0, "Touches that write.");
ABSL_FLAG(std::string, backend, "service", "What brings the pages.");
ABSL_FLAG(uint32_t, repeats, 3, "Runs of each backend.");
ABSL_FLAG(std::string, think, "none", "none or recorded.");
ABSL_FLAG(std::string, placement, "free", "one, free or spread.");
ABSL_FLAG(std::string, output, "table", "table, json or hdr.");
ABSL_FLAG(std::string, json, "", "File for the report as JSON.");
ABSL_FLAG(std::string, html, "", "File for the report as HTML.");
ABSL_FLAG(std::string, hdr, "", "File for the percentiles.");
ABSL_FLAG(std::string, report, "bench-report", "Directory of bench.");
ABSL_FLAG(absl::Duration, timeout, absl::Minutes(2), "Of one run's touches.");
ABSL_FLAG(bool, await_whole, false, "Do not ask for the rest.");
ABSL_FLAG(int64_t, lose_page, -1, "Page that is lost on purpose.");
ABSL_FLAG(std::string, memory, "", "Of echo-server.");
ABSL_FLAG(uint64_t, pages, 0, "Of echo-server.");
ABSL_FLAG(int, ready_fd, -1, "Of echo-server and record.");
ABSL_FLAG(std::string, out, "", "File for the trace.");
ABSL_FLAG(absl::Duration, after, absl::Seconds(1), "When recording begins.");
ABSL_FLAG(std::string, after_file, "", "Begin when there is such a file.");
ABSL_FLAG(absl::Duration, duration, absl::InfiniteDuration(),
          "When the program is told to end.");
ABSL_FLAG(postcopy::ByteCount, region_min, postcopy::ByteCount(64 << 10),
          "Smallest mapping that is recorded.");
ABSL_FLAG(uint64_t, events_max, postcopy::kTraceEventsMax,
          "Touches that are recorded.");
ABSL_FLAG(std::string, pageserverd, "", "Path of pageserverd.");
ABSL_FLAG(std::string, faultd, "", "Path of faultd.");
ABSL_FLAG(std::string, qemu, "", "Path of qemu-system-x86_64.");

namespace postcopy {

const char kReplayHelp[] = R"(Usage: faultreplay COMMAND [--flag=value ...]

  synth FILE           make a trace from a pattern
  info TRACE           say what is in a trace
  convert FROM TO      .csv and .json are text, all else is a trace
  record -- COMMAND... record the first touches of a program's memory
  run [TRACE]          replay a trace, or one made by the flags of synth
  compare floors [TRACE]
                       the service beside a handler that answers from memory, a
                       bare TCP exchange and a bare gRPC exchange
  compare qemu [TRACE] the service and QEMU's own postcopy, both while all of RAM
                       comes, with and without a limit
  bench                the standard suite, for one --placement

Making traces:
  --pattern=PATTERN    sequential, strided:N, uniform (default), zipfian:X,
                       phased:N; mixtures as 3*sequential+zipfian
  --ram=SIZE           RAM of the VM (64MiB)        --touches=N   in all (2000)
  --threads=N          who touches (1)              --seed=N      (1)
  --think_time=TIME    between touches (0)          --write_percent=N  (0)
Recording (what it cannot do: docs/traces.md):
  --out=FILE           takes the trace
  --after=TIME         of the program's life (1s), or --after_file=FILE: when
                       that is there
  --duration=TIME      after which the program is sent SIGTERM (inf)
  --region_min=SIZE    of mappings (64KiB)          --events_max=N  (4194304)
  --ready_fd=N         is told when recording has begun
Replaying:
  --backend=LIST       local, tcp, grpc-echo, grpc-stream, service (default),
                       qemu, with commas; each may be followed by :delay=TIME,
                       service and qemu by :limit=SIZE, qemu by :preempt, service
                       by :idle :after-precopy and :ORDER, an order as
                       postcopyctl --pull_order has it
  --await_whole        look at all pages only when all have come
  --repeats=N          runs of each, in turn (3)
  --think=none|recorded  pauses between touches (none)
  --placement=one|free|spread  all on one CPU; free (default); touching threads
                       bound to CPUs in turn
  --timeout=TIME       of the touches of one run (2m)
  --lose_page=N        this page is lost on purpose: the run must fail
  --pageserverd=PATH, --faultd=PATH  (default: built or installed beside)
  --qemu=PATH          (default: qemu-system-x86_64 in $PATH)
Reports:
  --output=table|json|hdr  on stdout (table)
  --json=FILE --html=FILE --hdr=FILE  as well
  --report=DIRECTORY   of bench (bench-report)

Every page of RAM is compared with what it must be. Exit codes:
  0 all went well   1 a run failed, or a page was wrong   2 wrong usage
)";

ReplayFlags FlagsFromCommandLine() {
  return {.pattern = absl::GetFlag(FLAGS_pattern),
          .ram = absl::GetFlag(FLAGS_ram),
          .touches = absl::GetFlag(FLAGS_touches),
          .threads = absl::GetFlag(FLAGS_threads),
          .seed = absl::GetFlag(FLAGS_seed),
          .think_time = absl::GetFlag(FLAGS_think_time),
          .write_percent = absl::GetFlag(FLAGS_write_percent),
          .backend = absl::GetFlag(FLAGS_backend),
          .repeats = absl::GetFlag(FLAGS_repeats),
          .think = absl::GetFlag(FLAGS_think),
          .placement = absl::GetFlag(FLAGS_placement),
          .output = absl::GetFlag(FLAGS_output),
          .json = absl::GetFlag(FLAGS_json),
          .html = absl::GetFlag(FLAGS_html),
          .hdr = absl::GetFlag(FLAGS_hdr),
          .report = absl::GetFlag(FLAGS_report),
          .timeout = absl::GetFlag(FLAGS_timeout),
          .await_whole = absl::GetFlag(FLAGS_await_whole),
          .lose_page = absl::GetFlag(FLAGS_lose_page),
          .memory = absl::GetFlag(FLAGS_memory),
          .pages = absl::GetFlag(FLAGS_pages),
          .ready_fd = absl::GetFlag(FLAGS_ready_fd),
          .out = absl::GetFlag(FLAGS_out),
          .after = absl::GetFlag(FLAGS_after),
          .after_file = absl::GetFlag(FLAGS_after_file),
          .duration = absl::GetFlag(FLAGS_duration),
          .region_min = absl::GetFlag(FLAGS_region_min),
          .events_max = absl::GetFlag(FLAGS_events_max),
          .programs = {.pageserverd = absl::GetFlag(FLAGS_pageserverd),
                       .faultd = absl::GetFlag(FLAGS_faultd),
                       .qemu = absl::GetFlag(FLAGS_qemu)}};
}

}  // namespace postcopy
