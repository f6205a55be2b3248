/* A driver of virtio-blk for 32-bit guests, under any monitor that has it as a modern PCI function: one queue, EVENT_IDX where
   it is offered, MSI-X. It gives the BARs their places, for there may be no firmware. Names are those of Linux's headers. */
#ifndef BLK_H
#define BLK_H
#include <stdint.h>

#include "ports.h"

#define PCI_CONFIG_ADDRESS 0xCF8
#define PCI_CONFIG_DATA 0xCFC
#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4
#define PCI_COMMAND_INTX_DISABLE 0x400
#define PCI_BASE_ADDRESS_0 0x10
#define PCI_BASE_ADDRESS_MEM_64 0x4
#define PCI_CAPABILITY_LIST 0x34
#define PCI_CAP_ID_VNDR 0x09
#define PCI_CAP_ID_MSIX 0x11
#define PCI_MSIX_FLAGS_ENABLE 0x8000

#define VIRTIO_BLK 0x10421AF4    /* device and vendor */
#define VIRTIO_PCI_CAP_COMMON_CFG 1
#define VIRTIO_PCI_CAP_NOTIFY_CFG 2
#define VIRTIO_PCI_CAP_DEVICE_CFG 4
#define DEVICE_FEATURE_SELECT 0x00
#define DEVICE_FEATURE 0x04
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0C
#define MSIX_CONFIG 0x10
#define DEVICE_STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_MSIX_VECTOR 0x1A
#define QUEUE_ENABLE 0x1C
#define QUEUE_NOTIFY_OFF 0x1E
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30
#define VIRTIO_MSI_NO_VECTOR 0xFFFF
#define VIRTIO_BLK_F_FLUSH (1u << 9)
#define VIRTIO_RING_F_EVENT_IDX (1u << 29)
#define VIRTIO_F_VERSION_1 1     /* of the upper 32 bits */
#define VIRTQ_DESC_F_NEXT 1
#define VIRTQ_DESC_F_WRITE 2
#define VIRTIO_BLK_T_IN 0
#define VIRTIO_BLK_T_OUT 1
#define VIRTIO_BLK_T_FLUSH 4

#define BARS 0xD0000000          /* BAR n is 1 MiB times n behind it */
#define MSI_ADDRESS 0xFEE00000
#define VECTOR 0x41
#define SIZE 128                 /* of the queue */
#define REQUESTS 32              /* at once; each has three descriptors of its own */
#define BLOCK 4096

struct desc { uint64_t address; uint32_t length; uint16_t flags, next; };
struct avail { uint16_t flags, index, ring[SIZE], used_event; };
struct used { uint16_t flags, index; struct { uint32_t id, length; } ring[SIZE]; uint16_t avail_event; };
struct header { uint32_t type, reserved; uint64_t sector; };

static volatile struct desc desc[SIZE] __attribute__((aligned(16)));
static volatile struct avail avail __attribute__((aligned(4)));
static volatile struct used used __attribute__((aligned(4)));
static volatile struct header headers[REQUESTS] __attribute__((aligned(16)));
static volatile uint8_t statuses[REQUESTS];
static uint32_t data[REQUESTS][BLOCK / 4] __attribute__((aligned(BLOCK)));
static uint32_t where;           /* the device's place in CONFIG_ADDRESS */
static uint32_t doorbell;        /* where a write kicks the queue */
static uint32_t config;          /* the device configuration */
static uint32_t features;
static uint16_t next_avail, shown, next_used;
static uint32_t kicks;

static inline void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/* A store before it is seen before a load behind it. */
static inline void barrier(void) { __asm__ volatile("lock; addl $0, (%%esp)" : : : "memory"); }

#define MMIO8(address) (*(volatile uint8_t *)(uintptr_t)(address))
#define MMIO16(address) (*(volatile uint16_t *)(uintptr_t)(address))
#define MMIO32(address) (*(volatile uint32_t *)(uintptr_t)(address))

static uint32_t config_read(uint32_t reg)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | where | reg);
    return inl(PCI_CONFIG_DATA);
}

static void config_write(uint32_t reg, uint32_t value)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | where | reg);
    outl(PCI_CONFIG_DATA, value);
}

static uint32_t bar_address(uint32_t bar) { return BARS + (bar << 20); }

