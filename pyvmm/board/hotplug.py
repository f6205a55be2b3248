"""Where PCI functions come and go while a guest runs: slots of bus 0 by ACPI, those of root ports by PCI Express.

On bus 0 a chip raises a general-purpose event, and the board's AML tells the guest; a guest without ACPI is not told. A
root port tells by an interrupt of its own, and what is behind one may be pulled out without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Final

from pyvmm.board import layout
from pyvmm.devices.pci_hotplug import GPE_PCI_HOTPLUG, PCI_HOTPLUG_LENGTH, PciHotplug
from pyvmm.errors import UserError
from pyvmm.pci.root_port import RootPort
from pyvmm.trace import OFF, Channel

if TYPE_CHECKING:
    from pyvmm.board.placement import Parts
    from pyvmm.devices.acpi_pm import AcpiPm
    from pyvmm.pci.device import PciDevice
    from pyvmm.pci.host import PciHost

PART: Final = "pci-hotplug"


class Hotplug:
    """The chip, which it puts among *parts*, and the root ports of *pci*. *ejected* is called, in the middle of a
    guest's access, with a function that the guest has been asked to let go of and has."""

    def __init__(self, parts: Parts, pci: PciHost, pm: AcpiPm, trace: Channel = OFF) -> None:
        self._pci = pci
        self._pm = pm
        self.ejected: Callable[[PciDevice], None] = lambda function: None
        self._chip = parts.add(
            PART,
            PciHotplug(
                self._present, partial(pm.raise_gpe, GPE_PCI_HOTPLUG), self._slot_ejected, self._power_changed, trace
            ),
            ports=[(layout.PCI_HOTPLUG, PCI_HOTPLUG_LENGTH)],
        )
        pci.found_empty = self._chip.found_empty
        pci.root.powered = self._chip.is_powered

    def settle(self, plugged: Collection[PciDevice]) -> None:
        """All that is there from the start has its place; *plugged* of that is what may go again."""
        root = self._pci.root
        fixed = {devfn >> 3 for devfn, function in root.functions.items() if function not in plugged}
        slots = set(layout.HOTPLUG_SLOTS) | {devfn >> 3 for devfn in root.functions}
        self._chip.slots = sum(1 << slot for slot in slots - fixed)
        for port in self._ports():
            port.ejected = partial(self._port_ejected, port)

    @property
    def slots(self) -> tuple[int, ...]:
        """Those of bus 0 whose devices may come and go."""
        return tuple(slot for slot in range(32) if self._chip.slots >> slot & 1)

    def _ports(self) -> list[RootPort]:
        return [function for function in self._pci.root.functions.values() if isinstance(function, RootPort)]

    def _present(self) -> int:
        slots = {devfn >> 3 for devfn in self._pci.root.functions}
        return sum(1 << slot for slot in slots)

    # Where a function is

    def port_of(self, function: PciDevice) -> RootPort | None:
        """The root port that *function* is behind, if it is."""
        return next((port for port in self._ports() if function in port.child.functions.values()), None)

    def slot_of(self, function: PciDevice) -> int | None:
        """The slot of bus 0 that *function* is in, if it may go again from there."""
        for devfn, other in self._pci.root.functions.items():
            if other is function and self._chip.slots >> (devfn >> 3) & 1:
                return devfn >> 3
        return None

    # What comes and goes; in a machine that runs

    def finds(self, slot: int) -> bool:
        """Whether the guest will know of what comes to *slot* of bus 0: ACPI tells it, or it has not looked there since
        the reset, and does when it looks for all devices."""
        return self._pm.acpi_enabled or not self._chip.was_found_empty(slot)

    def plugged(self, function: PciDevice) -> None:
        """Tell the guest of *function*, which is there now."""
        port, slot = self.port_of(function), self.slot_of(function)
        if port is not None:
            port.tell()
        elif slot is not None:
            self._chip.plugged(slot)

    def ask_to_eject(self, function: PciDevice) -> None:
        """Ask the guest to let go of *function*; once more where it has been asked. Raises UserError where nobody in
        the guest would hear of it."""
        port, slot = self.port_of(function), self.slot_of(function)
        if port is not None:
            if not port.listening:
                raise UserError("its guest has no driver for the slot of a PCI Express port: pull it out by force")
            port.ask_to_eject()
        elif slot is not None:
            if not self._pm.hears(GPE_PCI_HOTPLUG):
                raise UserError("its guest does not use ACPI, and would not hear of it: end the machine to take it out")
            self._chip.ask_to_eject(slot)

    def leaving(self, function: PciDevice) -> bool:
        """Whether the guest has been asked to let go of *function*."""
        port, slot = self.port_of(function), self.slot_of(function)
        return port.leaving if port is not None else slot is not None and self._chip.leaving(slot)

    def remove(self, function: PciDevice) -> None:
        """Unplug *function*, and let whoever did not know of that hear of it."""
        port, slot = self.port_of(function), self.slot_of(function)
        if port is not None:
            surprise = not port.leaving
            try:
                port.child.remove(function)
            finally:  # its reset() may be the user's own
                if surprise:
                    port.tell()
        else:
            try:
                self._pci.root.remove(function)
            finally:
                if slot is not None:
                    self._chip.unplugged(slot)

    def _slot_ejected(self, slot: int) -> None:
        for devfn, function in self._pci.root.functions.items():
            if devfn >> 3 == slot:
                self.ejected(function)

    def _power_changed(self, slot: int) -> None:
        for devfn, function in self._pci.root.functions.items():
            if devfn >> 3 == slot:
                function.slot_power_changed()

    def _port_ejected(self, port: RootPort) -> None:
        for function in port.child.functions.values():
            self.ejected(function)
