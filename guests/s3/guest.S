/* Suspend to RAM: sets the RTC's alarm two seconds ahead, leaves where it goes on in the FACS, which it finds from the RSDP
   on, and sends an 's' to the debug console before it asks for S3. After the wake, in real mode again, it sends a 'w', looks
   at what has woken it and whether RAM is what it was, and sleeps again, `sleeps` times in all. With `alarm` 0 it sets no
   alarm: a button wakes it. It ends with 1 where it woke otherwise than it should. */
#include "real.h"

        .set    RSDP, 0xE000            /* a segment, and all tables are in its 64 KiB */
        .set    RSDT_ADDRESS, 16
        .set    ENTRIES, 36
        .set    FACS_ADDRESS, 36
        .set    WAKING_VECTOR, 12
        .set    PM1_STS, 0x600
        .set    PM1_EN, 0x602
        .set    RTC_STS, 1 << 10
        .set    WAK_STS, 1 << 15
        .set    S3, 1 << 10 | 1 << 13   /* SLP_TYP and SLP_EN */
        .set    DEBUGCON, 0xE9
        .set    MARK, 0x600D

.macro CMOS_READ register
        OUT8    CMOS_INDEX, \register
        inb     $CMOS_DATA, %al
.endm

        REAL_START
        VALUE   sleeps, 2               /* parameters */
        VALUE   alarm, 1
        VALUE   woken                   /* results */
        VALUE   status                  /* PM1_STS of the last wake */
        REAL_BEGIN
        movw    $MARK, mark
        OUT8    APM_CNT, ACPI_ENABLE

/* RSDP, RSDT, FADT (the first entry with its signature), FACS: FS is its segment, and SI its offset */
        movw    $RSDP, %ax
        movw    %ax, %fs
        movw    %fs:RSDT_ADDRESS, %bx
        addw    $ENTRIES, %bx
1:      movw    %fs:(%bx), %si
        addw    $4, %bx
        cmpl    $0x50434146, %fs:(%si)  /* FACP */
        jne     1b
        movw    %fs:FACS_ADDRESS(%si), %si
        cmpl    $0x53434146, %fs:(%si)  /* FACS */
        jne     bad
        movl    $wake, %fs:WAKING_VECTOR(%si)

suspend:
        movw    $PM1_STS, %dx
        movw    $0xFFFF, %ax            /* what was is over */
        outw    %ax, %dx
        cmpb    $0, alarm
        je      2f
        call    set_alarm
        movw    $PM1_EN, %dx
        movw    $RTC_STS, %ax
        outw    %ax, %dx
2:      OUT8    DEBUGCON, 's'
        movw    $PM1_CNT, %dx
        movw    $S3, %ax
        outw    %ax, %dx
        jmp     bad                     /* it begins at the vector */

        .balign 16
wake:   cli
        movw    %cs, %ax                /* CS is the vector / 16, and IP the rest */
        cmpw    $(wake - _start + 0x7C00) >> 4, %ax
        jne     bad
        ljmp    $0, $3f
3:      xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7C00, %sp
        cmpw    $MARK, mark
        jne     bad
        OUT8    DEBUGCON, 'w'
        movw    $PM1_STS, %dx
        inw     %dx, %ax
        movw    %ax, status
        testw   $WAK_STS, %ax
        jz      bad
        CMOS_READ RTC_REG_C
        incb    woken
        movb    sleeps, %al
        cmpb    %al, woken
        jb      suspend
        EXIT    0
bad:    EXIT    1

/* Two seconds from now, in binary. Clobbers ax, cx */
set_alarm:
        OUT8    CMOS_INDEX, RTC_REG_B
        OUT8    CMOS_DATA, RTC_24H | RTC_DM_BINARY
1:      CMOS_READ RTC_REG_A
        testb   $RTC_UIP, %al
        jnz     1b
        CMOS_READ RTC_SECONDS
        addb    $2, %al
        cmpb    $60, %al
        jb      2f
        subb    $60, %al
2:      movb    %al, %cl
        OUT8    CMOS_INDEX, RTC_SECONDS_ALARM
        movb    %cl, %al
        outb    %al, $CMOS_DATA
        OUT8    CMOS_INDEX, RTC_MINUTES_ALARM
        OUT8    CMOS_DATA, 0xFF         /* whatever it is */
        OUT8    CMOS_INDEX, RTC_HOURS_ALARM
        OUT8    CMOS_DATA, 0xFF
        CMOS_READ RTC_REG_C
        OUT8    CMOS_INDEX, RTC_REG_B
        OUT8    CMOS_DATA, RTC_24H | RTC_DM_BINARY | RTC_AIE
        ret

        .balign 2
mark:   .word   0
        BOOT_SIGNATURE
