/* The driver. Names are those of the PCI and virtio headers of Linux. */
#include <stdint.h>

#include "../include/ports.h"

#define PCI_CONFIG_ADDRESS 0xCF8
#define PCI_CONFIG_DATA 0xCFC
#define ECAM 0xE0000000
#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4
#define PCI_BASE_ADDRESS_0 0x10
#define PCI_BASE_ADDRESS_MEM_64 0x4
#define PCI_BASE_ADDRESS_2 0x18
#define PCI_CAPABILITY_LIST 0x34
#define PCI_INTERRUPT_LINE 0x3C
#define PCI_CAP_ID_MSIX 0x11
#define PCI_MSIX_FLAGS_ENABLE 0x8000
#define PCI_MSIX_FLAGS_MASKALL 0x4000

#define VIRTIO_RNG 0x10441AF4    /* device and vendor */
#define BAR0_SIZE 0x4000
#define NOTIFY 0x1000
#define ISR 0x2000
#define DEVICE_FEATURE_SELECT 0x00
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0C
#define NUM_QUEUES 0x12
#define DEVICE_STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_MSIX_VECTOR 0x1A
#define QUEUE_ENABLE 0x1C
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30
#define VIRTQ_DESC_F_WRITE 2

#define MSI_ADDRESS 0xFEE00000
#define VECTOR 0x41              /* of messages and of the IOAPIC */
#define IOAPIC 0xFEC00000
#define IOAPIC_REGSEL 0x00
#define IOAPIC_WIN 0x10
#define IOAPIC_REDIRECTION 0x10
#define IOAPIC_ACTIVE_LOW 0x2000
#define IOAPIC_LEVEL 0x8000
#define IOAPIC_FIRST_PIRQ 16     /* the pin of PIRQA */
#define LAPIC_EOI 0xB0
#define SIZE 8                   /* of the queue */
#define LENGTH 64                /* of a buffer */

/* Where BAR 0 goes, one after the other */
static const uint32_t places[] = {0xD0000000, 0xC8000000, 0xDFFFC000, 0xD0004000};
#define BAR2 0xD4000000

struct desc { uint64_t address; uint32_t length; uint16_t flags, next; };
struct avail { uint16_t flags, index, ring[SIZE]; };
struct used { uint16_t flags, index; struct { uint32_t id, length; } ring[SIZE]; };

extern volatile uint64_t intx, interrupts, step;

static volatile struct desc desc[SIZE] __attribute__((aligned(16)));
static volatile struct avail avail __attribute__((aligned(4)));
static volatile struct used used __attribute__((aligned(4)));
static volatile uint8_t buffer[LENGTH];
static uint32_t slot;            /* the device's place in CONFIG_ADDRESS: bits 11 to 15 */
static uint32_t bar0;

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static volatile uint8_t *mmio8(uint32_t address) { return (volatile uint8_t *)(uintptr_t)address; }
static volatile uint16_t *mmio16(uint32_t address) { return (volatile uint16_t *)(uintptr_t)address; }
static volatile uint32_t *mmio32(uint32_t address) { return (volatile uint32_t *)(uintptr_t)address; }

static uint32_t config_read(uint32_t where, uint32_t reg)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | where | reg);
    return inl(PCI_CONFIG_DATA);
}

static void config_write(uint32_t where, uint32_t reg, uint32_t value)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | where | reg);
    outl(PCI_CONFIG_DATA, value);
}

static void command(uint16_t value)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | slot | PCI_COMMAND);
    outw(PCI_CONFIG_DATA, value);
}

/* All interrupts end here, with interrupts off: those of the local APIC, from a message or the IOAPIC, and the PICs' */
void interrupt(int local_apic)
{
    if (!intx || *mmio8(bar0 + ISR) & 1)  /* the read lowers the line */
        interrupts++;
    if (local_apic) {
        *mmio32(LAPIC + LAPIC_EOI) = 0;
    } else {
        outb(PIC2_CMD, PIC_EOI);
        outb(PIC1_CMD, PIC_EOI);
    }
}

