/* INT 10h, AH=10h: the sixteen colours of text, and the 256 of the DAC. */

#include "bios.h"
#include "video.h"

static u8 level(u8 colour, u8 low, u8 high) { return (colour >> low & 1 ? 0x2A : 0) + (colour >> high & 1 ? 0x15 : 0); }

static void dac(u8 red, u8 green, u8 blue)
{
    outb(VGA_DAC_DATA, red);
    outb(VGA_DAC_DATA, green);
    outb(VGA_DAC_DATA, blue);
}

/* Hues of mode 13h: how far each of the 24 goes from the lower level to the upper, in steps of a quarter, for red.
   Green is the same 16 hues later, blue 8 later. */
static const u8 hue[24] = { 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0 };
static const u8 grey[16] = { 0, 5, 8, 11, 14, 17, 20, 24, 28, 32, 36, 40, 45, 50, 56, 63 };
static const u8 steps[9][5] = { /* from pale to full, of three intensities */
    { 0, 16, 31, 47, 63 }, { 31, 39, 47, 55, 63 }, { 45, 49, 54, 58, 63 },
    { 0, 7, 14, 21, 28 }, { 14, 17, 21, 24, 28 }, { 20, 22, 24, 26, 28 },
    { 0, 4, 8, 12, 16 }, { 8, 10, 12, 14, 16 }, { 11, 12, 13, 15, 16 },
};

void load_default_palette(int graphics)
{
    u16 i;
    u8 group;

    outb(VGA_DAC_WRITE, 0);
    if (!graphics) {
        for (i = 0; i < 64; i++)
            dac(level(i, 2, 5), level(i, 1, 4), level(i, 0, 3));
        return;
    }
    for (i = 0; i < 16; i++) /* those of text, brown in its place */
        if (i == 6)
            dac(0x2A, 0x15, 0);
        else
            dac((i & 4 ? 0x2A : 0) + (i & 8 ? 0x15 : 0), (i & 2 ? 0x2A : 0) + (i & 8 ? 0x15 : 0),
                (i & 1 ? 0x2A : 0) + (i & 8 ? 0x15 : 0));
    for (i = 0; i < 16; i++)
        dac(grey[i], grey[i], grey[i]);
    for (group = 0; group < 9; group++)
        for (i = 0; i < 24; i++)
            dac(steps[group][hue[i]], steps[group][hue[(i + 16) % 24]], steps[group][hue[(i + 8) % 24]]);
    for (i = 248; i < 256; i++)
        dac(0, 0, 0);
}

static void attribute(u8 index, u8 value)
{
    inb(VGA_STATUS);
    outb(VGA_ATTRIBUTE, index);
    outb(VGA_ATTRIBUTE, value);
    outb(VGA_ATTRIBUTE, ATTRIBUTE_ON);
}

static u8 read_attribute(u8 index)
{
    u8 value;

    inb(VGA_STATUS);
    outb(VGA_ATTRIBUTE, index);
    value = inb(VGA_ATTRIBUTE_READ);
    inb(VGA_STATUS);
    outb(VGA_ATTRIBUTE, ATTRIBUTE_ON);
    return value;
}

void video_palette(struct regs *r)
{
    u16 i, at = r->dx;

    switch (r->al) {
    case 0x00: if (r->bl <= 0x14) attribute(r->bl, r->bh); break;
    case 0x01: attribute(0x11, r->bh); break;
    case 0x02:
        for (i = 0; i < 16; i++)
            attribute(i, peek8(r->es, at++));
        attribute(0x11, peek8(r->es, at));
        break;
    case 0x03: /* bit 7 of an attribute: blinking, or a bright background */
        attribute(0x10, (read_attribute(0x10) & ~0x08) | (r->bl & 1) << 3);
        break;
    case 0x07: r->bh = read_attribute(r->bl); break;
    case 0x08: r->bh = read_attribute(0x11); break;
    case 0x10:
        outb(VGA_DAC_WRITE, r->bl);
        dac(r->dh, r->ch, r->cl);
        break;
    case 0x12:
        outb(VGA_DAC_WRITE, r->bl);
        for (i = 0; i < r->cx * 3u; i++)
            outb(VGA_DAC_DATA, peek8(r->es, at++));
        break;
    case 0x15:
        outb(VGA_DAC_READ, r->bl);
        r->dh = inb(VGA_DAC_DATA);
        r->ch = inb(VGA_DAC_DATA);
        r->cl = inb(VGA_DAC_DATA);
        break;
    case 0x17:
        outb(VGA_DAC_READ, r->bl);
        for (i = 0; i < r->cx * 3u; i++)
            poke8(r->es, at++, inb(VGA_DAC_DATA));
        break;
    case 0x18: outb(VGA_DAC_MASK, r->bl); break;
    case 0x19: r->bl = inb(VGA_DAC_MASK); break;
    }
}
