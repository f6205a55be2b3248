/* What the BIOS finds, for who listens at port 402h; nothing is written while nobody does. */

#include "bios.h"

#define DEBUG_PORT 0x402
#define SOMEBODY 0xE9 /* what it reads then */

static u8 heard;

void debug_init(void)
{
    heard = inb(DEBUG_PORT) == SOMEBODY;
}

void debug_text(const char *text)
{
    for (; heard && *text; text++)
        outb(DEBUG_PORT, *text);
}

void debug_number(u32 value)
{
    char digit[2] = { '0' + value % 10, 0 };

    if (value >= 10)
        debug_number(value / 10);
    debug_text(digit);
}

void debug_drive(u8 number)
{
    debug_text("drive ");
    debug_text(number < 0x80 ? "0" : "8");
    debug_number(number & 0x0F);
    debug_text("h");
}
