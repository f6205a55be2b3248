/* INT3: KVM_EXIT_DEBUG where the monitor asked for software break-points (KVM_GUESTDBG_USE_SW_BP), else the guest's own
   handler. */
#include "real.h"

        REAL_START
        VALUE   taken                   /* result: 1 where the guest's handler ran */
        .globl  breakpoint              /* mark: the instruction */
        REAL_BEGIN
        VECTOR  3, handler
breakpoint:
        int3
        EXIT    0
handler:
        incl    taken
        iretw
        BOOT_SIGNATURE
