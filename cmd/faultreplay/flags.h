// The flags of faultreplay.
#ifndef CMD_FAULTREPLAY_FLAGS_H_
#define CMD_FAULTREPLAY_FLAGS_H_

#include "cmd/faultreplay/command.h"

namespace postcopy {

// What --help prints.
extern const char kReplayHelp[];

ReplayFlags FlagsFromCommandLine();

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_FLAGS_H_
