/* A driver of an NE2000 on PCI (an RTL8029, run it with --net user,model=ne2k): finds it, reads its address, sends a frame of
   type 88B5 to everybody, and waits for one of that type that comes to it, which has the same bytes. Ends with the number
   of the step that went wrong, 0 if none did; 1 is that there is no such card. */
#include "long.h"

        LONG_START
        VALUE   mac                     /* results: the card's address, its first byte lowest, */
        VALUE   interrupts              /* how many came, */
        VALUE   step                    /* and how far it got */
        LONG_BEGIN
        movl    $__bss_start, %edi
        movl    $__bss_end, %ecx
        subl    %edi, %ecx
        xorl    %eax, %eax
        rep stosb

        IDT_INIT unexpected
        leaq    idt + 16 * PIC1_BASE(%rip), %rdi
        leaq    irq(%rip), %rax
        movl    $16, %ecx
1:      call    idt_gate
        addq    $16, %rdi
        decl    %ecx
        jnz     1b
        call    guest_main
        EXIT_AL

irq:    pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
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
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        iretq
unexpected:
        EXIT    255

        IDT_ROUTINES
