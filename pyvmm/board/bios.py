"""What a BIOS would leave of this board for whatever is started on it: areas in low memory, the state of PIC and PIT.

Multiboot 0.6.96, 3.2, wants that state ("as initialized by the BIOS"), and boot sectors and small kernels count on it.
PIC: vectors 08 and 70, and only the interrupts of BIOS_IRQS let through. PIT: channel 0 in mode 2 from 65,536, which is
18.2 times a second. SeaBIOS 1.16 under QEMU leaves the same, and lets IRQ 6 and 14 through for the disks it has.
"""

from __future__ import annotations

from typing import Final

from pyvmm.board import layout
from pyvmm.boot.bda import write_bda
from pyvmm.boot.no_bios import IRQ_VECTORS, write_bios
from pyvmm.memory import GuestMemory

IRQ_FPU: Final = 13
BIOS_IRQS: Final = (
    layout.IRQ_TIMER,
    layout.IRQ_KEYBOARD,
    layout.IRQ_CASCADE,
    layout.IRQ_RTC,
    layout.IRQ_MOUSE,
    IRQ_FPU,
)
PIC_BASES: Final = IRQ_VECTORS
PIC_MASKS: Final = tuple(
    0xFF & ~sum(1 << irq - first for irq in BIOS_IRQS if first <= irq < first + 8) for first in (0, 8)
)
"""OCW1 of both PICs: a set bit holds the interrupt back."""
PIT_COUNT: Final = 0x10000
PIT_MODE: Final = 2


def write_bios_areas(memory: GuestMemory) -> None:
    """Interrupt vectors with what they lead to, BIOS data area and EBDA: before the payload, which may lie there."""
    write_bios(memory)
    write_bda(memory, (layout.COM1,), pointing_device=True)
