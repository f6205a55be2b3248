/* The timer through the PIC: the 8254 gives IRQ 0 a hundred times a second, the handler counts, HLT waits for the next. */
#include "real.h"

        REAL_START
        VALUE   count, 20               /* parameter */
        VALUE   ticks                   /* result */
        REAL_BEGIN
        VECTOR  PIC1_BASE + 0, handler
        PIC_INIT 0xFE
        PIT_INIT 100
1:      cli
        movl    ticks, %eax
        cmpl    count, %eax
        jae     2f
        sti
        hlt
        jmp     1b
2:      EXIT    0
handler:
        pushw   %ax
        incl    ticks
        OUT8    PIC1_CMD, PIC_EOI
        popw    %ax
        iretw
        BOOT_SIGNATURE
