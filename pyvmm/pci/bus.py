"""One PCI bus: the functions on it, and what they reach through the bridges above."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.irq import Irq
from pyvmm.pci.decoder import Span
from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import PCI_HEADER_TYPE, PCI_HEADER_TYPE_MULTI_FUNCTION, PCI_NO_FUNCTION, pci_devfn

if TYPE_CHECKING:
    from pyvmm.pci.bridge import PciBridge
    from pyvmm.pci.host import PciHost


class PciBus:
    """Up to 32 devices of up to 8 functions. The root bus has no bridge above it."""

    def __init__(self, host: PciHost, bridge: PciBridge | None = None) -> None:
        self.host = host
        self.bridge = bridge
        self.functions: dict[int, PciDevice] = {}
        self.bridges: list[PciBridge] = []

    def add(self, device: PciDevice, slot: int, function: int = 0) -> None:
        """Plug *device* in as slot.function; ValueError if that is taken or there is no such place."""
        if device.vendor_id == PCI_NO_FUNCTION:
            raise ValueError(f"{type(device).__name__} has no vendor_id: no guest would see it")
        devfn = pci_devfn(slot, function)
        if not (0 <= slot < 32 and 0 <= function < 8):
            raise ValueError(f"no PCI place {slot:02x}.{function}: slots are 00 to 1f, functions 0 to 7")
        if self.bridge is not None and slot != 0:
            raise ValueError("behind a PCI Express port there is only slot 00")
        if devfn in self.functions:
            raise ValueError(f"PCI place {slot:02x}.{function} is taken by {type(self.functions[devfn]).__name__}")
        self.functions[devfn] = device
        device.connect(self, slot, function)
        self._mark_multi_function(slot)
        if self.bridge is not None:
            self.bridge.child_changed()

    def remove(self, device: PciDevice) -> None:
        """Unplug *device*."""
        del self.functions[pci_devfn(device.slot, device.function)]
        device.disconnect()
        self._mark_multi_function(device.slot)
        if self.bridge is not None:
            self.bridge.child_changed()

    def free_slot(self) -> int:
        """The lowest slot with no function; ValueError if the bus is full."""
        for slot in range(1 if self.bridge is not None else 32):
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

    @property
    def bus_master(self) -> bool:
        """Whether DMA from this bus gets to memory: every bridge above lets it through."""
        return self.bridge is None or self.bridge.bus_master

    def reachable(self, io: bool, start: int, end: int) -> tuple[Span, ...]:
        """The parts of [start, end) that accesses from the CPU reach on this bus, through the bridges' windows."""
        if self.bridge is None:
            return ((start, end),)
        parent = self.bridge.bus
        if parent is None:
            return ()
        spans = (parent.reachable(io, low, high) for low, high in self.bridge.window(io, start, end))
        return tuple(span for part in spans for span in part)

    def intx_line(self, slot: int, pin: int) -> Irq:
        """A new source on the line that INTA–INTD (1–4) of *slot* ends at, swizzled at each bridge."""
        if self.bridge is None or self.bridge.bus is None:
            return self.host.intx_source(pirq(slot, pin))
        return self.bridge.bus.intx_line(self.bridge.slot, pirq(slot, pin) + 1)

    def interrupt_line(self, slot: int, pin: int) -> int:
        """What firmware puts in the Interrupt Line register of that slot and pin."""
        if self.bridge is None or self.bridge.bus is None:
            return self.host.interrupt_lines[pirq(slot, pin)]
        return self.bridge.bus.interrupt_line(self.bridge.slot, pirq(slot, pin) + 1)


def pirq(slot: int, pin: int) -> int:
    """Which of the four lines (0–3) pin INTA–INTD (1–4) of a slot is wired to.

    PCI-to-PCI Bridge Architecture Specification 1.2, section 9.1; pci_swizzle_interrupt_pin in linux/pci.h.
    """
    return (pin - 1 + slot) % 4
