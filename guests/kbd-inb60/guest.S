/* The shortest way of a key: the handler of IRQ 1 reads port 0x60 and puts the byte on the debug console, and the guest
   sleeps in HLT between two of them. Ends after `count` bytes. A boot sector, so QEMU runs the same bytes; it says 'K' on the
   debug console when it is ready. */
#include "real.h"

        REAL_START
        VALUE   count, 2                /* parameter: bytes, so 2 are one key of set 1, pressed and let go */
        VALUE   bytes                   /* result */
        REAL_BEGIN
        VECTOR  PIC1_BASE + 1, handler
1:      inb     $I8042_STATUS, %al      /* what the firmware left in the output buffer */
        testb   $I8042_STR_OBF, %al
        jz      2f
        inb     $I8042_DATA, %al
        jmp     1b
2:      I8042_WAIT
        OUT8    I8042_CMD, I8042_CMD_CTL_WCTR
        I8042_WAIT
        OUT8    I8042_DATA, I8042_CTR
        PIC_INIT 0xFD
        OUT8    DEBUG_CONSOLE, 'K'
3:      cli
        movl    bytes, %eax
        cmpl    count, %eax
        jae     4f
        sti
        hlt
        jmp     3b
4:      EXIT    0
handler:
        pushw   %ax
        inb     $I8042_DATA, %al
        outb    %al, $DEBUG_CONSOLE
        incl    bytes
        OUT8    PIC1_CMD, PIC_EOI
        popw    %ax
        iretw
        BOOT_SIGNATURE
