/* A virtio-blk disk (virtio 1.2, 4.1, 5.2), one request at a time.

   Its registers are in a BAR far above 1 MiB. Real mode does not reach there, but a capability of the function leads
   to them through configuration space (4.1.4.9): BAR, offset and length of an access are written, and then the data is
   read or written. The ring is here, in segment F000; the device writes to it and to the caller's buffer by itself. */

#include "bios.h"
#include "drive.h"
#include "pci.h"

#define VIRTIO_VENDOR 0x1AF4
#define VIRTIO_BLK_DEVICE 0x1042
#define COMMAND_MEMORY 0x0002
#define COMMAND_MASTER 0x0004
#define COMMAND_NO_INTX 0x0400
#define CAPABILITY_VENDOR 0x09
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI };

/* Of the access capability, and of the common configuration */
#define ACCESS_BAR 4
#define ACCESS_OFFSET 8
#define ACCESS_LENGTH 12
#define ACCESS_DATA 16
#define DEVICE_FEATURE_SELECT 0x00
#define DEVICE_FEATURE 0x04
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0C
#define STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_ENABLE 0x1C
#define QUEUE_NOTIFY_OFF 0x1E
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

#define DESC_NEXT 1
#define DESC_WRITE 2
#define NO_INTERRUPT 1
#define SLOTS 4
#define F_READONLY (1 << 5)
enum { READ = 0, WRITE = 1, GET_ID = 8 };
#define ID_BYTES 20

struct ring {
    struct { u32 address, address_high, length; u16 flags, next; } desc[SLOTS];
    struct { u16 flags, index, entry[SLOTS], event; } avail;
    u16 pad;
    struct { volatile u16 flags, index; struct { u32 id, length; } entry[SLOTS]; u16 event; } used;
    struct { u32 type, reserved; u64 sector; } header;
    volatile u8 status;
} __attribute__((aligned(16)));

static struct ring rings[DRIVES];
static u8 rings_used;

/* Where a part of the registers is: in which BAR, and at which offset. */
struct where { u8 bar; u32 offset; };

/* What the capability has, of the function whose turn it is: each write is two ways out to the machine. */
static u8 bar_now, length_now;

static void access(u16 bdf, u8 cap, struct where at, u8 offset, u8 length)
{
    if (at.bar != bar_now)
        pci_write8(bdf, cap + ACCESS_BAR, bar_now = at.bar);
    if (length != length_now)
        pci_write32(bdf, cap + ACCESS_LENGTH, length_now = length);
    pci_write32(bdf, cap + ACCESS_OFFSET, at.offset + offset);
}

static void set(u16 bdf, u8 cap, struct where at, u8 offset, u8 length, u32 value)
{
    access(bdf, cap, at, offset, length);
    pci_write32(bdf, cap + ACCESS_DATA, value);
}

static u32 get(u16 bdf, u8 cap, struct where at, u8 offset, u8 length)
{
    access(bdf, cap, at, offset, length);
    return pci_read32(bdf, cap + ACCESS_DATA);
}

/* One request; the data is at *address*, of *bytes*. The status is 0 where it went well. */
static u8 request(struct drive *d, u32 type, u64 sector, u32 address, u32 bytes)
{
    struct ring *ring = d->ring;
    u16 seen = ring->used.index;

    ring->header.type = type;
    ring->header.sector = sector;
    ring->status = 0xFF;
    ring->desc[0].address = linear(&ring->header);
    ring->desc[0].length = sizeof ring->header;
    ring->desc[0].flags = DESC_NEXT;
    ring->desc[0].next = 1;
    ring->desc[1].address = address;
    ring->desc[1].length = bytes;
    ring->desc[1].flags = DESC_NEXT | (type == WRITE ? 0 : DESC_WRITE);
    ring->desc[1].next = 2;
    ring->desc[2].address = linear((void *)&ring->status);
    ring->desc[2].length = 1;
    ring->desc[2].flags = DESC_WRITE;
    ring->avail.entry[ring->avail.index % SLOTS] = 0;
    asm volatile("" : : : "memory");
    ring->avail.index++;
    asm volatile("" : : : "memory");
    pci_write32(d->bdf, d->access + ACCESS_DATA, 0); /* the doorbell, where start() has left the access */
    while (ring->used.index == seen)
        asm volatile("pause" : : : "memory");
    return ring->status;
}

