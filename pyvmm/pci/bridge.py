"""A PCI-to-PCI bridge: a type 1 function with a bus behind it.

Configuration accesses, I/O and memory for what sits behind it pass as the guest programs the bridge: bus numbers at
0x18–0x1A, windows at 0x1C–0x33, COMMAND's decode and bus-master bits. Bridge control bit 6 resets the secondary bus.
PCI-to-PCI Bridge Architecture Specification 1.2, chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Final

from pyvmm.irq import Irq
from pyvmm.pci.bar import Bar, Claim, Span
from pyvmm.pci.bus import PciBus
from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import (
    PCI_BRIDGE_CONTROL,
    PCI_BRIDGE_CTL_BUS_RESET,
    PCI_BRIDGE_CTL_PARITY,
    PCI_BRIDGE_CTL_SERR,
    PCI_CLASS_BRIDGE_PCI,
    PCI_COMMAND,
    PCI_COMMAND_IO,
    PCI_COMMAND_MEMORY,
    PCI_HEADER_TYPE_BRIDGE,
    PCI_IO_BASE,
    PCI_IO_BASE_UPPER16,
    PCI_IO_LIMIT,
    PCI_IO_LIMIT_UPPER16,
    PCI_IO_RANGE_TYPE_32,
    PCI_MEMORY_BASE,
    PCI_MEMORY_LIMIT,
    PCI_PREF_BASE_UPPER32,
    PCI_PREF_LIMIT_UPPER32,
    PCI_PREF_MEMORY_BASE,
    PCI_PREF_MEMORY_LIMIT,
    PCI_PREF_RANGE_TYPE_64,
    PCI_PRIMARY_BUS,
    PCI_SEC_STATUS,
    PCI_SECONDARY_BUS,
    PCI_STATUS_ERRORS,
    PCI_SUBORDINATE_BUS,
)
from pyvmm.pci.slot import Slot

_WINDOWS_END: Final = PCI_IO_LIMIT_UPPER16 + 2


class PciBridge(PciDevice):
    """A PCI-to-PCI bridge; `child` is the bus behind it, once it is plugged in itself."""

    header_type = PCI_HEADER_TYPE_BRIDGE
    class_code = PCI_CLASS_BRIDGE_PCI
    child: PciBus
    STATE: ClassVar[tuple[str, ...]] = ()
    reserved_buses = 0
    """Bus numbers that firmware keeps for bridges that are plugged in later, beyond those behind it at the start."""
    reserved_memory = 0
    """Bytes of its memory window that firmware keeps for what is plugged in later; a multiple of 1 MiB."""
    reserved_io = 0
    """Of its I/O window, where there is room; a multiple of 4 KiB."""

    def __init__(self) -> None:
        super().__init__()
        config = self.config
        config.writable[PCI_COMMAND] |= PCI_COMMAND_IO | PCI_COMMAND_MEMORY
        for register in (PCI_PRIMARY_BUS, PCI_SECONDARY_BUS, PCI_SUBORDINATE_BUS):
            config.define(register, 1, 0, 0xFF)
        # Base above limit: every window starts closed.
        config.define(PCI_IO_BASE, 1, 0xF0 | PCI_IO_RANGE_TYPE_32, 0xF0)
        config.define(PCI_IO_LIMIT, 1, PCI_IO_RANGE_TYPE_32, 0xF0)
        config.define(PCI_SEC_STATUS, 2, 0, w1c=PCI_STATUS_ERRORS)
        config.define(PCI_MEMORY_BASE, 2, 0xFFF0, 0xFFF0)
        config.define(PCI_MEMORY_LIMIT, 2, 0, 0xFFF0)
        config.define(PCI_PREF_MEMORY_BASE, 2, 0xFFF0 | PCI_PREF_RANGE_TYPE_64, 0xFFF0)
        config.define(PCI_PREF_MEMORY_LIMIT, 2, PCI_PREF_RANGE_TYPE_64, 0xFFF0)
        config.define(PCI_PREF_BASE_UPPER32, 4, 0, 0xFFFFFFFF)
        config.define(PCI_PREF_LIMIT_UPPER32, 4, 0, 0xFFFFFFFF)
        config.define(PCI_IO_BASE_UPPER16, 2, 0, 0xFFFF)
        config.define(PCI_IO_LIMIT_UPPER16, 2, 0, 0xFFFF)
        control = PCI_BRIDGE_CTL_PARITY | PCI_BRIDGE_CTL_SERR | PCI_BRIDGE_CTL_BUS_RESET
        config.define(PCI_BRIDGE_CONTROL, 2, 0, control)

    def connect(self, slot: Slot) -> None:
        self.child = PciBus(SecondarySide(self, slot), link=True, changed=self.child_changed)
        super().connect(slot)

    def disconnect(self) -> None:
        for device in list(self.child.functions.values()):
            self.child.remove(device)
        super().disconnect()

    def child_changed(self) -> None:
        """Something was plugged in or out behind the bridge."""

    @property
    def _bars_end(self) -> int:
        # A type 1 header has its windows where a type 0 header has BARs 2 to 5.
        return _WINDOWS_END

    @property
    def secondary(self) -> int:
        """Number of the bus behind; 0 until the guest has numbered it."""
        return self.config.get(PCI_SECONDARY_BUS, 1)

    @property
    def subordinate(self) -> int:
        """Highest bus number behind."""
        return self.config.get(PCI_SUBORDINATE_BUS, 1)

    def window(self, io: bool, start: int, end: int) -> list[Span]:
        """The parts of [start, end) that the bridge passes on to its secondary bus."""
        get = self.config.get
        if io:
            if not self.command & PCI_COMMAND_IO:
                return []
            base = (get(PCI_IO_BASE, 1) & 0xF0) << 8 | get(PCI_IO_BASE_UPPER16, 2) << 16
            limit = (get(PCI_IO_LIMIT, 1) & 0xF0) << 8 | get(PCI_IO_LIMIT_UPPER16, 2) << 16 | 0xFFF
            windows = [(base, limit)]
        else:
            if not self.command & PCI_COMMAND_MEMORY:
                return []
            base = (get(PCI_MEMORY_BASE, 2) & 0xFFF0) << 16
            limit = (get(PCI_MEMORY_LIMIT, 2) & 0xFFF0) << 16 | 0xFFFFF
            pref_base = (get(PCI_PREF_MEMORY_BASE, 2) & 0xFFF0) << 16 | get(PCI_PREF_BASE_UPPER32, 4) << 32
            pref_limit = (get(PCI_PREF_MEMORY_LIMIT, 2) & 0xFFF0) << 16 | get(PCI_PREF_LIMIT_UPPER32, 4) << 32 | 0xFFFFF
            windows = [(base, limit), (pref_base, pref_limit)]
        clipped = [(max(start, low), min(end, high + 1)) for low, high in windows]
        return [(low, high) for low, high in clipped if low < high]

    def config_write(self, offset: int, size: int, value: int) -> None:
        was_reset = self.config.get(PCI_BRIDGE_CONTROL, 2) & PCI_BRIDGE_CTL_BUS_RESET
        super().config_write(offset, size, value)
        if not was_reset and self.config.get(PCI_BRIDGE_CONTROL, 2) & PCI_BRIDGE_CTL_BUS_RESET:
            self._reset_secondary()

    def reset(self) -> None:
        self._reset_secondary()

    def _reset_secondary(self) -> None:
        for device in list(self.child.functions.values()):
            device.reset_function()

    def place_bars(self) -> bool:
        behind = [device.place_bars() for device in list(self.child.functions.values())]
        return super().place_bars() or any(behind)

    def bus_master_changed(self, enabled: bool) -> None:
        for device in list(self.child.functions.values()):
            device.update_bus_master()


class SecondarySide:
    """The Slot that the bus behind *bridge* hangs on: that of the bridge, as far as the bridge lets things through."""

    powered = True

    def __init__(self, bridge: PciBridge, slot: Slot) -> None:
        self.name = slot.name
        self.memory = slot.memory
        self.clock = slot.clock
        self.trace = slot.trace
        self.msi = slot.msi
        self._bridge = bridge
        self._slot = slot

    @property
    def bus_master(self) -> bool:
        return self._bridge.bus_master

    def claim(self, bar: Bar) -> Claim:
        return BridgedClaim(self._bridge, bar.io, self._slot.claim(bar))

    def apply(self) -> None:
        self._slot.apply()

    def intx(self, pin: int) -> Irq:
        return self._slot.intx(pin)

    def interrupt_line(self, pin: int) -> int:
        return self._slot.interrupt_line(pin)

    def defer(self, call: Callable[[], None]) -> None:
        self._slot.defer(call)


class BridgedClaim:
    """A claim from behind *bridge*, as far as its windows reach."""

    def __init__(self, bridge: PciBridge, io: bool, claim: Claim) -> None:
        self._bridge = bridge
        self._io = io
        self._claim = claim

    def place(self, base: int, spans: Iterable[Span]) -> bool:
        return self._claim.place(base, [part for span in spans for part in self._bridge.window(self._io, *span)])

    def release(self) -> None:
        self._claim.release()


def bridges(bus: PciBus) -> list[PciBridge]:
    """The bridges on *bus*, by their place."""
    return [function for _, function in sorted(bus.functions.items()) if isinstance(function, PciBridge)]
