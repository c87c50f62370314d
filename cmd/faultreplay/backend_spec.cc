#include "cmd/faultreplay/backend_spec.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/exchange_backend.h"
#include "cmd/faultreplay/local_backend.h"
#include "cmd/faultreplay/service_backend.h"
#include "cmd/postcopyctl/names.h"
#include "dirtytrack/check.h"

namespace postcopy {
namespace {

// The least that the daemons take as a limit.
constexpr uint64_t kBandwidthMin = 1 << 20;

bool ParseKind(absl::string_view name, BackendKind* kind) {
  constexpr std::pair<absl::string_view, BackendKind> kKinds[] = {
      {"local", BackendKind::kLocal},
      {"tcp", BackendKind::kTcp},
      {"grpc-echo", BackendKind::kGrpcEcho},
      {"grpc-stream", BackendKind::kGrpcStream},
      {"service", BackendKind::kService},
      {"qemu", BackendKind::kQemu}};
  for (const auto& [known, value] : kKinds) {
    if (known != name) continue;
    *kind = value;
    return true;
  }
  return false;
}

absl::Status BadBackend(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("backend \"", text, "\": ", why));
}

absl::Status TakeDelay(absl::string_view text, BackendSpec* spec) {
  absl::Duration delay;
  if (!absl::ParseDuration(text, &delay) || delay < absl::ZeroDuration() ||
      delay > absl::Seconds(10)) {
    return BadBackend(spec->name, "its delay is not from 0 to 10s");
  }
  spec->delay_ns = absl::ToInt64Nanoseconds(delay);
  return absl::OkStatus();
}

absl::Status TakeLimit(absl::string_view text, BackendSpec* spec) {
  std::string error;
  if (!ParseByteCount(text, &spec->bandwidth, &error) ||
      spec->bandwidth.value() < kBandwidthMin) {
    return BadBackend(spec->name, "its limit is no size from 1MiB up");
  }
  return absl::OkStatus();
}

absl::Status TakeOption(absl::string_view option, BackendSpec* spec) {
  if (absl::ConsumePrefix(&option, "delay=")) return TakeDelay(option, spec);
  const bool qemu = spec->kind == BackendKind::kQemu;
  if (spec->kind != BackendKind::kService && !qemu) {
    return BadBackend(spec->name, "only delay= can be said of it");
  }
  if (absl::ConsumePrefix(&option, "limit=")) return TakeLimit(option, spec);
  if (qemu) {
    spec->preempt = option == "preempt";
    return spec->preempt
               ? absl::OkStatus()
               : BadBackend(spec->name, "there are delay=, limit= and preempt");
  }
  if (option == "idle") {
    spec->bandwidth = kIdleBandwidth;
    return absl::OkStatus();
  }
  if (option == "after-precopy") {
    spec->after_precopy = true;
    return absl::OkStatus();
  }
  if (ParsePullOrder(option, &spec->pull_order)) return absl::OkStatus();
  return BadBackend(spec->name,
                    "there are delay=, limit=, idle, after-precopy and the "
                    "orders of postcopyctl --pull_order");
}

absl::StatusOr<BackendSpec> ParseBackend(absl::string_view text) {
  BackendSpec spec;
  spec.name = std::string(text);
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  if (!ParseKind(parts[0], &spec.kind)) {
    return BadBackend(text,
                      "there are local, tcp, grpc-echo, grpc-stream, service "
                      "and qemu");
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    absl::Status status = TakeOption(parts[i], &spec);
    if (!status.ok()) return status;
  }
  return spec;
}

}  // namespace

absl::StatusOr<std::vector<BackendSpec>> ParseBackends(absl::string_view text) {
  std::vector<BackendSpec> specs;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    absl::StatusOr<BackendSpec> spec = ParseBackend(part);
    if (!spec.ok()) return spec.status();
    specs.push_back(*std::move(spec));
  }
  if (specs.size() <= kBackendsMax) return specs;
  return absl::InvalidArgumentError(
      absl::StrCat("at most ", kBackendsMax, " backends are compared"));
}

std::unique_ptr<Backend> NewBackend(const BackendSpec& spec,
                                    const TouchPlan& plan,
                                    const ReplayPrograms& programs,
                                    const SourceMemory* source) {
  switch (spec.kind) {
    case BackendKind::kLocal:
      return NewLocalBackend(source, spec.delay_ns);
    case BackendKind::kTcp:
    case BackendKind::kGrpcEcho:
    case BackendKind::kGrpcStream:
      return NewExchangeBackend(
          source, {.kind = spec.kind == BackendKind::kTcp ? EchoKind::kTcp
                                                          : EchoKind::kGrpc,
                   .stream = spec.kind == BackendKind::kGrpcStream,
                   .program = programs.faultreplay,
                   .delay_ns = spec.delay_ns / 2,
                   .threads = static_cast<uint32_t>(plan.threads.size())});
    case BackendKind::kService:
    case BackendKind::kQemu:
      break;
  }
  POSTCOPY_CHECK(spec.kind == BackendKind::kService);
  return NewServiceBackend(source, {.pageserverd = programs.pageserverd,
                                    .faultd = programs.faultd,
                                    .after_precopy = spec.after_precopy,
                                    .touched = TouchedPages(plan),
                                    .pull_order = spec.pull_order,
                                    .bandwidth = spec.bandwidth,
                                    .delay_ns = spec.delay_ns / 2});
}

}  // namespace postcopy
