// How a session of the data plane is named.
#ifndef PAGESERVER_SESSION_KEY_H_
#define PAGESERVER_SESSION_KEY_H_

#include <cstdint>

namespace postcopy {

// Names a session; what every request carries.
struct SessionKey {
  uint64_t id = 0;
  uint64_t epoch = 0;
};

// An id that nobody can guess; never 0.
uint64_t RandomSessionId();

}  // namespace postcopy

#endif  // PAGESERVER_SESSION_KEY_H_
