// The descriptors that came beside what was received on a Unix socket.
#ifndef CMD_VMM_CHANNEL_DESCRIPTORS_H_
#define CMD_VMM_CHANNEL_DESCRIPTORS_H_

#include <sys/socket.h>

#include <vector>

#include "dirtytrack/unique_fd.h"

namespace postcopy {

// Takes ownership of every descriptor in `header`, which recvmsg(2) has filled,
// in their order. To be called once after each such recvmsg, whatever becomes
// of what it received: who does not take them leaks them.
std::vector<UniqueFd> TakeDescriptors(msghdr& header);

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_DESCRIPTORS_H_
