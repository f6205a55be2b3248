/* INT 16h, and IRQ 1 behind it: scan codes become words in the buffer of the BIOS data area.

   Source: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, INT 09h and 16h. */

#include "bios.h"
#include "bda.h"
#include "scancodes.h"

#define DATA 0x60
#define COMMAND 0x64
#define OUTPUT_FULL 0x01
#define INPUT_FULL 0x02
enum { WRITE_MODE = 0x60, ENABLE_KEYBOARD = 0xAE, PULSE_RESET = 0xFE };
#define MODE 0x61 /* translation, keyboard's interrupt, system flag; the mouse is off */
#define ACK 0xFA

/* BDA_SHIFT_FLAGS, both bytes */
enum { RIGHT_SHIFT = 0x01, LEFT_SHIFT = 0x02, CTRL = 0x04, ALT = 0x08, SCROLL = 0x10, NUM = 0x20, CAPS = 0x40,
       LEFT_CTRL = 0x0100, LEFT_ALT = 0x0200 };
/* BDA_KEYBOARD_MODE */
enum { AFTER_E1 = 0x01, AFTER_E0 = 0x02, RIGHT_CTRL = 0x04, RIGHT_ALT = 0x08, ENHANCED = 0x10 };

static void command(u8 value)
{
    while (inb(COMMAND) & INPUT_FULL)
        ;
    outb(COMMAND, value);
}

static void data(u8 value)
{
    while (inb(COMMAND) & INPUT_FULL)
        ;
    outb(DATA, value);
}

void keyboard_init(void)
{
    poke16(BDA, BDA_KEY_HEAD, BDA_KEY_RING);
    poke16(BDA, BDA_KEY_TAIL, BDA_KEY_RING);
    poke16(BDA, BDA_KEY_RING_START_AT, BDA_KEY_RING);
    poke16(BDA, BDA_KEY_RING_END_AT, BDA_KEY_RING_END);
    poke8(BDA, BDA_KEYBOARD_MODE, ENHANCED);
    while (inb(COMMAND) & OUTPUT_FULL)
        inb(DATA);
    command(WRITE_MODE);
    data(MODE);
    command(ENABLE_KEYBOARD);
}

static u16 next(u16 at)
{
    at += 2;
    return at >= peek16(BDA, BDA_KEY_RING_END_AT) ? peek16(BDA, BDA_KEY_RING_START_AT) : at;
}

static int put(u16 key)
{
    u16 tail = peek16(BDA, BDA_KEY_TAIL);

    if (next(tail) == peek16(BDA, BDA_KEY_HEAD))
        return 0; /* full: the key is lost */
    poke16(BDA, tail, key);
    poke16(BDA, BDA_KEY_TAIL, next(tail));
    return 1;
}

static void reset(void)
{
    poke16(BDA, BDA_WARM_BOOT, 0x1234);
    command(PULSE_RESET);
    for (;;)
        asm volatile("hlt");
}

/* A key that only changes what others mean: its bits, or 0. */
static u16 modifier(u8 code, int extended)
{
    switch (code) {
    case 0x2A: return extended ? 0 : LEFT_SHIFT;
    case 0x36: return extended ? 0 : RIGHT_SHIFT;
    case 0x1D: return extended ? CTRL : CTRL | LEFT_CTRL;
    case 0x38: return extended ? ALT : ALT | LEFT_ALT;
    }
    return 0;
}

static void change_modifier(u16 bits, int extended, int released)
{
    u16 flags = peek16(BDA, BDA_SHIFT_FLAGS);
    u8 mode = peek8(BDA, BDA_KEYBOARD_MODE), right = bits & CTRL ? RIGHT_CTRL : RIGHT_ALT;
    u16 left = bits & CTRL ? LEFT_CTRL : LEFT_ALT;

    if (extended)
        mode = released ? mode & ~right : mode | right;
    flags = released ? flags & ~bits : flags | bits;
    if (bits & (CTRL | ALT) && (flags & left || mode & right))
        flags |= bits & (CTRL | ALT); /* the other one is still down */
    poke8(BDA, BDA_KEYBOARD_MODE, mode);
    poke16(BDA, BDA_SHIFT_FLAGS, flags);
}

static u8 lock(u8 code) { return code == 0x3A ? CAPS : code == 0x45 ? NUM : code == 0x46 ? SCROLL : 0; }

