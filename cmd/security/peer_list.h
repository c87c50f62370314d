// Which peers may come in, by the names in their certificates.
#ifndef CMD_SECURITY_PEER_LIST_H_
#define CMD_SECURITY_PEER_LIST_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace postcopy {

// Names on one list, and the bytes of one.
inline constexpr size_t kPeersMax = 4096;
inline constexpr size_t kPeerNameBytesMax = 512;

// Names of one certificate that a message repeats.
inline constexpr size_t kPeerNamesTold = 8;

// A list of subject alternative names (DNS and URI) of which a peer's
// certificate must have one. An empty list lets in every certificate of the
// authorities. Immutable.
class PeerList {
 public:
  // Lets everybody in.
  PeerList() = default;

  // Splits "host-1.example,spiffe://example/orchestrator". `flag` is what
  // messages call it. INVALID_ARGUMENT for an empty, overlong or 4097th name.
  static absl::StatusOr<PeerList> Parse(std::string flag,
                                        absl::string_view text);

  bool empty() const { return names_.empty(); }

  // `presented` is what a certificate that has been verified says. DNS names
  // are compared without regard to case and letter by letter: a wildcard in a
  // certificate is a name like any other. PERMISSION_DENIED names what was
  // presented and the flag.
  absl::Status Check(absl::Span<const std::string> presented) const;

 private:
  std::string flag_;
  std::vector<std::string> names_;  // as Normal, sorted
};

}  // namespace postcopy

#endif  // CMD_SECURITY_PEER_LIST_H_
