// The flags of postcopyctl. Linked into the program and its end-to-end tests
// only: flags are global.
#ifndef CMD_POSTCOPYCTL_FLAGS_H_
#define CMD_POSTCOPYCTL_FLAGS_H_

#include "cmd/postcopyctl/options.h"

namespace postcopy {

// Their current values.
Options OptionsFromFlags();

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_FLAGS_H_
