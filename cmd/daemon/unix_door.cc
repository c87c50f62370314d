#include "cmd/daemon/unix_door.h"

#include <sys/socket.h>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/vmm_channel/listening_socket.h"

namespace postcopy {
namespace {

// A user that is refused may come again without end.
constexpr absl::Duration kQuiet = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<UnixDoor>> UnixDoor::Create(Options options) {
  std::unique_ptr<UnixDoor> door(new UnixDoor(std::move(options)));
  absl::StatusOr<ListeningSocket> listening =
      ListeningSocket::Create(door->options_.path, SOCK_STREAM);
  if (!listening.ok()) return listening.status();
  absl::Status status = door->loop_.Start(*std::move(listening));
  if (!status.ok()) return status;
  return door;
}

void UnixDoor::OnConnection(UniqueFd fd) {
  const absl::StatusOr<ucred> peer =
      CheckPeer(fd.get(), options_.allowed_uids, "use the control plane");
  if (!peer.ok()) return Complain(peer.status());
  options_.let_in(std::move(fd));
}

void UnixDoor::Complain(const absl::Status& status) {
  if (!quiet_until_.passed()) {
    ++unsaid_;
    return;
  }
  quiet_until_ = Deadline::After(kQuiet);
  const std::string more =
      unsaid_ == 0 ? "" : absl::StrCat(" (", unsaid_, " more before)");
  unsaid_ = 0;
  options_.log(absl::StrCat("somebody was turned away at ", options_.path, ": ",
                            status.message(), more));
}

}  // namespace postcopy
