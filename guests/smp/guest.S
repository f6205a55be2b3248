/* SMP: the boot CPU starts the others through its local APIC, INIT then two SIPIs, to all but itself. Each of them counts
   itself and notes its APIC ID (CPUID leaf 1), in real mode, and halts. When no more have come for a while, the boot CPU
   ends with the number of CPUs, itself included.
   Source: Intel SDM volume 3, 8.4.4 (MP initialization) and 10.6.1 (interrupt command register). */
#include "long.h"

        .set    TRAMPOLINE, 0x60000     /* a page below 1 MiB; the SIPI vector is its number */

        LONG_START
        VALUE   wait, 1 << 30           /* parameter: TSC cycles with no new CPU that end it */
        VALUE   cpus                    /* results: how many, and bit n for APIC ID n */
        VALUE   apic_ids
        LONG_BEGIN
        leaq    trampoline(%rip), %rsi
        movl    $TRAMPOLINE, %edi
        movl    $trampoline_end - trampoline, %ecx
        rep movsb
        movl    $1, %eax
        cpuid
        shrl    $24, %ebx
        btsq    %rbx, apic_ids(%rip)

        movl    $LAPIC, %ebp
        movl    LAPIC_SVR(%rbp), %eax
        orl     $LAPIC_SVR_ENABLE, %eax
        movl    %eax, LAPIC_SVR(%rbp)
        movl    $LAPIC_INIT_OTHERS, LAPIC_ICR(%rbp)
        movl    $20000, %ecx
1:      pause
        decl    %ecx
        jnz     1b
        movl    $LAPIC_SIPI_OTHERS | TRAMPOLINE >> 12, LAPIC_ICR(%rbp)
        movl    $20000, %ecx
1:      pause
        decl    %ecx
        jnz     1b
        movl    $LAPIC_SIPI_OTHERS | TRAMPOLINE >> 12, LAPIC_ICR(%rbp)

/* Wait until the count has not changed for `wait` cycles */
        movl    TRAMPOLINE + count - trampoline, %ebx
2:      call    now
        movq    %rax, %r8
3:      pause
        movl    TRAMPOLINE + count - trampoline, %ecx
        cmpl    %ecx, %ebx
        movl    %ecx, %ebx
        jne     2b
        call    now
        subq    %r8, %rax
        cmpq    wait(%rip), %rax
        jb      3b

        movq    TRAMPOLINE + ids - trampoline, %rax
        orq     %rax, apic_ids(%rip)
        leal    1(%rbx), %eax
        movq    %rax, cpus(%rip)
        EXIT_AL

now:    rdtsc
        shlq    $32, %rdx
        orq     %rdx, %rax
        ret

/* What the others run, copied to TRAMPOLINE, which is their CS */
        .balign 8
        .code16
trampoline:
        cli
        movw    %cs, %ax
        movw    %ax, %ds
        movl    $1, %eax
        cpuid
        shrl    $24, %ebx
        andl    $63, %ebx
        lock btsl %ebx, ids - trampoline
        lock incl count - trampoline
1:      hlt
        jmp     1b
        .balign 8
count:  .quad   0
ids:    .quad   0
trampoline_end:
