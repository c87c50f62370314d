// What a mark costs a VMM that is linked with libpostcopy_vmm.so.
//
//   MarkDirty         a page that is marked already
//   MarkClean         pages one after the other, none marked yet
//   MarkAddressDirty  as MarkDirty, by the address of its bytes

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "benchmark/benchmark.h"
#include "cmd/vmm_library/postcopy_vmm.h"

namespace {

constexpr uint64_t kPages = uint64_t{1} << 24;  // 64 GiB
constexpr uint64_t kBytes = kPages * POSTCOPY_VMM_PAGE_BYTES;
// AttachResult { code: 0 }.
constexpr char kAttached[] = {0x0a, 0x00};

void Require(bool condition, const char* what) {
  if (condition) return;
  std::perror(what);
  std::exit(1);
}

int Refused(void* /*context*/, postcopy_vmm* /*vmm*/) {
  return POSTCOPY_VMM_UNIMPLEMENTED;
}

// A daemon that takes any VM, and asks nothing of it.
class Daemon {
 public:
  Daemon() {
    std::snprintf(address_.sun_path, sizeof(address_.sun_path),
                  "/tmp/postcopy-benchmark-%d.sock", ::getpid());
    Require(::bind(listening_, reinterpret_cast<sockaddr*>(&address_),
                   sizeof(address_)) == 0,
            "bind");
    Require(::listen(listening_, 1) == 0, "listen");
    thread_ = std::thread([this] {
      const int vmm = ::accept(listening_, nullptr, nullptr);
      Require(vmm >= 0, "accept");
      char message[4096];
      Require(::recv(vmm, message, sizeof(message), 0) > 0, "recv");
      Require(::send(vmm, kAttached, sizeof(kAttached), 0) > 0, "send");
    });
  }
  ~Daemon() {
    thread_.join();
    ::unlink(path());
  }
  const char* path() const { return address_.sun_path; }

 private:
  const int listening_ = ::socket(AF_UNIX, SOCK_SEQPACKET, 0);
  sockaddr_un address_ = {.sun_family = AF_UNIX, .sun_path = {}};
  std::thread thread_;
};

// A marker of a VM with one region, which nothing has touched.
struct Vm {
  Vm() {
    const int memory = ::memfd_create("ram", 0);
    Require(::ftruncate(memory, kBytes) == 0, "ftruncate");
    ram = static_cast<char*>(
        ::mmap(nullptr, kBytes, PROT_NONE, MAP_SHARED, memory, 0));
    Require(ram != MAP_FAILED, "mmap");
    postcopy_vmm* const handle = postcopy_vmm_new();
    const postcopy_vmm_region region = {.size = sizeof(region),
                                        .name = "ram",
                                        .address = ram,
                                        .length = kBytes,
                                        .memory_fd = memory};
    const Daemon daemon;
    const postcopy_vmm_options options = {
        .size = sizeof(options),
        .socket_path = daemon.path(),
        .vm_name = "benchmark",
        .role = POSTCOPY_VMM_SOURCE,
        .dirty_tracking = POSTCOPY_VMM_DIRTY_LOG};
    const postcopy_vmm_callbacks callbacks = {.size = sizeof(callbacks),
                                              .pause_guest = Refused,
                                              .save_device_state = Refused,
                                              .resume_guest = Refused};
    const bool attached =
        postcopy_vmm_add_region(handle, &region) == POSTCOPY_VMM_OK &&
        postcopy_vmm_attach(handle, &options, &callbacks) == POSTCOPY_VMM_OK &&
        postcopy_vmm_marker_new(handle, &marker) == POSTCOPY_VMM_OK;
    Require(attached, postcopy_vmm_message(handle));
  }

  char* ram;
  postcopy_vmm_marker* marker;
};

Vm& TheVm() {
  static Vm* const vm = new Vm;
  return *vm;
}

void MarkDirty(benchmark::State& state) {
  Vm& vm = TheVm();
  for (auto _ : state) postcopy_vmm_mark(vm.marker, 0, 12345);
}
BENCHMARK(MarkDirty);

void MarkClean(benchmark::State& state) {
  Vm& vm = TheVm();
  uint64_t page = 0;
  for (auto _ : state) postcopy_vmm_mark(vm.marker, 0, page++);
}
// Fewer than there are pages.
BENCHMARK(MarkClean)->Iterations(1 << 23);

void MarkAddressDirty(benchmark::State& state) {
  Vm& vm = TheVm();
  for (auto _ : state) {
    postcopy_vmm_mark_address(vm.marker, vm.ram + 0x1234567, 8);
  }
}
BENCHMARK(MarkAddressDirty);

}  // namespace

BENCHMARK_MAIN();
