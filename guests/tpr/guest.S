/* The task priority raised and lowered through CR8. Without an in-kernel local APIC each lowering is a KVM_EXIT_SET_TPR. */
#include "long.h"

        LONG_START
        LONG_BEGIN
        movl    $9, %eax
        movq    %rax, %cr8
        movl    $4, %eax
        movq    %rax, %cr8
        xorl    %eax, %eax
        movq    %rax, %cr8
        EXIT    0
