#include "cmd/faultreplay/exchange_backend.h"

#include <grpcpp/grpcpp.h>
#include <linux/futex.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cmd/faultreplay/cpu_time.h"
#include "cmd/faultreplay/delay_proxy.h"
#include "cmd/faultreplay/faulting_memory.h"
#include "cmd/faultreplay/loopback.h"
#include "cmd/process/child_process.h"
#include "cmd/process/ready_line.h"
#include "postcopy/v1/data_plane.grpc.pb.h"

namespace postcopy {
namespace {

constexpr absl::Duration kServerReady = absl::Seconds(30);
constexpr absl::Duration kServerEnd = absl::Seconds(10);

// Where the answers go: pages of this process, each brought once.
class ArrivedPages {
 public:
  ArrivedPages(PageCount pages, FaultingMemory memory)
      : memory_(std::move(memory)), states_(pages.value()) {}

  // Has memory behind each page from now on.
  void Populate() { std::memset(memory_.data(), 0, memory_.size().value()); }

  bool IsHere(PageIndex page) const {
    return states_[page.value()].load(std::memory_order_acquire) == kHere;
  }
  // True if the caller is to bring it; else it is here, or somebody does.
  bool Claim(PageIndex page) {
    int32_t absent = kAbsent;
    return states_[page.value()].compare_exchange_strong(absent, kComing);
  }
  void AwaitEnd(PageIndex page) {
    std::atomic<int32_t>& state = states_[page.value()];
    // Not std::atomic::wait, which yields before it sleeps: on a busy CPU that
    // is the end of a thread's turn.
    waiting_.fetch_add(1);
    while (state.load() == kComing) {
      ::syscall(SYS_futex, &state, FUTEX_WAIT_PRIVATE, kComing, nullptr);
    }
    waiting_.fetch_sub(1);
  }
  void Arrive(PageIndex page, const void* bytes) {
    std::memcpy(At(page), bytes, kPageSize);
    SetState(page, kHere);
    count_.fetch_add(1, std::memory_order_relaxed);
  }
  void Fail(PageIndex page) { SetState(page, kAbsent); }

  uint8_t* At(PageIndex page) {
    return memory_.data() + OffsetOf(page).value();
  }
  uint64_t count() const { return count_.load(); }
  PageCount pages() const { return PageCount(states_.size()); }

 private:
  enum State : int32_t { kAbsent, kComing, kHere };

  void SetState(PageIndex page, State state) {
    // Sequentially consistent, as in AwaitEnd(): one of both sees the other.
    states_[page.value()].store(state);
    if (waiting_.load() == 0) return;
    ::syscall(SYS_futex, &states_[page.value()], FUTEX_WAKE_PRIVATE, INT_MAX);
  }

  const FaultingMemory memory_;
  std::vector<std::atomic<int32_t>> states_;
  std::atomic<int32_t> waiting_{0};
  std::atomic<uint64_t> count_{0};
};
static_assert(sizeof(std::atomic<int32_t>) == sizeof(int32_t));

// How pages are asked for.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual absl::Status Connect(const std::string& address,
                               uint32_t threads) = 0;
  // Brings a claimed page, or lets it fail, before or after it returns.
  virtual void Bring(uint32_t thread, PageIndex page) = 0;
  virtual void Abort() = 0;
};

class TcpExchange final : public Exchange {
 public:
  explicit TcpExchange(ArrivedPages* pages) : pages_(*pages) {}

  absl::Status Connect(const std::string& address, uint32_t threads) override {
    for (uint32_t i = 0; i < threads; ++i) {
      absl::StatusOr<UniqueFd> fd = ConnectToLoopback(PortOf(address));
      if (!fd.ok()) return fd.status();
      connections_.push_back(*std::move(fd));
    }
    return absl::OkStatus();
  }

  void Bring(uint32_t thread, PageIndex page) override {
    const EchoRequest request = {.page = page.value(), .unused = 0};
    uint8_t bytes[kPageSize];
    const int fd = connections_[thread].get();
    if (SendAll(fd, &request, sizeof(request)) &&
        ReceiveAll(fd, bytes, sizeof(bytes))) {
      pages_.Arrive(page, bytes);
    } else {
      pages_.Fail(page);
    }
  }

  void Abort() override {
    for (const UniqueFd& fd : connections_) ::shutdown(fd.get(), SHUT_RDWR);
  }

 private:
  ArrivedPages& pages_;
  std::vector<UniqueFd> connections_;
};

