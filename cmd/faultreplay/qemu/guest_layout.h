// Where things lie in the memory of the guest that touches pages under QEMU,
// and what it and its host agree on. Included by its assembly too: macros only.
//
// The guest has two blocks of memory, one behind the other. Its own begins at
// physical address 0: what follows, then the plan, then the results. The second
// is the RAM that is migrated and touched.
#ifndef CMD_FAULTREPLAY_QEMU_GUEST_LAYOUT_H_
#define CMD_FAULTREPLAY_QEMU_GUEST_LAYOUT_H_

// The firmware: its last page, with the reset vector, is the only one used.
#define QEMU_GUEST_ROM_BYTES 0x10000
#define QEMU_GUEST_ROM_CODE 0xfffff000

// Own memory, page by page.
#define QEMU_GUEST_PARAMS 0x1000
#define QEMU_GUEST_TASK_STATE 0x2000
#define QEMU_GUEST_DESCRIPTORS 0x3000
#define QEMU_GUEST_TABLES 0x4000
#define QEMU_GUEST_CODE 0x10000
#define QEMU_GUEST_STACK_END 0x20000
// Behind what a PC keeps for firmware and devices.
#define QEMU_GUEST_PLAN 0x100000

// One page-map level 4, one table of pointers, and directories for 4 GiB.
#define QEMU_GUEST_DIRECTORIES (QEMU_GUEST_TABLES + 0x2000)
#define QEMU_GUEST_DIRECTORY_COUNT 4

// Segment selectors.
#define QEMU_GUEST_CODE32 0x08
#define QEMU_GUEST_DATA 0x10
#define QEMU_GUEST_CODE64 0x18
#define QEMU_GUEST_USER_DATA 0x2b
#define QEMU_GUEST_USER_CODE 0x33
#define QEMU_GUEST_TASK 0x40
// What LGDT reads: at the end of the descriptors' page.
#define QEMU_GUEST_DESCRIPTORS_POINTER (QEMU_GUEST_DESCRIPTORS + 0xff0)

// The parameters: words of 64 bits, by their offset. The host writes the first
// three, the guest the others.
#define QEMU_GUEST_TOUCHES 0x00
#define QEMU_GUEST_RAM_ADDRESS 0x08
#define QEMU_GUEST_RESULTS_ADDRESS 0x10
#define QEMU_GUEST_READY 0x18  // 1 once it waits for its migration
#define QEMU_GUEST_BEGIN 0x20  // TSC before the first touch
#define QEMU_GUEST_DONE 0x28   // touches done

// The plan: 32 bits for each touch, a page of RAM and this bit if it writes.
#define QEMU_GUEST_WRITE_BIT 31

// A result, of 16 bytes: the TSC before the touch, and for how many ticks it
// went on, with this bit if the page was wrong.
#define QEMU_GUEST_RESULT_BYTES 16
#define QEMU_GUEST_WRONG_BIT 63

// What this port (isa-debugcon) reads at the source and at the destination: it
// is no part of the state that migrates.
#define QEMU_GUEST_HOST_PORT 0xe9
#define QEMU_GUEST_AT_SOURCE 0x53
#define QEMU_GUEST_AT_DESTINATION 0x44

#endif  // CMD_FAULTREPLAY_QEMU_GUEST_LAYOUT_H_
