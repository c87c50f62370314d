// Numbers as people read them.
#ifndef CMD_POSTCOPYCTL_UNITS_H_
#define CMD_POSTCOPYCTL_UNITS_H_

#include <cstdint>
#include <string>

#include "dirtytrack/types.h"

namespace postcopy {

// "1,234,567".
std::string FormatCount(uint64_t count);
// Rounded, unlike ToString(ByteCount): "211.3 MiB", "512 B".
std::string FormatBytes(ByteCount bytes);
// "211.3 MiB/s".
std::string FormatRate(uint64_t bytes_per_second);
// "410 us", "12.3 ms", "4.1 s".
std::string FormatMicros(uint64_t micros);

}  // namespace postcopy

#endif  // CMD_POSTCOPYCTL_UNITS_H_
