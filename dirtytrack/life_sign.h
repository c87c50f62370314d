// Whether a thread still comes round to where it waits.
#ifndef DIRTYTRACK_LIFE_SIGN_H_
#define DIRTYTRACK_LIFE_SIGN_H_

#include <atomic>
#include <cstdint>

namespace postcopy {

// A question to a thread that waits for, among other things, a wake-up, and its
// answer. It costs the thread one store per wake-up and nothing besides. Ask is
// for one thread at a time, Answer for the one that is asked.
class LifeSign {
 public:
  // Returns whether the question before this has been answered (true if there
  // was none). If so, asks the next one by `wake`, which makes the thread call
  // Answer. So a watchdog that calls it now and then hears false as long as the
  // thread is stuck, and no sooner than one of its own intervals.
  template <typename Wake>
  bool Ask(Wake wake) {
    if (answered_.load() != asked_.load()) return false;
    asked_.fetch_add(1);
    wake();
    return true;
  }

  // Whatever was asked until now is answered.
  void Answer() { answered_.store(asked_.load()); }

 private:
  std::atomic<uint64_t> asked_{0};
  std::atomic<uint64_t> answered_{0};
};

}  // namespace postcopy

#endif  // DIRTYTRACK_LIFE_SIGN_H_
