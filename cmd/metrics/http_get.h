// The smallest HTTP client: one GET.
#ifndef CMD_METRICS_HTTP_GET_H_
#define CMD_METRICS_HTTP_GET_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace postcopy {

// Longest answer that is taken.
inline constexpr size_t kHttpBodyBytesMax = 16 << 20;

// The body at http://`host_port``path`. UNAVAILABLE if nobody answers,
// DEADLINE_EXCEEDED after `timeout`, RESOURCE_EXHAUSTED for a longer answer,
// FAILED_PRECONDITION for any status but 200: then something else listens
// there. No proxy is asked and no redirection followed.
absl::StatusOr<std::string> HttpGet(const std::string& host_port,
                                    const std::string& path,
                                    absl::Duration timeout);

}  // namespace postcopy

#endif  // CMD_METRICS_HTTP_GET_H_
