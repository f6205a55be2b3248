/* The devices that programs for testing KVM expect, used as kvm-unit-tests' library uses them: fw_cfg, pc-testdev and
   pci-testdev (run it with --device testdev --device pci-testdev). Ends with the number of the step that went wrong, 0 if
   none did. */
#include "long.h"

        LONG_START
        VALUE   cpus                    /* results: what fw_cfg says */
        VALUE   ram_size
        VALUE   interrupts              /* how often IRQ 14 came */
        VALUE   counted                 /* writes that pci-testdev saw, the least of its tests with an eventfd */
        VALUE   flushed                 /* the page that was flushed */
        VALUE   step                    /* and how far it got */
        LONG_BEGIN
        movl    $__bss_start, %edi
        movl    $__bss_end, %ecx
        subl    %edi, %ecx
        xorl    %eax, %eax
        rep stosb

        IDT_INIT unexpected
        SET_GATE PIC2_BASE + 6, irq14
        call    guest_main
        EXIT_AL

irq14:  pushq   %rax
        pushq   %rdx
        incq    interrupts(%rip)
        OUT8_DX 0x2000 + 14, 0          /* the line goes down */
        OUT8    PIC2_CMD, PIC_EOI
        OUT8    PIC1_CMD, PIC_EOI
        popq    %rdx
        popq    %rax
        iretq
unexpected:
        EXIT    255

        IDT_ROUTINES
