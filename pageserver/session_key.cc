#include "pageserver/session_key.h"

#include <random>

namespace postcopy {

uint64_t RandomSessionId() {
  std::random_device device;
  uint64_t id = 0;
  while (id == 0) id = (uint64_t{device()} << 32) | device();
  return id;
}

}  // namespace postcopy
