/* INT 19h: the first sector of the floppy, else of the first disk, is read to 0000:7C00 and begun, if it ends with
   55 AA. Where there is none, the screen says so, and so does the machine. One that gives up, by INT 18h, is left for
   the next (BIOS Boot Specification 1.01, 6.7). */

#include "bios.h"

#define APM_COMMAND 0xB2
#define NO_BOOT_DISK 0xB5 /* told to the machine, which ends */

static void why_not(u8 drive, int result)
{
    print("drive ");
    print_hex(drive);
    print(result == 1 ? "h: gave up (INT 18h)" : result == -1 ? "h: none" :
          result == -2 ? "h: cannot be read" : "h: no boot sector (55 AA)");
}

static void begin(u8 drive)
{
    debug_text("boot from ");
    debug_drive(drive);
    debug_text("\n");
    jump_to_boot_sector(drive);
}

/* Of the order of boot */
static const u8 order[] = { 0x00, 0x80 };
static u8 tried;
static signed char results[sizeof order];

void boot_next(void)
{
    u8 i;

    trace_init();
    while (tried < sizeof order) {
        i = tried++;
        results[i] = read_boot_sector(order[i]);
        if (results[i] == 1)
            begin(order[i]);
    }
    print("No boot disk: ");
    for (i = 0; i < sizeof order; i++) {
        if (i)
            print(", ");
        why_not(order[i], results[i]);
    }
    print("\n");
    outb(APM_COMMAND, NO_BOOT_DISK);
    for (;;)
        wait_for_interrupt();
}

void boot(void)
{
    tried = 0;
    boot_next();
}
