/* ATA disks on the two channels of an IDE controller, by PIO and polling (ATA/ATAPI-6, 9.5 and 9.6). */

#include "bios.h"
#include "drive.h"
#include "pci.h"

enum { DATA, ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, COMMAND };
enum { READ_SECTORS_EXT = 0x24, WRITE_SECTORS_EXT = 0x34, FLUSH_CACHE = 0xE7, IDENTIFY = 0xEC };
enum { ERR = 0x01, DRQ = 0x08, DF = 0x20, BSY = 0x80 };
#define LBA_MODE 0xE0
#define SLAVE 0x10
#define IDENTIFY_LBA48_SECTORS 100 /* word */

static u8 wait_ready(u16 io)
{
    u8 status;

    while ((status = inb(io + COMMAND)) & BSY)
        ;
    return status;
}

/* The sector that the drive has ready, from its data port to *segment*:*offset*, or the other way. */
static void move_sector(u16 io, int write, u16 segment, u16 offset)
{
    u32 at = offset, words = SECTOR / 2;

    if (write)
        asm volatile("pushw %%ds; movw %w3, %%ds; rep outsw; popw %%ds"
                     : "+S"(at), "+c"(words) : "d"(io), "r"(segment) : "memory");
    else
        asm volatile("pushw %%es; movw %w3, %%es; rep insw; popw %%es"
                     : "+D"(at), "+c"(words) : "d"(io), "r"(segment) : "memory");
}

static void address(u16 io, u16 count, u64 lba)
{
    outb(io + COUNT, count >> 8);
    outb(io + LBA_LOW, lba >> 24);
    outb(io + LBA_MID, lba >> 32);
    outb(io + LBA_HIGH, lba >> 40);
    outb(io + COUNT, count);
    outb(io + LBA_LOW, lba);
    outb(io + LBA_MID, lba >> 8);
    outb(io + LBA_HIGH, lba >> 16);
}

static int transfer(struct drive *d, int write, u64 lba, u32 at, u16 count)
{
    outb(d->io + DEVICE, d->select);
    wait_ready(d->io);
    address(d->io, count, lba);
    outb(d->io + COMMAND, write ? WRITE_SECTORS_EXT : READ_SECTORS_EXT);
    for (; count; count--, at += SECTOR) {
        u8 status = wait_ready(d->io);

        if (status & (ERR | DF) || !(status & DRQ))
            return 0;
        move_sector(d->io, write, at >> 4, at & 15);
    }
    if (write) {
        if (wait_ready(d->io) & (ERR | DF))
            return 0;
        outb(d->io + COMMAND, FLUSH_CACHE); /* INT 13h promises that it is there */
    }
    return !(wait_ready(d->io) & (ERR | DF));
}

static int identify(struct drive *d, u16 io, u8 select)
{
    static u16 words[SECTOR / 2];
    u8 status;

    outb(io + DEVICE, select);
    if (inb(io + COMMAND) == 0xFF || !inb(io + COMMAND))
        return 0;
    outb(io + COMMAND, IDENTIFY);
    status = wait_ready(io);
    if (status & ERR || !(status & DRQ))
        return 0;
    move_sector(io, 0, BIOS_SEG, (u16)(u32)words);
    d->kind = ATA;
    d->io = io;
    d->select = select;
    d->transfer = transfer;
    d->number = 0x80;
    d->sectors = *(u64 *)&words[IDENTIFY_LBA48_SECTORS];
    return 1;
}

int ata_find(struct drive *drives, int room, u16 bdf)
{
    static const u16 channels[] = { 0x1F0, 0x170 };
    int found = 0, channel;

    pci_write16(bdf, PCI_COMMAND, pci_read16(bdf, PCI_COMMAND) | 1); /* its ports decode */
    for (channel = 0; channel < 2; channel++) {
        if (found < room)
            found += identify(&drives[found], channels[channel], LBA_MODE);
        if (found < room)
            found += identify(&drives[found], channels[channel], LBA_MODE | SLAVE);
    }
    return found;
}
