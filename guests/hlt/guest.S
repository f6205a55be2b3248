/* HLT: without an in-kernel irqchip each is a KVM_EXIT_HLT, and the next KVM_RUN goes on behind it. With one, KVM keeps the
   vCPU asleep: interrupts are off here, so only an NMI would wake it. */
#include "real.h"

        REAL_START
        VALUE   halts                   /* result: how many it woke from */
        REAL_BEGIN
        movw    $3, %cx
1:      hlt
        incl    halts
        loop    1b
        EXIT    0
        BOOT_SIGNATURE
