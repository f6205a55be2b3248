/* CPU hot-plug as an OS does it, without the AML between: the general-purpose event says that something has changed, the
   registers say what. A CPU that has come is started, one that is to go is stopped and ejected; the others count.
   On the debug console: +N CPU N runs, -N it has gone, !N it stays, and _OST says so.
   Source: QEMU docs/specs/acpi_cpu_hotplug; ACPI 6.5, 4.8 (fixed hardware) and 6.3.5 (_OST); Intel SDM volume 3, 8.4.4. */
#include <stdint.h>

#include "cpus.h"
#include "ports.h"

extern volatile uint64_t rounds, keep, came, went, alive[CPUS];
extern volatile uint8_t stop[CPUS], stopped[CPUS];

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

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static void wait(void)
{
    for (int i = 0; i < 1000; i++)
        __asm__ volatile("pause");
}

static void say(char what, uint32_t cpu)
{
    outb(DEBUG_CONSOLE, what);
    outb(DEBUG_CONSOLE, '0' + cpu);
    outb(DEBUG_CONSOLE, '\n');
}

static void ipi(uint32_t cpu, uint32_t command)
{
    *(volatile uint32_t *)(uintptr_t)(LAPIC + LAPIC_ICR_HIGH) = cpu << 24;
    *(volatile uint32_t *)(uintptr_t)(LAPIC + LAPIC_ICR) = command;
    wait();
}

static void start(uint32_t cpu)
{
    uint64_t before = alive[cpu];
    stop[cpu] = stopped[cpu] = 0;
    ipi(cpu, LAPIC_INIT);
    ipi(cpu, LAPIC_SIPI | TRAMPOLINE >> 12);
    ipi(cpu, LAPIC_SIPI | TRAMPOLINE >> 12);
    while (alive[cpu] == before)
        wait();
    came++;
    say('+', cpu);
}

static void let_go(uint32_t cpu)
{
    if (keep >> cpu & 1) {
        outb(CPUHP_COMMAND, CPUHP_OST_EVENT);
        outl(CPUHP_DATA, OST_EJECT_REQUEST);
        outb(CPUHP_COMMAND, CPUHP_OST_STATUS);
        outl(CPUHP_DATA, OST_DEVICE_IN_USE);
        say('!', cpu);
        return;
    }
    stop[cpu] = 1;
    while (!stopped[cpu])
        wait();
    outb(CPUHP_STATUS, CPUHP_EJECT);
    went++;
    say('-', cpu);
}

/* All that the OS was not told of yet */
static void scan(void)
{
    for (;;) {
        outl(CPUHP_SELECTOR, 0);
        outb(CPUHP_COMMAND, CPUHP_NEXT);
        uint8_t status = inb(CPUHP_STATUS);
        uint32_t cpu = inl(CPUHP_DATA);
        if (status & CPUHP_INSERT) {
            outb(CPUHP_STATUS, CPUHP_INSERT);
            start(cpu);
        } else if (status & CPUHP_REMOVE) {
            outb(CPUHP_STATUS, CPUHP_REMOVE);
            let_go(cpu);
        } else {
            return;
        }
    }
}

/* What the guest ends with: 0, or 1 where no CPU comes or goes, 2 where there may be too many */
int guest_main(void)
{
    uint32_t cpu = 0;
    outl(CPUHP_SELECTOR, 0);
    outb(CPUHP_COMMAND, CPUHP_NEXT);
    if (inl(CPUHP_SELECTOR) != 0)
        return 1;
    outb(APM_CNT, ACPI_ENABLE);
    outw(GPE0_EN, 1 << GPE_CPU_HOTPLUG);
    do {                                /* those that are there from the start */
        if (cpu && inb(CPUHP_STATUS) & CPUHP_ENABLED)
            start(cpu);
        outl(CPUHP_SELECTOR, ++cpu);
    } while (inl(CPUHP_DATA) && cpu < CPUS);
    if (cpu == CPUS && inl(CPUHP_DATA))
        return 2;
    while (went < rounds) {
        while (!(inb(GPE0_STS) >> GPE_CPU_HOTPLUG & 1))
            wait();
        outw(GPE0_STS, 1 << GPE_CPU_HOTPLUG);
        scan();
    }
    return 0;
}
