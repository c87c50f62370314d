#include "cmd/systemd/service_manager.h"

#include <systemd/sd-daemon.h>

#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

absl::Duration Watchdog() {
  uint64_t micros = 0;
  if (::sd_watchdog_enabled(/*unset_environment=*/0, &micros) <= 0) {
    return absl::InfiniteDuration();
  }
  return absl::Microseconds(micros);
}

bool IsKnown(absl::string_view name) {
  return name == kVmmSocketName || name == kFirecrackerSocketName;
}

// Names and descriptors that were passed, in order.
std::vector<std::pair<std::string, UniqueFd>> Passed() {
  char** names = nullptr;
  const int count = ::sd_listen_fds_with_names(/*unset_environment=*/1, &names);
  std::vector<std::pair<std::string, UniqueFd>> passed;
  for (int i = 0; i < count; ++i) {
    passed.emplace_back(names[i], UniqueFd(SD_LISTEN_FDS_START + i));
    std::free(names[i]);
  }
  std::free(names);
  return passed;
}

}  // namespace

ServiceManager::ServiceManager()
    : there_(std::getenv("NOTIFY_SOCKET") != nullptr), watchdog_(Watchdog()) {}

void ServiceManager::Status(absl::string_view line) const {
  Tell(absl::StrCat("STATUS=", line));
}

void ServiceManager::NeedsTime(absl::Duration more) const {
  Tell(absl::StrCat("EXTEND_TIMEOUT_USEC=", absl::ToInt64Microseconds(more)));
}

void ServiceManager::Tell(const std::string& state) const {
  if (there_) ::sd_notify(/*unset_environment=*/0, state.c_str());
}

absl::StatusOr<std::map<std::string, UniqueFd>> TakePassedSockets() {
  std::map<std::string, UniqueFd> sockets;
  for (auto& [name, socket] : Passed()) {
    if (!IsKnown(name) || sockets.count(name) > 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the service manager passed a socket named \"", name,
          "\": socket units of this daemon say FileDescriptorName=",
          kVmmSocketName, " or =", kFirecrackerSocketName,
          ", and one ListenStream= or ListenSequentialPacket="));
    }
    sockets[name] = std::move(socket);
  }
  return sockets;
}

std::string DescribeUnused(const std::map<std::string, UniqueFd>& sockets) {
  if (sockets.empty()) return "";
  std::string names;
  for (const auto& [name, socket] : sockets) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  return absl::StrCat(
      "the service manager passed a socket that this daemon does not serve (",
      names,
      "), and who connects there waits for ever: stop and disable its "
      "socket unit, or configure what is to be served at it");
}

int TakeSocket(std::map<std::string, UniqueFd>& sockets,
               const std::string& name) {
  const auto found = sockets.find(name);
  if (found == sockets.end()) return -1;
  return sockets.extract(found).mapped().Release();
}

}  // namespace postcopy
