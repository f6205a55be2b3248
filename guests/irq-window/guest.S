/* Interrupts put in from outside with KVM_INTERRUPT, with no in-kernel irqchip. The guest says 'R' on the debug console
   while its interrupts are off, works for a while, and only then lets them in: KVM_EXIT_IRQ_WINDOW_OPEN for a monitor
   that asked. Any vector from 0x20 to 0x2F counts; ends after `count` such rounds. Where the machine has a PIC and a PIT,
   the interrupt is the timer's. */
#include "real.h"

        REAL_START
        VALUE   count, 3                /* parameter */
        VALUE   taken                   /* result */
        REAL_BEGIN
        movw    $0x20, %bx
1:      shlw    $2, %bx
        movw    $handler, (%bx)
        movw    $0, 2(%bx)
        shrw    $2, %bx
        incw    %bx
        cmpw    $0x30, %bx
        jb      1b
        PIC_INIT 0xFE
        PIT_INIT 100

next:   movl    taken, %ebx
        cmpl    count, %ebx
        jae     done
        OUT8    DEBUG_CONSOLE, 'R'
        movl    $1000, %ecx
2:      addr32 loop 2b
        sti
3:      cmpl    taken, %ebx             /* the window is open */
        je      3b
        cli
        jmp     next
done:   EXIT    0

handler:
        pushw   %ax
        incl    taken
        OUT8    PIC1_CMD, PIC_EOI
        popw    %ax
        iretw
        BOOT_SIGNATURE
