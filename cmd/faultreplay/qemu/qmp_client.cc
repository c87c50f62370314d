#include "cmd/faultreplay/qemu/qmp_client.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cmd/faultreplay/loopback.h"
#include "google/protobuf/util/json_util.h"

namespace postcopy {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

constexpr size_t kReceiveBytes = 64 * 1024;

// Null if there is none.
const Value* Find(const Struct& object, const std::string& key) {
  const auto entry = object.fields().find(key);
  return entry == object.fields().end() ? nullptr : &entry->second;
}

absl::Status Ended() {
  return absl::UnavailableError("QEMU has closed its monitor");
}

}  // namespace

std::string QmpString(const Struct& object, const std::string& key) {
  const Value* const value = Find(object, key);
  return value == nullptr ? "" : value->string_value();
}

double QmpNumber(const Struct& object, const std::string& key) {
  const Value* const value = Find(object, key);
  return value == nullptr ? 0 : value->number_value();
}

Struct QmpObject(const Struct& object, const std::string& key) {
  const Value* const value = Find(object, key);
  return value == nullptr ? Struct() : value->struct_value();
}

absl::Status QmpClient::Negotiate(absl::Duration timeout) {
  const absl::StatusOr<Struct> greeting = ReadObject(absl::Now() + timeout);
  if (!greeting.ok()) return greeting.status();
  if (Find(*greeting, "QMP") == nullptr) {
    return absl::InternalError("whoever answers is no monitor of QEMU");
  }
  return Execute("qmp_capabilities", JsonObject(), timeout).status();
}

absl::StatusOr<Value> QmpClient::Execute(absl::string_view command,
                                         const JsonObject& arguments,
                                         absl::Duration timeout) {
  JsonObject line;
  line.Add("execute", command).Add("arguments", arguments);
  absl::Status sent = Send(line.ToString() + "\n");
  if (!sent.ok()) return sent;
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    absl::StatusOr<Struct> message = ReadObject(deadline);
    if (!message.ok()) return message.status();
    if (const Value* answer = Find(*message, "return"); answer != nullptr) {
      return *answer;
    }
    if (Find(*message, "error") != nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("QEMU refuses ", command, ": ",
                       QmpString(QmpObject(*message, "error"), "desc")));
    }
    absl::Status kept = KeepEvent(*message);
    if (!kept.ok()) return kept;
  }
}

absl::StatusOr<QmpEvent> QmpClient::NextEvent(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (events_.empty()) {
    const absl::StatusOr<Struct> message = ReadObject(deadline);
    if (!message.ok()) return message.status();
    absl::Status kept = KeepEvent(*message);
    if (!kept.ok()) return kept;
  }
  QmpEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

absl::Status QmpClient::KeepEvent(const Struct& message) {
  if (Find(message, "event") == nullptr) {
    return absl::InternalError(
        absl::StrCat("QEMU says what is no QMP: ", message.ShortDebugString()));
  }
  if (events_.size() >= kQmpEventsMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "QEMU has sent more than ", kQmpEventsMax, " events at a time"));
  }
  const Struct stamp = QmpObject(message, "timestamp");
  events_.push_back(
      {.name = QmpString(message, "event"),
       .time = absl::UnixEpoch() + absl::Seconds(QmpNumber(stamp, "seconds")) +
               absl::Microseconds(QmpNumber(stamp, "microseconds")),
       .data = QmpObject(message, "data")});
  return absl::OkStatus();
}

absl::StatusOr<Struct> QmpClient::ReadObject(absl::Time deadline) {
  size_t end = unread_.find('\n');
  while (end == std::string::npos) {
    const size_t before = unread_.size();
    absl::Status received = Receive(deadline);
    if (!received.ok()) return received;
    end = unread_.find('\n', before);
    if (std::min(end, unread_.size()) > kQmpLineBytesMax) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "QEMU has sent a line of more than ", kQmpLineBytesMax, " bytes"));
    }
  }
  const std::string line = unread_.substr(0, end);
  unread_.erase(0, end + 1);
  Struct object;
  if (!google::protobuf::util::JsonStringToMessage(line, &object).ok()) {
    return absl::InternalError(
        absl::StrCat("QEMU says what is no JSON object: ", line));
  }
  return object;
}

absl::Status QmpClient::Receive(absl::Time deadline) {
  // Rounded up, so that there is none of 0 ms again and again.
  const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now()) + 1;
  pollfd ready = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
  const int count = ::poll(
      &ready, 1, static_cast<int>(std::clamp<int64_t>(left_ms, 0, INT32_MAX)));
  if (count == 0) {
    return absl::DeadlineExceededError("QEMU says nothing in time");
  }
  if (count < 0) {
    return errno == EINTR ? absl::OkStatus()
                          : absl::ErrnoToStatus(errno, "poll");
  }
  const size_t before = unread_.size();
  unread_.resize(before + kReceiveBytes);
  const ssize_t received =
      ::recv(socket_.get(), unread_.data() + before, kReceiveBytes, 0);
  unread_.resize(before + static_cast<size_t>(std::max<ssize_t>(received, 0)));
  if (received > 0 || (received < 0 && errno == EINTR)) return absl::OkStatus();
  return Ended();
}

absl::Status QmpClient::Send(const std::string& line) {
  return SendAll(socket_.get(), line.data(), line.size()) ? absl::OkStatus()
                                                          : Ended();
}

}  // namespace postcopy
