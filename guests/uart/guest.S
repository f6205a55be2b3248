/* The 16550A serial port. Ends with 0, or with the number of the check that failed:
     1  scratch register            2  modem lines come back in loopback
     3  a byte comes back           4  no "received data" below the FIFO's trigger level of 14
     5  the time-out interrupt tells of the bytes below it
     6  received data at the trigger level
     7  the 16 bytes come back in order
     8  the 17th byte into a full FIFO is an overrun
     9  the interrupt "transmitter empty" comes as IRQ 4
   Source: National Semiconductor PC16550D data sheet, 8.4 to 8.6. */
#include "real.h"

        .set    MSR_LINES, 0xF0

        REAL_START
        VALUE   interrupts              /* result */
        REAL_BEGIN
        VECTOR  PIC1_BASE + 4, handler
        UART_INIT

        movb    $1, %bl
        OUT8_DX UART_SCR, 0x5A
        inb     %dx, %al
        cmpb    $0x5A, %al
        jne     fail

        incb    %bl                     /* RTS -> CTS, DTR -> DSR, OUT1 -> RI, OUT2 -> DCD */
        OUT8_DX UART_MCR, UART_MCR_LOOP | UART_MCR_RTS | UART_MCR_OUT1
        movw    $UART_MSR, %dx
        inb     %dx, %al
        andb    $MSR_LINES, %al
        cmpb    $0x50, %al
        jne     fail
        OUT8_DX UART_MCR, UART_MCR_LOOP | UART_MCR_DTR | UART_MCR_OUT2
        movw    $UART_MSR, %dx
        inb     %dx, %al
        andb    $MSR_LINES, %al
        cmpb    $0xA0, %al
        jne     fail

        incb    %bl
        OUT8_DX UART_FCR, UART_FCR_CLEAR_TRIGGER_14
        movb    $0xC3, %al
        call    send
        call    receive
        jc      fail
        cmpb    $0xC3, %al
        jne     fail

        incb    %bl
        OUT8_DX UART_IER, UART_IER_RDI
        movw    $13, %cx
        call    send_many
        movw    $UART_IIR, %dx
        inb     %dx, %al
        andb    $0x0F, %al
        cmpb    $UART_IIR_RDI, %al
        je      fail

        incb    %bl
        movb    $UART_IIR_RX_TIMEOUT, %ah
        call    await_iir
        jc      fail

        incb    %bl
        OUT8_DX UART_FCR, UART_FCR_CLEAR_TRIGGER_14
        movw    $16, %cx
        call    send_many
        movb    $UART_IIR_RDI, %ah
        call    await_iir
        jc      fail

        incb    %bl
        movb    $0, %bh
1:      call    receive
        jc      fail
        incb    %bh
        cmpb    %bh, %al
        jne     fail
        cmpb    $16, %bh
        jb      1b

        incb    %bl
        movw    $17, %cx
        call    send_many
        testb   $UART_LSR_OE, %ah
        jz      fail

        incb    %bl
        OUT8_DX UART_IER, 0
        UART_INIT
        PIC_INIT 0xEF
        OUT8_DX UART_IER, UART_IER_THRI
2:      cli
        cmpl    $0, interrupts
        jne     3f
        sti
        hlt
        jmp     2b
3:      cmpb    $UART_IIR_THRI, cause
        jne     fail
        xorb    %bl, %bl
fail:   movb    %bl, %al
        EXIT_AL

handler:
        pushw   %ax
        pushw   %dx
        movw    $UART_IIR, %dx
        inb     %dx, %al
        andb    $0x0F, %al
        movb    %al, cause
        incl    interrupts
        OUT8_DX UART_IER, 0
        OUT8    PIC1_CMD, PIC_EOI
        popw    %dx
        popw    %ax
        iretw
cause:  .byte   0

/* Send %al when the transmitter is empty */
send:   pushw   %ax
        movw    $UART_LSR, %dx
1:      inb     %dx, %al
        testb   $UART_LSR_THRE, %al
        jz      1b
        movw    $UART_THR, %dx
        popw    %ax
        outb    %al, %dx
        ret

/* Send the bytes 1 to %cx, and wait until the last has left; what the line status said meanwhile in %ah */
send_many:
        movb    $1, %al
1:      call    send
        incb    %al
        loop    1b
        movb    $0, %ah
        movw    $UART_LSR, %dx
2:      inb     %dx, %al
        orb     %al, %ah                /* reading it clears the overrun */
        testb   $UART_LSR_TEMT, %al
        jz      2b
        ret

/* The next byte in %al; carry if none comes */
receive:
        movw    $0xFFFF, %cx
        movw    $UART_LSR, %dx
1:      inb     %dx, %al
        testb   $UART_LSR_DR, %al
        loopz   1b
        jz      2f
        movw    $UART_RBR, %dx
        inb     %dx, %al
        clc
        ret
2:      stc
        ret

/* Until the low half of IIR is %ah; carry if it never is */
await_iir:
        movw    $0xFFFF, %cx
        movw    $UART_IIR, %dx
1:      inb     %dx, %al
        andb    $0x0F, %al
        cmpb    %ah, %al
        loopne  1b
        jne     2f
        clc
        ret
2:      stc
        ret
        BOOT_SIGNATURE
