/* A command line on the keyboard driver: what is typed, on the PS/2 keyboard or on the serial port, and what it does. */
#include "../include/ports.h"
#include "io.h"
#include "kbd.h"
#include "screen.h"

#define TIMER_HZ 20
#define BLINK (TIMER_HZ / 2)     /* ticks in half a second */

extern volatile uint64_t cursor_on, ticks;

static struct kbd kbd;

static void timer_handler(void)
{
    ticks++;
    if (ticks % BLINK == 0) {
        cursor_on ^= 1;
        screen_cursor(cursor_on);
    }
}

/* What comes in on the serial port is typed too */
static void serial_handler(void)
{
    while (inb(UART_LSR) & UART_LSR_DR) {
        uint8_t c = inb(UART_RBR);
        kbd_input(&kbd, c == '\r' ? '\n' : c == 0x7F ? '\b' : c);
    }
}

/* Every interrupt, by its number: find whose it is, and tell the PIC that it is done */
void irq_handler(int irq)
{
    switch (irq) {
    case 0:
        timer_handler();
        break;
    case 1:
        kbd_handler(&kbd);
        break;
    case 4:
        serial_handler();
        break;
    }
    outb(PIC1_CMD, PIC_EOI);
}

/* Both PICs at PIC1_BASE and PIC2_BASE, with the timer, the keyboard and the serial port let through */
static void pic_init(void)
{
    outb(PIC1_CMD, PIC_ICW1);
    outb(PIC2_CMD, PIC_ICW1);
    outb(PIC1_DATA, PIC1_BASE);
    outb(PIC2_DATA, PIC2_BASE);
    outb(PIC1_DATA, 1 << 2);
    outb(PIC2_DATA, 2);
    outb(PIC1_DATA, PIC_ICW4);
    outb(PIC2_DATA, PIC_ICW4);
    outb(PIC1_DATA, (uint8_t)~(1 << 0 | 1 << 1 | 1 << 4));
    outb(PIC2_DATA, 0xFF);
}

static void pit_init(void)
{
    outb(PIT_MODE, PIT_CH0_RATE);
    outb(PIT_CH0, (PIT_HZ / TIMER_HZ) & 0xFF);
    outb(PIT_CH0, (PIT_HZ / TIMER_HZ) >> 8);
}

static void print_number(uint64_t number)
{
    char digits[21];
    int i = sizeof digits - 1;
    digits[i] = 0;
    do
        digits[--i] = '0' + number % 10;
    while (number /= 10);
    kputs(digits + i);
}

static void print_field(const char *name, uint64_t value)
{
    kputs(name);
    print_number(value);
}

/* Sleep for some ticks; 0 when Ctrl-C ended it, which is then taken from the buffer. This is the process that Ctrl-C
   kills: it does not read the keyboard. */
static int sleep_ticks(uint64_t count)
{
    uint64_t end = ticks + count;
    lock();
    while (ticks < end && !kbd.killed)
        wait_for_interrupt();
    unlock();
    if (!kbd.killed)
        return 1;
    kbd.killed = 0;
    while (kgetc(&kbd) != CTRL_C)
        ;
    kputs("^C\n");
    return 0;
}

/* If line is the command name, with or without an argument: the argument, else 0 */
static const char *argument(const char *line, const char *name)
{
    while (*name)
        if (*line++ != *name++)
            return 0;
    if (*line == 0)
        return line;
    return *line == ' ' ? line + 1 : 0;
}

static uint64_t number(const char *text)
{
    uint64_t value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

/* 0 to go on, 1 to end */
static int run(const char *line)
{
    const char *text;
    if (*line == 0)
        return 0;
    if (argument(line, "help")) {
        kputs("echo TEXT  prints TEXT\n"
              "buf        shows the keyboard buffer\n"
              "time       shows how long the guest runs\n"
              "sleep N    sleeps N seconds: type ahead meanwhile\n"
              "count      counts until Ctrl-C\n"
              "clear      clears the screen\n"
              "exit       turns the machine off, as Ctrl-D does\n");
    } else if ((text = argument(line, "echo"))) {
        kputs(text);
        kputc('\n');
    } else if (argument(line, "buf")) {
        lock();                  /* a key in between would make the numbers not add up */
        int head = kbd.head, tail = kbd.tail, data = kbd.data, room = kbd.room;
        unlock();
        print_field("head ", head);
        print_field(" tail ", tail);
        print_field(" data ", data);
        print_field(" room ", room);
        print_field(" dropped ", kbd.dropped);
        kputc('\n');
    } else if (argument(line, "time")) {
        print_number(ticks / TIMER_HZ);
        kputs(" s\n");
    } else if ((text = argument(line, "sleep"))) {
        sleep_ticks(number(text) * TIMER_HZ);
    } else if (argument(line, "count")) {
        for (uint64_t i = 1; sleep_ticks(BLINK); i++) {
            print_number(i);
            kputc('\n');
        }
    } else if (argument(line, "clear")) {
        kputc('\f');
    } else if (argument(line, "exit")) {
        return 1;
    } else {
        kputs(line);
        kputs(": no such command; try help\n");
    }
    return 0;
}

void guest_main(void)
{
    char line[72];
    int length;

    /* What was typed before we ran interrupts as soon as screen_init() lets it: by then the PIC must have our vectors, and
       the driver its buffer. The timer is last, for its handler works on the screen. */
    pic_init();
    kbd_init(&kbd, I8042_DATA);
    screen_init();
    cursor_on = 1;
    screen_cursor(1);
    pit_init();
    kputs("The keyboard driver is ready. Type help, or Ctrl-D to end.\n");
    do {
        kputs("> ");
        length = kgets(&kbd, line, sizeof line);
    } while (length != KGETS_EOF && (length == KGETS_KILLED || !run(line)));
    kputs("Bye.\n");
    lock();
}
