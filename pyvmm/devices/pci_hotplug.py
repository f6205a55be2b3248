"""PCI hot-plug by ACPI: the registers by which the board's AML learns what has come to bus 0, and what is to go.

QEMU's block of I/O ports, little-endian dwords with a bit for each slot, and three registers of ours behind it:

    00  PCI_UP_BASE    what has come since this was read last; a read clears it
    04  PCI_DOWN_BASE  what the guest is asked to let go of, until it has
    08  PCI_EJ_BASE    a written 1: the guest has let go of that slot, which is emptied; reads 0, which is no feature
    0c  PCI_RMV_BASE   the slots whose devices may come and go
    10  PCI_SEL_BASE   which bus: there is bus 0 alone, of any other one all registers are 0
    14  PRESENT        the slots that have a device (_STA)
    18  D0             a written 1: that slot's device is to be in D0 (_PS0); read: those that are
    1c  D3HOT          a written 1: ... in D3hot (_PS3); read: those that are, until a reset or another device comes

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
D0: Final = 0x18
D3HOT: Final = 0x1C
PCI_HOTPLUG_LENGTH: Final = 0x20
"""Bytes of the whole block of ports."""
GPE_PCI_HOTPLUG: Final = 1


class PciHotplug:
    """The block of PCI_HOTPLUG_LENGTH ports. *present* gives the slots that have a device, a bit each; *changed* sets
    the general-purpose event; *eject* is told, once, each slot that the guest has let go of after it was asked to;
    *power_changed* each that goes into D3hot or back."""

    STATE = ("_up", "_down", "_let_go_of", "_bus", "_seen_empty", "_d3hot")

    def __init__(
        self,
        present: Callable[[], int],
        changed: Callable[[], None],
        eject: Callable[[int], None],
        power_changed: Callable[[int], None],
        trace: Channel = OFF,
    ) -> None:
        self._present = present
        self._changed = changed
        self._eject = eject
        self._power_changed = power_changed
        self._trace = trace
        self.slots = 0
        """Those whose devices may come and go, a bit each: the board says."""
        self._d3hot = 0
        self.reset()

    def reset(self) -> None:
        """What the guest has not taken notice of it finds when it starts."""
        self._up = self._down = self._bus = 0
        self._let_go_of = 0  # told to *eject*, and not taken out yet
        self._seen_empty = 0
        self._set_power(self._d3hot, True)

    # What is done to the slots

    def plugged(self, slot: int) -> None:
        """*slot*, 0 to 31, has a device now."""
        self._up |= 1 << slot
        self._changed()

    def unplugged(self, slot: int) -> None:
        """It has none any more; the next is in D0."""
        self._d3hot &= ~(1 << slot)
        self._up &= ~(1 << slot)
        self._down &= ~(1 << slot)
        self._let_go_of &= ~(1 << slot)

    def ask_to_eject(self, slot: int) -> None:
        """Ask the guest to let go of what is in *slot*."""
        self._down |= 1 << slot
        self._let_go_of &= ~(1 << slot)
        self._changed()

    def found_empty(self, slot: int) -> None:
        """The guest has looked into *slot*, 0 to 31, and there was nothing: it does not look again by itself."""
        self._seen_empty |= 1 << slot

    def was_found_empty(self, slot: int) -> bool:
        """Whether it has, since the reset."""
        return bool(self._seen_empty >> slot & 1)

    def is_powered(self, slot: int) -> bool:
        """Whether *slot* has its device in D0, else in D3hot."""
        return not self._d3hot >> slot & 1

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
        present = self._present()
        if register == PRESENT:
            return present
        if register == D0:
            return present & self.slots & ~self._d3hot
        return self._d3hot if register == D3HOT else 0

    def write(self, offset: int, size: int, value: int) -> None:
        for register, dword, _ in written_dwords(offset, size, value):
            if register == PCI_SEL_BASE:
                self._bus = dword
            elif register == PCI_EJ_BASE and not self._bus:
                self._let_go(dword & self._down & ~self._let_go_of)
            elif register in (D0, D3HOT) and not self._bus:
                self._set_power(dword & self.slots & self._present(), register == D0)

    def _set_power(self, slots: int, on: bool) -> None:
        changed = slots & (self._d3hot if on else ~self._d3hot)
        self._d3hot ^= changed
        for slot in range(32):
            if changed >> slot & 1:
                if self._trace.enabled:
                    self._trace(f"slot {slot:#04x} is in {'D0' if on else 'D3hot'}")
                self._power_changed(slot)

    def _let_go(self, slots: int) -> None:
        self._let_go_of |= slots
        while slots:
            slot = (slots & -slots).bit_length() - 1
            slots &= slots - 1
            if self._trace.enabled:
                self._trace(f"slot {slot:#04x} is ejected")
            self._eject(slot)
