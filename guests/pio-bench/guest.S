/* How long a port access takes: `outs` OUTs of a byte and `ins` INs of a byte, each in a loop of three instructions, timed
   with the TSC. The cycles of each loop are printed on the serial port as two hexadecimal numbers, "outs ins", and left in
   out_cycles and in_cycles. A boot sector, so QEMU runs the same bytes. */
#include "real.h"

        REAL_START
        VALUE   outs, 100000            /* parameters */
        VALUE   ins, 100000
        VALUE   port, 0x80
        VALUE   out_cycles              /* results */
        VALUE   in_cycles
        REAL_BEGIN
        movw    port, %dx
        movw    $out_loop, %bx
        movl    outs, %ecx
        movw    $out_cycles, %di
        call    measure
        movw    port, %dx
        movw    $in_loop, %bx
        movl    ins, %ecx
        movw    $in_cycles, %di
        call    measure

        UART_INIT
        movw    $out_cycles + 7, %si
        call    print
        movb    $' ', %al
        call    putc
        movw    $in_cycles + 7, %si
        call    print
        movb    $'\r', %al
        call    putc
        movb    $'\n', %al
        call    putc
        EXIT    0

/* The loop at %bx, %ecx times, port in %dx; its cycles go to (%di) */
measure:
        pushw   %dx
        rdtsc
        movl    %eax, (%di)
        movl    %edx, 4(%di)
        popw    %dx
        testl   %ecx, %ecx
        jz      1f
        call    *%bx
1:      rdtsc
        subl    (%di), %eax
        sbbl    4(%di), %edx
        movl    %eax, (%di)
        movl    %edx, 4(%di)
        ret
out_loop:
        outb    %al, %dx
        decl    %ecx
        jnz     out_loop
        ret
in_loop:
        inb     %dx, %al
        decl    %ecx
        jnz     in_loop
        ret

/* The 8 bytes that end at %si, highest first */
print:  movw    $8, %cx
        std
1:      lodsb
        call    puthex
        loop    1b
        cld
        ret

        PUTHEX_ROUTINE
        SERIAL_ROUTINES
        BOOT_SIGNATURE
