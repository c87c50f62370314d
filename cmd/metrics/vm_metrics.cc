#include "cmd/metrics/vm_metrics.h"

namespace postcopy {
namespace {

constexpr double kSecondsPerNano = 1e-9;

// How one VmCounter is shown. docs/metrics.md has a row for each name.
struct Shown {
  VmCounter counter;
  const char* name;
  const char* help;
  // Empty: no label beside the role.
  const char* label = "";
  const char* value = "";
  // From what is counted to the unit in the name.
  double scale = 1;
};

constexpr char kPagesMoved[] = "postcopy_pages_moved_total";
constexpr char kPagesMovedHelp[] =
    "Pages of 4 KiB that moved: in precopy rounds (each time), because a "
    "thread touched them, or in the background.";
constexpr char kRequests[] = "postcopy_page_requests_total";
constexpr char kRequestsHelp[] = "Requests for pages handed to the source.";
constexpr char kRequestFailures[] = "postcopy_page_request_failures_total";
constexpr char kRequestFailuresHelp[] =
    "Requests for pages that could not be handed to the source.";

// Sums of nanoseconds and pairs that make up one metric are below the table.
constexpr Shown kShown[] = {
    {VmCounter::kPrecopiedPages, kPagesMoved, kPagesMovedHelp, "kind",
     "precopied"},
    {VmCounter::kFaultedPages, kPagesMoved, kPagesMovedHelp, "kind", "faulted"},
    {VmCounter::kBackgroundPages, kPagesMoved, kPagesMovedHelp, "kind",
     "background"},
    {VmCounter::kZeroPages, "postcopy_zero_pages_total",
     "Of the precopied pages, those sent as zeros."},
    {VmCounter::kStalePages, "postcopy_stale_pages_total",
     "Pages that the destination lacked, or had in an old version, when the "
     "guest was stopped."},
    {VmCounter::kDiscardedPages, "postcopy_discarded_pages_total",
     "Pages that had been received and were thrown away as stale."},
    {VmCounter::kGivenUpPages, "postcopy_given_up_pages_total",
     "Missing pages that the VMM gave up or unmapped."},
    {VmCounter::kLostPages, "postcopy_lost_pages_total",
     "Received pages that vanished from the RAM file and were poisoned."},
    {VmCounter::kMappedAheadPages, "postcopy_mapped_ahead_pages_total",
     "Received pages put into the guest's sight before it touched them, or "
     "found to need nothing."},
    {VmCounter::kBulkPageBytes, "postcopy_bulk_page_bytes_total",
     "Bytes of pages with data sent over the bulk lane, before compression."},
    {VmCounter::kBulkSentBytes, "postcopy_bulk_sent_bytes_total",
     "What these were on the wire, without framing."},
    {VmCounter::kDamagedRuns, "postcopy_damaged_runs_total",
     "Runs of pages whose checksum did not fit; all were asked for again."},
    {VmCounter::kRounds, "postcopy_precopy_rounds_total",
     "Precopy rounds begun."},
    {VmCounter::kRecoveries, "postcopy_recoveries_total",
     "Times that a lost peer was found again."},
    {VmCounter::kSourceErrors, "postcopy_source_errors_total",
     "Sessions that the source of a snapshot ended with an error, and not the "
     "network; each was tried again."},
    {VmCounter::kFaultMessages, "postcopy_fault_messages_total",
     "Messages about faults read from userfaultfds."},
    {VmCounter::kLocalFaults, "postcopy_local_faults_total",
     "Of the fault messages, those for pages of zeros, answered here."},
    {VmCounter::kMinorFaults, "postcopy_minor_faults_total",
     "Of the fault messages, those for pages that were here and not in sight."},
    {VmCounter::kDuplicateFaults, "postcopy_duplicate_faults_total",
     "Of the fault messages, those for a page asked for already."},
    {VmCounter::kForeignFaults, "postcopy_foreign_faults_total",
     "Of the fault messages, those for addresses outside the VM's RAM."},
    {VmCounter::kDeferredFaults, "postcopy_deferred_faults_total",
     "Of the fault messages, those that had to be tried again."},
    {VmCounter::kOverflowedFaults, "postcopy_overflowed_faults_total",
     "Of the fault messages, those for which there was no room; they come "
     "again."},
    {VmCounter::kUrgentRequests, kRequests, kRequestsHelp, "lane", "urgent"},
    {VmCounter::kBulkRequests, kRequests, kRequestsHelp, "lane", "bulk"},
    {VmCounter::kUrgentRequestFailures, kRequestFailures, kRequestFailuresHelp,
     "lane", "urgent"},
    {VmCounter::kBulkRequestFailures, kRequestFailures, kRequestFailuresHelp,
     "lane", "bulk"},
    {VmCounter::kInstallRetries, "postcopy_install_retries_total",
     "Installs that the kernel refused with EAGAIN and that were tried again."},
    {VmCounter::kStalledNanos, "postcopy_stalled_seconds_total",
     "Time in which at least one thread of a VM waited for a page, summed over "
     "VMs.",
     "", "", kSecondsPerNano},
};

constexpr const char* kStageNames[kFaultStageKinds] = {
    "reading", "asking", "answering", "installing"};

void AddDowntime(const std::string& role, const VmTotals& totals,
                 MetricFamilies& families) {
  const MetricLabels labels = {{"role", role}};
  const uint64_t count = totals[VmCounter::kHandOvers];
  const auto seconds = [&](VmCounter counter) {
    return static_cast<double>(totals[counter]) * kSecondsPerNano;
  };
  families.Summary("postcopy_downtime_seconds",
                   "How long guests stood still for their switch-over.", count,
                   seconds(VmCounter::kDowntimeNanos), labels);
  families.Summary("postcopy_added_downtime_seconds",
                   "Of the downtime, what this service and the network took.",
                   count, seconds(VmCounter::kAddedDowntimeNanos), labels);
}

}  // namespace

void AddVmMetrics(const std::string& role, const VmTotals& totals,
                  MetricFamilies& families) {
  for (const Shown& shown : kShown) {
    MetricLabels labels = {{"role", role}};
    if (*shown.label != '\0') labels.emplace_back(shown.label, shown.value);
    families.Counter(shown.name, shown.help,
                     static_cast<double>(totals[shown.counter]) * shown.scale,
                     labels);
  }
  AddDowntime(role, totals, families);
  families.Gauge("postcopy_remaining_pages",
                 "Pages still to be moved: of the round at a source, missing "
                 "ones at a destination.",
                 static_cast<double>(totals.remaining_pages), {{"role", role}});
  families.Gauge("postcopy_outstanding_faults",
                 "Faulted pages asked for and not here yet.",
                 static_cast<double>(totals.outstanding_faults),
                 {{"role", role}});
  families.Histogram("postcopy_fault_latency_seconds",
                     "From reading a fault's message to its page being "
                     "installed.",
                     totals.fault_latency, {{"role", role}});
  for (size_t i = 0; i < kFaultStageKinds; ++i) {
    families.Histogram(
        "postcopy_fault_stage_seconds", "What one stage of a fault took.",
        totals.fault_stages[i], {{"role", role}, {"stage", kStageNames[i]}});
  }
}

void AddAttachMetrics(const std::string& role, const AttachTotals& totals,
                      MetricFamilies& families) {
  const MetricLabels labels = {{"role", role}};
  families.Gauge("postcopy_attached_vms", "VMs that are attached.",
                 static_cast<double>(totals.attached), labels);
  families.Counter("postcopy_attach_attempts_total",
                   "VMs that attached or were turned away.",
                   static_cast<double>(totals.attempts), labels);
  families.Counter("postcopy_attach_refusals_total",
                   "VMs, or peers that claimed to be, that were turned away.",
                   static_cast<double>(totals.refusals), labels);
}

}  // namespace postcopy
