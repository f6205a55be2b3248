/* Interrupts by message (MSI) to the local APIC, whoever sends them: any vector counts and is ended with an EOI. The guest
   says 'R' on the debug console, then halts until one comes; ends after `count` of them. With a split irqchip the EOI of a
   level-triggered one is a KVM_EXIT_IOAPIC_EOI. */
#include "long.h"

        .set    LAPIC_EOI, 0xB0

        LONG_START
        VALUE   count, 1                /* parameter */
        VALUE   taken                   /* result */
        LONG_BEGIN
        PIC_OFF
        IDT_INIT handler
        movl    $LAPIC, %ebp
        movl    LAPIC_SVR(%rbp), %eax
        orl     $LAPIC_SVR_ENABLE, %eax
        movl    %eax, LAPIC_SVR(%rbp)
        xorl    %ebx, %ebx
1:      OUT8    DEBUG_CONSOLE, 'R'
2:      sti
        hlt
        cli
        cmpl    taken(%rip), %ebx
        je      2b
        movl    taken(%rip), %ebx
        cmpl    count(%rip), %ebx
        jb      1b
        EXIT    0
handler:
        incl    taken(%rip)
        movl    $0, LAPIC_EOI(%rbp)
        iretq
        IDT_ROUTINES
