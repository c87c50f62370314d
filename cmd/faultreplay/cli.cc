#include "cmd/faultreplay/cli.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cmd/faultreplay/command.h"
#include "cmd/faultreplay/flags.h"
#include "cmd/postcopyctl/flag_parser.h"

namespace postcopy {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

struct Command {
  absl::string_view name;
  absl::Status (*run)(const ReplayContext& context);
};

constexpr Command kCommands[] = {
    {"synth", RunSynth},     {"info", RunInfo},
    {"convert", RunConvert}, {"record", RunRecord},
    {"run", RunRun},         {"compare", RunCompare},
    {"bench", RunBench},     {"echo-server", RunEchoServer},
};

int Fail(std::ostream& err, const absl::Status& status) {
  const bool usage = absl::IsInvalidArgument(status);
  err << "faultreplay: " << status.message() << std::endl;
  if (usage) err << "See: faultreplay --help" << std::endl;
  return usage ? kUsage : kFailed;
}

}  // namespace

int RunFaultReplay(const std::vector<std::string>& arguments, std::ostream& out,
                   std::ostream& err) {
  absl::StatusOr<CommandLine> line = ParseFlags(arguments);
  if (!line.ok()) return Fail(err, line.status());
  if (line->help) {
    out << kReplayHelp;
    return 0;
  }
  if (line->arguments.empty()) {
    return Fail(err, absl::InvalidArgumentError("what to do?"));
  }
  ReplayContext context = {
      .flags = FlagsFromCommandLine(),
      .arguments = {line->arguments.begin() + 1, line->arguments.end()},
      .command_line =
          absl::StrCat("faultreplay ", absl::StrJoin(arguments, " ")),
      .out = &out,
      .err = &err};
  const std::string& output = context.flags.output;
  if (output != "table" && output != "json" && output != "hdr") {
    return Fail(err,
                absl::InvalidArgumentError("--output is table, json or hdr"));
  }
  for (const Command& command : kCommands) {
    if (command.name != line->arguments[0]) continue;
    const absl::Status status = command.run(context);
    return status.ok() ? 0 : Fail(err, status);
  }
  return Fail(err, absl::InvalidArgumentError(absl::StrCat(
                       "there is no command ", line->arguments[0])));
}

}  // namespace postcopy
