/* Exceptions that a program leaves to the BIOS. To return would be to come to the same instruction again, for ever: the
   screen says what happened, and the machine ends. */

#include "bios.h"
#include "bda.h"
#include "video.h"

#define APM_COMMAND 0xB2
#define UNHANDLED_EXCEPTION 0xB6 /* told to the machine, which ends */
#define INT_OPCODE 0xCD

static const char *name(u8 vector)
{
    switch (vector) {
    case 0x00: return "#DE, divide error";
    case 0x06: return "#UD, invalid opcode";
    case 0x07: return "#NM, no coprocessor";
    case 0x0C: return "#SS, stack fault";
    case 0x0D: return "#GP, general protection";
    }
    return 0;
}

static void print_word(u16 value)
{
    print_hex(value >> 8);
    print_hex((u8)value);
}

void exception(struct regs *r)
{
    if (!name(r->vector) || (peek8(r->cs, r->ip - 2) == INT_OPCODE && peek8(r->cs, r->ip - 1) == r->vector))
        return; /* the program's own INT */
    if (peek8(BDA, BDA_VIDEO_MODE) == GRAPHICS)
        set_video_mode(3, 1);
    print("\nException ");
    print_hex(r->vector);
    print("h (");
    print(name(r->vector));
    print(") at ");
    print_word(r->cs);
    print(":");
    print_word(r->ip);
    print("\n");
    outb(APM_COMMAND, UNHANDLED_EXCEPTION);
    for (;;)
        wait_for_interrupt();
}
