// A program to be recorded: it fills memory, says so, waits until it is told to
// go on, and looks whether all of it is as it was. Test-only.
//
//   recorded_program READY_FILE GO_FILE [fork|spawn|more|locked|owned]
//
// more, locked, owned: one mapping more; that it has locked; that it has given
// to a userfaultfd of its own.
//
// Exit code: 0 all was right, 1 a byte was wrong, 2 wrong usage or no memory, 3
// what only a child process could find.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = 512;
// Of which each thread reads every second one, backwards.
constexpr size_t kThreads = 2;

std::atomic<int> wrong{0};
std::atomic<bool> leave{false};

uint8_t* MapPages(size_t pages) {
  const size_t bytes = (pages + 2) * kPage;
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::exit(2);
  uint8_t* const first = static_cast<uint8_t*>(memory);
  // Neighbours would be one mapping.
  ::mprotect(first, kPage, PROT_NONE);
  ::mprotect(first + bytes - kPage, kPage, PROT_NONE);
  return first + kPage;
}

uint64_t WordOf(size_t page, uint64_t salt) {
  return (page + 1) * 0x9e3779b97f4a7c15 ^ salt;
}

void Fill(uint8_t* memory, size_t pages, uint64_t salt) {
  for (size_t page = 0; page < pages; ++page) {
    const uint64_t word = WordOf(page, salt);
    std::memcpy(memory + page * kPage + 8 * (page % 512), &word, sizeof(word));
  }
}

bool IsRight(const uint8_t* memory, size_t page, uint64_t salt) {
  uint64_t word = 0;
  std::memcpy(&word, memory + page * kPage + 8 * (page % 512), sizeof(word));
  return word == WordOf(page, salt);
}

void Expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "recorded_program: wrong: %s\n", what);
  ++wrong;
}

void AwaitFile(const char* path) {
  while (::access(path, F_OK) != 0) ::usleep(1000);
}

void ReadHalf(const uint8_t* memory, size_t first) {
  for (size_t i = 0; i < kPages / kThreads; ++i) {
    const size_t page = kPages - kThreads * (i + 1) + first;
    Expect(IsRight(memory, page, 1), "a page that was read");
  }
}

// What becomes of memory that is given up, moved and unmapped.
void ChangeMappings(uint8_t* given, uint8_t* moved, uint8_t* unmapped) {
  ::madvise(given, 8 * kPage, MADV_DONTNEED);
  for (size_t page = 0; page < 16; ++page) {
    Expect(page < 8 ? given[page * kPage + 8 * page] == 0
                    : IsRight(given, page, 2),
           "memory that was given up in part");
  }
  uint8_t* const there = MapPages(64);
  void* const now = ::mremap(moved, 32 * kPage, 32 * kPage,
                             MREMAP_MAYMOVE | MREMAP_FIXED, there);
  Expect(now == there, "mremap");
  for (size_t page = 0; page < 32; ++page) {
    Expect(IsRight(there, page, 3), "memory that was moved");
  }
  Expect(::munmap(unmapped, 16 * kPage) == 0, "munmap");
}

// Of a userfaultfd that nobody serves: what is not there stays so.
void GiveAway(uint8_t* memory, size_t pages) {
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  const int fd = device >= 0
                     ? ::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC)
                     : static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
  uffdio_api api = {.api = UFFD_API, .features = 0, .ioctls = 0};
  uffdio_register request = {
      .range = {.start = reinterpret_cast<uint64_t>(memory),
                .len = pages * kPage},
      .mode = UFFDIO_REGISTER_MODE_MISSING,
      .ioctls = 0};
  Expect(::ioctl(fd, UFFDIO_API, &api) == 0 &&
             ::ioctl(fd, UFFDIO_REGISTER, &request) == 0,
         "a userfaultfd of its own");
}

uint8_t* MapMore(const std::string& how) {
  if (how != "more" && how != "locked" && how != "owned") return nullptr;
  uint8_t* const memory = MapPages(kPages);
  Fill(memory, kPages, 5);
  if (how == "locked") Expect(::mlock(memory, kPages * kPage) == 0, "mlock");
  if (how == "owned") GiveAway(memory, kPages);
  return memory;
}

int ForkAndLook(const uint8_t* memory) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(IsRight(memory, 7, 2) ? 0 : 3);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return 2;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

void SpawnTrue() {
  char name[] = "/bin/true";
  char* argv[] = {name, nullptr};
  pid_t child = 0;
  int status = 1;
  Expect(::posix_spawn(&child, name, nullptr, nullptr, argv, environ) == 0 &&
             ::waitpid(child, &status, 0) == child && status == 0,
         "a program that was spawned");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string then = argc > 3 ? argv[3] : "";
  uint8_t* const read = MapPages(kPages);
  uint8_t* const given = MapPages(16);
  uint8_t* const moved = MapPages(32);
  uint8_t* const unmapped = MapPages(16);
  Fill(read, kPages, 1);
  Fill(given, 16, 2);
  Fill(moved, 32, 3);
  Fill(unmapped, 16, 4);
  const uint8_t* const more = MapMore(then);
  // In a system call that is interrupted, and in the middle of computing.
  std::atomic<uint64_t> spins{0};
  std::thread spinner([&] {
    while (!leave.load()) spins.fetch_add(1);
  });
  std::ofstream(argv[1]) << "x";
  AwaitFile(argv[2]);

  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([=] { ReadHalf(read, i); });
  }
  for (std::thread& thread : threads) thread.join();
  if (then == "fork") return ForkAndLook(given);
  if (then == "spawn") SpawnTrue();
  for (size_t page = 0; more != nullptr && page < kPages; ++page) {
    Expect(IsRight(more, page, 5), "one mapping more");
  }
  ChangeMappings(given, moved, unmapped);
  read[5 * kPage] = 9;
  Expect(read[5 * kPage] == 9, "a page that was written");
  // The kernel reads it.
  FILE* const null = std::fopen("/dev/null", "w");
  Expect(null != nullptr && std::fwrite(read, kPage, kPages, null) == kPages,
         "write(2)");
  leave.store(true);
  spinner.join();
  std::printf("right: %s\n", wrong.load() == 0 ? "yes" : "no");
  return wrong.load() == 0 ? 0 : 1;
}
