/* What kvm-unit-tests does with QEMU's test devices; the names of registers are QEMU's. */
#include <stdint.h>

#include "../include/ports.h"

#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_SIGNATURE 0x00
#define FW_CFG_ID 0x01
#define FW_CFG_RAM_SIZE 0x03
#define FW_CFG_NB_CPUS 0x05
#define FW_CFG_FILE_DIR 0x19

#define TESTDEV_DATA 0xE0
#define TESTDEV_FLUSH 0xE4
#define TESTDEV_DATA_BYTES 0xE8
#define TESTDEV_IRQ 0x2000
#define TESTDEV_MEMORY 0xFF000000

#define PCI_CONFIG_ADDRESS 0xCF8
#define PCI_CONFIG_DATA 0xCFC
#define PCI_COMMAND 0x04
#define PCI_COMMAND_IO_MEMORY 0x3
#define PCI_BASE_ADDRESS_0 0x10
#define PCI_TESTDEV 0x00051B36   /* device and vendor */
#define TEST_NUMBER 0            /* offsets in both BARs */
#define TEST_WIDTH 1
#define TEST_OFFSET 4
#define TEST_DATA 8
#define TEST_COUNT 12
#define TEST_NAME 16
#define WRITES 10

extern volatile uint64_t cpus, ram_size, interrupts, counted, flushed, step;

static uint8_t page[4096] __attribute__((aligned(4096)));

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

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t inw(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static volatile uint8_t *mmio8(uint64_t address) { return (volatile uint8_t *)address; }
static volatile uint16_t *mmio16(uint64_t address) { return (volatile uint16_t *)address; }
static volatile uint32_t *mmio32(uint64_t address) { return (volatile uint32_t *)address; }
static volatile uint64_t *mmio64(uint64_t address) { return (volatile uint64_t *)address; }

/* The first bytes of an item, little-endian */
static uint64_t fw_cfg(uint16_t item, int bytes)
{
    uint64_t value = 0;
    outw(FW_CFG_SELECTOR, item);
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)inb(FW_CFG_DATA) << (8 * i);
    return value;
}

static uint32_t config_read(uint32_t where, uint32_t reg)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | where | reg);
    return inl(PCI_CONFIG_DATA);
}

/* A BAR of pci-testdev */
struct bar { uint32_t base; int io; };

static uint8_t read8(struct bar bar, uint32_t offset)
{
    return bar.io ? inb(bar.base + offset) : *mmio8(bar.base + offset);
}

static uint32_t read32(struct bar bar, uint32_t offset)
{
    return bar.io ? inl(bar.base + offset) : *mmio32(bar.base + offset);
}

static void write8(struct bar bar, uint32_t offset, uint8_t value)
{
    if (bar.io)
        outb(bar.base + offset, value);
    else
        *mmio8(bar.base + offset) = value;
}

/* The next step begins: if it is the last of this run, its number is the guest's value */
#define CHECK(what) do { step = step + 1; if (!(what)) return (int)step; } while (0)

/* All tests of a BAR until it knows no more */
static int run_tests(struct bar bar)
{
    int test;
    for (test = 0; ; test++) {
        write8(bar, TEST_NUMBER, test);
        if (read8(bar, TEST_WIDTH) != 1)
            break;
        uint32_t offset = read32(bar, TEST_OFFSET);
        uint8_t data = read32(bar, TEST_DATA);
        CHECK(read32(bar, TEST_COUNT) == 0 && read8(bar, TEST_NAME) == (bar.io ? 'p' : 'm'));
        if (test != 1) {                /* what does not match the data does not count */
            write8(bar, offset, ~data);
            CHECK(read32(bar, TEST_COUNT) == 0);
        }
        for (int i = 0; i < WRITES; i++)
            write8(bar, offset, data);
        uint32_t count;
        do
            count = read32(bar, TEST_COUNT);
        while (count == 0);             /* an eventfd may be heard a little later */
        CHECK(test == 0 ? count == WRITES : count <= WRITES);
        if (test && count < counted)
            counted = count;
    }
    CHECK(test == 3);
    return 0;
}

