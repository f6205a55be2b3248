/* What the driver asks of the machine: ports, and interrupts held back or let in. On the host (HOSTED) a test provides
   these, so that kbd.c runs there as it is. */
#ifndef IO_H
#define IO_H

#include <stdint.h>

#ifdef HOSTED

uint8_t inb(uint16_t port);
void outb(uint16_t port, uint8_t value);
void lock(void);
void unlock(void);
void wait_for_interrupt(void);

#else

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

/* No interrupt from here */
static inline void lock(void)
{
    __asm__ volatile("cli" : : : "memory");
}

static inline void unlock(void)
{
    __asm__ volatile("sti" : : : "memory");
}

/* Called locked, returns locked: let interrupts in and sleep until one came. STI takes effect behind the next instruction,
   so none can come between it and HLT and leave us asleep. */
static inline void wait_for_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

#endif
#endif
