"""Boot sectors such as people write in their first weeks, each with what it does; GNU assembler, behind PRELUDE.

`end` dumps the text screen and ends. Macros that several have are in COMMON.
"""

from __future__ import annotations

from typing import Final

COMMON: Final = """
        .macro  print text              /* by INT 10h, AH=0Eh */
        call    print_here
        .asciz  "\\text"
        .endm
        .macro  library
print_here:                             /* what is behind the call */
        popw    %si
        call    print_string
        jmpw    *%si
print_string:
        lodsb
        testb   %al, %al
        jz      3f
        movb    $0x0E, %ah
        movw    $7, %bx
        int     $0x10
        jmp     print_string
3:      ret
print_word:                             /* AX in hexadecimal */
        movw    $4, %cx
4:      rolw    $4, %ax
        pushw   %ax
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     5f
        addb    $7, %al
5:      movb    $0x0E, %ah
        movw    $7, %bx
        int     $0x10
        popw    %ax
        loop    4b
        ret
        .endm
        .macro  enter_protected_mode    /* flat, 32 bits */
        lgdt    table
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $1f
        .code32
1:      movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7C00, %esp
        .endm
        .macro  enter_long_mode         /* flat, 64 bits; the first 2 MiB are themselves */
        movw    $0x1000, %di            /* three pages of tables */
        xorl    %eax, %eax
        movw    $0xC00, %cx
        cld
        rep stosl
        movw    $0x2003, 0x1000
        movw    $0x3003, 0x2000
        movw    $0x0083, 0x3000
        movl    $0x1000, %eax
        movl    %eax, %cr3
        movl    $0xA0, %eax             /* PAE, PGE */
        movl    %eax, %cr4
        movl    $0xC0000080, %ecx       /* EFER.LME */
        rdmsr
        orw     $0x100, %ax
        wrmsr
        lgdt    table
        movl    %cr0, %eax
        orl     $0x80000001, %eax
        movl    %eax, %cr0
        ljmpl   $8, $1f
        .code64
1:      movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x7C00, %esp
        .endm
        .macro  enter_unreal_mode       /* FS reaches 4 GiB */
        cli
        lgdt    table
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        jmp     8f
8:      movw    $16, %bx
        movw    %bx, %fs
        andb    $0xFE, %al
        movl    %eax, %cr0
        ljmpw   $0, $9f
9:
        .endm
        .macro  gdt_of  code            /* for all of them: code 8, data 16 */
gdt:    .quad   0, \\code, 0x00CF92000000FFFF
table:  .word   23
        .long   gdt
        .endm
        .macro  end_flat                /* as `end`, in 32 and 64 bits */
        movl    $0xB8000, %esi
        movl    $4000, %ecx
        movw    $0xE9, %dx
        rep outsb
        movb    $0, %al
        outb    %al, $0xF4
7:      hlt
        jmp     7b
        .endm
"""