int guest_main(void)
{
    CHECK(fw_cfg(FW_CFG_SIGNATURE, 4) == 0x554D4551);                               /* 1: "QEMU" */
    CHECK(fw_cfg(FW_CFG_ID, 4) == 3);                                               /* 2: and DMA */
    cpus = fw_cfg(FW_CFG_NB_CPUS, 2);
    ram_size = fw_cfg(FW_CFG_RAM_SIZE, 8);
    CHECK(fw_cfg(FW_CFG_FILE_DIR, 4) != 0 && inb(FW_CFG_DATA) == 0);                /* 3: files, big-endian */

    outl(TESTDEV_DATA, 0x44332211);
    CHECK(inl(TESTDEV_DATA) == 0x44332211 && inl(TESTDEV_DATA_BYTES) == 0x44332211); /* 4 */
    outw(TESTDEV_DATA + 2, 0x8877);
    outb(TESTDEV_DATA_BYTES, 0x55);
    CHECK(inl(TESTDEV_DATA) == 0x88772255 && inw(TESTDEV_DATA_BYTES + 1) == 0x7722); /* 5 */
    CHECK(inb(TESTDEV_DATA + 3) == 0x88);                                           /* 6 */

    outb(PIC1_CMD, PIC_ICW1);
    outb(PIC2_CMD, PIC_ICW1);
    outb(PIC1_DATA, PIC1_BASE);
    outb(PIC2_DATA, PIC2_BASE);
    outb(PIC1_DATA, 1 << 2);
    outb(PIC2_DATA, 2);
    outb(PIC1_DATA, PIC_ICW4);
    outb(PIC2_DATA, PIC_ICW4);
    outb(PIC1_DATA, ~(1 << 2));
    outb(PIC2_DATA, ~(1 << 6));
    for (uint64_t i = 1; i <= 3; i++) {
        outb(TESTDEV_IRQ + 14, 1);
        while (interrupts < i)
            __asm__ volatile("sti; hlt; cli" : : : "memory");
    }
    CHECK(interrupts == 3);                                                         /* 7 */

    *mmio64(TESTDEV_MEMORY) = 0x8877665544332211;
    *mmio8(TESTDEV_MEMORY + 1) = 0xAA;
    *mmio16(TESTDEV_MEMORY + 2) = 0xCCBB;
    *mmio32(TESTDEV_MEMORY + 4) = 0xFFEEDDCC;
    CHECK(*mmio64(TESTDEV_MEMORY) == 0xFFEEDDCCCCBBAA11);                           /* 8 */
    CHECK(*mmio64(TESTDEV_MEMORY + 0xFFF8) == 0);                                   /* 9: to its end */

    flushed = (uintptr_t)page;
    for (int i = 0; i < 100; i++) {
        *mmio32((uintptr_t)page + 8) = i;
        outl(TESTDEV_FLUSH, (uintptr_t)page + 8);
        if (*mmio32((uintptr_t)page + 8) != (uint32_t)i)
            break;
    }
    CHECK(*mmio32((uintptr_t)page + 8) == 99);                                      /* 10: nothing is lost */
    outl(TESTDEV_FLUSH, 0xFF000000);                                                /* no RAM: nothing happens */

    uint32_t slot = 0;
    while (slot < 32 << 11 && config_read(slot, 0) != PCI_TESTDEV)
        slot += 1 << 11;
    CHECK(slot < 32 << 11);                                                         /* 11 */
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | slot | PCI_COMMAND);
    outw(PCI_CONFIG_DATA, PCI_COMMAND_IO_MEMORY);
    counted = WRITES;
    for (int i = 0; i < 2; i++) {
        uint32_t address = config_read(slot, PCI_BASE_ADDRESS_0 + 4 * i);
        struct bar bar = {address & (address & 1 ? ~3u : ~0xFu), address & 1};
        CHECK(bar.base != 0 && bar.io == i);                                        /* 12, 22 */
        int wrong = run_tests(bar);                                                 /* 13 to 21, 23 to 31 */
        if (wrong)
            return wrong;
    }
    return 0;
}
