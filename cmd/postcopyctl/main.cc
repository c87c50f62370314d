// postcopyctl: the orchestrator's tool. See help_command.cc.

#include <iostream>
#include <string>
#include <vector>

#include "cmd/postcopyctl/cli.h"
#include "cmd/postcopyctl/command.h"
#include "cmd/postcopyctl/interrupt.h"
#include "cmd/postcopyctl/progress.h"

int main(int argc, char** argv) {
  std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  postcopy::CommandContext context = {
      .options = {},
      .out = &std::cout,
      .err = &std::cerr,
      .terminal_width = postcopy::StderrWidth(),
      .interrupted = postcopy::Interrupted,
  };
  postcopy::CatchInterrupts();
  postcopy::ExitCode code = postcopy::RunCommandLine(arguments, context);
  std::cout.flush();
  return static_cast<int>(code);
}
