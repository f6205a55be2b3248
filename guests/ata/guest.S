/* Reads sector `lba` of the first ATA disk as the simplest driver does, by ports 1F0 to 1F7 and 3F6, and sends it to the
   serial port up to its first zero byte. Ends with 0, or with
     1  no drive                   2  it is no ATA drive
     3  the drive says error       4  no interrupt came with the data
   Source: ATA/ATAPI-6 (T13 1410D), PIO data-in protocol. */
#include "real.h"

        .set    SECTOR, 0x8000

        REAL_START
        VALUE   lba                     /* parameter, 28 bits */
        VALUE   interrupts              /* results */
        VALUE   error
        REAL_BEGIN
        VECTOR  PIC2_BASE + 6, handler
        UART_INIT
        PIC_INIT 0xFB, 0xBF          /* IRQ 14 alone, by way of IRQ 2 */
        sti

        movb    $1, %bl
        OUT8_DX ATA_DEVICE_CONTROL, ATA_SRST | ATA_NIEN
        OUT8_DX ATA_DEVICE_CONTROL, 0
        call    ready
        cmpb    $ATA_FLOATING, %al
        jae     fail
        incb    %bl
        movw    $ATA_LBA_MID, %dx
        inb     %dx, %al
        movb    %al, %ah
        incw    %dx
        inb     %dx, %al
        testw   %ax, %ax
        jnz     fail

        incb    %bl
        OUT8_DX ATA_COUNT, 1
        movl    lba, %eax
        movw    $ATA_LBA_LOW, %dx
        outb    %al, %dx
        shrl    $8, %eax
        incw    %dx
        outb    %al, %dx
        shrl    $8, %eax
        incw    %dx
        outb    %al, %dx
        movb    %ah, %al
        andb    $0x0F, %al
        orb     $ATA_DEVICE_LBA, %al
        incw    %dx
        outb    %al, %dx
        OUT8_DX ATA_COMMAND, ATA_READ_SECTORS
        call    ready
        movw    $ATA_ERROR, %dx
        testb   $ATA_ERR, %al
        jz      1f
        inb     %dx, %al
        movb    %al, error
        jmp     fail
1:      movw    $SECTOR, %di
        movw    $256, %cx
        movw    $ATA_DATA, %dx
        rep insw
        movb    $0, (%di)

        incb    %bl
        cmpl    $1, interrupts
        jne     fail
        movw    $SECTOR, %si
        call    puts
        xorb    %bl, %bl
fail:   movb    %bl, %al
        EXIT_AL

/* The status in %al once the drive is not busy; the alternate status leaves the interrupt alone */
ready:  movw    $ATA_DEVICE_CONTROL, %dx
1:      inb     %dx, %al
        cmpb    $0xFF, %al              /* there is no controller */
        je      2f
        testb   $ATA_BSY, %al
        jnz     1b
2:      ret

handler:
        pushw   %ax
        pushw   %dx
        movw    $ATA_COMMAND, %dx
        inb     %dx, %al
        incl    interrupts
        OUT8    PIC2_CMD, PIC_EOI
        OUT8    PIC1_CMD, PIC_EOI
        popw    %dx
        popw    %ax
        iretw

        SERIAL_ROUTINES
        BOOT_SIGNATURE
