#include "cmd/security/peer_list.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace postcopy {
namespace {

// Host names have no case; URIs do.
std::string Normal(absl::string_view name) {
  return absl::StrContains(name, "://") ? std::string(name)
                                        : absl::AsciiStrToLower(name);
}

// For a message: no longer than it needs to be, and printable, since the
// certificate's owner chose it.
std::string Told(absl::Span<const std::string> names) {
  if (names.empty()) return "no DNS name and no URI";
  std::string told;
  for (const std::string& name : names.subspan(0, kPeerNamesTold)) {
    absl::StrAppend(
        &told, told.empty() ? "" : ", ",
        absl::CHexEscape(absl::string_view(name).substr(0, kPeerNameBytesMax)));
  }
  if (names.size() > kPeerNamesTold) {
    absl::StrAppend(&told, " and ", names.size() - kPeerNamesTold, " more");
  }
  return told;
}

}  // namespace

absl::StatusOr<PeerList> PeerList::Parse(std::string flag,
                                         absl::string_view text) {
  PeerList list;
  list.flag_ = std::move(flag);
  if (text.empty()) return list;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::string_view name = absl::StripAsciiWhitespace(part);
    if (name.empty() || name.size() > kPeerNameBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(list.flag_, " has a name of ", name.size(),
                       " bytes, but names have 1 to ", kPeerNameBytesMax));
    }
    if (list.names_.size() == kPeersMax) {
      return absl::InvalidArgumentError(absl::StrCat(
          list.flag_, " has more than ", kPeersMax,
          " names: give peers of one kind one URI in their certificates"));
    }
    list.names_.push_back(Normal(name));
  }
  std::sort(list.names_.begin(), list.names_.end());
  return list;
}

absl::Status PeerList::Check(absl::Span<const std::string> presented) const {
  if (empty()) return absl::OkStatus();
  for (const std::string& name : presented) {
    if (std::binary_search(names_.begin(), names_.end(), Normal(name))) {
      return absl::OkStatus();
    }
  }
  return absl::PermissionDeniedError(
      absl::StrCat("a peer whose certificate names ", Told(presented),
                   " may not do this: ", flag_, " has none of these names"));
}

}  // namespace postcopy
