/* A PCI driver of the smallest kind, for the virtio entropy device (run it with --rng): finds it by ports 0xCF8 and 0xCFC and
   again by ECAM, sizes its BARs, moves them and turns them off while it runs, asks it for random bytes through a
   virtqueue, and takes the interrupts: MSI-X with its masks, or with the parameter `intx` INTA, through the PICs or the
   IOAPIC. Ends with the number of the step that went wrong, 0 if none did; 1 is that there is no such device. */
#include "long.h"

        .set    VECTOR, 0x41

        LONG_START
        VALUE   intx                    /* parameter: 1 takes INTA through the PICs instead of MSI-X, 2 through the IOAPIC */
        VALUE   interrupts              /* results: how many came, */
        VALUE   step                    /* and how far it got */
        LONG_BEGIN
        movl    $__bss_start, %edi
        movl    $__bss_end, %ecx
        subl    %edi, %ecx
        xorl    %eax, %eax
        rep stosb

        IDT_INIT unexpected
        SET_GATE VECTOR, local_apic
        leaq    idt + 16 * PIC1_BASE(%rip), %rdi
        leaq    irq(%rip), %rax
        movl    $16, %ecx
1:      call    idt_gate
        addq    $16, %rdi
        decl    %ecx
        jnz     1b
        call    guest_main
        EXIT_AL

local_apic:
        pushq   %rdi
        movl    $1, %edi
        jmp     2f
irq:    pushq   %rdi
        xorl    %edi, %edi
2:      pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        cld
        call    interrupt
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        popq    %rdi
        iretq
unexpected:
        EXIT    255

        IDT_ROUTINES
