// Memory of this process that is to be filled by somebody else's page faults.
#ifndef CMD_VMM_LIBRARY_PRIVATE_MEMORY_H_
#define CMD_VMM_LIBRARY_PRIVATE_MEMORY_H_

#include <string>

#include "absl/status/status.h"
#include "dirtytrack/types.h"

namespace postcopy {

// Throws away what is in private memory of this process, [address, address +
// length), and registers it with `userfaultfd` for missing pages: from then on
// whoever touches it waits for the userfaultfd's reader, and nothing else can
// put a page there. Looks afterwards whether it is empty, since a page that
// somebody has touched in between would never be asked for. `region` is for
// messages. Closing the userfaultfd takes it back, but for the content.
//
// FAILED_PRECONDITION: it is not empty; locked in memory (mlock); or registered
// with another userfaultfd. INVALID_ARGUMENT: it is not mapped, or of a kind
// that cannot be registered. INTERNAL: /proc is not there.
absl::Status EmptyPrivateMemory(int userfaultfd, const std::string& region,
                                HostAddress address, ByteCount length);

// The last part of it: FAILED_PRECONDITION if there is a page, in memory or
// swapped out, be it of zeros; INTERNAL as above.
absl::Status CheckPrivateMemoryIsEmpty(const std::string& region,
                                       HostAddress address, ByteCount length);

}  // namespace postcopy

#endif  // CMD_VMM_LIBRARY_PRIVATE_MEMORY_H_
