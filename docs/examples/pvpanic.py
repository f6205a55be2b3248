"""pvpanic-pci: the guest's kernel tells that it has panicked, through one register.

    pyvmm run --device docs/examples/pvpanic.py:PvPanic,events=1 --trace PvPanic ... Linux: modprobe pvpanic-pci

BAR 0, memory, 16 bytes: offset 0 reads the events that are understood, a write tells of them. The trace shows them, a
subclass hears of them by panicked(). It prints nothing itself: while a device waits for a reader, the machine waits.
Source: QEMU's docs/specs/pvpanic.txt; Linux drivers/misc/pvpanic.
"""

from pyvmm.pci.device import PciDevice

PVPANIC_PANICKED = 1
PVPANIC_CRASH_LOADED = 2


class PvPanic(PciDevice):
    vendor_id, device_id, class_code, revision_id = 0x1B36, 0x0011, 0x088000, 1
    STATE = ()  # a snapshot has nothing to keep of it

    def __init__(self, events: int = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED) -> None:
        super().__init__()
        self.events = events
        self.add_memory_bar(0, 16, self)

    def read(self, offset: int, size: int) -> int:
        return self.events if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and value & self.events:
            self.panicked(value & self.events)

    def panicked(self, event: int) -> None:
        """The guest has written *event*, PVPANIC_* bits; override it to do something about that."""
        if self.trace.enabled:
            what = "has panicked" if event & PVPANIC_PANICKED else "has panicked and starts its crash kernel"
            self.trace(f"{self.name}: the guest {what}")