static int transfer(struct drive *d, int write, u64 lba, u32 address, u16 count)
{
    return request(d, write ? WRITE : READ, lba, address, (u32)count * SECTOR) == 0;
}

static int start(struct drive *d, u16 bdf)
{
    struct where part[6] = { { 0, 0 } };
    u32 multiplier = 0;
    u8 cap, at = 0, kind;
    struct ring *ring = &rings[rings_used];
    u32 notify;

    bar_now = 0xFF;
    length_now = 0;
    for (cap = pci_read8(bdf, PCI_CAPABILITIES); cap; cap = pci_read8(bdf, cap + 1)) {
        kind = pci_read8(bdf, cap + 3);
        if (pci_read8(bdf, cap) != CAPABILITY_VENDOR || !kind || kind > CAP_PCI)
            continue;
        part[kind].bar = pci_read8(bdf, cap + 4);
        part[kind].offset = pci_read32(bdf, cap + 8);
        if (kind == CAP_NOTIFY)
            multiplier = pci_read32(bdf, cap + 16);
        if (kind == CAP_PCI)
            at = cap;
    }
    if (!at)
        return 0;
    pci_write16(bdf, PCI_COMMAND, COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX);
#define SET(offset, length, value) set(bdf, at, part[CAP_COMMON], offset, length, value)
    SET(STATUS, 1, 0);
    SET(STATUS, 1, ACKNOWLEDGE | DRIVER);
    SET(DEVICE_FEATURE_SELECT, 4, 0);
    d->readonly = (get(bdf, at, part[CAP_COMMON], DEVICE_FEATURE, 4) & F_READONLY) != 0;
    SET(DRIVER_FEATURE_SELECT, 4, 1);
    SET(DRIVER_FEATURE, 4, 1); /* VIRTIO_F_VERSION_1, and nothing else */
    SET(STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (!(get(bdf, at, part[CAP_COMMON], STATUS, 1) & FEATURES_OK))
        return 0;
    SET(QUEUE_SELECT, 2, 0);
    SET(QUEUE_SIZE, 2, SLOTS);
    SET(QUEUE_DESC, 4, linear(ring->desc));
    SET(QUEUE_DRIVER, 4, linear(&ring->avail));
    SET(QUEUE_DEVICE, 4, linear((void *)&ring->used));
    SET(QUEUE_ENABLE, 2, 1);
    notify = get(bdf, at, part[CAP_COMMON], QUEUE_NOTIFY_OFF, 2) * multiplier;
    ring->avail.flags = NO_INTERRUPT;
    SET(STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
#undef SET
    d->kind = VIRTIO_BLK;
    d->bdf = bdf;
    d->access = at;
    d->ring = ring;
    d->transfer = transfer;
    d->sectors = get(bdf, at, part[CAP_DEVICE], 0, 4) | (u64)get(bdf, at, part[CAP_DEVICE], 4, 4) << 32;
    part[CAP_NOTIFY].offset += notify;
    access(bdf, at, part[CAP_NOTIFY], 0, 2);
    rings_used++;
    return 1;
}

/* A disk whose serial number is "floppy" is one. */
static int is_floppy(struct drive *d)
{
    static char id[ID_BYTES];
    static const char floppy[] = "floppy";
    u8 i;

    if (request(d, GET_ID, 0, linear(id), ID_BYTES))
        return 0;
    for (i = 0; i < sizeof floppy; i++)
        if (id[i] != floppy[i])
            return 0;
    return 1;
}

int virtio_blk_find(struct drive *d, u16 bdf)
{
    if (pci_read32(bdf, 0) != (VIRTIO_VENDOR | (u32)VIRTIO_BLK_DEVICE << 16) || !start(d, bdf))
        return 0;
    d->number = is_floppy(d) ? 0x00 : 0x80;
    return 1;
}
