"""A PCI Express root port: a bridge on the root bus with one slot behind it, for hot-plug.

PCI Express Base Specification 3.0, sections 6.7 (hot-plug) and 7.8.

ID: Intel 8086:29C1, the PCI Express port of the same Q35 chipset as the host bridge; Linux has no quirk for it.

The slot is hot-plug capable, and what is in it may be pulled out without a word (HPC, HPS). It has no attention button,
after which an OS waits five seconds, and no power controller. Presence detect and data link layer state tell of a card;
when they change, PDC and DLLSC are set in SLTSTA and an interrupt comes, INTB or the MSI, where SLTCTL enables it.

A card that is to leave is first shown as gone while it still answers, for its driver to end what it has begun; it has
left when software, which has cleared PDC and DLLSC, reads LNKSTA to see whether the next card is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.pci.bridge import PciBridge
from pyvmm.pci.express import add_express
from pyvmm.pci.regs import (
    PCI_CFG_SPACE_EXP_SIZE,
    PCI_EXP_LNKSTA,
    PCI_EXP_LNKSTA_CLS_2_5GB,
    PCI_EXP_LNKSTA_DLLLA,
    PCI_EXP_LNKSTA_NLW_X1,
    PCI_EXP_SLTCTL,
    PCI_EXP_SLTCTL_DLLSCE,
    PCI_EXP_SLTCTL_HPIE,
    PCI_EXP_SLTCTL_PDCE,
    PCI_EXP_SLTSTA,
    PCI_EXP_SLTSTA_DLLSC,
    PCI_EXP_SLTSTA_PDC,
    PCI_EXP_SLTSTA_PDS,
    PCI_EXP_TYPE_ROOT_PORT,
    PCI_VENDOR_ID_INTEL,
)
from pyvmm.units import MIB

PCI_DEVICE_ID_INTEL_Q35_PEG: Final = 0x29C1
FIRST_SLOT_NUMBER: Final = 0x20
"""The physical slot number of port 0, behind those of bus 0: an OS calls its slots by their numbers."""

_EVENTS: Final = PCI_EXP_SLTSTA_PDC | PCI_EXP_SLTSTA_DLLSC


class RootPort(PciBridge):
    """A PCI Express root port, x1 at 2.5 GT/s, with one MSI vector and a slot into which devices are plugged.

    *port_number* is that in its link capabilities; its slot's physical number is FIRST_SLOT_NUMBER more. *ejected*
    is called, once, when the guest has let go of what it was asked for by ask_to_eject()."""

    vendor_id = PCI_VENDOR_ID_INTEL
    device_id = PCI_DEVICE_ID_INTEL_Q35_PEG
    interrupt_pin = 2
    """INTB: what is in the slot has INTA first, and where neither has MSI they may not share a line, for Linux takes a
    device out in the port's interrupt thread and waits there for all interrupts of the device's line to have ended."""
    config_size = PCI_CFG_SPACE_EXP_SIZE
    reserved_memory = 16 * MIB
    reserved_io = 0x1000
    STATE = ("leaving", "_has_left")

    def __init__(self, port_number: int = 0, /) -> None:
        super().__init__()
        self.add_msi()
        self._express = add_express(
            self.config, PCI_EXP_TYPE_ROOT_PORT, port_number, slot=FIRST_SLOT_NUMBER + port_number
        )
        self.config.w1c[self._express + PCI_EXP_SLTSTA] |= PCI_EXP_SLTSTA_PDC
        self.config.w1c[self._express + PCI_EXP_SLTSTA + 1] |= PCI_EXP_SLTSTA_DLLSC >> 8
        self.leaving = False
        """The card that is still there is shown as gone."""
        self._has_left = False  # ejected() was called, and the card is still there
        self.ejected: Callable[[], None] = lambda: None
        self._show(False)

    # What is done to the slot

    @property
    def listening(self) -> bool:
        """Whether a driver wants to hear of cards that come and go."""
        control = self.config.get(self._express + PCI_EXP_SLTCTL, 2)
        return bool(control & PCI_EXP_SLTCTL_HPIE and control & (PCI_EXP_SLTCTL_PDCE | PCI_EXP_SLTCTL_DLLSCE))

    def child_changed(self) -> None:
        self.leaving = self._has_left = False
        self._show(bool(self.child.functions))

    def tell(self) -> None:
        """A card has come or gone, and whoever listens is to hear of it."""
        self._set(PCI_EXP_SLTSTA, self._get(PCI_EXP_SLTSTA) | _EVENTS)
        self._interrupt()

    def ask_to_eject(self) -> None:
        """Show the card as gone, until software has let go of it: then ejected() is called."""
        self._has_left = False
        if not self.leaving:
            self.leaving = True
            self._show(False)
        self.tell()

    def _show(self, up: bool) -> None:
        """Card and link."""
        link = PCI_EXP_LNKSTA_CLS_2_5GB | (PCI_EXP_LNKSTA_NLW_X1 | PCI_EXP_LNKSTA_DLLLA if up else 0)
        self._set(PCI_EXP_LNKSTA, link)
        self._set(PCI_EXP_SLTSTA, self._get(PCI_EXP_SLTSTA) & _EVENTS | (PCI_EXP_SLTSTA_PDS if up else 0))

    def _get(self, register: int) -> int:
        return self.config.get(self._express + register, 2)

    def _set(self, register: int, value: int) -> None:
        self.config.set(self._express + register, 2, value)

    def _interrupt(self) -> None:
        """A level; a message as it rises (6.7.3.4)."""
        control, events = self._get(PCI_EXP_SLTCTL), self._get(PCI_EXP_SLTSTA)
        wanted = control & PCI_EXP_SLTCTL_PDCE and events & PCI_EXP_SLTSTA_PDC
        wanted = wanted or (control & PCI_EXP_SLTCTL_DLLSCE and events & PCI_EXP_SLTSTA_DLLSC)
        self.interrupt.set_level(bool(wanted and control & PCI_EXP_SLTCTL_HPIE))

    def reset(self) -> None:
        """What is there, is there still."""
        super().reset()
        self.leaving = self._has_left = False
        self._show(bool(self.child.functions))

    # What the guest does

    def config_read(self, offset: int, size: int) -> int:
        link = self._express + PCI_EXP_LNKSTA
        looks = offset < link + 2 and offset + size > link
        if looks and self.leaving and not self._has_left and not self._get(PCI_EXP_SLTSTA) & _EVENTS:
            self._has_left = True
            self.ejected()
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        slot = self._express + PCI_EXP_SLTCTL
        if offset < slot + 4 and offset + size > slot:
            self._interrupt()