SECTORS: Final = {
    "print": """
        print   "Hello, world!"
        end
        library
""",
    "lines": """
        print   "one\\r\\ntwo\\n\\r\\tthree\\b\\bX"
        end
        library
""",
    "long line": """
        movw    $100, %cx
1:      movw    $0x0E41, %ax
        movw    $7, %bx
        int     $0x10
        loop    1b
        end
""",
    "scrolling": """
        movw    $30, %cx
1:      pushw   %cx
        movw    %cx, %ax
        pushw   %ax
        popw    %ax
        call    print_word
        print   "\\r\\n"
        popw    %cx
        loop    1b
        end
        library
""",
    "colours": """
        movw    $0x0003, %ax
        int     $0x10
        movw    $0x0941, %ax
        movw    $0x001F, %bx
        movw    $16, %cx
        int     $0x10
        movw    $0x0200, %ax
        xorw    %bx, %bx
        movw    $0x0205, %dx
        int     $0x10
        movw    $0x0942, %ax
        movw    $0x00CE, %bx
        movw    $5, %cx
        int     $0x10
        end
""",
    "clear and place": """
        movw    $0x0600, %ax
        movb    $0x1E, %bh
        xorw    %cx, %cx
        movw    $0x184F, %dx
        int     $0x10
        movw    $0x0200, %ax
        xorw    %bx, %bx
        movw    $0x0C20, %dx
        int     $0x10
        print   "in the middle"
        end
        library
""",
    "a window scrolls down": """
        print   "first\\r\\nsecond\\r\\nthird\\r\\nfourth"
        movw    $0x0701, %ax
        movb    $0x70, %bh
        movw    $0x0102, %cx
        movw    $0x0308, %dx
        int     $0x10
        end
        library
""",
    "a string by one call": """
        movw    $0x1301, %ax
        movw    $0x002F, %bx
        movw    $9, %cx
        movw    $0x050A, %dx
        movw    $text, %bp
        int     $0x10
        movw    $0x0E21, %ax
        int     $0x10
        end
text:   .ascii  "a string\\n"
""",
    "straight to B800": """
        movw    $0xB800, %ax
        movw    %ax, %es
        movw    $160 * 3, %di
        movw    $text, %si
        movb    $0x4E, %ah
1:      lodsb
        testb   %al, %al
        jz      2f
        stosw
        jmp     1b
2:      end
text:   .asciz  "written to memory"
""",
    "another page": """
        movw    $0x0501, %ax
        int     $0x10
        movw    $0x0E50, %ax
        movw    $0x0107, %bx
        int     $0x10
        movw    $0x0F00, %ax
        int     $0x10
        movb    %bh, %al
        outb    %al, $0xE9
        movw    $0x0500, %ax
        int     $0x10
        print   "page 0 again"
        end
        library
""",
    "second stage": """
        movw    $0x0201, %ax
        movw    $0x8000, %bx
        movw    $0x0002, %cx
        movb    $0, %dh
        int     $0x13
        jc      1f
        ljmpw   $0, $0x8000
1:      print   "read error"
        end
        library
        .text   1                       /* behind the boot sector */
        movw    $4f - second + 0x8000, %si
second: jmp     2f
4:      .asciz  "the second stage runs"
2:      movw    $4b - second + 0x8000, %si
1:      lodsb
        testb   %al, %al
        jz      3f
        movb    $0x0E, %ah
        movw    $7, %bx
        int     $0x10
        jmp     1b
3:      end
""",
    "read by LBA": """
        movw    $packet, %si
        movb    $0x42, %ah
        int     $0x13
        jc      1f
        movw    $0x8000, %si
        call    print_string
        end
1:      print   "no extensions"
        end
        library
packet: .byte   16, 0
        .word   1, 0x8000, 0
        .quad   1
        .text   1                       /* behind the boot sector */
        .asciz  "from sector 1"
""",
    "reset and retry": """
        movw    $3, %di
1:      movw    $0x0201, %ax
        movw    $0x8000, %bx
        movw    $0xFFFF, %cx            /* no such sector */
        movb    $0xFF, %dh
        int     $0x13
        jnc     2f
        xorw    %ax, %ax
        int     $0x13
        print   "retry "
        decw    %di
        jnz     1b
        print   "given up"
2:      end
        library
""",
    "memory size": """
        int     $0x12
        call    print_word
        print   " KiB"
        end
        library
""",
    "A20": """
        movw    $0x2401, %ax
        int     $0x15
        movw    $0xFFFF, %ax
        movw    %ax, %es
        movb    $0x12, 0x500
        movb    $0x34, %es:0x510
        cmpb    $0x12, 0x500
        je      1f
        print   "A20 is closed"
        end
1:      print   "A20 is open"
        end
        library
""",
    "A20 by the keyboard controller": """
        .macro  ready
9:      inb     $0x64, %al
        testb   $2, %al
        jnz     9b
        .endm
        cli
        ready
        movb    $0xD1, %al
        outb    %al, $0x64
        ready
        movb    $0xDF, %al
        outb    %al, $0x60
        ready
        sti
        inb     $0x92, %al
        orb     $2, %al
        andb    $0xFE, %al
        outb    %al, $0x92
        movw    $0xFFFF, %ax
        movw    %ax, %es
        movw    $0xABCD, %es:0x7E0E     /* FFFF0 + 7E0E is 107DFE */
        cmpw    $0xAA55, 0x7DFE
        jne     1f
        print   "open"
1:      end
        library
""",
    "E820": """
        xorl    %ebx, %ebx
        movw    $0x8000, %di
1:      movl    $0xE820, %eax
        movl    $20, %ecx
        movl    $0x534D4150, %edx
        int     $0x15
        jc      2f
        cmpl    $0x534D4150, %eax
        jne     2f
        cmpl    $1, 16(%di)             /* RAM: its kind and its beginning */
        jne     3f
        pushl   %ebx
        movw    2(%di), %ax
        call    print_word
        movw    (%di), %ax
        call    print_word
        print   "\\r\\n"
        popl    %ebx
3:      testl   %ebx, %ebx
        jnz     1b
2:      end
        library
""",
    "mode 13h": """
        movw    $0x0013, %ax
        int     $0x10
        movw    $0xA000, %ax
        movw    %ax, %es
        xorw    %di, %di
        movw    $64000, %cx
1:      movw    %di, %ax
        stosb
        loop    1b
        movw    $0x0C2A, %ax
        movw    $10, %cx
        movw    $20, %dx
        int     $0x10
        movw    $0x0D00, %ax
        int     $0x10
        outb    %al, $0xE9
        movw    $0x1015, %ax            /* three colours of the palette */
        movw    $0x28, %bx
        int     $0x10
        call    tell
        movw    $0x1015, %ax
        movw    $0x51, %bx
        int     $0x10
        call    tell
        movw    $0x1010, %ax
        movw    $1, %bx
        movw    $0x3F00, %dx
        movw    $0x2010, %cx
        int     $0x10
        movw    $0x1015, %ax
        movw    $1, %bx
        int     $0x10
        call    tell
        movw    $0x0003, %ax
        int     $0x10
        print   "back in text"
        end
tell:   movb    %dh, %al
        outb    %al, $0xE9
        movb    %ch, %al
        outb    %al, $0xE9
        movb    %cl, %al
        outb    %al, $0xE9
        ret
        library
""",
    "timer interrupt": """
        cli
        movw    $tick, 4 * 0x1C
        movw    $0, 4 * 0x1C + 2
        sti
1:      hlt
        cmpw    $3, count
        jb      1b
        print   "three ticks"
        end
        library
tick:   incw    %cs:count
        iretw
count:  .word   0
""",
    "timer hooked at 8": """
        cli
        movl    4 * 8, %eax
        movl    %eax, old
        movw    $tick, 4 * 8
        movw    $0, 4 * 8 + 2
        movw    0x46C, %dx
        sti
1:      hlt
        cmpw    $2, count
        jb      1b
        cmpw    0x46C, %dx
        je      2f
        print   "the BIOS counts too"
2:      end
        library
tick:   incw    %cs:count
        ljmpw   *%cs:old
count:  .word   0
old:    .long   0
""",
    "the PIT by hand": """
        cli
        movw    $tick, 4 * 8
        movw    $0, 4 * 8 + 2
        movb    $0x36, %al
        outb    %al, $0x43
        movw    $11931, %ax             /* 100 a second */
        outb    %al, $0x40
        movb    %ah, %al
        outb    %al, $0x40
        sti
1:      hlt
        cmpw    $10, count
        jb      1b
        print   "a tenth of a second"
        end
        library
tick:   pushw   %ax
        incw    %cs:count
        movb    $0x20, %al
        outb    %al, $0x20
        popw    %ax
        iretw
count:  .word   0
""",
    "serial port": """
        movw    $0x00E3, %ax
        xorw    %dx, %dx
        int     $0x14
        call    print_word
        movw    $0x0141, %ax
        xorw    %dx, %dx
        int     $0x14
        call    print_word
        movw    $0x0300, %ax
        xorw    %dx, %dx
        int     $0x14
        call    print_word
        end
        library
""",
    "the clock's alarm": """
        movw    $alarm, 4 * 0x4A
        movw    $0, 4 * 0x4A + 2
        movw    $0xFFFF, %cx            /* at each second of any minute and hour */
        movb    $0xFF, %dh
        movb    $6, %ah
        int     $0x1A
        jc      3f
2:      hlt
        cmpb    $0, rung
        je      2b
        print   "it rings"
3:      end
        library
alarm:  movb    $1, %cs:rung
        iretw
rung:   .byte   0
""",
    "wait": """
        movb    $0, %ah
        int     $0x1A
        movw    %dx, %di
1:      movb    $0, %ah
        int     $0x1A
        subw    %di, %dx
        cmpw    $2, %dx
        jb      1b
        movw    $0x8600, %ax
        xorw    %cx, %cx
        movw    $5000, %dx
        int     $0x15
        print   "waited"
        end
        library
""",
    "unreal mode": """
        enter_unreal_mode
        movl    $0x01000000, %edi
        movl    $0xCAFE1234, %fs:(%edi)
        movl    %fs:(%edi), %eax
        call    print_word
        end
        library
        .balign 8
        gdt_of  0x00CF9A000000FFFF
""",
    "protected mode": """
        cli
        enter_protected_mode
        movl    $0xB8000, %edi
        movl    $text, %esi
        movb    $0x2F, %ah
2:      lodsb
        testb   %al, %al
        jz      3f
        stosw
        jmp     2b
3:      end_flat
        .code16
text:   .asciz  "32 bits"
        .balign 8
        gdt_of  0x00CF9A000000FFFF
""",
    "long mode": """
        cli
        enter_long_mode
        movl    $0xB8000, %edi
        movabsq $0x2F362F202F342F36, %rax
        movq    %rax, (%rdi)
        end_flat
        .code16
        .balign 8
        gdt_of  0x00AF9A000000FFFF
""",
    "protected mode and back": """
        cli
        lgdt    table
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpw   $24, $1f
1:      movl    %cr0, %eax
        andb    $0xFE, %al
        movl    %eax, %cr0
        ljmpw   $0, $2f
2:      xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        sti
        print   "and the BIOS still serves"
        end
        library
        .balign 8
gdt:    .quad   0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0x00009A000000FFFF
table:  .word   31
        .long   gdt
""",
    "what the data area has": """
        movw    0x413, %ax
        call    print_word
        movw    0x449, %ax
        call    print_word
        movw    0x463, %ax
        call    print_word
        movw    0x44A, %ax
        call    print_word
        movw    0x480, %ax
        call    print_word
        movw    0x484, %ax
        call    print_word
        movw    0x400, %ax
        call    print_word
        end
        library
""",
    "a stack of its own": """
        movw    $0x9000, %ax
        movw    %ax, %ss
        movl    $0x12340040, %esp       /* 64 bytes, and what the upper half holds is nobody's business */
        print   "little room"
        movl    %esp, %eax
        shrl    $16, %eax
        call    print_word
        end
        library
""",
    "registers stay": """
        movl    $0x11112222, %ecx
        movl    $0x33334444, %edx
        movl    $0x55556666, %esi
        movl    $0x77778888, %edi
        movl    $0x9999AAAA, %ebp
        movw    $0x1234, %ax
        movw    %ax, %es
        movw    %ax, %fs
        std
        movw    $0x0E3A, %ax
        movw    $7, %bx
        int     $0x10
        pushfw
        cld
        popw    %ax
        andw    $0x400, %ax             /* DF as it was */
        addw    %cx, %ax
        addw    %dx, %ax
        addw    %si, %ax
        addw    %di, %ax
        addw    %bp, %ax
        movw    %es, %bx
        addw    %bx, %ax
        movw    %fs, %bx
        addw    %bx, %ax
        call    print_word
        end
        library
""",
}
"""By what they show."""