static void wait_for_interrupts(uint64_t count)
{
    __asm__ volatile("cli" : : : "memory");
    while (interrupts < count)
        __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* What BAR reg decodes, in bytes; the BAR is left at 0 */
static uint32_t bar_size(uint32_t reg)
{
    config_write(slot, reg, 0xFFFFFFFF);
    uint32_t mask = config_read(slot, reg) & ~0xFu;
    config_write(slot, reg, 0);
    return ~mask + 1;
}

static void move(uint32_t place)
{
    config_write(slot, PCI_BASE_ADDRESS_0, place);
    bar0 = place;
}

static uint32_t find_capability(uint8_t id)
{
    uint32_t at = config_read(slot, PCI_CAPABILITY_LIST) & 0xFC;
    while (at) {
        uint32_t head = config_read(slot, at);
        if ((head & 0xFF) == id)
            return at;
        at = head >> 8 & 0xFC;
    }
    return 0;
}

/* Ask for LENGTH random bytes */
static void request(void)
{
    for (int i = 0; i < LENGTH; i++)
        buffer[i] = 0;
    desc[0].address = (uintptr_t)buffer;
    desc[0].length = LENGTH;
    desc[0].flags = VIRTQ_DESC_F_WRITE;
    avail.ring[avail.index % SIZE] = 0;
    __asm__ volatile("" : : : "memory");
    avail.index++;
    *mmio16(bar0 + NOTIFY) = 0;
}

/* Whether the device has used the buffer, count in all by now */
static int answered(uint16_t count)
{
    uint8_t any = 0;
    for (int i = 0; i < LENGTH; i++)
        any |= buffer[i];
    return used.index == count && used.ring[(uint16_t)(count - 1) % SIZE].length == LENGTH && any;
}

/* Until the interrupt of vector 1 is held back; then a moment in which it could come all the same */
static void wait_for_pending(uint32_t pending)
{
    while (!(*mmio32(pending) & 1 << 1))
        ;
    __asm__ volatile("sti; nop; cli" : : : "memory");
}

static void msix_flags(uint32_t at, uint16_t flags)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | slot | at);
    outw(PCI_CONFIG_DATA + 2, flags);
}

static int queue_start(int vector)
{
    *mmio8(bar0 + DEVICE_STATUS) = 0;
    *mmio8(bar0 + DEVICE_STATUS) = 1;
    *mmio8(bar0 + DEVICE_STATUS) = 3;
    *mmio32(bar0 + DRIVER_FEATURE_SELECT) = 1;
    *mmio32(bar0 + DRIVER_FEATURE) = 1;  /* VIRTIO_F_VERSION_1 */
    *mmio8(bar0 + DEVICE_STATUS) = 11;
    if (*mmio8(bar0 + DEVICE_STATUS) != 11)
        return 0;
    *mmio16(bar0 + QUEUE_SELECT) = 0;
    *mmio16(bar0 + QUEUE_SIZE) = SIZE;
    *mmio16(bar0 + QUEUE_MSIX_VECTOR) = vector;
    if (*mmio16(bar0 + QUEUE_MSIX_VECTOR) != vector)
        return 0;
    *mmio32(bar0 + QUEUE_DESC) = (uintptr_t)desc;
    *mmio32(bar0 + QUEUE_DRIVER) = (uintptr_t)&avail;
    *mmio32(bar0 + QUEUE_DEVICE) = (uintptr_t)&used;
    *mmio16(bar0 + QUEUE_ENABLE) = 1;
    *mmio8(bar0 + DEVICE_STATUS) = 15;
    return 1;
}

/* Both PICs, and let the interrupts through whose bit of mask is 0 */
static void pic_init(uint16_t mask)
{
    outb(PIC1_CMD, PIC_ICW1);
    outb(PIC2_CMD, PIC_ICW1);
    outb(PIC1_DATA, PIC1_BASE);
    outb(PIC2_DATA, PIC2_BASE);
    outb(PIC1_DATA, 1 << 2);
    outb(PIC2_DATA, 2);
    outb(PIC1_DATA, PIC_ICW4);
    outb(PIC2_DATA, PIC_ICW4);
    outb(PIC1_DATA, mask);
    outb(PIC2_DATA, mask >> 8);
}

/* The pin of the IOAPIC where INTA of the device's slot arrives: level-triggered, active low, as PCI's are */
static void ioapic_init(void)
{
    uint32_t pin = IOAPIC_FIRST_PIRQ + (slot >> 11) % 4;
    *mmio32(IOAPIC + IOAPIC_REGSEL) = IOAPIC_REDIRECTION + 2 * pin + 1;
    *mmio32(IOAPIC + IOAPIC_WIN) = 0;
    *mmio32(IOAPIC + IOAPIC_REGSEL) = IOAPIC_REDIRECTION + 2 * pin;
    *mmio32(IOAPIC + IOAPIC_WIN) = VECTOR | IOAPIC_ACTIVE_LOW | IOAPIC_LEVEL;
    *mmio32(LAPIC + LAPIC_SVR) |= LAPIC_SVR_ENABLE;
}

/* The next step begins: if it is the last of this run, its number is the guest's value */
#define CHECK(what) do { step = step + 1; if (!(what)) return (int)step; } while (0)

