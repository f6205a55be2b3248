"""One PCI bus: the functions on it, and what each finds in its slot there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pyvmm.irq import Irq, swizzle
from pyvmm.pci.bar import Bar, Claim
from pyvmm.pci.device import PciDevice
from pyvmm.pci.express import add_express
from pyvmm.pci.regs import (
    PCI_CAP_ID_EXP,
    PCI_EXP_TYPE_ENDPOINT,
    PCI_HEADER_TYPE,
    PCI_HEADER_TYPE_MULTI_FUNCTION,
    PCI_HEADER_TYPE_NORMAL,
    PCI_NO_FUNCTION,
    pci_devfn,
)
from pyvmm.pci.slot import Slot
from pyvmm.trace import Channel


class PciBus:
    """Up to 32 devices of up to 8 functions, or the one at the end of a PCI Express *link*.

    *above* is what the bus hangs on: all that a function gets comes from there. *changed* is called when a function
    comes or goes.
    """

    def __init__(self, above: Slot, *, link: bool = False, changed: Callable[[], None] = lambda: None) -> None:
        self.above = above
        self.functions: dict[int, PciDevice] = {}
        self.powered: Callable[[int], bool] = lambda slot: True
        """Whether a slot has what is in it in D0, else in D3hot; who changes that calls slot_power_changed()."""
        self._link = link
        self._changed = changed

    def add(self, device: PciDevice, slot: int, function: int = 0, trace: Channel | None = None) -> None:
        """Plug *device* in as slot.function, with *trace* for its own channel, else that of what the bus hangs on;
        ValueError if that is taken or there is no such place."""
        if device.vendor_id == PCI_NO_FUNCTION:
            raise ValueError(f"{type(device).__name__} has no vendor_id: no guest would see it")
        devfn = pci_devfn(slot, function)
        if not (0 <= slot < 32 and 0 <= function < 8):
            raise ValueError(f"no PCI place {slot:02x}.{function}: slots are 00 to 1f, functions 0 to 7")
        if self._link and slot != 0:
            raise ValueError("behind a PCI Express port there is only slot 00")
        if devfn in self.functions:
            raise ValueError(f"PCI place {slot:02x}.{function} is taken by {type(self.functions[devfn]).__name__}")
        self.complete(device)
        self._put(devfn, device, trace or self.above.trace)

    def complete(self, device: PciDevice) -> None:
        """What a function has only because it is on this bus: behind a port it is a PCI Express endpoint."""
        endpoint = self._link and device.header_type == PCI_HEADER_TYPE_NORMAL
        if endpoint and not device.config.find_capability(PCI_CAP_ID_EXP):
            add_express(device.config, PCI_EXP_TYPE_ENDPOINT)

    def _put(self, devfn: int, device: PciDevice, trace: Channel) -> None:
        self.functions[devfn] = device
        device.connect(BusSlot(self, devfn >> 3, devfn & 7, trace))
        self._mark_multi_function(devfn >> 3)
        self._changed()

    def remove(self, device: PciDevice) -> None:
        """Unplug *device*."""
        devfn = next(devfn for devfn, other in self.functions.items() if other is device)
        del self.functions[devfn]
        try:
            device.disconnect()
        finally:  # its reset() may be the user's own
            self._mark_multi_function(devfn >> 3)
            self._changed()

    def exchange(self, old: PciDevice, new: PciDevice) -> None:
        """Plug *new* in where *old* was, which is unplugged; that its reset() raises may be why, and is no matter."""
        devfn = next(devfn for devfn, other in self.functions.items() if other is old)
        trace = self.above.trace if old.slot is None else old.slot.trace
        with suppress(Exception):
            old.disconnect()
        self._put(devfn, new, trace)

    def free_slot(self) -> int:
        """The lowest slot with no function; ValueError if the bus is full."""
        for slot in range(1 if self._link else 32):
            if not any(devfn >> 3 == slot for devfn in self.functions):
                return slot
        raise ValueError("no free PCI slot")

    def _mark_multi_function(self, slot: int) -> None:
        # Software looks at functions 1 to 7 only where function 0 has this bit (PCI 3.0, section 3.2.2.3.4).
        first = self.functions.get(pci_devfn(slot, 0))
        if first is not None:
            others = any(devfn >> 3 == slot and devfn & 7 for devfn in self.functions)
            header = first.config.get(PCI_HEADER_TYPE, 1) & ~PCI_HEADER_TYPE_MULTI_FUNCTION
            first.config.set(PCI_HEADER_TYPE, 1, header | PCI_HEADER_TYPE_MULTI_FUNCTION if others else header)
            first.config.freeze_byte(PCI_HEADER_TYPE)


class BusSlot:
    """The Slot of function *function* in slot *number* of *bus*."""

    def __init__(self, bus: PciBus, number: int, function: int, trace: Channel) -> None:
        above = bus.above
        self.name = f"{number:02x}.{function}"
        self.memory = above.memory
        self.clock = above.clock
        self.trace = trace
        self.msi = above.msi
        self._bus = bus
        self._above = above
        self._number = number

    @property
    def bus_master(self) -> bool:
        return self._above.bus_master

    @property
    def powered(self) -> bool:
        return self._bus.powered(self._number)

    def claim(self, bar: Bar) -> Claim:
        return self._above.claim(bar)

    def apply(self) -> None:
        self._above.apply()

    def intx(self, pin: int) -> Irq:
        return self._above.intx(swizzle(self._number, pin - 1) + 1)

    def interrupt_line(self, pin: int) -> int:
        return self._above.interrupt_line(swizzle(self._number, pin - 1) + 1)

    def defer(self, call: Callable[[], None]) -> None:
        self._above.defer(call)