class GrpcExchange final : public Exchange {
 public:
  explicit GrpcExchange(ArrivedPages* pages) : pages_(*pages) {}

  ~GrpcExchange() override {
    if (stream_ == nullptr) return;
    {
      const std::lock_guard lock(mutex_);
      stream_->WritesDone();
    }
    if (reader_.joinable()) reader_.join();
    context_.TryCancel();
    stream_->Finish();
  }

  absl::Status Connect(const std::string& address, uint32_t threads) override {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::DataPlaneService::NewStub(grpc::CreateCustomChannel(
        address, grpc::InsecureChannelCredentials(), arguments));
    stream_ = stub_->Urgent(&context_);
    request_.mutable_session()->set_session_id(1);
    request_.mutable_session()->set_epoch(1);
    request_.add_ram_offsets_bytes(0);
    if (threads > 1) reader_ = std::thread([this] { ReadAll(); });
    return absl::OkStatus();
  }

  void Bring(uint32_t, PageIndex page) override {
    {
      const std::lock_guard lock(mutex_);
      request_.set_ram_offsets_bytes(0, OffsetOf(page).value());
      asked_.push_back(page);
      if (ended_ || !stream_->Write(request_)) {
        asked_.pop_back();
        pages_.Fail(page);
        return;
      }
    }
    if (!reader_.joinable()) Read();
  }

  void Abort() override { context_.TryCancel(); }

 private:
  // The next answer. False if there is none.
  bool Read() {
    const bool read = stream_->Read(&response_);
    const std::lock_guard lock(mutex_);
    if (!read || asked_.empty() || response_.runs_size() != 1 ||
        response_.runs(0).data().size() != kPageSize) {
      ended_ = true;
      for (PageIndex page : asked_) pages_.Fail(page);
      asked_.clear();
      return false;
    }
    pages_.Arrive(asked_.front(), response_.runs(0).data().data());
    asked_.pop_front();
    return true;
  }
  void ReadAll() {
    while (Read()) {
    }
  }

  ArrivedPages& pages_;
  std::unique_ptr<v1::DataPlaneService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<
      grpc::ClientReaderWriter<v1::UrgentRequest, v1::UrgentResponse>>
      stream_;
  std::thread reader_;
  v1::UrgentResponse response_;  // of who reads
  std::mutex mutex_;
  // Guarded by mutex_.
  v1::UrgentRequest request_;
  std::deque<PageIndex> asked_;
  bool ended_ = false;
};

// All pages, unasked.
class GrpcStream final : public Exchange {
 public:
  explicit GrpcStream(ArrivedPages* pages) : pages_(*pages) {
    for (PageIndex page(0); page.value() < pages_.pages().value();
         page += PageCount(1)) {
      pages_.Claim(page);
    }
  }

  ~GrpcStream() override {
    // A server that is there and says nothing would be waited for for ever.
    context_.TryCancel();
    if (reader_.joinable()) reader_.join();
  }

  absl::Status Connect(const std::string& address, uint32_t) override {
    stub_ = v1::DataPlaneService::NewStub(
        grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    stream_ = stub_->Bulk(&context_);
    reader_ = std::thread([this] { ReadAll(); });
    return absl::OkStatus();
  }

  // Nobody can claim a page before the stream has ended without it.
  void Bring(uint32_t, PageIndex page) override { pages_.Fail(page); }
  void Abort() override { context_.TryCancel(); }

 private:
  void ReadAll() {
    v1::BulkResponse response;
    while (stream_->Read(&response)) {
      for (const v1::PageRun& run : response.pages().runs()) {
        for (uint64_t i = 0; i < run.page_count(); ++i) {
          pages_.Arrive(
              PageOf(RamOffset(run.ram_offset_bytes())) + PageCount(i),
              run.data().data() + i * kPageSize);
        }
      }
    }
    stream_->Finish();
    for (PageIndex page(0); page.value() < pages_.pages().value();
         page += PageCount(1)) {
      if (!pages_.IsHere(page)) pages_.Fail(page);
    }
  }

  ArrivedPages& pages_;
  std::unique_ptr<v1::DataPlaneService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::BulkRequest, v1::BulkResponse>>
      stream_;
  std::thread reader_;
};

std::unique_ptr<Exchange> NewExchange(const ExchangeOptions& options,
                                      ArrivedPages* pages) {
  if (options.kind == EchoKind::kTcp) {
    return std::make_unique<TcpExchange>(pages);
  }
  if (options.stream) return std::make_unique<GrpcStream>(pages);
  return std::make_unique<GrpcExchange>(pages);
}

class ExchangeBackend final : public Backend {
 public:
  ExchangeBackend(const SourceMemory* source, ExchangeOptions options)
      : source_(*source), options_(std::move(options)) {}

