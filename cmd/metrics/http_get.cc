#include "cmd/metrics/http_get.h"

#include <curl/curl.h>

#include <algorithm>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace postcopy {
namespace {

struct EndHandle {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
};

// As CURLOPT_WRITEFUNCTION demands: less than was given ends the transfer.
size_t Append(char* data, size_t size, size_t count, void* body) {
  auto& text = *static_cast<std::string*>(body);
  if (text.size() + size * count > kHttpBodyBytesMax) return 0;
  text.append(data, size * count);
  return size * count;
}

absl::Status ToStatus(CURLcode code, const std::string& url) {
  const std::string message = absl::StrCat(url, ": ", curl_easy_strerror(code));
  if (code == CURLE_OK) return absl::OkStatus();
  if (code == CURLE_OPERATION_TIMEDOUT) {
    return absl::DeadlineExceededError(message);
  }
  if (code == CURLE_WRITE_ERROR) {
    return absl::ResourceExhaustedError(absl::StrCat(
        url, ": the answer has more than ", kHttpBodyBytesMax, " bytes"));
  }
  return absl::UnavailableError(
      absl::StrCat(message, "; is this the daemon's --metrics_address?"));
}

// Before other threads use the library.
bool InitOnce() {
  static const bool done = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  return done;
}

}  // namespace

absl::StatusOr<std::string> HttpGet(const std::string& host_port,
                                    const std::string& path,
                                    absl::Duration timeout) {
  std::unique_ptr<CURL, EndHandle> handle(InitOnce() ? curl_easy_init()
                                                     : nullptr);
  if (handle == nullptr) {
    return absl::ResourceExhaustedError("no memory for an HTTP client");
  }
  const std::string url = absl::StrCat("http://", host_port, path);
  // 0 would mean no limit, and so would more than fits a long.
  const absl::Duration bounded =
      std::clamp(timeout, absl::Milliseconds(1), absl::Hours(1));
  std::string body;
  curl_easy_setopt(handle.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(handle.get(), CURLOPT_PROTOCOLS_STR, "http");
  curl_easy_setopt(handle.get(), CURLOPT_PROXY, "");
  curl_easy_setopt(handle.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(handle.get(), CURLOPT_TIMEOUT_MS,
                   static_cast<long>(absl::ToInt64Milliseconds(bounded)));
  curl_easy_setopt(handle.get(), CURLOPT_WRITEFUNCTION, &Append);
  curl_easy_setopt(handle.get(), CURLOPT_WRITEDATA, &body);
  absl::Status status = ToStatus(curl_easy_perform(handle.get()), url);
  if (!status.ok()) return status;
  long code = 0;
  curl_easy_getinfo(handle.get(), CURLINFO_RESPONSE_CODE, &code);
  if (code == 200) return body;
  return absl::FailedPreconditionError(
      absl::StrCat(url, " answers with HTTP status ", code,
                   ": this is not a daemon's --metrics_address"));
}

}  // namespace postcopy
