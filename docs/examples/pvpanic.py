"""pvpanic-pci: the guest's kernel tells that it has panicked, through one register.

    pyvmm run --device docs/examples/pvpanic.py:PvPanic ...     Linux: modprobe pvpanic-pci

BAR 0, memory, 16 bytes: offset 0 reads the events that are understood, a write tells of them.
Source: QEMU's docs/specs/pvpanic.txt; Linux drivers/misc/pvpanic.
"""

from pyvmm.pci.device import PciDevice

PVPANIC_PANICKED = 1
PVPANIC_CRASH_LOADED = 2


class PvPanic(PciDevice):
    vendor_id, device_id, class_code, revision_id = 0x1B36, 0x0011, 0x088000, 1

    def __init__(self, log: str = "/dev/stderr") -> None:
        super().__init__()
        self.log = log
        self.add_memory_bar(0, 16, self)

    def read(self, offset: int, size: int) -> int:
        return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and value & (PVPANIC_PANICKED | PVPANIC_CRASH_LOADED):
            what = "has panicked" if value & PVPANIC_PANICKED else "has panicked and starts its crash kernel"
            with open(self.log, "a") as log:
                log.write(f"pvpanic: the guest {what}\n")
