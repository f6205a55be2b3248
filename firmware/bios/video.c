/* INT 10h: modes 0-3 and 13h, the cursor, characters, scrolling, strings. Colours are in palette.c.

   Sources: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, INT 10h; Ralf Brown's
   Interrupt List. A character in mode 13h is not drawn. */

#include "bios.h"
#include "bda.h"
#include "video.h"
#include "vga_modes.h"

#define NORMAL 0x07 /* attribute: light grey on black */

static u16 columns(void) { return peek16(BDA, BDA_COLUMNS); }
static u16 rows(void) { return peek8(BDA, BDA_ROWS) + 1; }
static u8 mode(void) { return peek8(BDA, BDA_VIDEO_MODE); }
static int is_text(void) { return mode() != GRAPHICS; }

static u16 cell(u8 page, u8 row, u8 column)
{
    return page * peek16(BDA, BDA_PAGE_BYTES) + 2 * (row * columns() + column);
}

static void show_cursor(u16 position)
{
    u16 at = cell(peek8(BDA, BDA_PAGE), position >> 8, (u8)position) / 2;

    vga_write(VGA_CRTC, CRTC_CURSOR, at >> 8);
    vga_write(VGA_CRTC, CRTC_CURSOR + 1, (u8)at);
}

static u16 cursor(u8 page) { return peek16(BDA, BDA_CURSORS + 2 * (page & 7)); }

static void set_cursor(u8 page, u16 position)
{
    poke16(BDA, BDA_CURSORS + 2 * (page & 7), position);
    if (is_text() && page == peek8(BDA, BDA_PAGE))
        show_cursor(position);
}

/* AH=01h. A shape of 8 lines, as a CGA has, means the same part of 16. */
static void set_cursor_shape(u8 start, u8 end)
{
    u8 lines = peek8(BDA, BDA_CHARACTER_LINES);

    poke8(BDA, BDA_CURSOR_SHAPE, end);
    poke8(BDA, BDA_CURSOR_SHAPE + 1, start);
    if (lines > 8 && end < 8 && !(start & 0x20)) {
        end &= 0x1F;
        if (end != start + 1 && start != end)
            start = (start + 1) * lines / 8 - 1;
        else
            start = ((end + 1) * lines / 8) - (end > start ? 2 : 1) - 1;
        end = (end + 1) * lines / 8 - 1;
        if (end == lines - 1 && start == lines - 3)
            start++, end--;
    }
    vga_write(VGA_CRTC, CRTC_CURSOR_START, start);
    vga_write(VGA_CRTC, CRTC_CURSOR_END, end);
}

static void set_page(u8 page)
{
    u16 start;

    if (!is_text() || page > 7)
        return;
    start = page * peek16(BDA, BDA_PAGE_BYTES);
    poke8(BDA, BDA_PAGE, page);
    poke16(BDA, BDA_PAGE_START, start);
    vga_write(VGA_CRTC, CRTC_START, start / 2 >> 8);
    vga_write(VGA_CRTC, CRTC_START + 1, (u8)(start / 2));
    show_cursor(cursor(page));
}

