"""PCI hot-plug by ACPI: the registers by which the board's AML learns what has come to bus 0, and what is to go.

QEMU's block of I/O ports, little-endian dwords with a bit for each slot, and one register of ours behind it:

    00  PCI_UP_BASE    what has come since this was read last; a read clears it
    04  PCI_DOWN_BASE  what the guest is asked to let go of, until it has
    08  PCI_EJ_BASE    a written 1: the guest has let go of that slot, which is emptied; reads 0, which is no feature
    0c  PCI_RMV_BASE   the slots whose devices may come and go
    10  PCI_SEL_BASE   which bus: there is bus 0 alone, of any other one all registers are 0
    14  PRESENT        the slots that have a device (_STA)

A change sets general-purpose event GPE_PCI_HOTPLUG, whose method reads UP and DOWN and notifies the slots' devices.
Registers are dwords: they may be read at any width, and a write of fewer bytes writes zeros to the others.

Source: QEMU, docs/specs/acpi_pci_hotplug; hw/acpi/pcihp.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.devices.dwords import read_dwords, written_dwords
from pyvmm.trace import OFF, Channel

PCI_UP_BASE: Final = 0x00
PCI_DOWN_BASE: Final = 0x04
PCI_EJ_BASE: Final = 0x08
PCI_RMV_BASE: Final = 0x0C
PCI_SEL_BASE: Final = 0x10
PRESENT: Final = 0x14
PCI_HOTPLUG_LENGTH: Final = 0x18
"""Bytes of the whole block of ports."""
GPE_PCI_HOTPLUG: Final = 1


class PciHotplug:
    """The block of PCI_HOTPLUG_LENGTH ports. *present* gives the slots that have a device, a bit each; *changed* sets
    the general-purpose event; *eject* is told each slot that the guest has let go of after it was asked to."""

    STATE = ("_up", "_down", "_bus", "_seen_empty")

    def __init__(
        self,
        present: Callable[[], int],
        changed: Callable[[], None],
        eject: Callable[[int], None],
        trace: Channel = OFF,
    ) -> None:
        self._present = present
        self._changed = changed
        self._eject = eject
        self._trace = trace
        self.slots = 0
        """Those whose devices may come and go, a bit each: the board says."""
        self.reset()

    def reset(self) -> None:
        """What the guest has not taken notice of it finds when it starts."""
        self._up = self._down = self._bus = 0
        self._seen_empty = 0

    # What is done to the slots

    def plugged(self, slot: int) -> None:
        """*slot*, 0 to 31, has a device now."""
        self._up |= 1 << slot
        self._changed()

    def unplugged(self, slot: int) -> None:
        """It has none any more."""
        self._up &= ~(1 << slot)
        self._down &= ~(1 << slot)

    def ask_to_eject(self, slot: int) -> None:
        """Ask the guest to let go of what is in *slot*."""
        self._down |= 1 << slot
        self._changed()

    def found_empty(self, slot: int) -> None:
        """The guest has looked into *slot*, 0 to 31, and there was nothing: it does not look again by itself."""
        self._seen_empty |= 1 << slot

    def was_found_empty(self, slot: int) -> bool:
        """Whether it has, since the reset."""
        return bool(self._seen_empty >> slot & 1)

    def leaving(self, slot: int) -> bool:
        """Whether the guest has been asked to."""
        return bool(self._down >> slot & 1)

    # What the guest does

    def read(self, offset: int, size: int) -> int:
        return read_dwords(self._register, offset, size)

    def _register(self, register: int) -> int:
        if register == PCI_SEL_BASE:
            return self._bus
        if self._bus:
            return 0
        if register == PCI_UP_BASE:
            up, self._up = self._up, 0
            return up
        if register == PCI_DOWN_BASE:
            return self._down
        if register == PCI_RMV_BASE:
            return self.slots
        return self._present() if register == PRESENT else 0

    def write(self, offset: int, size: int, value: int) -> None:
        for register, dword, _ in written_dwords(offset, size, value):
            if register == PCI_SEL_BASE:
                self._bus = dword
            elif register == PCI_EJ_BASE and not self._bus:
                self._let_go(dword & self._down)

    def _let_go(self, slots: int) -> None:
        for slot in range(32):
            if slots >> slot & 1:
                if self._trace.enabled:
                    self._trace(f"slot {slot:#04x} is ejected")
                self._eject(slot)
