"""ACCES PCI-IDIO-16: 16 outputs, 16 inputs and an interrupt when an input changes; here a cable joins out n to in n.

    pyvmm run --device docs/examples/idio16.py:Idio16 ...     Linux: modprobe gpio-pci-idio-16, gpioset, gpiomon

BAR 2, 8 ports: 0 outputs 0-7, 1 inputs 0-7 (a write clears the interrupt), 2 a read enables the interrupt and a write
disables it, 3 input filters, 4 outputs 8-15, 5 inputs 8-15, 6 status: bit 2 interrupt, bits 1:0 which half changed.
Source: Linux drivers/gpio/gpio-pci-idio-16.c.
"""

from pyvmm.pci.device import PciDevice


class Idio16(PciDevice):
    vendor_id, device_id, class_code, interrupt_pin = 0x494F, 0x0DC8, 0x118000, 1
    STATE = ("lines", "enabled", "changed")  # what a snapshot keeps

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.enabled, self.changed = [0, 0], False, 0
        self.add_io_bar(2, 8, self)

    def reset(self) -> None:
        self.lines, self.enabled, self.changed = [0, 0], False, 0

    def read(self, offset: int, size: int) -> int:
        if offset == 2:
            self.enabled = True
        return {0: self.lines[0], 1: self.lines[0], 4: self.lines[1], 5: self.lines[1], 6: self.status}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset in (0, 4):
            half = offset // 4
            if self.enabled and self.lines[half] != value & 0xFF:
                self.changed |= 1 << half
            self.lines[half] = value & 0xFF
        elif offset == 1:
            self.changed = 0
        elif offset == 2:
            self.enabled = False
        self.interrupt.set_level(self.changed != 0)

    @property
    def status(self) -> int:
        return self.changed | 4 if self.changed else 0
