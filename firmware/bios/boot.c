/* INT 19h: the first sector of the floppy, else of the first disk, is read to 0000:7C00 and begun, if it ends with
   55 AA. Where there is none, the screen says so, and so does the machine. */

#include "bios.h"

#define APM_COMMAND 0xB2
#define NO_BOOT_DISK 0xB5 /* told to the machine, which ends */

static void why_not(u8 drive, int result)
{
    print("drive ");
    print_hex(drive);
    print(result == -1 ? "h: none" : result == -2 ? "h: cannot be read" : "h: no boot sector (55 AA)");
}

static void begin(u8 drive)
{
    debug_text("boot from ");
    debug_drive(drive);
    debug_text("\n");
    jump_to_boot_sector(drive);
}

void boot(void)
{
    int floppy = read_boot_sector(0x00), hard_disk;

    trace_init();
    if (floppy == 1)
        begin(0x00);
    hard_disk = read_boot_sector(0x80);
    if (hard_disk == 1)
        begin(0x80);
    print("No boot disk: ");
    why_not(0x00, floppy);
    print(", ");
    why_not(0x80, hard_disk);
    print("\n");
    outb(APM_COMMAND, NO_BOOT_DISK);
    for (;;)
        wait_for_interrupt();
}
