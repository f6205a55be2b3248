/* Memory-mapped I/O: KVM_EXIT_MMIO write and read of 1, 2, 4 and 8 bytes, then what decomposes into several: a
   read-modify-write, and a REP MOVS from memory and back. What it read is left in in1 to in8 and in_string. */
#include "long.h"

        LONG_START
        VALUE   base, 0xD0000000        /* parameter */
        VALUE   in1                     /* results */
        VALUE   in2
        VALUE   in4
        VALUE   in8
        VALUE   in_string
        VALUE   in_string_2
        LONG_BEGIN
        movq    base(%rip), %rbx
        movabsq $0x8877665544332211, %rax
        movb    %al, (%rbx)
        movw    %ax, 2(%rbx)
        movl    %eax, 4(%rbx)
        movq    %rax, 8(%rbx)
        movzbl  (%rbx), %eax
        movq    %rax, in1(%rip)
        movzwl  2(%rbx), %eax
        movq    %rax, in2(%rip)
        movl    4(%rbx), %eax
        movq    %rax, in4(%rip)
        movq    8(%rbx), %rax
        movq    %rax, in8(%rip)

        orl     $0x80, 16(%rbx)

        leaq    words(%rip), %rsi
        leaq    32(%rbx), %rdi
        movl    $2, %ecx
        rep movsq
        leaq    32(%rbx), %rsi
        leaq    in_string(%rip), %rdi
        movl    $2, %ecx
        rep movsq
        EXIT    0
        .balign 8
words:  .quad   0x0706050403020100, 0x0F0E0D0C0B0A0908
