#include "kbd.h"

#include "../include/ports.h"
#include "io.h"
#include "screen.h"

#define RELEASED 0x80            /* in a scan code of set 1: the key was let go */
#define EXTENDED 0xE0
#define PAUSE 0xE1

#define KEY_CTRL 0x1D
#define KEY_LEFT_SHIFT 0x2A
#define KEY_RIGHT_SHIFT 0x36
#define KEY_CAPS_LOCK 0x3A
#define KEY_ENTER 0x1C
#define KEY_SLASH 0x35

#define LEFT 1
#define RIGHT 2

/* Scan code -> ASCII: the letters on a US keyboard's keys. Another language is another pair of tables. */
static const uint8_t unshifted[RELEASED] = {
    [0x01] = 27,  '1', '2', '3', '4', '5', '6', '7', '8', '9', '0', '-', '=', '\b',
    [0x0F] = '\t', 'q', 'w', 'e', 'r', 't', 'y', 'u', 'i', 'o', 'p', '[', ']', '\n',
    [0x1E] = 'a', 's', 'd', 'f', 'g', 'h', 'j', 'k', 'l', ';', '\'', '`',
    [0x2B] = '\\', 'z', 'x', 'c', 'v', 'b', 'n', 'm', ',', '.', '/',
    [0x37] = '*', [0x39] = ' ', [0x4A] = '-', [0x4E] = '+', [0x56] = '<',
};

static const uint8_t shifted[RELEASED] = {
    [0x01] = 27,  '!', '@', '#', '$', '%', '^', '&', '*', '(', ')', '_', '+', '\b',
    [0x0F] = '\t', 'Q', 'W', 'E', 'R', 'T', 'Y', 'U', 'I', 'O', 'P', '{', '}', '\n',
    [0x1E] = 'A', 'S', 'D', 'F', 'G', 'H', 'J', 'K', 'L', ':', '"', '~',
    [0x2B] = '|', 'Z', 'X', 'C', 'V', 'B', 'N', 'M', '<', '>', '?',
    [0x37] = '*', [0x39] = ' ', [0x4A] = '-', [0x4E] = '+', [0x56] = '>',
};

/* The i8042 has taken what was written to it, or is not there */
static void wait_ready(uint16_t base)
{
    for (int i = 0; i < 1000 && (inb(base + 4) & I8042_STR_IBF); i++)
        ;
}

/* An empty buffer, no key down; the controller translates to set 1 and interrupts for each byte */
void kbd_init(struct kbd *kp, uint16_t base)
{
    kp->base = base;
    kp->head = kp->tail = 0;
    kp->data = 0;
    kp->room = KBD_SIZE;
    kp->killed = 0;
    kp->dropped = 0;
    kp->shift = kp->ctrl = kp->caps = kp->extended = kp->skip = 0;

    for (int i = 0; i < 16 && (inb(base + 4) & I8042_STR_OBF); i++)
        inb(base);
    wait_ready(base);
    outb(base + 4, I8042_CMD_CTL_WCTR);
    wait_ready(base);
    outb(base, I8042_CTR);
}

/* Put a character into the buffer; where there is no room it is dropped, and nothing is overwritten. Ctrl-C throws away
   what was typed ahead, so it always has room. Runs locked. */
void kbd_input(struct kbd *kp, uint8_t c)
{
    if (c == CTRL_C) {
        kp->tail = kp->head;
        kp->data = 0;
        kp->room = KBD_SIZE;
        kp->killed = 1;
    }
    if (kp->room == 0) {
        kp->dropped++;
        return;
    }
    kp->buf[kp->head] = c;
    kp->head = (kp->head + 1) % KBD_SIZE;
    kp->data++;
    kp->room--;
}

/* The state machine: follows the keys that change the others, and gives the character of the rest, 0 for none */
static uint8_t translate(struct kbd *kp, uint8_t code)
{
    if (kp->skip) {
        kp->skip--;
        return 0;
    }
    if (code == PAUSE) {
        kp->skip = 2;
        return 0;
    }
    if (code == EXTENDED) {
        kp->extended = 1;
        return 0;
    }

    int extended = kp->extended;
    int released = code & RELEASED;
    uint8_t key = code & ~RELEASED;
    uint8_t *held = 0;
    uint8_t side = LEFT;
    kp->extended = 0;
    if (key == KEY_CTRL) {
        held = &kp->ctrl;
        side = extended ? RIGHT : LEFT;
    } else if (!extended && (key == KEY_LEFT_SHIFT || key == KEY_RIGHT_SHIFT)) {
        held = &kp->shift;
        side = key == KEY_LEFT_SHIFT ? LEFT : RIGHT;
    }
    if (held) {
        *held = released ? *held & ~side : *held | side;
        return 0;
    }
    if (released)
        return 0;
    if (extended && key != KEY_ENTER && key != KEY_SLASH)    /* arrows and the like have no character */
        return 0;
    if (key == KEY_CAPS_LOCK) {
        kp->caps ^= 1;
        return 0;
    }

    uint8_t letter = unshifted[key];
    int is_letter = letter >= 'a' && letter <= 'z';
    if (kp->ctrl)
        return is_letter ? letter & 0x1F : 0;
    int shift = !extended && (kp->shift != 0) != (is_letter && kp->caps);
    return shift ? shifted[key] : letter;
}

/* The lower half, called for IRQ 1 with interrupts locked */
void kbd_handler(struct kbd *kp)
{
    uint8_t status = inb(kp->base + 4);
    if (!(status & I8042_STR_OBF))
        return;
    uint8_t code = inb(kp->base);
    if (status & I8042_STR_AUXDATA)                          /* the mouse's */
        return;
    uint8_t c = translate(kp, code);
    if (c)
        kbd_input(kp, c);
}

/* The next character; sleeps, with interrupts on, until there is one */
int kgetc(struct kbd *kp)
{
    lock();
    while (kp->data == 0)
        wait_for_interrupt();
    uint8_t c = kp->buf[kp->tail];
    kp->tail = (kp->tail + 1) % KBD_SIZE;
    kp->data--;
    kp->room++;
    unlock();
    return c;
}

/* A line of less than size characters, echoed as it is typed, without its end; its length. KGETS_KILLED where Ctrl-C was
   typed, KGETS_EOF where Ctrl-D was and nothing before it. */
int kgets(struct kbd *kp, char *line, int size)
{
    int length = 0;
    for (;;) {
        int c = kgetc(kp);
        if (c == CTRL_C) {
            kp->killed = 0;
            kputs("^C\n");
            line[0] = 0;
            return KGETS_KILLED;
        }
        if (c == CTRL_D && length == 0) {
            kputs("^D\n");
            line[0] = 0;
            return KGETS_EOF;
        }
        if (c == '\n' || c == CTRL_D) {
            if (c == '\n')
                kputc('\n');
            line[length] = 0;
            return length;
        }
        if (c == '\b') {
            if (length > 0) {
                length--;
                kputs("\b \b");
            }
        } else if (c >= ' ' && length < size - 1) {
            line[length++] = c;
            kputc(c);
        }
    }
}
