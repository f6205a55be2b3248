/* A real-mode guest. It is loaded at 0x7C00, where a PC's firmware loads a boot sector; one that fits in 512 bytes ends
   with BOOT_SIGNATURE, so the same bytes also boot from a disk under any other monitor.

        REAL_START
        VALUE   count, 5
        REAL_BEGIN
        ...
        BOOT_SIGNATURE                                                                                                */
#include "common.h"

.macro REAL_START
        .code16
        .text
        .globl  _start
_start: ljmp    $0, $.Lbegin            /* CS = 0, whatever the loader chose */
        .org    8
.endm

/* Every segment at 0, the stack below the code, string instructions upwards, interrupts off */
.macro REAL_BEGIN
.Lbegin: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7C00, %sp
        cld
.endm

.macro BOOT_SIGNATURE
        .org    510
        .word   0xAA55
.endm

/* Real-mode interrupt vector -> handler */
.macro VECTOR vector, handler
        movw    $\handler, 4 * (\vector)
        movw    $0, 4 * (\vector) + 2
.endm

/* putc: %al to the serial port, when it can take it. puts: the string at %si. Both keep every other register. */
.macro SERIAL_ROUTINES
putc:   pushw   %dx
        pushw   %ax
        movw    $UART_LSR, %dx
1:      inb     %dx, %al
        testb   $UART_LSR_THRE, %al
        jz      1b
        popw    %ax
        movw    $UART_THR, %dx
        outb    %al, %dx
        popw    %dx
        ret
puts:   pushw   %ax
1:      lodsb
        testb   %al, %al
        jz      2f
        call    putc
        jmp     1b
2:      popw    %ax
        ret
.endm

/* puthex: the byte in %al as two hexadecimal digits */
.macro PUTHEX_ROUTINE
puthex: pushw   %ax
        shrb    $4, %al
        call    putdigit
        popw    %ax
        pushw   %ax
        call    putdigit
        popw    %ax
        ret
putdigit:
        andb    $15, %al
        cmpb    $10, %al
        jb      1f
        addb    $'a' - '0' - 10, %al
1:      addb    $'0', %al
        jmp     putc
.endm
