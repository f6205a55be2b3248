/* Where the guest begins, and how an interrupt reaches C: each vector has a few instructions here that save what C may
   change, call irq_handler with the number of the interrupt, and go back with iretq. */
#include "long.h"

        .set    EXCEPTIONS, 32

        LONG_START
        VALUE   cursor_on               /* results: the blinking cursor is on the screen now, */
        VALUE   ticks                   /* and how many timer interrupts there were */
        LONG_BEGIN
        movl    $__bss_start, %edi
        movl    $__bss_end, %ecx
        subl    %edi, %ecx
        xorl    %eax, %eax
        rep stosb

        IDT_INIT unexpected
        leaq    idt(%rip), %rdi
        leaq    exception(%rip), %rax
        movl    $EXCEPTIONS, %ecx
1:      call    idt_gate
        addq    $16, %rdi
        decl    %ecx
        jnz     1b
        SET_GATE PIC1_BASE + 0, irq0
        SET_GATE PIC1_BASE + 1, irq1
        SET_GATE PIC1_BASE + 4, irq4
        call    guest_main
        POWER_OFF

irq0:   pushq   %rdi
        movl    $0, %edi
        jmp     irq
irq1:   pushq   %rdi
        movl    $1, %edi
        jmp     irq
irq4:   pushq   %rdi
        movl    $4, %edi
irq:    pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        cld
        call    irq_handler
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        popq    %rdi
unexpected:
        iretq
exception:
        EXIT    255

        IDT_ROUTINES
