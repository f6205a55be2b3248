/* Greets on the serial port and echoes what is typed there; q turns the machine off. Received bytes come by interrupt: IRQ 4
   through the PIC, HLT in between. */
#include "real.h"

        REAL_START
        REAL_BEGIN
        VECTOR  PIC1_BASE + 4, received
        PIC_INIT 0xEF
        UART_INIT UART_IER_RDI
        movw    $greeting, %si
        call    puts
1:      sti
        hlt
        jmp     1b

received:
        pushaw
2:      movw    $UART_LSR, %dx
        inb     %dx, %al
        testb   $UART_LSR_DR, %al
        jz      3f
        movw    $UART_RBR, %dx
        inb     %dx, %al
        cmpb    $'q', %al
        je      4f
        call    putc
        cmpb    $'\r', %al
        jne     2b
        movb    $'\n', %al
        call    putc
        jmp     2b
3:      OUT8    PIC1_CMD, PIC_EOI
        popaw
        iretw
4:      movw    $farewell, %si
        call    puts
        POWER_OFF

        SERIAL_ROUTINES
greeting:
        .asciz  "Hello from a guest in real mode, over the serial port.\r\nType, and it comes back; q powers off.\r\n"
farewell:
        .asciz  "\r\nBye.\r\n"
        BOOT_SIGNATURE
