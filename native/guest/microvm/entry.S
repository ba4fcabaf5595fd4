// Where processors enter the guest: the first one by Linux's 64-bit boot protocol, the others in real
// mode, all of them at an interrupt.

  .section .text.enter, "ax"
  .code64
  .globl enter
// In long mode, interrupts off, rsi at the boot parameters.
enter:
  lea boot_stack_top(%rip), %rsp
  xor %ebp, %ebp
  mov %rsi, %rdi
  call start
1:
  cli
  hlt
  jmp 1b

// void halt_until_interrupt(). Interrupts are on only while the processor halts here, so that an
// interrupt has nothing to save and nowhere to go back to: it returns from this function. That spares
// IRETQ, which a KVM that emulates the kernel mode of its guests does not have.
  .text
  .globl halt_until_interrupt
halt_until_interrupt:
  sti
  hlt
  ud2

// The stack pointer of before is the fourth word of what the processor has pushed.
  .globl on_interrupt
on_interrupt:
  mov 24(%rsp), %rsp
  mov $0xfee000b0, %eax
  movl $0, (%rax)
  ret

// One entry of 16 bytes for each exception.
  .balign 16
  .globl on_exception
on_exception:
  .set vector, 0
  .rept 32
  .balign 16
  mov $vector, %edi
  jmp 2f
  .set vector, vector + 1
  .endr
2:
  and $-16, %rsp
  mov %cr2, %rsi
  call report_exception

// Copied to a page below 1 MiB, which the start-up interrupt names: real mode, and cs is that page.
// Straight into long mode, with the first processor's page tables.
  .globl trampoline
  .globl trampoline_end
  .code16
trampoline:
  cli
  lgdtl %cs:(gdt_pointer - trampoline)
  mov $0x20, %eax
  mov %eax, %cr4
  mov $page_map, %eax
  mov %eax, %cr3
  mov $0xc0000080, %ecx
  rdmsr
  or $0x100, %eax
  wrmsr
  mov $0x80000011, %eax
  mov %eax, %cr0
  ljmpl $0x8, $enter_other
  .balign 8
// Code is at both of the selectors that VMMs give to the first processor, whose gates have its own.
gdt:
  .quad 0
  .quad 0x00af9b000000ffff
  .quad 0x00af9b000000ffff
  .quad 0x00cf93000000ffff
gdt_pointer:
  .word gdt_pointer - gdt - 1
  .long gdt_in_place
trampoline_end:

  .code64
enter_other:
  mov $0x18, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  // Each takes the next stack; there are as many as processors are started.
  mov $1, %eax
  lock xaddq %rax, processors_entered(%rip)
  mov %rax, %rdi
  inc %rax
  shl $12, %rax
  lea other_stacks(%rip), %rsp
  add %rax, %rsp
  xor %ebp, %ebp
  call start_other
  ud2

  .set gdt_in_place, 0x10000 + gdt - trampoline

  .bss
  .balign 16
  .skip 16384
boot_stack_top:

  .section .note.GNU-stack, "", @progbits
