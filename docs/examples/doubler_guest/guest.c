/* A driver of doubler.py without an operating system: finds the device, takes its interrupt, and doubles the numbers that
   are typed on the serial port. q powers off. build.sh makes guest.bin of it. */
#include <stdint.h>

/* 64 bits, addresses as they are, interrupts off, at the first instruction: pyvmm gives no more. An interrupt reads the
   segments from a GDT, so there is one; a stack; the parameter `id`, where guest.toml says. */
__asm__(".globl _start, id\n"
        "_start: jmp 1f\n"
        "        .org 8\n"
        "id:     .quad 0xD0B11234\n"             /* device and vendor: pyvmm run --set id=... looks for another */
        "gdt:    .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF\n"
        "gdtr:   .word 23\n"
        "        .quad gdt\n"
        "1:      movl $0x80000, %esp\n"
        "        lgdt gdtr\n"
        "        movl $0x10, %eax\n"
        "        movl %eax, %ds\n"
        "        movl %eax, %es\n"
        "        movl %eax, %ss\n"
        "        pushq $0x08\n"
        "        pushq $driver\n"
        "        lretq\n");
extern volatile const uint64_t id;

#define PCI_CONFIG_ADDRESS 0xCF8
#define PCI_CONFIG_DATA 0xCFC
#define COM1 0x3F8
#define PIC1 0x20
#define PIC2 0xA0
#define VECTORS 0x20                        /* of IRQ 0 to 15 */
#define TIMER_IRQ 0
#define COM1_IRQ 4
#define PATIENCE 18                         /* ticks of the timer, which a BIOS leaves at 18.2 a second */

enum { IDENTIFICATION = 0x0, NUMBER = 0x4, DONE = 0x8, ENABLE = 0xC };     /* the device's registers */

struct gate { uint16_t low, selector, flags, middle; uint32_t high, zero; };
struct frame;
static struct gate idt[VECTORS + 16];
static uint32_t base;                       /* where the registers are */
static volatile uint32_t ticks, interrupts;
static volatile uint8_t typed[256], last_typed;     /* a ring: the index wraps as a byte does */

static inline void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static volatile uint32_t *device(uint32_t offset) { return (volatile uint32_t *)(uintptr_t)(base + offset); }

static uint32_t config_read(uint32_t slot, uint32_t offset)
{
    outl(PCI_CONFIG_ADDRESS, 0x80000000 | slot << 11 | offset);
    return inl(PCI_CONFIG_DATA);
}

static void put(const char *text)
{
    for (; *text; text++) {
        while (!(inb(COM1 + 5) & 0x20))     /* room for a byte */
            ;
        outb(COM1, *text);
    }
}

static void put_number(uint32_t value, uint32_t radix)
{
    char text[16], *at = text + sizeof text - 1;
    *at = 0;
    do
        *--at = "0123456789abcdef"[value % radix];
    while (value /= radix);
    put(at);
}

/* Three interrupts. A gate of the IDT has interrupts off while its handler runs; the last line lets the next one come. */
__attribute__((interrupt)) static void on_timer(struct frame *frame)
{
    (void)frame;
    ticks++;
    outb(PIC1, 0x20);
}

__attribute__((interrupt)) static void on_typed(struct frame *frame)
{
    (void)frame;
    typed[last_typed++] = inb(COM1);
    outb(PIC1, 0x20);
}

__attribute__((interrupt)) static void on_device(struct frame *frame)
{
    (void)frame;
    if (*device(DONE)) {                    /* else it is that of another device at the same line */
        *device(DONE) = 0;                  /* and the line goes down */
        interrupts++;
    }
    outb(PIC2, 0x20);
    outb(PIC1, 0x20);
}

static void set_gate(uint32_t irq, void (*handler)(struct frame *))
{
    uint64_t address = (uintptr_t)handler;
    idt[VECTORS + irq] = (struct gate){ address, 0x08, 0x8E00, address >> 16, address >> 32, 0 };
}

static void pic_init(uint8_t pic, uint8_t vector, uint8_t cascade, uint8_t mask)
{
    outb(pic, 0x11);
    outb(pic + 1, vector);
    outb(pic + 1, cascade);
    outb(pic + 1, 0x01);
    outb(pic + 1, mask);
}

static void take_interrupts(uint32_t irq)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idtr = { sizeof idt - 1, (uintptr_t)idt };
    uint32_t masks = ~(1u << TIMER_IRQ | 1u << COM1_IRQ | 1u << 2 | 1u << irq);     /* 2: the second PIC is there */
    set_gate(TIMER_IRQ, on_timer);
    set_gate(COM1_IRQ, on_typed);
    set_gate(irq, on_device);
    __asm__ volatile("lidt %0" : : "m"(idtr));
    pic_init(PIC1, VECTORS, 1 << 2, masks);
    pic_init(PIC2, VECTORS + 8, 2, masks >> 8);
    outb(COM1 + 1, 0x01);                   /* an interrupt for what is typed */
    outb(COM1 + 4, 0x0B);                   /* and let it out */
}

static void wait_for_interrupt(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }

static void double_it(uint32_t number)
{
    uint32_t before = interrupts, start = ticks;
    *device(NUMBER) = number;
    while (interrupts == before && ticks - start < PATIENCE)
        wait_for_interrupt();
    if (interrupts == before)
        put("no interrupt: ");
    put_number(*device(NUMBER), 10);
    put("\r\n> ");
}

static void power_off(void)
{
    for (;;)
        outw(0x604, 0x3C00);                /* ACPI: sleep state S5 */
}

void driver(void)
{
    uint32_t slot = 0, number = 0;
    uint8_t taken = 0;
    while (slot < 32 && config_read(slot, 0) != (uint32_t)id)
        slot++;
    if (slot == 32) {
        put("There is no such device: pyvmm run ... --device FILE.py:CLASS\r\n");
        outb(0xF4, 1);                      /* the end, with exit status 16 + 1 */
    }
    base = config_read(slot, 0x10) & ~0xFu; /* BAR 0: a BIOS, here pyvmm, has placed it and turned it on */
    uint32_t irq = config_read(slot, 0x3C) & 0xF;
    put("Device in slot ");
    put_number(slot, 10);
    put(", registers at 0x");
    put_number(base, 16);
    put(", IRQ ");
    put_number(irq, 10);
    put(", identification 0x");
    put_number(*device(IDENTIFICATION), 16);
    *device(ENABLE) = 1;
    put(".\r\nType numbers, or q.\r\n> ");
    take_interrupts(irq);
    for (;;) {
        while (taken == last_typed)
            wait_for_interrupt();
        char key[] = { typed[taken++], 0 };
        if (*key >= '0' && *key <= '9') {
            put(key);
            number = 10 * number + *key - '0';
        } else if (*key == '\r' || *key == '\n') {
            put("\r\n");
            double_it(number);
            number = 0;
        } else if (*key == 'q') {
            put("\r\n");
            power_off();
        }
    }
}
