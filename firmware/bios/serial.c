/* INT 14h: COM1, polled. What the BIOS shows as a teletype is sent there too, so that a machine without a display tells
   what it does. */

#include "bios.h"
#include "bda.h"

#define LCR 3
#define MCR 4
#define LSR 5
#define MSR 6
#define LSR_DATA 0x01
#define LSR_EMPTY 0x20
#define TIMEOUT 0x80 /* of AH */
#define TRIES 0xFFFF

static u16 com1(void) { return peek16(BDA, BDA_SERIAL_PORTS); }

/* Baud rate's divisors of the eight codes in bits 7-5 of AL: 110, 150, 300, 600, 1200, 2400, 4800, 9600. */
static const u16 divisors[8] = { 1047, 768, 384, 192, 96, 48, 24, 12 };

static void set_up(u16 port, u8 code)
{
    u16 divisor = divisors[code >> 5];

    outb(port + LCR, 0x80);
    outb(port, (u8)divisor);
    outb(port + 1, divisor >> 8);
    outb(port + LCR, code & 0x1F);
}

static int wait(u16 port, u8 bits)
{
    u32 tries;

    for (tries = 0; tries < TRIES; tries++)
        if (inb(port + LSR) & bits)
            return 1;
    return 0;
}

void serial_init(void)
{
    set_up(0x3F8, 0xE3); /* 9600 8n1 */
    outb(0x3F8 + MCR, 0x03);
}

void serial_mirror(u8 character)
{
    if (com1() && wait(com1(), LSR_EMPTY))
        outb(com1(), character);
}

void serial(struct regs *r)
{
    u16 port = r->dx == 0 ? com1() : 0;
    u8 arrived = 1;

    if (!port)
        return;
    switch (r->ah) {
    case 0x00: set_up(port, r->al); break;
    case 0x01:
        arrived = wait(port, LSR_EMPTY);
        if (arrived)
            outb(port, r->al);
        r->ah = inb(port + LSR) | (arrived ? 0 : TIMEOUT);
        return;
    case 0x02:
        arrived = wait(port, LSR_DATA);
        if (arrived)
            r->al = inb(port);
        r->ah = (inb(port + LSR) & 0x1E) | (arrived ? 0 : TIMEOUT);
        return;
    case 0x03: break;
    default: return;
    }
    r->ah = inb(port + LSR);
    r->al = inb(port + MSR);
}
