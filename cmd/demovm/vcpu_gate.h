// Stops and releases the threads that run vCPUs.
#ifndef CMD_DEMOVM_VCPU_GATE_H_
#define CMD_DEMOVM_VCPU_GATE_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace postcopy::demovm {

// A gate in front of `threads` threads, closed at first. One thread controls
// it; the vCPU threads pass it. What a thread did before it parked is visible
// to who saw WaitUntilParked() return, and what that one did before Open() is
// visible to the thread afterwards.
class VcpuGate {
 public:
  using Clock = std::chrono::steady_clock;

  explicit VcpuGate(int threads) : threads_(threads) {}

  // For vCPU threads: waits while the gate is closed. False: end the thread.
  bool Park();
  // True while the gate is closed: come to Park() soon.
  bool closed() const { return closed_.load() != 0; }
  // The same for who can only read an int: nonzero while closed.
  const int* closed_flag() const {
    static_assert(sizeof(closed_) == sizeof(int));
    return reinterpret_cast<const int*>(&closed_);
  }
  // Sleeps until `time` or until the gate closes.
  void SleepUntil(Clock::time_point time);

  // Asks the threads to park. Any thread may.
  void Close();
  // Waits until all threads are in Park(). REQUIRES: closed, and all run.
  void WaitUntilParked();
  // Lets them go. REQUIRES: all are in Park() or have not come there yet.
  void Open();
  // Closes for ever: Park() returns false.
  void End();

 private:
  const int threads_;
  std::atomic<int> closed_{1};

  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  bool ended_ = false;
  int parked_ = 0;
};

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_VCPU_GATE_H_