KEYS: Final = {
    "a key": (
        ("a",),
        """
        movb    $'K', %al
        outb    %al, $0xE9
        movb    $0, %ah
        int     $0x16
        call    print_word
        end
        library
""",
    ),
    "polled": (
        ("f1",),
        """
        movb    $'K', %al
        outb    %al, $0xE9
1:      movb    $1, %ah
        int     $0x16
        jz      1b
        movb    $0, %ah
        int     $0x16
        call    print_word
        end
        library
""",
    ),
    "shifted, arrow, enter": (
        ("shift-b", "left", "ret", "ctrl-c", "alt-x"),
        """
        movb    $'K', %al
        outb    %al, $0xE9
        movw    $5, %di
1:      movb    $0x10, %ah
        int     $0x16
        call    print_word
        decw    %di
        jnz     1b
        end
        library
""",
    ),
    "Pause is neither Ctrl nor Num Lock": (
        ("pause", "a"),
        """
        movb    $'K', %al
        outb    %al, $0xE9
        movb    $0x10, %ah
        int     $0x16
        call    print_word
        movb    $0x12, %ah
        int     $0x16
        call    print_word
        end
        library
""",
    ),
    "a hook for keys": (
        ("a", "b"),
        """
        cli
        movw    $hook, 4 * 0x15
        movl    4 * 0x15, %eax
        movw    $0, 4 * 0x15 + 2
        sti
        movb    $'K', %al
        outb    %al, $0xE9
        movb    $0, %ah
        int     $0x16
        call    print_word
        movb    $1, %ah
        int     $0x16
        end
        library
hook:   cmpb    $0x4F, %ah
        jne     1f
        cmpb    $0x1E, %al              /* a is taken, b is a c */
        je      2f
        cmpb    $0x30, %al
        jne     1f
        movb    $0x2E, %al
1:      pushw   %bp
        movw    %sp, %bp
        orb     $1, 6(%bp)
        popw    %bp
        iretw
2:      pushw   %bp
        movw    %sp, %bp
        andb    $0xFE, 6(%bp)
        popw    %bp
        iretw
""",
    ),
    "keyboard interrupt": (
        ("q",),
        """
        cli
        movw    $key, 4 * 9
        movw    $0, 4 * 9 + 2
        movb    $'K', %al
        outb    %al, $0xE9
        sti
1:      hlt
        cmpb    $0x90, code             /* let go */
        jne     1b
        print   "pressed and let go"
        end
        library
key:    pushw   %ax
        inb     $0x60, %al
        movb    %al, %cs:code
        movb    $0x20, %al
        outb    %al, $0x20
        popw    %ax
        iretw
code:   .byte   0
""",
    ),
}
"""Those that want keys, as QEMU's sendkey has them, when they have said K."""

