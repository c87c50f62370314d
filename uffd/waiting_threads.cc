#include "uffd/waiting_threads.h"

#include <algorithm>
#include <bit>

namespace postcopy {

namespace {

uint64_t Positive(int64_t ns) {
  return static_cast<uint64_t>(std::max<int64_t>(ns, 0));
}

}  // namespace

void WaitingThreads::AddWait(int64_t ns, FaultingThread* sums) {
  const uint64_t wait = Positive(ns);
  sums->wait_ns += wait;
  sums->wait_max_ns = std::max(sums->wait_max_ns, wait);
}

uint16_t WaitingThreads::Find(uint32_t id) {
  static_assert(std::has_single_bit(kSlots));
  // Fibonacci hashing: ids of one process follow each other.
  constexpr int kShift = 32 - (std::bit_width(kSlots) - 1);
  size_t slot = (id * uint32_t{0x9e3779b9}) >> kShift;
  // Ends: half of the slots stay free.
  while (slots_[slot] != 0) {
    if (At(slots_[slot]).sums.id == id) return slots_[slot];
    slot = (slot + 1) % kSlots;
  }
  if (count_ == kMaxFaultingThreads) return 0;
  slots_[slot] = static_cast<uint16_t>(++count_);
  At(slots_[slot]).sums.id = id;
  return slots_[slot];
}

void WaitingThreads::Count(uint32_t thread) {
  if (thread == 0) return;
  const uint16_t index = Find(thread);
  ++(index == 0 ? others_ : At(index).sums).faults;
}

void WaitingThreads::Begin(uint32_t thread, int64_t now_ns, Waiters* waiters) {
  if (thread == 0) return;
  const uint16_t index = Find(thread);
  if (index == 0) {
    ++others_.faults;
    if (waiters->others++ == 0) waiters->others_since_ns = now_ns;
    waiters->others_later_ns += Positive(now_ns - waiters->others_since_ns);
    return;
  }
  Thread& waiting = At(index);
  ++waiting.sums.faults;
  if (waiting.on == waiters) return;
  if (waiting.on != nullptr) {
    AddWait(now_ns - waiting.since_ns, &waiting.sums);
    Unlink(&waiting);
  }
  waiting.since_ns = now_ns;
  waiting.on = waiters;
  waiting.next = waiters->first;
  if (waiting.next != 0) At(waiting.next).previous = index;
  waiters->first = index;
}

void WaitingThreads::Unlink(Thread* thread) {
  if (thread->next != 0) At(thread->next).previous = thread->previous;
  if (thread->previous != 0) {
    At(thread->previous).next = thread->next;
  } else {
    thread->on->first = thread->next;
  }
  thread->on = nullptr;
  thread->next = 0;
  thread->previous = 0;
}

void WaitingThreads::End(Waiters* waiters, int64_t now_ns) {
  while (waiters->first != 0) {
    Thread& waiting = At(waiters->first);
    AddWait(now_ns - waiting.since_ns, &waiting.sums);
    Unlink(&waiting);
  }
  if (waiters->others == 0) return;
  const uint64_t longest = Positive(now_ns - waiters->others_since_ns);
  others_.wait_max_ns = std::max(others_.wait_max_ns, longest);
  // Who ends a wait may have looked at the clock before its beginner did.
  const uint64_t all = waiters->others * longest;
  others_.wait_ns += all - std::min(all, waiters->others_later_ns);
  *waiters = Waiters();
}

void WaitingThreads::CopyTo(FaultingThreads* copy, int64_t now_ns) const {
  copy->others = others_;
  copy->threads.clear();
  for (size_t i = 0; i < count_; ++i) {
    FaultingThread sums = threads_[i].sums;
    if (threads_[i].on != nullptr) {
      AddWait(now_ns - threads_[i].since_ns, &sums);
    }
    copy->threads.push_back(sums);
  }
}

}  // namespace postcopy
