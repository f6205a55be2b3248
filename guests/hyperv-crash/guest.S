/* KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_CRASH: a guest of Hyper-V tells its host that it crashed. KVM knows these MSRs
   where CPUID leaf 0x40000001 gives "Hv#1" in EAX and the kernel was built with Hyper-V support; elsewhere the write is a
   #GP, and the guest ends with 1. The five parameters of the crash are 1 to 5.
   MSRs: Hypervisor Top Level Functional Specification, appendix "Partition crash". */
#include "long.h"

        .set    HV_X64_MSR_CRASH_P0, 0x40000100
        .set    HV_X64_MSR_CRASH_CTL, 0x40000105
        .set    HV_CRASH_CTL_CRASH_NOTIFY, 63

        LONG_START
        LONG_BEGIN
        IDT_INIT refused
        xorl    %ebx, %ebx
1:      leal    HV_X64_MSR_CRASH_P0(%rbx), %ecx
        incl    %ebx
        movl    %ebx, %eax
        xorl    %edx, %edx
        wrmsr
        cmpl    $5, %ebx
        jb      1b
        movl    $HV_X64_MSR_CRASH_CTL, %ecx
        xorl    %eax, %eax
        movl    $1 << (HV_CRASH_CTL_CRASH_NOTIFY - 32), %edx
        wrmsr
        EXIT    0                       /* if the monitor lets it go on */
refused:
        EXIT    1
        IDT_ROUTINES
