/* A guest in flat 32-bit mode that waits for interrupts by message, on every KVM. Software-backed KVM cannot do a 32-bit
   iret; where the only place with interrupts on is `sti; hlt`, a handler does without: it returns there with them off.

        FLAT32_START
        VALUE   count, 1000
        FLAT32_BEGIN main
                                                                                                                      */
#include "common.h"

        .set    LAPIC_EOI, 0xB0
        .set    KERNEL_CS, 0x08
        .set    KERNEL_DS, 0x10

.macro FLAT32_START
        .code32
        .section .text.start, "ax"
        .globl  _start
_start: jmp     .Lbegin
        .org    8
.endm

/* Bring GDT, IDT, stack and local APIC, clear bss, and end with what `main` returns. Every vector counts in `interrupts`. */
.macro FLAT32_BEGIN main
.Lbegin: cli
        cld
        movl    $0x80000, %esp
        lgdt    gdt_pointer
        ljmp    $KERNEL_CS, $.Lflat
.Lflat: movl    $KERNEL_DS, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $__bss_start, %edi
        movl    $__bss_end, %ecx
        subl    %edi, %ecx
        xorl    %eax, %eax
        rep stosb
        PIC_OFF
        movl    $idt, %edi
        movl    $interrupt, %eax
        movl    $256, %ecx
1:      movw    %ax, (%edi)
        movw    $KERNEL_CS, 2(%edi)
        movw    $0x8E00, 4(%edi)        /* present, ring 0, 32-bit interrupt gate */
        movl    %eax, %edx
        shrl    $16, %edx
        movw    %dx, 6(%edi)
        addl    $8, %edi
        decl    %ecx
        jnz     1b
        lidt    idt_pointer
        movl    LAPIC + LAPIC_SVR, %eax
        orl     $LAPIC_SVR_ENABLE, %eax
        movl    %eax, LAPIC + LAPIC_SVR
        call    \main
        EXIT_AL
interrupt:
        incl    interrupts
        movl    $0, LAPIC + LAPIC_EOI
        ret     $8                      /* off go CS and EFLAGS, with which interrupts would be on */

gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      /* KERNEL_CS: 32-bit code */
        .quad   0x00CF93000000FFFF      /* KERNEL_DS: data */
gdt_pointer:
        .word   23
        .long   gdt
idt_pointer:
        .word   256 * 8 - 1
        .long   idt
        .lcomm  idt, 256 * 8
        .globl  interrupts
        .comm   interrupts, 8
.endm
