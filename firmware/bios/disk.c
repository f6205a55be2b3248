/* INT 13h: floppies and disks, by cylinder, head and sector, and by logical block.

   Sources: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, INT 13h; Phoenix, BIOS
   Enhanced Disk Drive Specification 3.0; Ralf Brown's Interrupt List. */

#include "bios.h"
#include "bda.h"
#include "drive.h"
#include "pci.h"

enum { OK = 0x00, BAD_COMMAND = 0x01, WRITE_PROTECTED = 0x03, BAD_ADDRESS = 0x04, BAD_BUFFER = 0x09, FAILED = 0x20 };
#define FIRST_DISK 0x80
#define CLASS_IDE 0x0101
#define BOUNCE_FROM 0xA0000u /* above base memory a device does not reach everything that the processor does */
#define BOUNCE_TO 0xC0000u

static struct drive drives[DRIVES];
static u8 drive_count, floppies, disks;
static u32 ram_end;
static u8 bounce[SECTOR] __attribute__((aligned(4)));

static const struct { u16 sectors; u8 cylinders, heads, sectors_a_track, type; } formats[] = {
    { 320, 40, 1, 8, 1 },    { 360, 40, 1, 9, 1 },    { 640, 40, 2, 8, 1 },    { 720, 40, 2, 9, 1 },
    { 1440, 80, 2, 9, 3 },   { 2400, 80, 2, 15, 2 },  { 2880, 80, 2, 18, 4 },  { 5760, 80, 2, 36, 6 },
};

/* Where vector 1Eh points: what a floppy controller is told, of 1.44 MB. Boot sectors and DOS copy it. */
#define FLOPPY_PARAMETERS_VECTOR 0x1E
static u8 floppy_parameters[11] = { 0xAF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08 };
enum { SECTORS_A_TRACK = 4 };

/* The floppy whose size it is; another is the smallest of 1.44 MB or 2.88 MB that it fits on. */
static u8 format_of(u64 sectors)
{
    u8 i;

    for (i = 0; i < 8; i++)
        if (formats[i].sectors == sectors)
            return i;
    return sectors <= 2880 ? 6 : 7;
}

/* A disk's geometry: 63 sectors a track, and as many heads as keep it to 1024 cylinders, doubling, at most 255. */
static void set_geometry(struct drive *d)
{
    u32 tracks;

    if (d->number < FIRST_DISK) {
        u8 i = format_of(d->sectors);

        d->cylinders = formats[i].cylinders;
        d->heads = formats[i].heads;
        d->sectors_a_track = formats[i].sectors_a_track;
        return;
    }
    d->sectors_a_track = 63;
    d->heads = 16;
    if (d->sectors > 63u * 255 * 1024) {
        d->heads = 255;
        d->cylinders = 1024;
        return;
    }
    tracks = (u32)d->sectors / 63;
    while (tracks > d->heads * 1024u && d->heads < 128)
        d->heads *= 2;
    if (tracks > d->heads * 1024u)
        d->heads = 255;
    d->cylinders = tracks / d->heads;
    if (!d->cylinders)
        d->cylinders = 1;
}

static void tell(struct drive *d)
{
    debug_drive(d->number);
    debug_text(d->kind == ATA ? ": ATA, " : ": virtio, ");
    debug_number(d->cylinders);
    debug_text(" cylinders, ");
    debug_number(d->heads);
    debug_text(" heads, ");
    debug_number(d->sectors_a_track);
    debug_text(" sectors a track\n");
}

