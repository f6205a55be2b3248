/* Triple fault: an undefined instruction with no IDT, so #UD finds no handler, nor does #GP, nor #DF: KVM_EXIT_SHUTDOWN. */
#include "long.h"

        LONG_START
        LONG_BEGIN
        lidt    none(%rip)
        ud2
        EXIT    1                       /* not reached */
none:   .word   0
        .quad   0
