// The program the guests run: it writes pages so that every page says which
// page and which version it is, and checks them for ever.
//
// One step, on a vCPU's own pages only: three times out of four, check a random
// page of the hot set and write its next version; else check the next page of
// all in order, and sometimes write it. guest_abi.h has the patterns.
#ifndef CMD_DEMOVM_GUEST_PROGRAM_H_
#define CMD_DEMOVM_GUEST_PROGRAM_H_

#include <cstdint>

#include "cmd/demovm/guest_abi.h"

namespace postcopy::demovm {

// The machine code, position-independent and without any data: what lies in
// [begin, end) may be copied anywhere and entered at `entry`.
struct GuestCode {
  const uint8_t* begin;
  const uint8_t* end;
  // Byte offset of a function (params, vcpu) that never returns, to be called
  // with the System V convention, its words in the XMM registers
  // (GuestRegister) and guest RAM at the addresses that `params` says.
  uint64_t entry;
};
GuestCode GuestProgram();

// What the program needs from a VMM that runs it as a thread of its own.
struct GuestThread {
  uint64_t* registers;  // kGuestRegisterCount words
  uint8_t* ram;         // guest physical address 0
  // A bit per RAM page, set with a full barrier after the page was written.
  uint64_t* dirty_bits;
  // Nonzero: return at the next step's end. Written by other threads.
  const int* stop;
  void* report_context;
  void (*report)(void* context, GuestReport kind, const uint64_t numbers[4]);
};

// Runs vCPU `vcpu` on the calling thread until *thread.stop is set. Between
// calls everything is in thread.registers and guest RAM.
void RunGuestThread(const GuestParams* params, uint32_t vcpu,
                    const GuestThread* thread);

}  // namespace postcopy::demovm

#endif  // CMD_DEMOVM_GUEST_PROGRAM_H_
