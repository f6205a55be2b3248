"""Small things to test with."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyvmm.pci.device import PciDevice


@dataclass
class Registers:
    """A device that remembers: what was written reads back."""

    data: dict[int, int] = field(default_factory=dict)

    def read(self, offset: int, size: int) -> int:
        return self.data.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.data[offset] = value


class Toy(PciDevice):
    """A function with one BAR of each kind."""

    vendor_id = 0x1234
    device_id = 0x11E8
    class_code = 0x00FF00
    revision_id = 0x10
    subsystem_vendor_id = 0x1AF4
    subsystem_id = 0x1100
    interrupt_pin = 1

    def __init__(self) -> None:
        super().__init__()
        self.mem32, self.mem64, self.io = Registers(), Registers(), Registers()
        self.bar0 = self.add_memory_bar(0, 0x1000, self.mem32)
        self.bar2 = self.add_memory_bar(2, 0x10000, self.mem64, bits64=True, prefetchable=True)
        self.bar4 = self.add_io_bar(4, 32, self.io)