  absl::Status Start() override;
  bool IsHere(PageIndex page) override { return pages_->IsHere(page); }
  PageCount CountHere() override { return PageCount(pages_->count()); }
  bool IsOver() override {
    return !options_.stream || CountHere() == source_.pages();
  }
  const uint8_t* Touch(uint32_t thread, PageIndex page, bool write) override;
  void GiveUp() override {
    given_up_.store(true);
    exchange_->Abort();
  }
  absl::Status Report(BackendReport* report) override {
    report->cpu_ns = ProcessCpuNanos(server_->pid()) - cpu_before_ns_;
    report->pages_moved = pages_->count();
    return absl::OkStatus();
  }
  absl::Status Finish(BackendReport* report) override;

 private:
  absl::Status CreatePages();

  const SourceMemory& source_;
  const ExchangeOptions options_;
  std::optional<ChildProcess> server_;
  std::unique_ptr<DelayProxy> proxy_;
  std::optional<ArrivedPages> pages_;
  std::unique_ptr<Exchange> exchange_;
  std::atomic<bool> given_up_{false};
  int64_t cpu_before_ns_ = 0;
};

absl::Status ExchangeBackend::CreatePages() {
  absl::StatusOr<FaultingMemory> memory =
      FaultingMemory::Create(source_.pages());
  if (!memory.ok()) return memory.status();
  pages_.emplace(source_.pages(), *std::move(memory));
  // Whoever answers single pages is a floor of what the network takes. The
  // stream is one of a whole migration, and the RAM of a guest that has just
  // been started has no memory yet: finding it is part of the work.
  if (!options_.stream) pages_->Populate();
  exchange_ = NewExchange(options_, &*pages_);
  return absl::OkStatus();
}

absl::Status ExchangeBackend::Start() {
  if (absl::Status s = CreatePages(); !s.ok()) return s;
  ChildOptions child;
  child.argv = {
      options_.program, "echo-server",
      options_.kind == EchoKind::kTcp ? "--backend=tcp" : "--backend=grpc-echo",
      absl::StrCat("--memory=", source_.Path()),
      absl::StrCat("--pages=", source_.pages().value())};
  child.pipe_flags = {"--ready_fd"};
  absl::StatusOr<ChildProcess> server = ChildProcess::Start(child);
  if (!server.ok()) return server.status();
  server_.emplace(*std::move(server));
  absl::StatusOr<std::string> line =
      server_->ReadLine("--ready_fd", kServerReady);
  if (!line.ok()) return line.status();
  absl::StatusOr<std::string> address = StringInJson(*line, "address");
  if (!address.ok()) return address.status();
  if (options_.delay_ns > 0) {
    auto proxy = DelayProxy::Create(*address, options_.delay_ns);
    if (!proxy.ok()) return proxy.status();
    proxy_ = *std::move(proxy);
    *address = proxy_->address();
  }
  absl::Status status = exchange_->Connect(*address, options_.threads);
  cpu_before_ns_ = ProcessCpuNanos(server_->pid());
  return status;
}

const uint8_t* ExchangeBackend::Touch(uint32_t thread, PageIndex page, bool) {
  while (!pages_->IsHere(page)) {
    if (given_up_.load()) return nullptr;
    if (pages_->Claim(page)) {
      exchange_->Bring(thread, page);
      pages_->AwaitEnd(page);
      if (!pages_->IsHere(page)) return nullptr;
    }
    pages_->AwaitEnd(page);
  }
  return pages_->At(page);
}

absl::Status ExchangeBackend::Finish(BackendReport*) {
  exchange_.reset();
  proxy_.reset();
  absl::StatusOr<ExitStatus> ended = server_->Terminate(kServerEnd);
  if (!ended.ok()) return ended.status();
  if (ended->ok() || given_up_.load()) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the echo server ended with ", ended->ToString()));
}

}  // namespace

std::unique_ptr<Backend> NewExchangeBackend(const SourceMemory* source,
                                            ExchangeOptions options) {
  return std::make_unique<ExchangeBackend>(source, std::move(options));
}

}  // namespace postcopy
