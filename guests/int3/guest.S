/* INT3, with a handler of the guest's own. Where the monitor asked for software break-points (KVM_GUESTDBG_USE_SW_BP) a
   processor's VMX or SVM makes it a KVM_EXIT_DEBUG instead; software-backed KVM and QEMU's emulated SVM do not. */
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
