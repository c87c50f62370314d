// Which build this is.
#ifndef CMD_METRICS_BUILD_INFO_H_
#define CMD_METRICS_BUILD_INFO_H_

namespace postcopy {

// Of the release that is being worked on.
const char* BuildVersion();
// The commit, if the build was told: "unknown" else.
const char* BuildCommit();

}  // namespace postcopy

#endif  // CMD_METRICS_BUILD_INFO_H_
