// Threads that cannot be had are an error like any other.
#ifndef DIRTYTRACK_START_THREAD_H_
#define DIRTYTRACK_START_THREAD_H_

#include <system_error>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace postcopy {

// A thread that runs `function`. RESOURCE_EXHAUSTED where std::thread would
// throw: a peer that makes this process need one more than it may have must not
// end it.
template <typename Function>
absl::StatusOr<std::thread> StartThread(Function function) {
  try {
    return std::thread(std::move(function));
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no thread can be started: ", error.what(),
        "; raise TasksMax, the pids limit of the cgroup or LimitNPROC"));
  }
}

}  // namespace postcopy

#endif  // DIRTYTRACK_START_THREAD_H_
