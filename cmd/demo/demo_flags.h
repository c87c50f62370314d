// The flags of the demo.
#ifndef CMD_DEMO_DEMO_FLAGS_H_
#define CMD_DEMO_DEMO_FLAGS_H_

#include "cmd/demo/demo_options.h"

namespace postcopy {

// Their current values.
DemoOptions DemoOptionsFromFlags();

// What --help prints.
extern const char kDemoHelp[];

}  // namespace postcopy

#endif  // CMD_DEMO_DEMO_FLAGS_H_
