/* What all of the BIOS is written with: integers, ports, memory by segment and offset, the caller's registers. */

#ifndef BIOS_H
#define BIOS_H

#include "frame.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define BIOS_SEG 0xF000
#define BDA 0x40     /* segment of the BIOS data area */
#define EBDA 0x9FC0  /* segment of the extended one, 1 KiB */
#define EBDA_KB 639  /* where base memory ends */

/* The caller's, as entry.S copies them; what is changed here, it gets. */
struct regs {
    u16 fs, es, ds;
    union { u32 edi; u16 di; };
    union { u32 esi; u16 si; };
    union { u32 ebp; u16 bp; };
    u32 esp;
    union { u32 ebx; u16 bx; struct { u8 bl, bh; }; };
    union { u32 edx; u16 dx; struct { u8 dl, dh; }; };
    union { u32 ecx; u16 cx; struct { u8 cl, ch; }; };
    union { u32 eax; u16 ax; struct { u8 al, ah; }; };
    u16 vector, ip, cs, flags;
} __attribute__((packed));

_Static_assert(sizeof(struct regs) == FRAME_REGS, "entry.S copies all of it");

#define CF 0x0001
#define ZF 0x0040
#define IF 0x0200

static inline void set_flag(struct regs *r, u16 flag, int on)
{
    r->flags = on ? r->flags | flag : r->flags & ~flag;
}

#define set_cf(r, on) set_flag(r, CF, on)

/* Ports */

#define PORT(name, type)                                                                    \
    static inline type in##name(u16 port)                                                   \
    {                                                                                       \
        type value;                                                                         \
        asm volatile("in" #name " %1, %0" : "=a"(value) : "Nd"(port));                      \
        return value;                                                                       \
    }                                                                                       \
    static inline void out##name(u16 port, type value)                                      \
    {                                                                                       \
        asm volatile("out" #name " %0, %1" : : "a"(value), "Nd"(port) : "memory");          \
    }
PORT(b, u8)
PORT(w, u16)
PORT(l, u32)

/* Memory outside segment F000. FS is free: entry.S keeps the caller's. */

#define FAR(bits, suffix, constraint)                                                                           \
    static inline u##bits peek##bits(u16 segment, u16 offset)                                                   \
    {                                                                                                           \
        u##bits value;                                                                                          \
        asm volatile("movw %w1, %%fs; mov" #suffix " %%fs:(%2), %0"                                             \
                     : "=&" constraint(value) : "r"(segment), "r"((u32)offset) : "memory");                     \
        return value;                                                                                           \
    }                                                                                                           \
    static inline void poke##bits(u16 segment, u16 offset, u##bits value)                                       \
    {                                                                                                           \
        asm volatile("movw %w1, %%fs; mov" #suffix " %0, %%fs:(%2)"                                             \
                     : : constraint(value), "r"(segment), "r"((u32)offset) : "memory");                         \
    }
FAR(8, b, "q")
FAR(16, w, "r")
FAR(32, l, "r")

/* Copy *bytes* between segments; offsets wrap as a string instruction's do. */
static inline void far_copy(u16 to, u16 to_offset, u16 from, u16 from_offset, u16 bytes)
{
    u32 si = from_offset, di = to_offset, cx = bytes;
    asm volatile("pushw %%ds; pushw %%es; movw %w3, %%ds; movw %w4, %%es; rep movsb; popw %%es; popw %%ds"
                 : "+S"(si), "+D"(di), "+c"(cx) : "r"(from), "r"(to) : "memory");
}

static inline void far_fill16(u16 segment, u16 offset, u16 value, u16 words)
{
    u32 di = offset, cx = words;
    asm volatile("pushw %%es; movw %w3, %%es; rep stosw; popw %%es"
                 : "+D"(di), "+c"(cx) : "a"(value), "r"(segment) : "memory");
}

static inline u32 linear(const void *here)
{
    return (BIOS_SEG << 4) + (u32)here;
}

static inline void enable_interrupts(void) { asm volatile("sti; nop" : : : "memory"); }
static inline void disable_interrupts(void) { asm volatile("cli" : : : "memory"); }
static inline void wait_for_interrupt(void) { asm volatile("sti; hlt; cli" : : : "memory"); }

/* entry.S */
extern u8 entry_table[], dummy_iret[];
void jump_to_boot_sector(u32 drive) __attribute__((noreturn));

/* The services, each in a file of its name */
void video(struct regs *r);      /* INT 10h */
void disk(struct regs *r);       /* INT 13h */
void serial(struct regs *r);     /* INT 14h */
void system_call(struct regs *r); /* INT 15h */
void keyboard(struct regs *r);   /* INT 16h */
void time_of_day(struct regs *r); /* INT 1Ah */
void pci_bios(struct regs *r);   /* INT 1Ah, AH=B1h */
void boot(void) __attribute__((noreturn)); /* INT 19h */
void boot_next(void) __attribute__((noreturn)); /* INT 18h */

void exception(struct regs *r);  /* vectors 00, 06, 07, 0C, 0D */

void timer_irq(void);
void rtc_irq(void);
void keyboard_irq(void);

void set_video_mode(u8 mode, int clear);
void print(const char *text);
void print_hex(u8 value);
void serial_init(void);
void serial_mirror(u8 character);
void clock_init(void);
void keyboard_init(void);
void disk_init(void);
int read_boot_sector(u8 drive);
u32 low_end(void); /* where RAM below 4 GiB ends */
void a20_open(void);
void trace_init(void);

void debug_init(void);
void debug_text(const char *text);
void debug_number(u32 value);
void debug_drive(u8 number);

#endif