void set_video_mode(u8 number, int clear)
{
    const struct vga_mode *m = 0;
    u8 i;

    for (i = 0; i < sizeof vga_modes / sizeof *vga_modes; i++)
        if (vga_modes[i].number == (number < 4 ? number | 1 : number))
            m = &vga_modes[i];
    if (!m)
        return;
    inb(VGA_STATUS);
    outb(VGA_ATTRIBUTE, 0); /* dark meanwhile */
    outb(VGA_MISC, m->misc);
    vga_write(VGA_SEQUENCER, 0, 1);
    for (i = 0; i < 4; i++)
        vga_write(VGA_SEQUENCER, i + 1, m->sequencer[i]);
    vga_write(VGA_SEQUENCER, 0, 3);
    vga_write(VGA_CRTC, 0x11, 0); /* registers 0-7 may be written */
    for (i = 0; i < 25; i++)
        vga_write(VGA_CRTC, i, m->crtc[i]);
    for (i = 0; i < 9; i++)
        vga_write(VGA_GRAPHICS, i, m->graphics[i]);
    inb(VGA_STATUS);
    for (i = 0; i < 20; i++) {
        outb(VGA_ATTRIBUTE, i);
        outb(VGA_ATTRIBUTE, m->attribute[i]);
    }
    outb(VGA_ATTRIBUTE, 0x14);
    outb(VGA_ATTRIBUTE, 0);
    outb(VGA_DAC_MASK, 0xFF);
    load_default_palette(m->number == GRAPHICS);

    poke8(BDA, BDA_VIDEO_MODE, number);
    poke16(BDA, BDA_COLUMNS, m->columns);
    poke16(BDA, BDA_PAGE_BYTES, m->page_bytes);
    poke16(BDA, BDA_CRTC_PORT, VGA_CRTC);
    poke8(BDA, BDA_ROWS, m->rows - 1);
    poke16(BDA, BDA_CHARACTER_LINES, m->character_lines);
    poke8(BDA, BDA_VIDEO_CONTROL, 0x60 | (clear ? 0 : 0x80));
    poke8(BDA, BDA_VIDEO_SWITCHES, 0xF9);
    poke8(BDA, BDA_VIDEO_FLAGS, 0x51);
    poke8(BDA, BDA_VIDEO_COMBINATION, 0x08);
    for (i = 0; i < 8; i++)
        poke16(BDA, BDA_CURSORS + 2 * i, 0);
    poke8(BDA, BDA_PAGE, 0);
    poke16(BDA, BDA_PAGE_START, 0);
    if (m->number == GRAPHICS) {
        if (clear)
            far_fill16(FRAME_SEG, 0, 0, 0x8000);
    } else {
        if (clear)
            far_fill16(TEXT_SEG, 0, NORMAL << 8 | ' ', 0x4000);
        set_cursor_shape(6, 7);
        set_page(0);
    }
    inb(VGA_STATUS);
    outb(VGA_ATTRIBUTE, ATTRIBUTE_ON);
}

/* AH=06h and 07h: rows top to bottom, columns left to right move up or down by *lines*; 0 clears them. */
static void scroll(u8 page, int up, u8 lines, u8 attribute, u8 top, u8 left, u8 bottom, u8 right)
{
    u16 fill = attribute << 8 | ' ', width;
    u8 height, i;

    if (bottom >= rows())
        bottom = rows() - 1;
    if (right >= columns())
        right = columns() - 1;
    if (!is_text() || top > bottom || left > right)
        return;
    width = right - left + 1;
    height = bottom - top + 1;
    if (!lines || lines > height)
        lines = height;
    for (i = 0; i < height; i++) {
        u8 to = up ? top + i : bottom - i;

        if (i + lines < height)
            far_copy(TEXT_SEG, cell(page, to, left), TEXT_SEG, cell(page, up ? to + lines : to - lines, left),
                     2 * width);
        else
            far_fill16(TEXT_SEG, cell(page, to, left), fill, width);
    }
}

/* AH=0Eh: at the cursor, which moves on, as on a teletype. The attribute that is there stays, or is *attribute*. */
static void teletype(u8 page, u8 character, int attribute)
{
    u16 position = cursor(page), at;
    u8 row = position >> 8, column = (u8)position;

    serial_mirror(character);
    switch (character) {
    case 7: return;
    case 8: if (column) column--; break;
    case '\n': row++; break;
    case '\r': column = 0; break;
    default:
        at = cell(page, row, column);
        if (is_text()) {
            poke8(TEXT_SEG, at, character);
            if (attribute >= 0)
                poke8(TEXT_SEG, at + 1, attribute);
        }
        if (++column == columns()) {
            column = 0;
            row++;
        }
    }
    if (row >= rows()) {
        row = rows() - 1;
        /* The new line has the attribute of the character above it. */
        scroll(page, 1, 1, is_text() ? peek8(TEXT_SEG, cell(page, row, column) + 1) : 0, 0, 0, row, columns() - 1);
    }
    set_cursor(page, row << 8 | column);
}

