/* Writes 32 bits to `address`, `count` times, and takes the time of all of them with the TSC. With `wait` set it sleeps
   after each until an interrupt by message has come, so that it times doorbell, answer and interrupt together. */
#include "long.h"

        .set    LAPIC_EOI, 0xB0

        LONG_START
        VALUE   address, 0xD0000000     /* parameters */
        VALUE   count, 1000
        VALUE   wait
        VALUE   taken                   /* results: interrupts, cycles of the TSC */
        VALUE   cycles
        LONG_BEGIN
        PIC_OFF
        IDT_INIT handler
        movl    $LAPIC, %ebp
        movl    LAPIC_SVR(%rbp), %eax
        orl     $LAPIC_SVR_ENABLE, %eax
        movl    %eax, LAPIC_SVR(%rbp)
        movq    address(%rip), %rdi
        xorl    %ebx, %ebx
        rdtsc
        movl    %eax, %r8d
        movl    %edx, %r9d
1:      movl    %ebx, (%rdi)
        incl    %ebx
        cmpl    $0, wait(%rip)
        je      3f
2:      cli
        cmpl    taken(%rip), %ebx
        jbe     3f
        sti
        hlt
        jmp     2b
3:      cmpl    count(%rip), %ebx
        jb      1b
        rdtsc
        subl    %r8d, %eax
        sbbl    %r9d, %edx
        movl    %eax, cycles(%rip)
        movl    %edx, cycles + 4(%rip)
        EXIT    0
handler:
        incl    taken(%rip)
        movl    $0, LAPIC_EOI(%rbp)
        iretq
        IDT_ROUTINES
