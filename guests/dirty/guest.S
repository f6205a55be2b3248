/* Dirties memory: `pages` pages, one in each 128 KiB from 1 MiB up, `passes` times (0: for ever). After each pass it counts
   in `done` and sends a 'd' to the debug console. It goes flat 32-bit without interrupts. A boot sector, so QEMU runs the
   same bytes. */
#include "real.h"

        .set    CR0_PE, 1
        .set    FIRST, 0x100000
        .set    APART, 0x20000
        .set    DEBUGCON, 0xE9

        REAL_START
        VALUE   pages, 1000             /* parameters */
        VALUE   passes, 3
        VALUE   done                    /* result */
        REAL_BEGIN
        lgdt    gdt_pointer
        movl    %cr0, %eax
        orb     $CR0_PE, %al
        movl    %eax, %cr0
        ljmp    $8, $flat

        .code32
flat:   movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %ss
pass:   movl    $FIRST, %edi
        movl    pages, %ecx
1:      incl    (%edi)
        addl    $APART, %edi
        decl    %ecx
        jnz     1b
        incl    done
        movb    $'d', %al
        outb    %al, $DEBUGCON
        movl    passes, %eax
        testl   %eax, %eax
        jz      pass
        cmpl    %eax, done
        jb      pass
        movb    $0, %al
        EXIT_AL

        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      /* code, and data: 4 GiB from 0 */
        .quad   0x00CF93000000FFFF
gdt_pointer:
        .word   3 * 8 - 1
        .long   gdt
        BOOT_SIGNATURE
