// The last word of demovm: what the guest did and whether its memory is right.
#ifndef CMD_DEMOVM_FINAL_REPORT_H_
#define CMD_DEMOVM_FINAL_REPORT_H_

#include <string>

#include "absl/status/status.h"
#include "cmd/demovm/demo_vmm.h"

namespace postcopy::demovm {

// True if the guest ran without finding a fault in its memory and, where it
// could be checked, neither did we.
bool IsCorrect(const FinalReport& report);

// One JSON object on one line:
//   {"checked":true,"steps":..,"pages_written":..,"pages_checked":..,
//    "corrupt_pages":0,"guest_corrupt_pages":0,"first_corruption":""}
// "checked" is false where there was no guest to check. "pages_checked" and
// "corrupt_pages" are this process's, "guest_corrupt_pages" the guest's.
std::string ToJson(const FinalReport& report);

// ToJson() and a newline to descriptor `fd`, which is closed; on stderr for
// people in any case. Nothing more if `fd` is negative.
absl::Status WriteReport(const FinalReport& report, int fd);

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_FINAL_REPORT_H_
