/* Reset by triple fault, as kernels do when all else fails: no IDT, and an exception. A PC's chipset answers the CPU's
   shutdown cycle with a reset. Started again, it ends with 0. */
#include "long.h"

        LONG_START
        LONG_BEGIN
        END_IF_RESET
        lidt    none(%rip)
        ud2
        EXIT    1                       /* not reached */
none:   .word   0
        .quad   0
