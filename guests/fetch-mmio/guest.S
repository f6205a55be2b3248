/* A jump to where there is no memory: the instruction cannot be fetched. KVM_EXIT_INTERNAL_ERROR,
   KVM_INTERNAL_ERROR_EMULATION, with no instruction bytes. */
#include "long.h"

        LONG_START
        VALUE   base, 0xD0000000        /* parameter */
        LONG_BEGIN
        movq    base(%rip), %rbx
        jmp     *%rbx
