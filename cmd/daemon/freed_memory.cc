#include "cmd/daemon/freed_memory.h"

#include <malloc.h>

namespace postcopy {

void KeepFreedMemory() {
  ::mallopt(M_TRIM_THRESHOLD, static_cast<int>(kFreedBytesKept));
  ::mallopt(M_MMAP_THRESHOLD, static_cast<int>(kHeapBlockBytesMax));
}

}  // namespace postcopy
