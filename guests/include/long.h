/* A guest that starts in flat 64-bit mode, loaded at 1 MiB: identity page tables for the first 4 GiB, a 64-bit CS,
   interrupts off. It brings a stack below 0x80000 and a GDT of its own, because interrupts and iretq read descriptors from memory and the
   monitor may have set the segments without any.

        LONG_START
        VALUE   base, 0xD0000000
        LONG_BEGIN
        ...                                                                                                           */
#include "common.h"

        .set    KERNEL_CS, 0x08
        .set    KERNEL_DS, 0x10

.macro LONG_START
        .code64
        .section .text.start, "ax"
        .globl  _start
_start: jmp     .Lbegin
        .org    8
.endm

.macro LONG_BEGIN
.Lbegin: cli
        cld
        movl    $0x80000, %esp
        lgdt    gdt_pointer(%rip)
        pushq   $KERNEL_CS
        leaq    .Lflat(%rip), %rax
        pushq   %rax
        lretq
gdt:    .quad   0
        .quad   0x00AF9B000000FFFF      /* KERNEL_CS: 64-bit code */
        .quad   0x00CF93000000FFFF      /* KERNEL_DS: data */
gdt_pointer:
        .word   23
        .quad   gdt
.Lflat: movl    $KERNEL_DS, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
.endm

/* An IDT of 256 gates that all lead to `handler`, loaded; SET_GATE then changes single ones. Clobbers rax, rcx, rdx, rdi. */
.macro IDT_INIT handler
        leaq    \handler(%rip), %rax
        leaq    idt(%rip), %rdi
        movl    $256, %ecx
.Lg\@:  call    idt_gate
        addq    $16, %rdi
        decl    %ecx
        jnz     .Lg\@
        lidt    idt_pointer(%rip)
.endm

.macro SET_GATE vector, handler
        leaq    \handler(%rip), %rax
        leaq    idt + 16 * (\vector)(%rip), %rdi
        call    idt_gate
.endm

/* Once a guest: the table and the routine that writes the gate at rdi for the handler at rax */
.macro IDT_ROUTINES
idt_gate:
        movw    %ax, (%rdi)
        movw    $KERNEL_CS, 2(%rdi)
        movw    $0x8E00, 4(%rdi)        /* present, ring 0, 64-bit interrupt gate */
        movq    %rax, %rdx
        shrq    $16, %rdx
        movw    %dx, 6(%rdi)
        shrq    $16, %rdx
        movl    %edx, 8(%rdi)
        movl    $0, 12(%rdi)
        ret
        .balign 8
idt_pointer:
        .word   256 * 16 - 1
        .quad   idt
        .lcomm  idt, 256 * 16
.endm
