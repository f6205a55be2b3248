/* Non-maskable interrupts put in from outside with KVM_NMI. The guest says 'R' on the debug console, then waits with
   interrupts off until `count` of them have come. */
#include "real.h"

        REAL_START
        VALUE   count, 1                /* parameter */
        VALUE   taken                   /* result */
        REAL_BEGIN
        VECTOR  2, handler
1:      movl    taken, %ebx
        OUT8    DEBUG_CONSOLE, 'R'
2:      cmpl    taken, %ebx             /* no hlt: with no in-kernel irqchip that is an exit of its own */
        je      2b
        movl    taken, %ebx
        cmpl    count, %ebx
        jb      1b
        EXIT    0
handler:
        incl    taken
        iretw
        BOOT_SIGNATURE