static u16 meaning(u8 code, int extended, u16 flags)
{
    int shift = (flags & (LEFT_SHIFT | RIGHT_SHIFT)) != 0, keypad = code >= 0x47 && code <= 0x53;
    u8 letter = (u8)keys[code].plain;
    u16 key;

    if (letter >= 'a' && letter <= 'z' && flags & CAPS)
        shift = !shift;
    if (keypad && flags & NUM && !extended)
        shift = !shift;
    if (extended && keypad)
        shift = 0;
    key = flags & ALT ? keys[code].alt : flags & CTRL ? keys[code].ctrl : shift ? keys[code].shift : keys[code].plain;
    if (!extended || !key)
        return key;
    if (keypad) /* the arrows and their like between the letters and the numbers */
        return flags & ALT ? (code + 0x50) << 8 : key | 0xE0;
    if (code == 0x1C)
        return flags & ALT ? 0xA600 : 0xE000 | (u8)key;
    return code == 0x35 ? 0xE02F : key;
}

void keyboard_irq(void)
{
    u8 code, mode = peek8(BDA, BDA_KEYBOARD_MODE), intercepted;
    int extended = (mode & AFTER_E0) != 0, released;
    u16 flags, bits, passes;

    if (!(inb(COMMAND) & OUTPUT_FULL))
        return;
    code = inb(DATA);
    passes = 0x4F00 | code; /* INT 15h, AH=4Fh, CF set: whoever hooks it may change the code, or clear CF to take it */
    asm volatile("stc; int $0x15; setc %1" : "+a"(passes), "=q"(intercepted) : : "memory", "cc");
    if (!intercepted)
        return;
    code = (u8)passes;
    if (code == 0xE0) {
        poke8(BDA, BDA_KEYBOARD_MODE, mode | AFTER_E0);
        return;
    }
    if (code == 0xE1) {
        poke8(BDA, BDA_KEYBOARD_MODE, mode | AFTER_E1);
        return;
    }
    if (mode & AFTER_E1) { /* of Pause: E1 1D 45 E1 9D C5, which are not Ctrl and Num Lock */
        if ((code & 0x7F) != 0x1D)
            poke8(BDA, BDA_KEYBOARD_MODE, mode & ~AFTER_E1);
        return;
    }
    poke8(BDA, BDA_KEYBOARD_MODE, mode & ~AFTER_E0);
    if (code == ACK)
        return;
    released = code & 0x80;
    code &= 0x7F;
    bits = modifier(code, extended);
    flags = peek16(BDA, BDA_SHIFT_FLAGS);
    if (bits) {
        change_modifier(bits, extended, released);
    } else if (!released && !extended && lock(code)) {
        poke16(BDA, BDA_SHIFT_FLAGS, flags ^ lock(code));
    } else if (!released && extended && code == 0x46 && flags & CTRL) { /* Ctrl-Break */
        poke8(BDA, BDA_BREAK, 0x80);
        asm volatile("int $0x1B" : : : "memory");
        put(0);
    } else if (!released && code == 0x53 && (flags & (CTRL | ALT)) == (CTRL | ALT)) {
        reset();
    } else if (!released && code < sizeof keys / sizeof *keys) {
        u16 key = meaning(code, extended, flags);

        if (key)
            put(key);
    }
}

/* What a program that knows the keyboard of 84 keys only is told of *key*, as AH=00h and 01h do. */
static u16 of_84_keys(u16 key)
{
    if ((u8)key == 0xE0 && key >> 8)
        return key & 0xFF00;
    if (key >> 8 == 0xE0)
        return ((u8)key == '/' ? 0x3500 : 0x1C00) | (u8)key;
    return key;
}

void keyboard(struct regs *r)
{
    u16 head;
    int enhanced = r->ah & 0x10;

    enable_interrupts(); /* a loop that asks for a key is in here most of its time */
    switch (r->ah) {
    case 0x00: case 0x10:
        disable_interrupts(); /* or the key may come between the question and the wait */
        while (peek16(BDA, BDA_KEY_HEAD) == peek16(BDA, BDA_KEY_TAIL))
            wait_for_interrupt();
        head = peek16(BDA, BDA_KEY_HEAD);
        r->ax = enhanced ? peek16(BDA, head) : of_84_keys(peek16(BDA, head));
        poke16(BDA, BDA_KEY_HEAD, next(head));
        break;
    case 0x01: case 0x11:
        head = peek16(BDA, BDA_KEY_HEAD);
        set_flag(r, ZF, head == peek16(BDA, BDA_KEY_TAIL));
        if (head != peek16(BDA, BDA_KEY_TAIL))
            r->ax = enhanced ? peek16(BDA, head) : of_84_keys(peek16(BDA, head));
        r->flags |= IF; /* a loop that asks with interrupts off would wait for ever */
        break;
    case 0x02: r->al = peek8(BDA, BDA_SHIFT_FLAGS); break;
    case 0x05:
        disable_interrupts();
        r->al = !put(r->cx);
        break;
    case 0x12:
        r->al = peek8(BDA, BDA_SHIFT_FLAGS);
        r->ah = (peek8(BDA, BDA_SHIFT_FLAGS + 1) & 0x73) | (peek8(BDA, BDA_KEYBOARD_MODE) & 0x0C);
        break;
    }
}
