/* Where the processor comes in: out of reset, and by each interrupt.

   The BIOS runs in segment F000, code, data and stack, so that C's pointers mean one thing. A caller's stack may be of
   64 bytes, in a segment of its own: an interrupt copies the caller's registers to a frame on the stack here, calls
   dispatch() with it, and copies them back. Each entry takes the next frame, for another interrupt may come in it. */

#include "frame.h"

        .code16

/* The last 16 bytes: the first instruction, the date, and what kind of a computer this is (FC: an AT). */
        .section .reset_vector, "ax"
        .globl  reset_vector
reset_vector:
        ljmpw   $0xF000, $reset
        .ascii  "11/28/26"
        .byte   0, 0xFC, 0

/* Where a vector points that nobody serves. Its address is a PC's; programs compare with it. */
        .section .dummy_iret, "ax"
        .globl  dummy_iret
dummy_iret:
        iretw

        .text
reset:
        cli
        cld
        movw    %cs, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $stack_top, %esp
        movl    $(stack_top - FRAME_STACK), stack_free
        calll   post
1:      hlt
        jmp     1b

/* The code that vector N points to is entry_table + 8 * N: pushw, jmp. */
        .globl  entry_table
        .balign 16
entry_table:
        .set    vector, 0
        .rept   256
        pushw   $vector
        jmp     common
        .balign 8
        .set    vector, vector + 1
        .endr

common:
        pushal
        pushw   %ds
        pushw   %es
        pushw   %fs
        cld
        movw    %cs, %ax
        movw    %ss, %bx
        movl    %esp, %edx
        movw    %ax, %es
        movw    %bx, %ds
        movzwl  %sp, %esi
        movl    %cs:stack_free, %ebp
        leal    -(8 + FRAME_REGS)(%ebp), %edi
        movw    $(FRAME_REGS / 2), %cx
        rep movsw
        movw    %ax, %ds
        movw    %ax, %ss
        leal    -(8 + FRAME_REGS)(%ebp), %esp
        movl    %edx, -4(%ebp)
        movw    %bx, -8(%ebp)
        subl    $FRAME_STACK, stack_free
        movl    %esp, %eax
        calll   dispatch
        cli
        movl    %ebp, stack_free
        movl    -4(%ebp), %edx
        movw    -8(%ebp), %bx
        leal    -(8 + FRAME_REGS)(%ebp), %esi
        movw    %bx, %es
        movzwl  %dx, %edi
        movw    $(FRAME_REGS / 2), %cx
        rep movsw
        movw    %bx, %ss
        movl    %edx, %esp
        popw    %fs
        popw    %es
        popw    %ds
        popal
        addw    $2, %sp
        iretw

/* jump_to_boot_sector(drive): what is at 0000:7C00 begins, with a stack below it. Does not return. */
        .globl  jump_to_boot_sector
jump_to_boot_sector:
        cli
        movl    $stack_top, stack_free
        movl    %eax, %edx
        xorl    %eax, %eax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movl    $0x7C00, %esp
        xorl    %ebx, %ebx
        xorl    %ecx, %ecx
        xorl    %esi, %esi
        xorl    %edi, %edi
        xorl    %ebp, %ebp
        movw    $0xAA55, %ax
        sti
        ljmpw   $0, $0x7C00

/* pm_copy(to, from, bytes): physical addresses of 32 bits, which the processor reaches in protected mode. */
        .globl  pm_copy
pm_copy:
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    %eax, %edi
        movl    %edx, %esi
        pushfl
        cli
        sgdtl   callers_gdt
        lgdtl   gdt_register
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        jmp     1f
1:      movw    $8, %bx                 /* data, 4 GiB */
        movw    %bx, %ds
        movw    %bx, %es
        addr32 rep movsb
        movw    $16, %bx                /* data, 64 KiB, as segments of real mode are */
        movw    %bx, %ds
        movw    %bx, %es
        andb    $~1, %al
        movl    %eax, %cr0
        ljmpw   $0xF000, $2f
2:      movw    %cs, %ax
        movw    %ax, %ds
        movw    %ax, %es
        lgdtl   callers_gdt
        popfl
        popl    %edi
        popl    %esi
        popl    %ebx
        retl

        .section .rodata
        .balign 8
gdt:    .quad   0, 0x00CF93000000FFFF, 0x000093000000FFFF
gdt_register:
        .word   . - gdt - 1
        .long   0xF0000 + gdt

        .bss
callers_gdt:
        .skip   6
        .globl  stack_free
        .balign 16
stack_free:
        .long   0
        .balign 16
        .skip   FRAMES * FRAME_STACK
stack_top:
