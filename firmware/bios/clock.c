/* INT 1Ah and the clocks behind it: ticks of the PIT, 18.2 a second, by IRQ 0; the time and date of the RTC, in BCD. */

#include "bios.h"
#include "bda.h"

#define PIT 0x40
#define TICKS_A_DAY 0x1800B0
#define CMOS 0x70
enum { SECONDS, ALARM_SECONDS, MINUTES, ALARM_MINUTES, HOURS, ALARM_HOURS, DAY = 7, MONTH, YEAR, STATUS_A, STATUS_B,
       STATUS_C, CENTURY = 0x32 };
#define UPDATING 0x80 /* STATUS_A */
#define SET 0x80      /* STATUS_B */
#define ALARM 0x20

u8 cmos_read(u8 index)
{
    outb(CMOS, index);
    return inb(CMOS + 1);
}

static void cmos_write(u8 index, u8 value)
{
    outb(CMOS, index);
    outb(CMOS + 1, value);
}

static u8 binary(u8 bcd) { return (bcd >> 4) * 10 + (bcd & 15); }

static void wait_for_update(void)
{
    while (cmos_read(STATUS_A) & UPDATING)
        ;
}

void clock_init(void)
{
    u32 seconds;

    outb(PIT + 3, 0x34); /* channel 0, mode 2, from 65,536 */
    outb(PIT, 0);
    outb(PIT, 0);
    cmos_write(STATUS_A, 0x26);
    cmos_write(STATUS_B, 0x02); /* BCD, 24 hours */
    cmos_read(STATUS_C);
    wait_for_update();
    seconds = (binary(cmos_read(HOURS)) * 60u + binary(cmos_read(MINUTES))) * 60u + binary(cmos_read(SECONDS));
    poke32(BDA, BDA_TICKS, seconds * 18u + seconds / 5u + seconds / 154u); /* 18.2065 a second */
}

void timer_irq(void)
{
    u32 ticks = peek32(BDA, BDA_TICKS) + 1;

    if (ticks >= TICKS_A_DAY) {
        ticks = 0;
        poke8(BDA, BDA_MIDNIGHT, peek8(BDA, BDA_MIDNIGHT) + 1);
    }
    poke32(BDA, BDA_TICKS, ticks);
    trace_init();
    asm volatile("int $0x1C" : : : "memory");
}

void rtc_irq(void)
{
    if (cmos_read(STATUS_C) & ALARM) {
        cmos_write(STATUS_B, cmos_read(STATUS_B) & ~ALARM);
        asm volatile("int $0x4A" : : : "memory");
    }
}

void time_of_day(struct regs *r)
{
    set_cf(r, 0);
    switch (r->ah) {
    case 0x00:
        r->cx = peek32(BDA, BDA_TICKS) >> 16;
        r->dx = peek16(BDA, BDA_TICKS);
        r->al = peek8(BDA, BDA_MIDNIGHT);
        poke8(BDA, BDA_MIDNIGHT, 0);
        return;
    case 0x01:
        poke32(BDA, BDA_TICKS, (u32)r->cx << 16 | r->dx);
        poke8(BDA, BDA_MIDNIGHT, 0);
        break;
    case 0x02:
        wait_for_update();
        r->dh = cmos_read(SECONDS);
        r->cl = cmos_read(MINUTES);
        r->ch = cmos_read(HOURS);
        r->dl = cmos_read(STATUS_B) & 1;
        break;
    case 0x03:
        cmos_write(STATUS_B, cmos_read(STATUS_B) | SET);
        cmos_write(SECONDS, r->dh);
        cmos_write(MINUTES, r->cl);
        cmos_write(HOURS, r->ch);
        cmos_write(STATUS_B, (cmos_read(STATUS_B) & ~(SET | 1)) | 0x02 | (r->dl & 1));
        break;
    case 0x04:
        wait_for_update();
        r->cl = cmos_read(YEAR);
        r->dh = cmos_read(MONTH);
        r->dl = cmos_read(DAY);
        r->ch = cmos_read(CENTURY);
        break;
    case 0x05:
        cmos_write(STATUS_B, cmos_read(STATUS_B) | SET);
        cmos_write(YEAR, r->cl);
        cmos_write(MONTH, r->dh);
        cmos_write(DAY, r->dl);
        cmos_write(CENTURY, r->ch);
        cmos_write(STATUS_B, cmos_read(STATUS_B) & ~SET);
        break;
    case 0x06:
        if (cmos_read(STATUS_B) & ALARM) {
            set_cf(r, 1);
            return;
        }
        cmos_write(ALARM_SECONDS, r->dh);
        cmos_write(ALARM_MINUTES, r->cl);
        cmos_write(ALARM_HOURS, r->ch);
        outb(0xA1, inb(0xA1) & ~1);
        cmos_write(STATUS_B, (cmos_read(STATUS_B) & ~SET) | ALARM);
        break;
    case 0x07:
        cmos_write(STATUS_B, cmos_read(STATUS_B) & ~(SET | ALARM));
        break;
    case 0xB1: pci_bios(r); return;
    default: set_cf(r, 1); return;
    }
    r->ah = 0;
}