void disk_init(void)
{
    struct drive *d;
    u16 bdf, ide = 0;

    ram_end = low_end();
    for (bdf = pci_next(0); bdf; bdf = pci_next(bdf)) {
        if (drive_count < DRIVES && virtio_blk_find(&drives[drive_count], bdf))
            drive_count++;
        else if (!ide && pci_read16(bdf, PCI_CLASS + 2) == CLASS_IDE)
            ide = bdf;
    }
    if (ide)
        drive_count += ata_find(drives + drive_count, DRIVES - drive_count, ide);
    for (d = drives; d < drives + drive_count; d++) {
        if (d->number < FIRST_DISK && !floppies)
            d->number = floppies++;
        else
            d->number = FIRST_DISK + disks++;
        set_geometry(d);
        tell(d);
        if (d->number < FIRST_DISK)
            floppy_parameters[SECTORS_A_TRACK] = d->sectors_a_track;
    }
    poke16(0, FLOPPY_PARAMETERS_VECTOR * 4, (u16)(u32)floppy_parameters);
    poke16(0, FLOPPY_PARAMETERS_VECTOR * 4 + 2, BIOS_SEG);
    poke8(BDA, BDA_DISKS, disks);
    if (floppies)
        poke16(BDA, BDA_EQUIPMENT, peek16(BDA, BDA_EQUIPMENT) | 1);
}

static struct drive *find(u8 number)
{
    u8 i;

    for (i = 0; i < drive_count; i++)
        if (drives[i].number == number)
            return &drives[i];
    return 0;
}

/* *count* sectors; *done* are those that went well. The status for AH. */
static u8 transfer(struct drive *d, int write, u64 lba, u32 address, u16 count, u16 *done)
{
    *done = 0;
    if (lba >= d->sectors || count > d->sectors - lba)
        return BAD_ADDRESS;
    if (write && d->readonly)
        return WRITE_PROTECTED;
    if (!count)
        return OK; /* which to a drive means 65,536 */
    if (address + count * SECTOR > ram_end)
        return BAD_BUFFER; /* a virtio device would do nothing more */
    if (address + count * SECTOR <= BOUNCE_FROM || address >= BOUNCE_TO) {
        if (!d->transfer(d, write, lba, address, count))
            return FAILED;
        *done = count;
        return OK;
    }
    for (; *done < count; ++*done, lba++, address += SECTOR) { /* to or from the display's memory */
        if (write)
            far_copy(BIOS_SEG, (u16)(u32)bounce, address >> 4, address & 15, SECTOR);
        if (!d->transfer(d, write, lba, linear(bounce), 1))
            return FAILED;
        if (!write)
            far_copy(address >> 4, address & 15, BIOS_SEG, (u16)(u32)bounce, SECTOR);
    }
    return OK;
}

static u8 by_chs(struct drive *d, struct regs *r)
{
    u16 cylinder = r->ch | (r->cl & 0xC0) << 2, done = 0;
    u8 sector = r->cl & 0x3F, count = r->al, status;
    u32 lba;

    r->al = 0;
    if (!count || count > 128 || !sector || sector > d->sectors_a_track || r->dh >= d->heads ||
        cylinder >= d->cylinders)
        return d->number < FIRST_DISK && count && sector ? BAD_ADDRESS : BAD_COMMAND;
    lba = ((u32)cylinder * d->heads + r->dh) * d->sectors_a_track + sector - 1;
    if (r->ah == 0x04) {
        r->al = count;
        return lba + count > d->sectors ? BAD_ADDRESS : OK;
    }
    status = transfer(d, r->ah == 0x03, lba, ((u32)r->es << 4) + r->bx, count, &done);
    r->al = done;
    return status;
}

/* The packet of AH=42h-47h at DS:SI: its size, 0, sectors, 0, offset, segment, first block of 8 bytes. */
static u8 by_lba(struct drive *d, struct regs *r)
{
    u16 count = peek16(r->ds, r->si + 2), done;
    u32 address = ((u32)peek16(r->ds, r->si + 6) << 4) + peek16(r->ds, r->si + 4);
    u64 lba = peek32(r->ds, r->si + 8) | (u64)peek32(r->ds, r->si + 12) << 32;
    u8 status;

    if (peek8(r->ds, r->si) < 16)
        return BAD_COMMAND;
    if (r->ah == 0x44 || r->ah == 0x47)
        return lba >= d->sectors || count > d->sectors - lba ? BAD_COMMAND : OK;
    if (lba >= d->sectors || count > d->sectors - lba)
        return BAD_COMMAND;
    status = transfer(d, r->ah == 0x43, lba, address, count, &done);
    poke16(r->ds, r->si + 2, done);
    return status;
}

