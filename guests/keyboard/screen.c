#include "screen.h"

#include "../include/ports.h"
#include "io.h"

#define COLUMNS 80
#define ROWS 25
#define BLANK 0x0720             /* a space, light grey on black */
#define CURSOR_LINES 0x0D        /* the cursor is scan lines 13 to 14 of a character */

static volatile uint16_t *const cells = (volatile uint16_t *)VGA_TEXT;
static int row, column;

static void crtc(uint8_t index, uint8_t value)
{
    outb(CRTC_INDEX, index);
    outb(CRTC_DATA, value);
}

/* Locked, because the timer's interrupt uses the CRTC's index too */
static void place_cursor(void)
{
    int position = row * COLUMNS + column;
    lock();
    crtc(CRTC_CURSOR_HIGH, position >> 8);
    crtc(CRTC_CURSOR_LOW, position);
    unlock();
}

/* Show the cursor or hide it; called in the timer's interrupt */
void screen_cursor(int on)
{
    crtc(CRTC_CURSOR_START, on ? CURSOR_LINES : CURSOR_LINES | CRTC_CURSOR_OFF);
}

static void clear(void)
{
    for (int i = 0; i < ROWS * COLUMNS; i++)
        cells[i] = BLANK;
    row = column = 0;
}

static void scroll(void)
{
    for (int i = 0; i < (ROWS - 1) * COLUMNS; i++)
        cells[i] = cells[i + COLUMNS];
    for (int i = (ROWS - 1) * COLUMNS; i < ROWS * COLUMNS; i++)
        cells[i] = BLANK;
    row = ROWS - 1;
}

static void serial(char c)
{
    while (!(inb(UART_LSR) & UART_LSR_THRE))
        ;
    outb(UART_THR, c);
}

/* '\n' starts a line, '\b' goes back one, '\f' clears the screen */
void kputc(char c)
{
    if (c == '\n') {
        column = 0;
        row++;
        serial('\r');
    } else if (c == '\b') {
        column -= column > 0;
    } else if (c == '\f') {
        clear();
    } else {
        cells[row * COLUMNS + column] = (BLANK & 0xFF00) | (uint8_t)c;
        if (++column == COLUMNS) {
            column = 0;
            row++;
        }
    }
    if (row == ROWS)
        scroll();
    place_cursor();
    serial(c);
}

void kputs(const char *text)
{
    while (*text)
        kputc(*text++);
}

void screen_init(void)
{
    outb(UART_LCR, UART_LCR_DLAB);
    outb(UART_DLL, 1);
    outb(UART_DLM, 0);
    outb(UART_LCR, UART_LCR_8N1);
    outb(UART_FCR, UART_FCR_CLEAR);
    outb(UART_MCR, UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT2);
    outb(UART_IER, UART_IER_RDI);
    clear();
    place_cursor();
}
