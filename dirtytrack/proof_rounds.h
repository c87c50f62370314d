// How long proofs on the real kernel run. Test-only.
#ifndef DIRTYTRACK_PROOF_ROUNDS_H_
#define DIRTYTRACK_PROOF_ROUNDS_H_

#include <algorithm>
#include <cstdlib>

namespace postcopy {

// 10,000 rounds, or POSTCOPY_PROOF_ROUNDS (at least 100): what a sanitizer
// watches is our code, which is the same in each round, and it takes ten times
// as long.
inline int ProofRounds() {
  const char* const given = std::getenv("POSTCOPY_PROOF_ROUNDS");
  return given == nullptr ? 10'000 : std::max(100, std::atoi(given));
}

}  // namespace postcopy

#endif  // DIRTYTRACK_PROOF_ROUNDS_H_