/* AH=09h, 0Ah: so many times from the cursor on, which stays. */
static void write_characters(u8 page, u8 character, u16 count, int attribute)
{
    u16 at = cell(page, cursor(page) >> 8, (u8)cursor(page));

    for (; is_text() && count; count--, at += 2) {
        poke8(TEXT_SEG, at, character);
        if (attribute >= 0)
            poke8(TEXT_SEG, at + 1, attribute);
    }
}

/* AH=13h: bit 0 of AL moves the cursor along, bit 1 says that each character has its attribute behind it. */
static void write_string(struct regs *r)
{
    u8 page = r->bh & 7;
    u16 before = cursor(page), at = r->bp, left = r->cx;

    set_cursor(page, r->dx);
    for (; left; left--) {
        u8 character = peek8(r->es, at++);
        u8 attribute = r->al & 2 ? peek8(r->es, at++) : r->bl;

        teletype(page, character, attribute);
    }
    if (!(r->al & 1))
        set_cursor(page, before);
}

static void pixel(struct regs *r)
{
    u16 at = r->dx * FRAME_WIDTH + r->cx;

    if (is_text())
        return;
    if (r->ah == 0x0D)
        r->al = peek8(FRAME_SEG, at);
    else
        poke8(FRAME_SEG, at, r->al);
}

void video(struct regs *r)
{
    u8 page = r->bh & 7;

    switch (r->ah) {
    case 0x00: {
        u8 wanted = r->al & 0x7F;

        set_video_mode(wanted, !(r->al & 0x80));
        r->al = wanted == 6 ? 0x3F : wanted > 7 ? 0x20 : 0x30; /* what an AMI BIOS left, and programs came to expect */
        break;
    }
    case 0x01: set_cursor_shape(r->ch, r->cl); break;
    case 0x02: set_cursor(page, r->dx); break;
    case 0x03: r->dx = cursor(page); r->cx = peek16(BDA, BDA_CURSOR_SHAPE); break;
    case 0x05: set_page(r->al); break;
    case 0x06: case 0x07:
        scroll(peek8(BDA, BDA_PAGE), r->ah == 0x06, r->al, r->bh, r->ch, r->cl, r->dh, r->dl);
        break;
    case 0x08:
        if (is_text())
            r->ax = peek16(TEXT_SEG, cell(page, cursor(page) >> 8, (u8)cursor(page)));
        break;
    case 0x09: write_characters(page, r->al, r->cx, r->bl); break;
    case 0x0A: write_characters(page, r->al, r->cx, -1); break;
    case 0x0C: case 0x0D: pixel(r); break;
    case 0x0E: teletype(page, r->al, -1); break;
    case 0x0F:
        r->al = mode() | (peek8(BDA, BDA_VIDEO_CONTROL) & 0x80);
        r->ah = columns();
        r->bh = peek8(BDA, BDA_PAGE);
        break;
    case 0x10: video_palette(r); break;
    case 0x12:
        if (r->bl == 0x10) { /* an EGA's memory and switches: colour, 256 KiB */
            r->bx = 0x0003;
            r->cx = peek8(BDA, BDA_VIDEO_SWITCHES) & 0x0F;
        }
        break;
    case 0x13: write_string(r); break;
    case 0x1A:
        if (!r->al)
            r->bx = peek8(BDA, BDA_VIDEO_COMBINATION); /* a VGA with a colour display, alone */
        r->al = 0x1A;
        break;
    }
}

void print(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            teletype(0, '\r', -1);
        teletype(0, *text, -1);
    }
}

void print_hex(u8 value)
{
    teletype(0, "0123456789ABCDEF"[value >> 4], -1);
    teletype(0, "0123456789ABCDEF"[value & 15], -1);
}
