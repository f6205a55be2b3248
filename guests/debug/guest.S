/* For KVM_EXIT_DEBUG, which the monitor asks for: a loop with an instruction (watched) to break at, a variable (variable)
   to watch, and single steps to count, 16 times round. */
#include "real.h"

        REAL_START
        VALUE   variable                /* mark and result: 16 at the end */
        .globl  watched                 /* mark: runs once a round */
        REAL_BEGIN
        movw    $16, %cx
1:
watched:
        nop
        incl    variable
        loop    1b
        EXIT    0
        BOOT_SIGNATURE
