/* PCI: finding functions, and the services of INT 1Ah, AH=B1h (PCI BIOS Specification 2.1, section 4). */

#include "bios.h"
#include "pci.h"

#define NONE 0xFFFFFFFFu
#define MULTIFUNCTION 0x80
#define BRIDGE 0x01
#define SUBORDINATE_BUS 0x1A
enum { SUCCESSFUL = 0x00, UNSUPPORTED = 0x81, BAD_VENDOR = 0x83, NOT_FOUND = 0x86, BAD_REGISTER = 0x87 };

static u8 last_bus;

u16 pci_next(u16 bdf)
{
    u32 next = bdf;
    int there = 1; /* function 0, or the one alone, of the device that *next* is of */

    for (;;) {
        if (next & 7 || (there && pci_read8(next, PCI_HEADER) & MULTIFUNCTION))
            next++;
        else
            next += 8; /* nothing there, or one function alone */
        if (next >> 8 > last_bus)
            return 0;
        there = pci_read32(next, 0) != NONE;
        if (there) {
            if ((pci_read8(next, PCI_HEADER) & ~MULTIFUNCTION) == BRIDGE && pci_read8(next, SUBORDINATE_BUS) > last_bus)
                last_bus = pci_read8(next, SUBORDINATE_BUS);
            return next;
        }
    }
}

/* The function number SI of those whose register has *wanted* in the bits above *shift*. */
static u8 find(struct regs *r, u8 reg, u8 shift, u32 wanted)
{
    u16 left = r->si, bdf = 0;

    do {
        if (pci_read32(bdf, reg) >> shift == wanted && !left--) {
            r->bx = bdf;
            return SUCCESSFUL;
        }
        bdf = pci_next(bdf);
    } while (bdf);
    return NOT_FOUND;
}

static u8 configuration(struct regs *r)
{
    u8 width = r->al < 0x0B ? r->al - 0x08 : r->al - 0x0B; /* 0: a byte, 1: a word, 2: four bytes */

    if (r->di > 0xFF || r->di & ((1 << width) - 1))
        return BAD_REGISTER;
    switch (r->al) {
    case 0x08: r->cl = pci_read8(r->bx, r->di); break;
    case 0x09: r->cx = pci_read16(r->bx, r->di); break;
    case 0x0A: r->ecx = pci_read32(r->bx, r->di); break;
    case 0x0B: pci_write8(r->bx, r->di, r->cl); break;
    case 0x0C: pci_write16(r->bx, r->di, r->cx); break;
    case 0x0D: pci_write32(r->bx, r->di, r->ecx); break;
    }
    return SUCCESSFUL;
}

void pci_bios(struct regs *r)
{
    u8 status = UNSUPPORTED;

    switch (r->al) {
    case 0x01:
        r->al = 0x01; /* configuration mechanism 1 */
        r->bx = 0x0210;
        r->cl = last_bus;
        r->edx = 0x20494350; /* "PCI " */
        status = SUCCESSFUL;
        break;
    case 0x02:
        status = r->dx == 0xFFFF ? BAD_VENDOR : find(r, 0, 0, r->dx | (u32)r->cx << 16);
        break;
    case 0x03: status = find(r, PCI_CLASS, 8, r->ecx & 0xFFFFFF); break;
    case 0x08: case 0x09: case 0x0A: case 0x0B: case 0x0C: case 0x0D: status = configuration(r); break;
    }
    r->ah = status;
    set_cf(r, status != SUCCESSFUL);
}
