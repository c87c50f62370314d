// What threads and processes have used.
#ifndef CMD_FAULTREPLAY_CPU_TIME_H_
#define CMD_FAULTREPLAY_CPU_TIME_H_

#include <pthread.h>
#include <sys/types.h>

#include <cstdint>

namespace postcopy {

// CPU time of a thread of this process, or of a process of this user, with all
// its threads, in nanoseconds; 0 if there is none.
int64_t ThreadCpuNanos(pthread_t thread);
int64_t ProcessCpuNanos(pid_t pid);

// The same of one thread of any process, in steps of 10 ms.
int64_t TaskCpuNanos(pid_t pid, pid_t tid);

// Private memory of a process (RssAnon), in bytes; 0 if it cannot be read.
uint64_t PrivateRssBytes(pid_t pid);

}  // namespace postcopy

#endif  // CMD_FAULTREPLAY_CPU_TIME_H_
