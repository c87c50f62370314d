// The demo: a running guest moves from one daemon to the other under load.
#ifndef CMD_DEMO_DEMO_H_
#define CMD_DEMO_DEMO_H_

#include <cstddef>
#include <functional>
#include <ostream>

#include "absl/status/status.h"
#include "cmd/demo/demo_options.h"

namespace postcopy {

// Who watches the demo.
struct DemoAudience {
  std::ostream* out;  // The report.
  std::ostream* err;  // Progress, messages, and the children's last words.
  size_t terminal_width = 0;
  // Whether the user wants to stop; asked a few times a second.
  std::function<bool()> interrupted = [] { return false; };
};

// Runs it. OK only if the guest came through without a wrong page. Everything
// it started has ended when it returns; its files are gone if all went well.
// Call it from the main thread (see ChildProcess::Start).
// REQUIRES: ValidateDemoOptions(options), and all programs are named.
absl::Status RunDemo(const DemoOptions& options, const DemoAudience& audience);

}  // namespace postcopy

#endif  // CMD_DEMO_DEMO_H_
