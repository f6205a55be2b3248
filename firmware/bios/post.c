/* From reset to the boot sector. Each step says on port 80h that it begins. */

#include "bios.h"
#include "bda.h"
#include "trace.h"

#define POST_PORT 0x80
#define PIC1 0x20
#define PIC2 0xA0
#define EOI 0x20
#define OCW3_READ_ISR 0x0B
#define OCW3_READ_IRR 0x0A

enum { POST_VECTORS = 0x01, POST_DATA_AREA, POST_PIC, POST_TIMER, POST_SERIAL, POST_KEYBOARD, POST_VIDEO, POST_DISKS,
       POST_BOOT };

static void poke_vector(u8 vector, u16 offset)
{
    poke16(0, vector * 4, offset);
    poke16(0, vector * 4 + 2, BIOS_SEG);
}

static const u8 served[] = {
    0x00, 0x06, 0x07, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x40,
};

static void vectors(void)
{
    u16 vector;

    for (vector = 0; vector < 0x78; vector++)
        poke_vector(vector, (u16)(u32)dummy_iret);
    for (vector = 0x78; vector < 0x100; vector++)
        poke32(0, vector * 4, 0);
    for (vector = 0x08; vector < 0x10; vector++)
        poke_vector(vector, (u16)(u32)entry_table + 8 * vector);
    for (vector = 0x70; vector < 0x78; vector++)
        poke_vector(vector, (u16)(u32)entry_table + 8 * vector);
    for (vector = 0; vector < sizeof served; vector++)
        poke_vector(served[vector], (u16)(u32)entry_table + 8 * served[vector]);
    for (vector = 0x60; vector < 0x67; vector++)
        poke32(0, vector * 4, 0);
}

static void data_area(void)
{
    far_fill16(BDA, 0, 0, 0x80);
    far_fill16(EBDA, 0, 0, 0x200);
    poke8(EBDA, 0, 1);
    poke16(BDA, BDA_EBDA_SEGMENT, EBDA);
    poke16(BDA, BDA_BASE_MEMORY, EBDA_KB);
    poke16(BDA, BDA_EQUIPMENT, 0x0226); /* coprocessor, mouse, 80x25 colour, one serial port */
    poke16(BDA, BDA_SERIAL_PORTS, 0x3F8);
    poke8(BDA, BDA_SERIAL_TIMEOUT, 10);
}

/* IRQ 0-7 are vectors 08-0F, 8-15 are 70-77; let through are timer, keyboard, the second PIC, RTC, mouse, FPU. */
static void pic(void)
{
    outb(PIC1, 0x11);
    outb(PIC2, 0x11);
    outb(PIC1 + 1, 0x08);
    outb(PIC2 + 1, 0x70);
    outb(PIC1 + 1, 0x04);
    outb(PIC2 + 1, 0x02);
    outb(PIC1 + 1, 0x01);
    outb(PIC2 + 1, 0x01);
    outb(PIC1 + 1, 0xF8);
    outb(PIC2 + 1, 0xCE);
}

void post(void)
{
    outb(POST_PORT, POST_VECTORS);
    vectors();
    outb(POST_PORT, POST_DATA_AREA);
    data_area();
    debug_init();
    outb(POST_PORT, POST_PIC);
    pic();
    outb(POST_PORT, POST_TIMER);
    clock_init();
    outb(POST_PORT, POST_SERIAL);
    serial_init();
    outb(POST_PORT, POST_KEYBOARD);
    keyboard_init();
    outb(POST_PORT, POST_VIDEO);
    set_video_mode(3, 1);
    outb(POST_PORT, POST_DISKS);
    disk_init();
    outb(POST_PORT, POST_BOOT);
    trace_init();
    enable_interrupts();
    boot();
}

/* An IRQ that nobody serves: EOI and return. Where none is in service at the first PIC, it is an exception, which has
   the same vector, or the PIC's own IRQ 7, of nothing. */
static void unexpected_irq(u8 irq, struct regs *r)
{
    u16 port = irq < 8 ? PIC1 : PIC2;
    u8 in_service;

    outb(port, OCW3_READ_ISR);
    in_service = inb(port) & 1 << (irq & 7);
    outb(port, OCW3_READ_IRR);
    if (in_service)
        outb(port, EOI);
    if (irq >= 8)
        outb(PIC1, EOI);
    else if (!in_service)
        exception(r);
}

static void serve(struct regs *r)
{
    switch (r->vector) {
    case 0x00: case 0x06: case 0x07: exception(r); break;
    case 0x08: timer_irq(); outb(PIC1, EOI); break;
    case 0x09: keyboard_irq(); outb(PIC1, EOI); break;
    case 0x10: video(r); break;
    case 0x11: r->ax = peek16(BDA, BDA_EQUIPMENT); break;
    case 0x12: r->ax = peek16(BDA, BDA_BASE_MEMORY); break;
    case 0x13: case 0x40: disk(r); break;
    case 0x14: serial(r); break;
    case 0x15: system_call(r); break;
    case 0x16: keyboard(r); break;
    case 0x17: r->ah = 0x01; break; /* no printer: time-out */
    case 0x18: boot_next();
    case 0x19: boot();
    case 0x1A: time_of_day(r); break;
    case 0x70: rtc_irq(); outb(PIC2, EOI); outb(PIC1, EOI); break;
    default:
        if (r->vector >= 0x08 && r->vector < 0x10)
            unexpected_irq(r->vector - 0x08, r);
        else if (r->vector >= 0x70 && r->vector < 0x78)
            unexpected_irq(r->vector - 0x70 + 8, r);
    }
}

/* entry.S comes here with each interrupt. */
void __attribute__((used)) dispatch(struct regs *r)
{
    int is_service = !((r->vector & ~7) == 0x08 || (r->vector & ~7) == 0x70 || r->vector < 0x08);

    if (is_service)
        trace_call(r);
    serve(r);
    if (is_service)
        trace_return(r);
}
