/* Torture: writes every port with random data at 1, 2 and 4 bytes and reads it at one of these widths, does the same to
   addresses all over the 3-4 GiB hole at 1, 2, 4 and 8 bytes, and then checks that where nothing is all ones are read.
   Left out is what would end the guest or wedge its CPU: the ports in the ranges skip0 to skip7 (as first + last * 2^32;
   an access that only touches one is left out too) and the local APIC's page.
   port_step and mmio_step thin it out: a whole run makes about 295,000 exits, a port_step of 7 and an mmio_step of 4 MiB
   about 40,000. Ends with 0; 1 or 2 when a port or an address of the hole did not read all ones, with the place and what
   was read in bad_place and bad_value; 3 at an exception. */
#include "long.h"

        .set    NMI_VECTOR, 2
        .set    EXCEPTIONS, 32
        .set    LAPIC_PAGE, LAPIC >> 12

        LONG_START
        VALUE   seed, 0x9E3779B97F4A7C15        /* parameters */
        VALUE   port_step, 1
        VALUE   mmio_step, 0x40000              /* a power of two, 4 KiB at least */
        VALUE   mmio_first, 0xC0000000
        VALUE   mmio_end, 0x100000000
        VALUE   hole_first, 0x5000              /* ports where nothing is */
        VALUE   hole_end, 0x6000
        VALUE   mmio_hole_first, 0xD0000000     /* addresses where nothing is */
        VALUE   mmio_hole_end, 0xD1000000
        VALUE   skip0, I8042_CMD | I8042_CMD << 32
        VALUE   skip1, PORT92 | PORT92 << 32
        VALUE   skip2, DEBUG_EXIT | DEBUG_EXIT << 32
        VALUE   skip3, RESET_CONTROL | RESET_CONTROL << 32
        VALUE   skip4, 0x600 | 0x63F << 32      /* ACPI: power-off is there */
        VALUE   skip5, 0xB2 | 0xB3 << 32        /* APM */
        VALUE   skip6, RESET_CONTROL | RESET_CONTROL << 32     /* free, as skip7 */
        VALUE   skip7, RESET_CONTROL | RESET_CONTROL << 32
        VALUE   bad_place                       /* results */
        VALUE   bad_value
        VALUE   accesses
        LONG_BEGIN
        IDT_INIT ignore
        leaq    idt(%rip), %rdi
        leaq    exception(%rip), %rax
        movl    $EXCEPTIONS, %ecx
1:      call    idt_gate
        addq    $16, %rdi
        decl    %ecx
        jnz     1b
        SET_GATE NMI_VECTOR, ignore

        movq    seed(%rip), %r12
        movabsq $6364136223846793005, %r13
        xorl    %r14d, %r14d            /* counts */

/* skip_map: a byte a port, not 0 where it is left out */
        leaq    skip0(%rip), %rsi
        movl    $8, %ecx
1:      movl    (%rsi), %eax
        movl    4(%rsi), %edx
2:      movb    $1, skip_map(%rax)
        incl    %eax
        cmpl    %edx, %eax
        jbe     2b
        addq    $8, %rsi
        decl    %ecx
        jnz     1b

.macro RANDOM                           /* rax */
        imulq   %r13, %r12
        incq    %r12
        movq    %r12, %rax
        rorq    $32, %rax
.endm

/* Every port */
        xorl    %ebx, %ebx
        xorl    %ebp, %ebp              /* 0, 1, 2: the width to read */
ports:  movl    skip_map(%rbx), %esi
        movl    %ebx, %edx
        RANDOM
        testb   %sil, %sil
        jnz     next_port
        outb    %al, %dx
        testl   $0xFFFF, %esi
        jnz     1f
        outw    %ax, %dx
        testl   %esi, %esi
        jnz     1f
        outl    %eax, %dx
        addl    $2, %r14d
1:      addl    $2, %r14d
        decl    %ebp
        js      2f
        jz      3f
        inb     %dx, %al
        jmp     next_port
2:      movl    $2, %ebp
        inw     %dx, %ax
        jmp     next_port
3:      inl     %dx, %eax
next_port:
        addl    port_step(%rip), %ebx
        cmpl    $0xFFFF, %ebx
        jbe     ports

/* The 3-4 GiB hole: at every step one random place, aligned or not, then read at one of the widths */
        movq    mmio_first(%rip), %rbx
mmio:   RANDOM
        movq    mmio_step(%rip), %rdi
        decq    %rdi
        andq    %rax, %rdi
        addq    %rbx, %rdi
        leaq    8(%rdi), %rdx
        cmpq    mmio_end(%rip), %rdx
        ja      next_mmio
        shrq    $12, %rdx
        cmpl    $LAPIC_PAGE, %edx
        je      next_mmio
        movq    %rdi, %rdx
        shrq    $12, %rdx
        cmpl    $LAPIC_PAGE, %edx
        je      next_mmio
        movb    %al, (%rdi)
        movw    %ax, (%rdi)
        movl    %eax, (%rdi)
        movq    %rax, (%rdi)
        addl    $5, %r14d
        shrq    $61, %rax
        jz      1f
        cmpl    $2, %eax
        jb      2f
        je      3f
        movq    (%rdi), %rax
        jmp     next_mmio
1:      movb    (%rdi), %al
        jmp     next_mmio
2:      movw    (%rdi), %ax
        jmp     next_mmio
3:      movl    (%rdi), %eax
next_mmio:
        addq    mmio_step(%rip), %rbx
        cmpq    mmio_end(%rip), %rbx
        jb      mmio

/* All ones where there is no device */
        movl    hole_first(%rip), %ebx
hole:   movl    %ebx, %edx
        xorl    %eax, %eax
        inb     %dx, %al
        cmpl    $0xFF, %eax
        jne     bad_port
        inw     %dx, %ax
        cmpl    $0xFFFF, %eax
        jne     bad_port
        xorl    %eax, %eax
        inl     %dx, %eax
        cmpl    $-1, %eax
        jne     bad_port
        addl    $3, %r14d
        addl    port_step(%rip), %ebx
        leal    3(%rbx), %eax
        cmpl    hole_end(%rip), %eax
        jb      hole

        movq    mmio_hole_first(%rip), %rbx
mmio_hole:
        xorl    %eax, %eax
        movb    (%rbx), %al
        cmpl    $0xFF, %eax
        jne     bad_mmio
        movw    2(%rbx), %ax
        cmpl    $0xFFFF, %eax
        jne     bad_mmio
        movl    4(%rbx), %eax
        cmpl    $-1, %eax
        jne     bad_mmio
        movq    8(%rbx), %rax
        cmpq    $-1, %rax
        jne     bad_mmio
        movq    0xFFC(%rbx), %rax       /* across a page */
        cmpq    $-1, %rax
        jne     bad_mmio
        addl    $6, %r14d
        addq    mmio_step(%rip), %rbx
        cmpq    mmio_hole_end(%rip), %rbx
        jb      mmio_hole
        xorl    %ecx, %ecx
        jmp     end

bad_port:
        movl    $1, %ecx
        jmp     bad
bad_mmio:
        movl    $2, %ecx
bad:    movq    %rbx, bad_place(%rip)
        movq    %rax, bad_value(%rip)
end:    movq    %r14, accesses(%rip)
        movl    %ecx, %eax
        EXIT_AL
exception:
        EXIT    3
ignore: iretq

        IDT_ROUTINES
        .lcomm  skip_map, 0x10004
