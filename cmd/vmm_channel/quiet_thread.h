// Threads that no signal interrupts.
#ifndef CMD_VMM_CHANNEL_QUIET_THREAD_H_
#define CMD_VMM_CHANNEL_QUIET_THREAD_H_

#include <csignal>
#include <thread>
#include <utility>

namespace postcopy {

// Starts a thread with all signals blocked. Threads inherit the mask: signals
// are for the threads that the program chose.
template <typename Function>
std::thread StartWithoutSignals(Function function) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(function));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace postcopy

#endif  // CMD_VMM_CHANNEL_QUIET_THREAD_H_
