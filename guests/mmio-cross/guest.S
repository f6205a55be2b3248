/* MMIO that crosses a boundary, 8 bytes written and then read at
     base + 4             across an 8-byte boundary
     base + 0xFFC         across a page, MMIO on both sides: two accesses of 4 bytes
     base + 0x1FFF        across a page, 1 and 7 bytes
     memory_end - 4       across a page, RAM below and MMIO above
   What it read is left in in_8, in_page, in_odd and in_ram. */
#include "long.h"

        LONG_START
        VALUE   base, 0xD0000000        /* parameters */
        VALUE   memory_end, 0x1000000
        VALUE   in_8                    /* results */
        VALUE   in_page
        VALUE   in_odd
        VALUE   in_ram
        LONG_BEGIN
        movq    base(%rip), %rbx
        movq    memory_end(%rip), %rbp
        movabsq $0x8877665544332211, %rax
        movq    %rax, 4(%rbx)
        movq    %rax, 0xFFC(%rbx)
        movq    %rax, 0x1FFF(%rbx)
        movq    %rax, -4(%rbp)
        movq    4(%rbx), %rax
        movq    %rax, in_8(%rip)
        movq    0xFFC(%rbx), %rax
        movq    %rax, in_page(%rip)
        movq    0x1FFF(%rbx), %rax
        movq    %rax, in_odd(%rip)
        movq    -4(%rbp), %rax
        movq    %rax, in_ram(%rip)
        EXIT    0