int guest_main(void)
{
    for (slot = 0; slot < 32 << 11 && config_read(slot, 0) != VIRTIO_RNG; slot += 1 << 11)
        ;
    CHECK(slot < 32 << 11);                                                         /* 1 */
    CHECK(*mmio32(ECAM + (slot << 4)) == VIRTIO_RNG);                               /* 2 */

    command(0);
    CHECK(config_read(slot, PCI_BASE_ADDRESS_0) & PCI_BASE_ADDRESS_MEM_64);         /* 3 */
    CHECK(bar_size(PCI_BASE_ADDRESS_0) == BAR0_SIZE);                               /* 4 */
    config_write(slot, PCI_BASE_ADDRESS_0 + 4, 0);
    uint32_t bar2_size = bar_size(PCI_BASE_ADDRESS_2);
    CHECK(bar2_size >= 0x20 && bar2_size <= 0x10000);                               /* 5 */

    move(places[0]);
    CHECK(*mmio16(bar0 + NUM_QUEUES) == 0xFFFF);                                    /* 6: not decoded yet */
    command(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
        uint32_t old = bar0;
        move(places[i]);
        CHECK(*mmio16(bar0 + NUM_QUEUES) == 1);                                     /* 7, 9, 11, 13 */
        CHECK(old == bar0 || *mmio16(old + NUM_QUEUES) == 0xFFFF);                  /* 8, 10, 12, 14 */
    }
    command(0);
    CHECK(*mmio16(bar0 + NUM_QUEUES) == 0xFFFF);                                    /* 15 */
    command(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    CHECK(*mmio16(bar0 + NUM_QUEUES) == 1);                                         /* 16 */

    if (intx) {
        CHECK(queue_start(0xFFFF));                                                 /* 17 */
        if (intx == 2) {
            pic_init(0xFFFF);
            ioapic_init();
        } else {
            pic_init(~(1 << (config_read(slot, PCI_INTERRUPT_LINE) & 0xF) | 1 << 2));
        }
        for (int i = 1; i <= 3; i++) {
            request();
            wait_for_interrupts(i);
            CHECK(answered(i));                                                     /* 18 to 20 */
        }
        return 0;
    }

    pic_init(0xFFFF);
    uint32_t msix = find_capability(PCI_CAP_ID_MSIX);
    CHECK(msix != 0);                                                               /* 17 */
    uint32_t table = config_read(slot, msix + 4), pending = config_read(slot, msix + 8);
    CHECK((table & 7) == 2 && (pending & 7) == 2);                                  /* 18 */
    table = BAR2 + (table & ~7u) + 16;                                              /* of vector 1 */
    pending = BAR2 + (pending & ~7u);
    config_write(slot, PCI_BASE_ADDRESS_2, BAR2);
    *mmio32(table) = MSI_ADDRESS;
    *mmio32(table + 4) = 0;
    *mmio32(table + 8) = VECTOR;
    *mmio32(table + 12) = 0;
    CHECK(*mmio32(table + 8) == VECTOR);                                        /* 19 */
    msix_flags(msix, PCI_MSIX_FLAGS_ENABLE);
    *mmio32(LAPIC + LAPIC_SVR) |= LAPIC_SVR_ENABLE;
    CHECK(queue_start(1));                                                          /* 20 */

    request();
    wait_for_interrupts(1);
    CHECK(answered(1));                                                             /* 21 */
    move(places[0]);                                                                /* the doorbell moves too */
    request();
    wait_for_interrupts(2);
    CHECK(answered(2));                                                             /* 22 */

    *mmio32(table + 12) = 1;                                                        /* the vector's mask */
    request();
    wait_for_pending(pending);
    CHECK(interrupts == 2);                                                         /* 23 */
    *mmio32(table + 12) = 0;
    wait_for_interrupts(3);
    CHECK(answered(3) && !(*mmio32(pending) & 1 << 1));                             /* 24 */

    msix_flags(msix, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);               /* the function's */
    request();
    wait_for_pending(pending);
    CHECK(interrupts == 3);                                                         /* 25 */
    msix_flags(msix, PCI_MSIX_FLAGS_ENABLE);
    wait_for_interrupts(4);
    CHECK(answered(4));                                                             /* 26 */

    *mmio32(table + 8) = VECTOR + 1;                                            /* a vector that nobody takes ... */
    *mmio32(table + 12) = 1;
    *mmio32(table + 8) = VECTOR;                                                /* ... and back, while masked */
    *mmio32(table + 12) = 0;
    request();
    wait_for_interrupts(5);
    CHECK(answered(5));                                                             /* 27 */
    return 0;
}