static u8 parameters(struct drive *d, struct regs *r)
{
    /* Of a disk the last cylinder is kept for tests of it, as on a PC. */
    u16 last = d->cylinders - (d->number < FIRST_DISK || d->cylinders < 2 ? 1 : 2);

    r->ch = last;
    r->cl = (last >> 2 & 0xC0) | d->sectors_a_track;
    r->dh = d->heads - 1;
    r->al = 0;
    if (d->number < FIRST_DISK) {
        r->bx = formats[format_of(d->sectors)].type;
        r->es = BIOS_SEG;
        r->di = (u16)(u32)floppy_parameters;
        r->dl = floppies;
    } else {
        r->dl = disks;
    }
    return OK;
}

static u8 extended_parameters(struct drive *d, struct regs *r)
{
    u16 size = peek16(r->ds, r->si);

    if (size < 26)
        return BAD_COMMAND;
    size = size < 30 ? 26 : 30;
    poke16(r->ds, r->si, size);
    poke16(r->ds, r->si + 2, 2); /* the geometry is valid */
    poke32(r->ds, r->si + 4, d->cylinders);
    poke32(r->ds, r->si + 8, d->heads);
    poke32(r->ds, r->si + 12, d->sectors_a_track);
    poke32(r->ds, r->si + 16, (u32)d->sectors);
    poke32(r->ds, r->si + 20, d->sectors >> 32);
    poke16(r->ds, r->si + 24, SECTOR);
    if (size == 30)
        poke32(r->ds, r->si + 26, 0xFFFFFFFF); /* no device parameter table */
    return OK;
}

static u8 drive_type(struct drive *d, struct regs *r)
{
    u32 blocks = (u32)(d->cylinders - 1) * d->heads * d->sectors_a_track;

    if (d->number < FIRST_DISK) {
        r->ah = 1; /* a floppy that cannot tell whether it was changed */
        return OK;
    }
    r->ah = 3;
    r->cx = blocks >> 16;
    r->dx = (u16)blocks;
    return OK;
}

static u8 serve(struct drive *d, struct regs *r)
{
    int is_disk = d->number >= FIRST_DISK;

    switch (r->ah) {
    case 0x00: case 0x0D: return OK;
    case 0x02: case 0x03: case 0x04: return by_chs(d, r);
    case 0x08: return parameters(d, r);
    case 0x09: case 0x0C: case 0x10: case 0x11: case 0x14: return is_disk ? OK : BAD_COMMAND;
    case 0x15: return drive_type(d, r);
    case 0x16: return is_disk ? BAD_COMMAND : OK;
    case 0x41:
        if (!is_disk || r->bx != 0x55AA)
            return BAD_COMMAND;
        r->bx = 0xAA55;
        r->cx = 0x0007; /* what there is of the extensions: all of 42h-48h, and no drive to lock or eject */
        return OK;
    case 0x42: case 0x43: case 0x44: case 0x47: return is_disk ? by_lba(d, r) : BAD_COMMAND;
    case 0x48: return is_disk ? extended_parameters(d, r) : BAD_COMMAND;
    }
    return BAD_COMMAND;
}

void disk(struct regs *r)
{
    struct drive *d = find(r->dl);
    u16 last = r->dl < FIRST_DISK ? BDA_FLOPPY_STATUS : BDA_DISK_STATUS;
    u8 function = r->ah, status;

    if (function == 0x01) {
        r->ah = peek8(BDA, last);
        set_cf(r, r->ah != OK);
        return;
    }
    enable_interrupts();
    status = d ? serve(d, r) : BAD_COMMAND;
    disable_interrupts();
    poke8(BDA, last, status);
    set_cf(r, status != OK);
    if (function == 0x15 && status == OK)
        return;
    r->ah = function == 0x41 && status == OK ? 0x30 : status; /* version of the extensions */
}

int read_boot_sector(u8 number)
{
    struct drive *d = find(number);
    u16 done;

    return !d ? -1 : transfer(d, 0, 0, 0x7C00, 1, &done) != OK ? -2 : peek16(0, 0x7DFE) == 0xAA55;
}
