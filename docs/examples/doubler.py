"""A PCI device that doubles a number and says by an interrupt that it has.

BAR 0, memory, 16 bytes; registers of 4 bytes:
    0  IDENTIFICATION  reads as 0xD0B1
    4  NUMBER          takes a number, reads as its double
    8  DONE            reads 1 when there is a new double; a write clears it
    C  ENABLE          bit 0: the interrupt is up while DONE is 1
"""

from pyvmm import PciDevice

IDENTIFICATION, NUMBER, DONE, ENABLE = 0x0, 0x4, 0x8, 0xC


class Doubler(PciDevice):
    vendor_id, device_id = 0x1234, 0xD0B1  # by these a driver finds it; 0x1234 is no maker's
    interrupt_pin = 1  # INTA
    STATE = ("number", "done", "enabled")  # what a snapshot keeps: leave nothing out that a guest can see

    def __init__(self) -> None:
        super().__init__()
        self.add_memory_bar(0, 16, self)  # where the guest puts BAR 0, read() and write() answer
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self.number, self.done, self.enabled = 0, False, False

    def read(self, offset: int, size: int) -> int:
        """Any offset and size may come, and nothing may raise: the guest is not to be trusted."""
        registers = {IDENTIFICATION: 0xD0B1, NUMBER: self.number, DONE: self.done, ENABLE: self.enabled}
        return int(registers.get(offset, 0))

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == NUMBER:
            self.number, self.done = 2 * value & 0xFFFFFFFF, True
        elif offset == DONE:
            self.done = False
        elif offset == ENABLE:
            self.enabled = bool(value & 1)
        self.interrupt.set_level(self.done and self.enabled)
