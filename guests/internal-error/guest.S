/* An instruction on MMIO that KVM's emulator does not know: an x87 load. KVM_EXIT_INTERNAL_ERROR,
   KVM_INTERNAL_ERROR_EMULATION, with the instruction's bytes (D9 03) where the kernel gives them. */
#include "long.h"

        LONG_START
        VALUE   base, 0xD0000000        /* parameter */
        .globl  culprit                 /* mark: the instruction */
        LONG_BEGIN
        movq    base(%rip), %rbx
culprit:
        flds    (%rbx)
        EXIT    1                       /* not reached */