_PIC: Final = """
        .macro  remap                   /* IRQ 0-7 to vectors 20-27, and IRQ 0 alone is let through */
        movb    $0x11, %al
        outb    %al, $0x20
        movb    $0x20, %al
        outb    %al, $0x21
        movb    $4, %al
        outb    %al, $0x21
        movb    $1, %al
        outb    %al, $0x21
        movb    $0xFE, %al
        outb    %al, $0x21
        .endm
"""

INTERRUPTS: Final = {
    "the timer in protected mode": _PIC
    + """
        cli
        remap
        enter_protected_mode
        movw    $tick, idt + 0x20 * 8
        movw    $8, idt + 0x20 * 8 + 2
        movw    $0x8E00, idt + 0x20 * 8 + 4
        lidt    idt_table
        sti
2:      hlt
        cmpl    $3, count
        jb      2b
        movl    $0x2F332F33, 0xB8000
        end_flat
tick:   pushl   %eax
        incl    count
        movb    $0x20, %al
        outb    %al, $0x20
        popl    %eax
        iretl
        .code16
        .balign 8
count:  .long   0
        gdt_of  0x00CF9A000000FFFF
idt_table:
        .word   0x21 * 8 - 1
        .long   idt
        .set    idt, 0x8000
""",
    "the timer in long mode": _PIC
    + """
        cli
        remap
        enter_long_mode
        movw    $tick, 0x8000 + 0x20 * 16
        movw    $8, 0x8000 + 0x20 * 16 + 2
        movw    $0x8E00, 0x8000 + 0x20 * 16 + 4
        lidt    idt_table(%rip)
        sti
2:      hlt
        cmpl    $3, count(%rip)
        jb      2b
        movl    $0x2F332F36, 0xB8000
        end_flat
tick:   pushq   %rax
        incl    count(%rip)
        movb    $0x20, %al
        outb    %al, $0x20
        popq    %rax
        iretq
        .code16
        .balign 8
count:  .long   0
        gdt_of  0x00AF9A000000FFFF
idt_table:
        .word   0x21 * 16 - 1
        .quad   0x8000
""",
}
"""Those that want of KVM what software-backed ones lack: interrupts in protected and in long mode."""