static void place_bars(void)
{
    for (uint32_t bar = 0; bar < 6; bar++) {
        uint32_t reg = PCI_BASE_ADDRESS_0 + 4 * bar, kind = config_read(reg);
        if (kind & 1)
            continue;  /* ports */
        config_write(reg, bar_address(bar));
        if (kind & PCI_BASE_ADDRESS_MEM_64)
            config_write(PCI_BASE_ADDRESS_0 + 4 * ++bar, 0);
    }
    config_write(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
}

/* Find the disk and start its queue, with those of the features wanted that it has: 0, or what is missing */
static int blk_start(uint32_t wanted)
{
    uint32_t common = 0, notify = 0, multiplier = 0, msix = 0, table = 0;
    for (where = 0; where < 32 << 11 && config_read(0) != VIRTIO_BLK; where += 1 << 11)
        ;
    if (where == 32 << 11)
        return 1;
    place_bars();
    for (uint32_t at = config_read(PCI_CAPABILITY_LIST) & 0xFC; at; at = config_read(at) >> 8 & 0xFC) {
        uint32_t head = config_read(at), place = bar_address(config_read(at + 4) & 7) + config_read(at + 8);
        if ((head & 0xFF) == PCI_CAP_ID_MSIX) {
            msix = at;
            table = bar_address(config_read(at + 4) & 7) + (config_read(at + 4) & ~7u);
        } else if ((head & 0xFF) == PCI_CAP_ID_VNDR && head >> 24 == VIRTIO_PCI_CAP_COMMON_CFG) {
            common = place;
        } else if ((head & 0xFF) == PCI_CAP_ID_VNDR && head >> 24 == VIRTIO_PCI_CAP_DEVICE_CFG) {
            config = place;
        } else if ((head & 0xFF) == PCI_CAP_ID_VNDR && head >> 24 == VIRTIO_PCI_CAP_NOTIFY_CFG) {
            notify = place;
            multiplier = config_read(at + 16);
        }
    }
    if (!common || !notify || !msix || !config)
        return 2;
    MMIO32(table) = MSI_ADDRESS;
    MMIO32(table + 4) = 0;
    MMIO32(table + 8) = VECTOR;
    MMIO32(table + 12) = 0;
    config_write(msix, (config_read(msix) & 0xFFFF) | (uint32_t)PCI_MSIX_FLAGS_ENABLE << 16);

    MMIO8(common + DEVICE_STATUS) = 0;
    while (MMIO8(common + DEVICE_STATUS))
        ;
    MMIO8(common + DEVICE_STATUS) = 1;
    MMIO8(common + DEVICE_STATUS) = 3;
    MMIO32(common + DEVICE_FEATURE_SELECT) = 0;
    features = MMIO32(common + DEVICE_FEATURE) & wanted;
    MMIO32(common + DRIVER_FEATURE_SELECT) = 0;
    MMIO32(common + DRIVER_FEATURE) = features;
    MMIO32(common + DRIVER_FEATURE_SELECT) = 1;
    MMIO32(common + DRIVER_FEATURE) = VIRTIO_F_VERSION_1;
    MMIO8(common + DEVICE_STATUS) = 11;
    if (MMIO8(common + DEVICE_STATUS) != 11)
        return 3;
    MMIO16(common + MSIX_CONFIG) = VIRTIO_MSI_NO_VECTOR;
    MMIO16(common + QUEUE_SELECT) = 0;
    if (MMIO16(common + QUEUE_SIZE) < SIZE)
        return 4;
    MMIO16(common + QUEUE_SIZE) = SIZE;
    MMIO16(common + QUEUE_MSIX_VECTOR) = 0;
    MMIO32(common + QUEUE_DESC) = (uintptr_t)desc;
    MMIO32(common + QUEUE_DESC + 4) = 0;
    MMIO32(common + QUEUE_DRIVER) = (uintptr_t)&avail;
    MMIO32(common + QUEUE_DRIVER + 4) = 0;
    MMIO32(common + QUEUE_DEVICE) = (uintptr_t)&used;
    MMIO32(common + QUEUE_DEVICE + 4) = 0;
    doorbell = notify + MMIO16(common + QUEUE_NOTIFY_OFF) * multiplier;
    MMIO16(common + QUEUE_ENABLE) = 1;
    for (uint32_t n = 0; n < REQUESTS; n++) {
        desc[3 * n].address = (uintptr_t)&headers[n];
        desc[3 * n].length = sizeof headers[n];
        desc[3 * n].flags = VIRTQ_DESC_F_NEXT;
        desc[3 * n + 1].address = (uintptr_t)data[n];
        desc[3 * n + 1].next = 3 * n + 2;
        desc[3 * n + 2].address = (uintptr_t)&statuses[n];
        desc[3 * n + 2].length = 1;
        desc[3 * n + 2].flags = VIRTQ_DESC_F_WRITE;
    }
    MMIO8(common + DEVICE_STATUS) = 15;
    return 0;
}

/* Sectors of the disk, as far as 32 bits go */
static inline uint32_t blk_sectors(void) { return MMIO32(config + 4) ? 0xFFFFFFFF : MMIO32(config); }

/* Add request n; the device is shown it by blk_kick() */
static inline void blk_add(uint32_t n, uint32_t type, uint32_t sector, uint32_t length)
{
    headers[n].type = type;
    headers[n].sector = sector;
    statuses[n] = 0xFF;
    desc[3 * n].next = length ? 3 * n + 1 : 3 * n + 2;
    desc[3 * n + 1].length = length;
    desc[3 * n + 1].flags = VIRTQ_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VIRTQ_DESC_F_WRITE : 0);
    avail.ring[next_avail++ % SIZE] = 3 * n;
}

static inline void blk_kick(void)
{
    uint16_t old = shown;
    avail.index = shown = next_avail;
    barrier();
    if (features & VIRTIO_RING_F_EVENT_IDX ? (uint16_t)(shown - used.avail_event - 1) < (uint16_t)(shown - old)
                                           : !(used.flags & 1)) {
        kicks++;
        MMIO16(doorbell) = 0;
    }
}

/* The number of a request that has come back, or -1 where none has */
static inline int blk_used(void)
{
    if (used.index == next_used)
        return -1;
    return used.ring[next_used++ % SIZE].id / 3;
}

/* Sleep until one has come back. Interrupts are on nowhere else: see flat32.h. */
static inline void blk_wait(void)
{
    for (;;) {
        avail.used_event = next_used;
        barrier();
        if (used.index != next_used)
            return;
        __asm__ volatile("sti; hlt; cli" : : : "memory");
    }
}

#endif
