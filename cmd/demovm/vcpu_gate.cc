#include "cmd/demovm/vcpu_gate.h"

namespace postcopy::demovm {

bool VcpuGate::Park() {
  std::unique_lock lock(mutex_);
  ++parked_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return open_ || ended_; });
  --parked_;
  return !ended_;
}

void VcpuGate::SleepUntil(Clock::time_point time) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, time, [this] { return !open_; });
}

void VcpuGate::Close() {
  std::lock_guard lock(mutex_);
  open_ = false;
  closed_.store(1);
  changed_.notify_all();
}

void VcpuGate::WaitUntilParked() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return parked_ == threads_; });
}

void VcpuGate::Open() {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  open_ = true;
  closed_.store(0);
  changed_.notify_all();
}

void VcpuGate::End() {
  std::lock_guard lock(mutex_);
  open_ = false;
  ended_ = true;
  closed_.store(1);
  changed_.notify_all();
}

}  // namespace postcopy::demovm
