/* Where the boot CPU begins, and what the others run from their SIPI on: in real mode each counts at `alive`, until its byte
   at `stop` is set, and then halts. main.c says what it is all for. */
#include "long.h"
#include "cpus.h"

        LONG_START
        VALUE   rounds, 1               /* parameters: after so many CPUs that went the guest ends, */
        VALUE   keep                    /* and bit n for CPU n that it does not let go of */
        VALUE   came                    /* results: how many CPUs were started, */
        VALUE   went                    /* how many went, */
        VALUE   alive                   /* and what each counts, which is 8 bytes */
        .skip   8 * (CPUS - 1)
        VALUE   stop                    /* a byte each */
        VALUE   stopped
        LONG_BEGIN
        movl    $LAPIC, %ebp
        orl     $LAPIC_SVR_ENABLE, LAPIC_SVR(%rbp)
        leaq    trampoline(%rip), %rsi
        movl    $TRAMPOLINE, %edi
        movl    $trampoline_end - trampoline, %ecx
        rep movsb
        call    guest_main
        EXIT_AL

/* With FFFF in DS the first 64 KiB behind 1 MiB, where this image is, can be reached */
        .set    SEGMENT, 0xFFFF
        .code16
trampoline:
        cli
        movw    $SEGMENT, %ax
        movw    %ax, %ds
        movl    $1, %eax
        cpuid
        shrl    $24, %ebx
1:      lock incl alive - SEGMENT * 16(, %ebx, 8)
        pause
        cmpb    $0, stop - SEGMENT * 16(%ebx)
        je      1b
        movb    $1, stopped - SEGMENT * 16(%ebx)
2:      hlt
        jmp     2b
trampoline_end:
