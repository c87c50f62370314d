// demo: migrates a busy guest on this machine and checks it. See --help.

#include <iostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cmd/demo/demo.h"
#include "cmd/demo/demo_flags.h"
#include "cmd/demo/demo_options.h"
#include "cmd/postcopyctl/flag_parser.h"
#include "cmd/postcopyctl/interrupt.h"
#include "cmd/postcopyctl/progress.h"

namespace postcopy {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

int Fail(const absl::Status& status, int exit_code) {
  std::cerr << "demo: " << status.message() << std::endl;
  return exit_code;
}

int Main(const std::vector<std::string>& arguments) {
  absl::StatusOr<CommandLine> line = ParseFlags(arguments);
  if (!line.ok()) return Fail(line.status(), kUsage);
  if (line->help) {
    std::cout << kDemoHelp;
    return 0;
  }
  DemoOptions options = DemoOptionsFromFlags();
  absl::Status status = ValidateDemoOptions(options);
  if (status.ok() && !line->arguments.empty()) {
    status = absl::InvalidArgumentError("flags start with --");
  }
  if (!status.ok()) return Fail(status, kUsage);
  status = FitToMachine(&options, &std::cerr);
  if (!status.ok()) return Fail(status, kFailed);
  CatchInterrupts();
  status = RunDemo(options, {.out = &std::cout,
                             .err = &std::cerr,
                             .terminal_width = StderrWidth(),
                             .interrupted = Interrupted});
  return status.ok() ? 0 : Fail(status, kFailed);
}

}  // namespace
}  // namespace postcopy

int main(int argc, char** argv) {
  return postcopy::Main(
      std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
