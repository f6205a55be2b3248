/* Macros that hold in every mode. Each clobbers AL at least; %dx where it says so. */
#include "ports.h"

/* A value that a test may set before the start (a parameter) or read after the end (a result): 8 bytes, little-endian,
   its address in the [symbols] of guest.toml. */
.macro VALUE name, default=0
        .globl  \name
\name:  .quad   \default
.endm

/* outb to a port of at most 8 bits */
.macro OUT8 port, value
        movb    $(\value), %al
        outb    %al, $(\port)
.endm

/* outb to any port; clobbers %dx */
.macro OUT8_DX port, value
        movw    $(\port), %dx
        movb    $(\value), %al
        outb    %al, %dx
.endm

/* Let the i8042 take one byte: wait until its input buffer is empty */
.macro I8042_WAIT
.Li\@:  inb     $I8042_STATUS, %al
        testb   $I8042_STR_IBF, %al
        jnz     .Li\@
.endm

/* Both 8259As: vectors PIC1_BASE and PIC2_BASE, only the interrupts whose mask bits are 0 */
.macro PIC_INIT mask1, mask2=0xFF
        OUT8    PIC1_CMD, PIC_ICW1
        OUT8    PIC2_CMD, PIC_ICW1
        OUT8    PIC1_DATA, PIC1_BASE
        OUT8    PIC2_DATA, PIC2_BASE
        OUT8    PIC1_DATA, 0x04         /* the second one is on IRQ 2 */
        OUT8    PIC2_DATA, 0x02
        OUT8    PIC1_DATA, PIC_ICW4
        OUT8    PIC2_DATA, PIC_ICW4
        OUT8    PIC1_DATA, \mask1
        OUT8    PIC2_DATA, \mask2
.endm

/* Nothing from the 8259As: a firmware leaves the timer's interrupt let through */
.macro PIC_OFF
        OUT8    PIC1_DATA, 0xFF
        OUT8    PIC2_DATA, 0xFF
.endm

/* Channel 0 of the 8254: IRQ 0 at hz, 19 at the lowest */
.macro PIT_INIT hz
        OUT8    PIT_MODE, PIT_CH0_RATE
        OUT8    PIT_CH0, (PIT_HZ / \hz) & 0xFF
        OUT8    PIT_CH0, (PIT_HZ / \hz) >> 8
.endm

/* The serial port: 115200 8N1, FIFOs on, the interrupts in ier; clobbers %dx */
.macro UART_INIT ier=0
        OUT8_DX UART_LCR, UART_LCR_DLAB
        OUT8_DX UART_DLL, 1
        OUT8_DX UART_DLM, 0
        OUT8_DX UART_LCR, UART_LCR_8N1
        OUT8_DX UART_FCR, UART_FCR_CLEAR
        OUT8_DX UART_MCR, UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT2
        OUT8_DX UART_IER, \ier
.endm

/* End with a value */
.macro EXIT value
        OUT8    DEBUG_EXIT, \value
        HALT_FOREVER                    /* where no debug-exit port answers */
.endm

/* Turn the machine off; where that is not to be had, end with 0 */
.macro POWER_OFF
        movw    $PM1_CNT, %dx
        movw    $PM1_CNT_S5, %ax
        outw    %ax, %dx
        EXIT    0
.endm

/* End with the value in %al */
.macro EXIT_AL
        outb    %al, $DEBUG_EXIT
        HALT_FOREVER
.endm

.macro HALT_FOREVER
.Lh\@:  cli
        hlt
        jmp     .Lh\@
.endm

/* The reset guests: the second start, which finds the note of the first, ends with 0 */
.macro END_IF_RESET
        OUT8    CMOS_INDEX, CMOS_MARK
        inb     $CMOS_DATA, %al
        cmpb    $CMOS_MARK_RESET, %al
        jne     .Lfirst
        OUT8    CMOS_DATA, 0
        EXIT    0
.Lfirst: OUT8   CMOS_DATA, CMOS_MARK_RESET
.endm
