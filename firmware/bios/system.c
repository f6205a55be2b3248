/* INT 15h: memory, A20, moves above 1 MiB, waits, power.

   Sources: ACPI Specification 6.2, section 15 (E820h); Ralf Brown's Interrupt List (E801h, 88h, 87h, 24xxh, 86h, C0h);
   APM BIOS Interface Specification 1.2 (53xxh). */

#include "bios.h"
#include "bda.h"
#include "pci.h"

#define SMAP 0x534D4150
#define PORT_92 0x92
#define A20 0x02
#define PCIEXBAR 0x60 /* of the host bridge: where configuration space is in memory */
#define PCIEXBAR_BYTES 0x10000000
#define ROM_FROM 0xFFFC0000u
#define PM1_CONTROL 0x604
#define PM_TIMER 0x608
#define SLEEP_S5 (7 << 10 | 1 << 13)
#define UNSUPPORTED 0x86

void pm_copy(u32 to, u32 from, u32 bytes);
u8 cmos_read(u8 index);

/* What the CMOS tells of RAM */
static u16 cmos16(u8 index) { return cmos_read(index) | cmos_read(index + 1) << 8; }
static u16 blocks_above_16m(void) { return cmos16(0x34); } /* of 64 KiB, below 4 GiB */
static u16 kib_above_1m(void) { return cmos16(0x30); }     /* at most 63 MiB */
static u32 blocks_above_4g(void) { return cmos16(0x5B) | (u32)cmos_read(0x5D) << 16; }

u32 low_end(void)
{
    return blocks_above_16m() ? 0x1000000u + ((u32)blocks_above_16m() << 16) : 0x100000u + ((u32)kib_above_1m() << 10);
}

/* The memory map: entry *i* is of *type* from *from* on; 0 behind the last. */
static int range(u16 i, u64 *from, u64 *bytes, u32 *type)
{
    u32 ecam = pci_read32(0, PCIEXBAR) & ~0x0FFFFFFFu;

    *type = 2;
    switch (i) {
    case 0: *from = 0; *bytes = EBDA_KB << 10; *type = 1; break;
    case 1: *from = EBDA_KB << 10; *bytes = 0xA0000 - (EBDA_KB << 10); break;
    case 2: *from = 0xE0000; *bytes = 0x20000; break;
    case 3: *from = 0x100000; *bytes = low_end() - 0x100000; *type = 1; break;
    case 4: *from = ecam; *bytes = PCIEXBAR_BYTES; break;
    case 5: *from = ROM_FROM; *bytes = -ROM_FROM; break;
    case 6: *from = 0x100000000; *bytes = (u64)blocks_above_4g() << 16; *type = 1; return *bytes != 0;
    default: return 0;
    }
    return 1;
}

static int memory_map(struct regs *r)
{
    u64 from, bytes;
    u32 type;
    u16 i = r->bx;

    if (r->edx != SMAP || r->ecx < 20)
        return 0;
    if (i == 3 && low_end() == 0x100000)
        i++; /* a machine of 1 MiB */
    if (!range(i, &from, &bytes, &type))
        return 0;
    poke32(r->es, r->di, (u32)from);
    poke32(r->es, r->di + 4, from >> 32);
    poke32(r->es, r->di + 8, (u32)bytes);
    poke32(r->es, r->di + 12, bytes >> 32);
    poke32(r->es, r->di + 16, type);
    r->eax = SMAP;
    r->ecx = 20;
    r->ebx = range(i + 1, &from, &bytes, &type) ? i + 1 : 0;
    return 1;
}

/* 24xxh: the gate of port 92h. KVM has none, and the line is always open; the bit is the program's own. */
static void a20(struct regs *r)
{
    switch (r->al) {
    case 0x00: case 0x01:
        outb(PORT_92, (inb(PORT_92) & ~(A20 | 1)) | (r->al ? A20 : 0));
        break;
    case 0x02: r->al = inb(PORT_92) >> 1 & 1; break;
    case 0x03: r->bx = 3; break; /* by the keyboard controller, and by port 92h */
    default:
        r->ah = UNSUPPORTED;
        set_cf(r, 1);
        return;
    }
    r->ah = 0;
    set_cf(r, 0);
}

/* A descriptor's base */
static u32 base(u16 segment, u16 offset)
{
    return (peek32(segment, offset + 2) & 0xFFFFFF) | (u32)peek8(segment, offset + 7) << 24;
}

/* 86h: by the ACPI PM timer, 3.579545 MHz, of which 24 bits count. */
static void wait_microseconds(u32 left)
{
    while (left) {
        u32 piece = left < 1000 ? left : 1000, from = inl(PM_TIMER);

        while (((inl(PM_TIMER) - from) & 0xFFFFFF) < piece * 3580 / 1000)
            asm volatile("pause");
        left -= piece;
    }
}

static const struct { u16 bytes; u8 model, submodel, revision, feature[5]; } __attribute__((packed)) configuration = {
    8, 0xFC, 0, 1, { 0x74, 0, 0, 0, 0 } /* second PIC, RTC, hook 4Fh, EBDA */
};

/* 53xxh: so far as to switch the machine off. */
static int power(struct regs *r)
{
    switch (r->al) {
    case 0x00: r->ax = 0x0102; r->bx = 0x504D; r->cx = 0; return 1; /* version 1.2, "PM" */
    case 0x01: case 0x04: case 0x08: case 0x0D: case 0x0F: r->ah = 0; return 1;
    case 0x0E: r->ax = 0x0102; return 1;
    case 0x07:
        if (r->bx == 1 && r->cx == 3)
            outw(PM1_CONTROL, SLEEP_S5);
        r->ah = 0;
        return 1;
    }
    r->ah = 0x09;
    return 0;
}

void system_call(struct regs *r)
{
    int served = 1;

    switch (r->ah) {
    case 0x24: a20(r); return;
    case 0x4F: set_cf(r, 1); return; /* each key passes, as it is */
    case 0x53: served = power(r); set_cf(r, !served); return;
    case 0x86:
        enable_interrupts();
        wait_microseconds((u32)r->cx << 16 | r->dx);
        disable_interrupts();
        set_cf(r, 0);
        return;
    case 0x87:
        pm_copy(base(r->es, r->si + 0x18), base(r->es, r->si + 0x10), r->cx * 2u);
        r->ah = 0;
        set_cf(r, 0);
        return;
    case 0x88: r->ax = kib_above_1m() < 0xFC00 ? kib_above_1m() : 0xFC00; break;
    case 0xC0: r->es = BIOS_SEG; r->bx = (u16)(u32)&configuration; r->ah = 0; break;
    case 0xC1: r->es = peek16(BDA, BDA_EBDA_SEGMENT); break;
    case 0xE8:
        if (r->al == 0x20) {
            served = memory_map(r);
        } else if (r->al == 0x01) {
            r->ax = r->cx = kib_above_1m() < 0x3C00 ? kib_above_1m() : 0x3C00;
            r->bx = r->dx = blocks_above_16m();
        } else {
            served = 0;
        }
        break;
    default: served = 0;
    }
    if (!served)
        r->ah = UNSUPPORTED;
    set_cf(r, !served);
}
