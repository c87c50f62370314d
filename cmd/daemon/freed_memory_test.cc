// Proves that what one message has freed is there for the next.
#include "cmd/daemon/freed_memory.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>

namespace postcopy {
namespace {

// AddressSanitizer and ThreadSanitizer have an allocator of their own, which
// glibc's numbers do not tell of.
bool OwnAllocator() {
  const size_t before = ::mallinfo2().uordblks;
  void* volatile block = std::malloc(32 << 10);
  const bool counted = ::mallinfo2().uordblks > before;
  std::free(block);
  return !counted;
}

// Blocks that mmap was asked for.
size_t MappedBlocks() { return ::mallinfo2().hblks; }

void* Allocate(size_t bytes) {
  // Not to be optimised away with its free.
  void* volatile block = std::malloc(bytes);
  return block;
}

TEST(FreedMemoryTest, BlocksOfMessagesComeFromTheHeapAndLargerOnesDoNot) {
  if (OwnAllocator()) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  KeepFreedMemory();
  const size_t before = MappedBlocks();
  void* const largest = Allocate(kHeapBlockBytesMax - 4096);
  EXPECT_EQ(MappedBlocks(), before);
  void* const beyond = Allocate(kHeapBlockBytesMax + 1);
  EXPECT_EQ(MappedBlocks(), before + 1);
  std::free(beyond);
  std::free(largest);
}

TEST(FreedMemoryTest, WhatIsFreedIsKeptUpToTheBound) {
  if (OwnAllocator()) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  KeepFreedMemory();
  std::free(Allocate(kHeapBlockBytesMax / 2));
  EXPECT_GE(::mallinfo2().fordblks, kHeapBlockBytesMax / 2);
  void* blocks[16];
  for (void*& block : blocks) block = Allocate(kHeapBlockBytesMax / 2);
  for (void* block : blocks) std::free(block);
  EXPECT_LE(::mallinfo2().keepcost, kFreedBytesKept);
}

}  // namespace
}  // namespace postcopy
