// The guest that touches pages under QEMU. guest_layout.h says what it and its
// host agree on; guest_image.cc prepares its memory.
//
// From the reset vector it goes to 64-bit mode at privilege level 3, which runs
// natively under every kind of KVM (some only emulate level 0), and needs
// neither firmware, nor devices, nor interrupts.
#include "cmd/faultreplay/qemu/guest_layout.h"

  .section qemu_guest, "a", @progbits

// --- The last page of the firmware --------------------------------------------

  .balign 4096
  .global qemu_guest_rom
qemu_guest_rom:
  .code16
real_mode:
  cli
  xorw %ax, %ax
  movw %ax, %ds
  lgdtl QEMU_GUEST_DESCRIPTORS_POINTER
  movl %cr0, %eax
  orl $1, %eax  // PE
  movl %eax, %cr0
  ljmpl $QEMU_GUEST_CODE32, $(QEMU_GUEST_ROM_CODE + protected_mode - real_mode)

  .code32
protected_mode:
  movw $QEMU_GUEST_DATA, %ax
  movw %ax, %ds
  movw %ax, %ss
  movl $0x620, %eax  // OSXMMEXCPT, OSFXSR, PAE
  movl %eax, %cr4
  movl $QEMU_GUEST_TABLES, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx  // EFER
  movl $0x101, %eax       // LME, SCE
  xorl %edx, %edx
  wrmsr
  movl $0x80010033, %eax  // PG, WP, NE, ET, MP, PE
  movl %eax, %cr0
  ljmpl $QEMU_GUEST_CODE64, $QEMU_GUEST_CODE

  .org real_mode - qemu_guest_rom + 0xff0
  .code16
  jmp real_mode
  .org real_mode - qemu_guest_rom + 0x1000

// --- Own memory, at QEMU_GUEST_CODE -------------------------------------------

  .global qemu_guest_code
  .code64
qemu_guest_code:
  movl $QEMU_GUEST_STACK_END, %esp
  // Its bitmap of ports lets level 3 read and write them.
  movw $QEMU_GUEST_TASK, %ax
  ltr %ax
  pushq $QEMU_GUEST_USER_DATA
  pushq $QEMU_GUEST_STACK_END
  pushq $0x3002  // IOPL 3
  pushq $QEMU_GUEST_USER_CODE
  pushq $(QEMU_GUEST_CODE + user_mode - qemu_guest_code)
  iretq

// %rbx: parameters.  %r8: next of the plan.  %r9: touches left.  %r10: RAM.
// %r11: next result.  %r15: the multiplier of page_pattern.h.
user_mode:
  movl $QEMU_GUEST_PARAMS, %ebx
  movl $QEMU_GUEST_PLAN, %r8d
  movq QEMU_GUEST_TOUCHES(%rbx), %r9
  movq QEMU_GUEST_RAM_ADDRESS(%rbx), %r10
  movq QEMU_GUEST_RESULTS_ADDRESS(%rbx), %r11
  movabsq $0x9e3779b97f4a7c15, %r15
  movq $1, QEMU_GUEST_READY(%rbx)

// Asks where it is about every 65,536 ticks: each time costs QEMU its lock.
wait_for_migration:
  inb $QEMU_GUEST_HOST_PORT, %al
  cmpb $QEMU_GUEST_AT_DESTINATION, %al
  je arrived
  rdtsc
  movl %eax, %esi
1:
  pause
  rdtsc
  subl %esi, %eax
  cmpl $0x10000, %eax
  jb 1b
  jmp wait_for_migration

arrived:
  // Else the first touch of each GiB would wait for a page of these too.
  movl $QEMU_GUEST_DIRECTORIES, %esi
  movl $QEMU_GUEST_DIRECTORY_COUNT, %ecx
1:
  movb (%rsi), %al
  addl $0x1000, %esi
  loop 1b
  lfence
  rdtsc
  shlq $32, %rdx
  orq %rdx, %rax
  movq %rax, QEMU_GUEST_BEGIN(%rbx)

next_touch:
  testq %r9, %r9
  jz done
  decq %r9
  movl (%r8), %esi
  addq $4, %r8
  // %rdi: page.  %rcx: its address.
  movl %esi, %edi
  btrl $QEMU_GUEST_WRITE_BIT, %edi
  movq %rdi, %rcx
  shlq $12, %rcx
  addq %r10, %rcx
  lfence
  rdtsc
  lfence
  movl %eax, %r12d
  movl %edx, %r13d
  btl $QEMU_GUEST_WRITE_BIT, %esi
  jc write
  movb (%rcx), %al
  jmp touched
write:
  // As FaultingMemory::Touch: a fault for writing that leaves what is there.
  lock orb $0, (%rcx)
touched:
  lfence
  rdtsc
  shlq $32, %r13
  orq %r13, %r12
  shlq $32, %rdx
  orq %rdx, %rax
  subq %r12, %rax  // for how long
  movq %r12, (%r11)

  // PatternWord(page, PageVersion::kFinal, i) for all i.
  leaq 1(%rdi, %rdi), %rdx
  imulq %r15, %rdx
  xorl %esi, %esi  // bits that differ
  movl $512, %r14d
1:
  movq (%rcx), %rbp
  xorq %rdx, %rbp
  orq %rbp, %rsi
  incq %rdx
  addq $8, %rcx
  decl %r14d
  jnz 1b
  testq %rsi, %rsi
  jz 1f
  btsq $QEMU_GUEST_WRONG_BIT, %rax
1:
  movq %rax, 8(%r11)
  addq $QEMU_GUEST_RESULT_BYTES, %r11
  incq QEMU_GUEST_DONE(%rbx)
  jmp next_touch

done:
  // Resets the machine, which QEMU was told to answer with a stop.
  movb $0xfe, %al
  outb %al, $0x64
1:
  pause
  jmp 1b

  .global qemu_guest_code_end
qemu_guest_code_end:

  .section .note.GNU-stack, "", @progbits
