/* The real-time clock: prints its date and time on the serial port, sets the alarm two seconds ahead, and waits in HLT for
   IRQ 8 through both PICs. Ends with 0 when the alarm came, 1 when an interrupt came that is none, 2 when the clock says
   that its battery is dead, 3 when the time stands. */
#include "real.h"

        REAL_START
        VALUE   interrupts              /* result */
        REAL_BEGIN
        VECTOR  PIC2_BASE + 0, handler
        UART_INIT
        movb    $2, %bl
        movb    $RTC_REG_D, %al
        call    cmos
        testb   $RTC_VRT, %al
        jz      fail

        movb    $RTC_CENTURY, %ah
        call    show
        movb    $RTC_YEAR, %ah
        call    show
        movw    $RTC_MONTH | '-' << 8, %ax
        call    show_after
        movw    $RTC_DAY | '-' << 8, %ax
        call    show_after
        movw    $RTC_HOURS | ' ' << 8, %ax
        call    show_after
        movw    $RTC_MINUTES | ':' << 8, %ax
        call    show_after
        movw    $RTC_SECONDS | ':' << 8, %ax
        call    show_after
        movb    $'\r', %al
        call    putc
        movb    $'\n', %al
        call    putc

        movb    $3, %bl                 /* the second changes within 65536 looks at it, or never */
        call    stable_seconds
        movb    %al, %bh
        xorw    %cx, %cx
1:      call    stable_seconds
        cmpb    %al, %bh
        jne     2f
        decw    %cx
        jnz     1b
        jmp     fail

2:      call    add_second              /* from the change, the alarm is two seconds away */
        call    add_second
        movb    %al, %ah
        movb    $RTC_SECONDS_ALARM, %al
        call    set
        movw    $RTC_MINUTES_ALARM | 0xC0 << 8, %ax     /* any minute */
        call    set
        movw    $RTC_HOURS_ALARM | 0xC0 << 8, %ax
        call    set
        movb    $RTC_REG_B, %al
        call    cmos
        movb    %al, %ah
        orb     $RTC_AIE, %ah
        movb    $RTC_REG_B, %al
        call    set
        movb    $RTC_REG_C, %al         /* forget what was pending */
        call    cmos
        PIC_INIT 0xFB, 0xFE
3:      cli
        cmpl    $0, interrupts
        jne     4f
        sti
        hlt
        jmp     3b
4:      movb    $0, %bl
        movb    cause, %al
        andb    $RTC_IRQF | RTC_AF, %al
        cmpb    $RTC_IRQF | RTC_AF, %al
        je      fail
        incb    %bl
fail:   movb    %bl, %al
        EXIT_AL

handler:
        pushaw
        movb    $RTC_REG_C, %al
        call    cmos
        movb    %al, cause
        incl    interrupts
        OUT8    PIC2_CMD, PIC_EOI
        OUT8    PIC1_CMD, PIC_EOI
        popaw
        iretw
cause:  .byte   0

/* Register %al, read into %al; and written with %ah */
cmos:   outb    %al, $CMOS_INDEX
        inb     $CMOS_DATA, %al
        ret
set:    outb    %al, $CMOS_INDEX
        movb    %ah, %al
        outb    %al, $CMOS_DATA
        ret

/* %al: the seconds, read while no update is in progress */
stable_seconds:
        movb    $RTC_REG_A, %al
        call    cmos
        testb   $RTC_UIP, %al
        jnz     stable_seconds
        movb    $RTC_SECONDS, %al
        jmp     cmos

/* %al + 1 second, in BCD; DAA would do it, but KVM's emulator has none */
add_second:
        incb    %al
        movb    %al, %ah
        andb    $0x0F, %ah
        cmpb    $0x0A, %ah
        jb      1f
        addb    $0x10 - 0x0A, %al
1:      cmpb    $0x60, %al
        jb      2f
        xorb    %al, %al
2:      ret

/* Print register %ah; in show_after register %al, behind the character %ah */
show_after:
        xchgb   %al, %ah
        call    putc
show:   movb    %ah, %al
        call    cmos
        jmp     puthex

        PUTHEX_ROUTINE
        SERIAL_ROUTINES
        BOOT_SIGNATURE
