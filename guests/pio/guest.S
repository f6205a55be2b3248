/* Port I/O: KVM_EXIT_IO out and in, of 1, 2 and 4 bytes, by a port in %dx and by one in the instruction. What it read is
   left in in1, in2, in4 and in_imm. */
#include "real.h"

        REAL_START
        VALUE   port, 0x5000            /* parameter */
        VALUE   in1                     /* results */
        VALUE   in2
        VALUE   in4
        VALUE   in_imm
        REAL_BEGIN
        movw    port, %dx
        movl    $0x44332211, %eax
        outb    %al, %dx
        outw    %ax, %dx
        outl    %eax, %dx
        outb    %al, $0x80
        xorl    %eax, %eax
        inb     %dx, %al
        movl    %eax, in1
        inw     %dx, %ax
        movl    %eax, in2
        inl     %dx, %eax
        movl    %eax, in4
        xorl    %eax, %eax
        inb     $0x80, %al
        movl    %eax, in_imm
        EXIT    0
        BOOT_SIGNATURE
