"""QEMU's educational device: factorials, interrupts, DMA. Source: QEMU docs/specs/edu.rst. A factorial takes 10 us.

Registers in BAR 0, 4 bytes wide, from 0x80 on 4 or 8: 00 identification, 04 complement of what was written, 08 a number
that becomes its factorial, 20 status (01 computing, 80 interrupt when done), 24 interrupt status, 60 raise, 64 clear,
80 DMA source, 88 destination, 90 count, 98 command. DMA reaches 28 bits of RAM, and 4096 bytes at 40000 in the device.
"""

from contextlib import suppress
from math import factorial

from pyvmm.clock import Clock
from pyvmm.memory import GuestMemoryError
from pyvmm.pci.device import PciDevice

COMPUTING, IRQ_WHEN_COMPUTED, COMPUTED = 0x01, 0x80, 0x001  # the last is interrupt status
START, FROM_DEVICE, IRQ_WHEN_MOVED, MOVED = 0x01, 0x02, 0x04, 0x100
WINDOW, SIZE, REACH = 0x40000, 4096, (1 << 28) - 1


class Edu(PciDevice):
    vendor_id, device_id, revision_id, interrupt_pin = 0x1234, 0x11E8, 0x10, 1
    STATE = ("regs", "irqs", "memory", "computed", "moved")

    def __init__(self, clock: Clock, dma_ms: int = 100) -> None:
        super().__init__()
        self.clock, self.dma_ns, self.memory = clock, dma_ms * 1_000_000, bytearray(SIZE)
        self.computed, self.moved = clock.timer(self.compute), clock.timer(self.move)
        self.reset()
        self.add_msi()
        self.add_memory_bar(0, 1 << 20, self)

    def reset(self) -> None:
        self.regs, self.irqs = dict.fromkeys((0x04, 0x08, 0x20, 0x80, 0x88, 0x90, 0x98), 0), 0
        self.computed.cancel()
        self.moved.cancel()

    def read(self, offset: int, size: int) -> int:
        registers = {**self.regs, 0x00: 0x010000ED, 0x04: ~self.regs[0x04], 0x24: self.irqs}
        return registers.get(offset, -1) if size == 4 or (size == 8 and offset >= 0x80) else -1

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4 and (size != 8 or offset < 0x80):
            return
        if offset == 0x20:
            self.regs[0x20] = self.regs[0x20] & COMPUTING | value & IRQ_WHEN_COMPUTED
        elif offset == 0x60:
            self.raise_irq(value)
        elif offset == 0x64:
            self.irqs &= ~value
            self.set_intx(self.irqs != 0)
        elif offset == 0x04 or (offset in (0x80, 0x88, 0x90, 0x98) and not self.regs[0x98] & START):
            self.regs[offset] = value
            if offset == 0x98 and value & START:
                self.moved.arm(self.clock.now() + self.dma_ns)
        elif offset == 0x08 and not self.regs[0x20] & COMPUTING:
            self.regs[0x08], self.regs[0x20] = value, self.regs[0x20] | COMPUTING
            self.computed.arm(self.clock.now() + 10_000)

    def compute(self) -> None:
        self.regs[0x08] = factorial(min(self.regs[0x08], 34)) & 0xFFFFFFFF  # from 34 on it ends in 32 zero bits
        self.regs[0x20] &= ~COMPUTING
        if self.regs[0x20] & IRQ_WHEN_COMPUTED:
            self.raise_irq(COMPUTED)

    def move(self) -> None:
        source, destination, count, command = (self.regs[offset] for offset in (0x80, 0x88, 0x90, 0x98))
        self.regs[0x98] &= ~START
        start = (source if command & FROM_DEVICE else destination) - WINDOW
        with suppress(GuestMemoryError):  # no RAM there: nobody answers
            if 0 <= start <= start + count <= SIZE and command & FROM_DEVICE:
                self.dma.write(destination & REACH, self.memory[start : start + count])
            elif 0 <= start <= start + count <= SIZE:
                self.memory[start : start + count] = self.dma.read(source & REACH, count)
        if command & IRQ_WHEN_MOVED:
            self.raise_irq(MOVED)

    def raise_irq(self, bits: int) -> None:
        self.irqs |= bits
        if self.irqs and not self.send_message(0):
            self.set_intx(True)
