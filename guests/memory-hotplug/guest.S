/* Memory that comes and goes: waits for the general-purpose event, finds the slot, maps its RAM, writes to each 64 KiB of
   it and reads all again, and sends a 'w' to the debug console. Memory that is to go it reads once more, ejects it and sends
   an 'e'. It ends when it has ejected `rounds` pieces; with 1 where it read what it had not written, or nothing can come.
   A piece is within one GiB of addresses, from 4 GiB up. */
#include "long.h"

        .set    EVENT, 1 << 3
        .set    SELECTOR, 0xA00         /* and base, low half */
        .set    BASE_HIGH, 0xA04
        .set    SIZE_LOW, 0xA08
        .set    CONTROL, 0xA14
        .set    INSERTING, 1 << 1
        .set    REMOVING, 1 << 2
        .set    EJECT, 1 << 3
        .set    SLOTS, 32
        .set    APART, 0x10000
        .set    DEBUGCON, 0xE9
        .set    LARGE_PAGE, 0x83        /* present, writable, 2 MiB */

.macro IN32 port
        movw    $\port, %dx
        inl     %dx, %eax
.endm

        LONG_START
        VALUE   rounds, 1               /* parameter */
        VALUE   base                    /* results: of the last slot that something was done with */
        VALUE   size
        VALUE   written                 /* how often memory was found good */
        VALUE   ejected
        LONG_BEGIN
        movw    $CONTROL, %dx
        inb     %dx, %al
        cmpb    $0xFF, %al              /* nobody answers there */
        je      bad
        OUT8    APM_CNT, ACPI_ENABLE
        movw    $GPE0_EN, %dx
        movw    $EVENT, %ax
        outw    %ax, %dx

wait:   movw    $GPE0_STS, %dx
        inw     %dx, %ax
        testw   $EVENT, %ax
        jz      wait
        movw    $EVENT, %ax
        outw    %ax, %dx

        xorl    %ebx, %ebx
slot:   movw    $SELECTOR, %dx
        movl    %ebx, %eax
        outl    %eax, %dx
        movw    $CONTROL, %dx
        inb     %dx, %al
        testb   $INSERTING, %al
        jnz     comes
stays:  testb   $REMOVING, %al
        jnz     goes
next:   incl    %ebx
        cmpl    $SLOTS, %ebx
        jb      slot
        jmp     wait

comes:  OUT8_DX CONTROL, INSERTING
        call    where
        call    map
        movq    base(%rip), %rdi
1:      movq    %rdi, (%rdi)
        addq    $APART, %rdi
        cmpq    %rsi, %rdi
        jb      1b
        call    check
        OUT8    DEBUGCON, 'w'
        movw    $CONTROL, %dx
        inb     %dx, %al
        jmp     stays

goes:   OUT8_DX CONTROL, REMOVING
        call    where
        call    check
        OUT8_DX CONTROL, EJECT
        inb     %dx, %al                /* at once there is nothing */
        testb   %al, %al
        jnz     bad
        incq    ejected(%rip)
        OUT8    DEBUGCON, 'e'
        movq    rounds(%rip), %rax
        cmpq    %rax, ejected(%rip)
        jb      next
        EXIT    0
bad:    EXIT    1

/* base and size of the slot that is selected; rsi where it ends */
where:  IN32    BASE_HIGH
        shlq    $32, %rax
        movq    %rax, %rsi
        IN32    SELECTOR
        orq     %rax, %rsi
        movq    %rsi, base(%rip)
        IN32    SIZE_LOW
        movq    %rax, size(%rip)
        addq    %rax, %rsi
        ret

/* The GiB that base is in, to itself. Clobbers rax, rcx, rdi */
map:    movq    base(%rip), %rax
        shrq    $30, %rax
        movq    %cr3, %rdi
        movq    (%rdi), %rdi
        andq    $~0xFFF, %rdi           /* the page of the first 512 GiB */
        leaq    (%rdi,%rax,8), %rdi
        shlq    $30, %rax
        orq     $LARGE_PAGE, %rax
        leaq    directory(%rip), %rcx
        orq     $3, %rcx
        movq    %rcx, (%rdi)
        leaq    directory(%rip), %rdi
        movl    $512, %ecx
1:      movq    %rax, (%rdi)
        addq    $8, %rdi
        addq    $0x200000, %rax
        decl    %ecx
        jnz     1b
        movq    %cr3, %rax
        movq    %rax, %cr3
        ret

/* From base to rsi. Clobbers rdi */
check:  movq    base(%rip), %rdi
1:      cmpq    %rdi, (%rdi)
        jne     bad
        addq    $APART, %rdi
        cmpq    %rsi, %rdi
        jb      1b
        incq    written(%rip)
        ret

        .balign 4096
directory:
        .fill   512, 8, 0
