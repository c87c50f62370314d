// Hands values from threads that must not wait to one that holds a lock.
#ifndef UFFD_POST_BOX_H_
#define UFFD_POST_BOX_H_

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace postcopy {

// A queue of at most `kSize` values, a power of two. Post() by any thread,
// without a lock and without waiting for anybody; Take() by one thread at a
// time. What happened before a Post is visible after the Take of its value.
// Values come in the order in which their posts began, so one that is under way
// holds back those behind it, till the next Take.
//
// A ring as Dmitry Vyukov's bounded queue: the sequence number of a cell says
// in which round it is free (2 * round) and in which it is full (one more).
template <typename T, size_t kSize>
class PostBox {
 public:
  static_assert(std::has_single_bit(kSize));

  // False, and nothing is posted, if it is full.
  bool Post(const T& value) {
    uint64_t ticket = tail_.load(std::memory_order_relaxed);
    while (true) {
      Cell& cell = cells_[ticket % kSize];
      const uint64_t state = cell.state.load(std::memory_order_acquire);
      const uint64_t free = 2 * (ticket / kSize);
      if (state < free) return false;
      if (state > free) {
        ticket = tail_.load(std::memory_order_relaxed);
      } else if (tail_.compare_exchange_weak(ticket, ticket + 1,
                                             std::memory_order_relaxed)) {
        cell.value = value;
        cell.state.store(free + 1, std::memory_order_release);
        return true;
      }
    }
  }

  // The next value; nullopt if there is none yet.
  std::optional<T> Take() {
    Cell& cell = cells_[head_ % kSize];
    const uint64_t full = 2 * (head_ / kSize) + 1;
    if (cell.state.load(std::memory_order_acquire) != full) return std::nullopt;
    const T value = cell.value;
    cell.state.store(full + 1, std::memory_order_release);
    ++head_;
    return value;
  }

 private:
  struct Cell {
    std::atomic<uint64_t> state{0};
    T value{};
  };

  std::atomic<uint64_t> tail_{0};
  uint64_t head_ = 0;
  std::array<Cell, kSize> cells_;
};

}  // namespace postcopy

#endif  // UFFD_POST_BOX_H_
