// Stops the threads of one name in another process, and none of its others, for
// as long as this runs: SIGSTOP would stop them all.
//
// usage: stop_thread PID NAME
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

bool Stop(pid_t thread) {
  return ::ptrace(PTRACE_SEIZE, thread, nullptr, nullptr) == 0 &&
         ::ptrace(PTRACE_INTERRUPT, thread, nullptr, nullptr) == 0 &&
         ::waitpid(thread, nullptr, __WALL) == thread;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  int stopped = 0;
  for (const auto& thread : std::filesystem::directory_iterator(
           std::string("/proc/") + argv[1] + "/task")) {
    std::string name;
    std::getline(std::ifstream(thread.path() / "comm"), name);
    if (name != argv[2]) continue;
    if (!Stop(std::atoi(thread.path().filename().c_str()))) {
      std::perror("stop_thread");
      return 1;
    }
    ++stopped;
  }
  std::printf("stopped %d\n", stopped);
  std::fflush(stdout);
  if (stopped == 0) return 1;
  // They go on when their tracer has gone.
  while (::pause() != 0) {
  }
}
