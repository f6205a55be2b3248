/* String port I/O, each with a REP prefix. KVM decides how many items one KVM_EXIT_IO carries, up to a page; for OUTS it
   is one today.
     outsb  16 bytes of text
     outsb  the same, downwards (DF = 1)
     insb   5 bytes to in_bytes
     insw   4 words to in_words
     outsl  2049 dwords holding 0, 1, 2, ...: more than two pages
     insl   2048 dwords to 0xC000, and their sum in in_sum                                                             */
#include "real.h"

        .set    OUT_DATA, 0x8000
        .set    OUT_COUNT, 2049
        .set    IN_DATA, 0xC000
        .set    IN_COUNT, 2048

        REAL_START
        VALUE   port, 0x5000            /* parameter */
        VALUE   in_bytes                /* results */
        VALUE   in_words
        VALUE   in_sum
        REAL_BEGIN
        movw    $OUT_DATA, %di
        movw    $OUT_COUNT, %cx
        xorl    %eax, %eax
1:      stosl
        incl    %eax
        loop    1b

        movw    port, %dx
        movw    $text, %si
        movw    $16, %cx
        rep outsb
        std
        movw    $text + 15, %si
        movw    $16, %cx
        rep outsb
        cld
        movw    $in_bytes, %di
        movw    $5, %cx
        rep insb
        movw    $in_words, %di
        movw    $4, %cx
        rep insw
        movw    $OUT_DATA, %si
        movw    $OUT_COUNT, %cx
        rep outsl
        movw    $IN_DATA, %di
        movw    $IN_COUNT, %cx
        rep insl

        movw    $IN_DATA, %si
        movw    $IN_COUNT, %cx
        xorl    %ebx, %ebx
2:      lodsl
        addl    %eax, %ebx
        loop    2b
        movl    %ebx, in_sum
        EXIT    0
text:   .ascii  "string I/O bytes"
        BOOT_SIGNATURE
