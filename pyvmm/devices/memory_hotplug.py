"""Memory hot-plug by ACPI: the registers by which the board's AML learns which slots have memory, and which is to go.

QEMU's block of I/O ports. A slot is selected, and the other registers are that slot's; little-endian dwords:

    00  read: base, low half         written: which slot the others are of
    04  read: base, high half        written: the event that the guest tells of (_OST)
    08  read: size, low half         written: how it went (_OST)
    0c  read: size, high half
    10  read: proximity domain, 0
    14  read: ENABLED, there is memory; INSERTING and REMOVING, what the guest has not taken notice of
        written: INSERTING and REMOVING clear those, EJECT: the guest has let go of the memory, which is taken out

A change sets general-purpose event GPE_MEMORY_HOTPLUG, whose method looks at each slot and notifies its device. Of an
empty slot, and of one that there is not, everything reads 0, and what is written is lost. Registers may be read at any
width, and a write of fewer bytes writes zeros to the others of the dword.

Source: QEMU, docs/specs/acpi_mem_hotplug; hw/acpi/memory_hotplug.c. ACPI 6.5, 6.3.5 (_OST).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.devices.dwords import read_dwords, written_dwords
from pyvmm.devices.ost import (
    OST_DEVICE_CHECK,
    OST_EJECTION,
    OST_EJECTION_IN_PROGRESS,
    OST_INSERTION_IN_PROGRESS,
    OST_SUCCESS,
)
from pyvmm.trace import OFF, Channel

BASE_LOW: Final = 0x00
SELECTOR: Final = 0x00
BASE_HIGH: Final = 0x04
OST_EVENT: Final = 0x04
SIZE_LOW: Final = 0x08
OST_STATUS: Final = 0x08
SIZE_HIGH: Final = 0x0C
PROXIMITY: Final = 0x10
CONTROL: Final = 0x14
MEMORY_HOTPLUG_LENGTH: Final = 0x18
"""Bytes of the whole block of ports."""
GPE_MEMORY_HOTPLUG: Final = 3
MAX_SLOTS: Final = 32

# CONTROL.
ENABLED: Final = 1 << 0
INSERTING: Final = 1 << 1
REMOVING: Final = 1 << 2
EJECT: Final = 1 << 3


class MemoryHotplug:
    """The block of MEMORY_HOTPLUG_LENGTH ports, of slots 0 to MAX_SLOTS - 1.

    *place* gives the guest physical address and the size, in bytes, of the memory in a slot, None for an empty one.
    *changed* sets the general-purpose event. *eject* is told, once, each slot that the guest has let go of after it was
    asked to. *refused* is told a slot, whether it was to be emptied, and the guest's status code.
    """

    STATE = ("_selected", "_event", "_inserting", "_removing", "_arriving", "_leaving", "_let_go_of")

    def __init__(
        self,
        place: Callable[[int], tuple[int, int] | None],
        changed: Callable[[], None],
        eject: Callable[[int], None],
        refused: Callable[[int, bool, int], None],
        trace: Channel = OFF,
    ) -> None:
        self._place = place
        self._changed = changed
        self._eject = eject
        self._refused = refused
        self._trace = trace
        self.reset()

    def reset(self) -> None:
        """What the guest has not taken notice of it finds when it starts."""
        self._selected = self._event = 0
        self._inserting = self._removing = 0
        self._arriving = self._leaving = 0
        self._let_go_of = 0  # told to *eject*, and not taken out yet

    def restored(self) -> None:
        """What was loaded may be a file's, which has anything."""
        self._selected &= 0xFFFFFFFF

    # What is done to the slots

    def plugged(self, slot: int) -> None:
        """*slot* has memory now."""
        self._inserting |= 1 << slot
        self._arriving |= 1 << slot
        self._changed()

    def unplugged(self, slot: int) -> None:
        """It has none any more."""
        self._inserting &= ~(1 << slot)
        self._arriving &= ~(1 << slot)
        self.stays(slot)

    def ask_to_eject(self, slot: int) -> None:
        """Ask the guest to let go of the memory in *slot*."""
        self._removing |= 1 << slot
        self._leaving |= 1 << slot
        self._let_go_of &= ~(1 << slot)
        self._changed()

    def stays(self, slot: int) -> None:
        """It is not to go any more."""
        self._removing &= ~(1 << slot)
        self._leaving &= ~(1 << slot)
        self._let_go_of &= ~(1 << slot)

    def leaving(self, slot: int) -> bool:
        """Whether the guest has been asked to let go of it, and has not refused."""
        return bool(self._leaving >> slot & 1)

    # What the guest does

    def read(self, offset: int, size: int) -> int:
        return read_dwords(self._register, offset, size)

    def _selected_place(self) -> tuple[int, int] | None:
        return self._place(self._selected) if self._selected < MAX_SLOTS else None

    def _register(self, register: int) -> int:
        place = self._selected_place()
        if place is None:
            return 0
        base, size = place
        inserting, removing = self._inserting >> self._selected & 1, self._removing >> self._selected & 1
        values = {
            BASE_LOW: base & 0xFFFFFFFF,
            BASE_HIGH: base >> 32,
            SIZE_LOW: size & 0xFFFFFFFF,
            SIZE_HIGH: size >> 32,
            CONTROL: ENABLED | inserting * INSERTING | removing * REMOVING,
        }
        return values.get(register, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        for register, dword, _ in written_dwords(offset, size, value):
            if register == SELECTOR:
                self._selected = dword
            elif register == OST_EVENT:
                self._event = dword
            elif self._selected_place() is None:
                continue
            elif register == OST_STATUS:
                self._told(self._selected, self._event, dword)
            elif register == CONTROL:
                self._control(self._selected, dword)

    def _control(self, slot: int, value: int) -> None:
        if value & INSERTING:
            self._inserting &= ~(1 << slot)
        if value & REMOVING:
            self._removing &= ~(1 << slot)
        if value & EJECT and self.leaving(slot) and not self._let_go_of >> slot & 1:
            self._let_go_of |= 1 << slot
            if self._trace.enabled:
                self._trace(f"slot {slot} is ejected")
            self._eject(slot)

    def _told(self, slot: int, event: int, status: int) -> None:
        """_OST: a guest is believed once each time that it was asked."""
        if self._trace.enabled:
            self._trace(f"slot {slot}: _OST event {event:#x}, status {status:#x}")
        if event in OST_EJECTION and self.leaving(slot):
            if status not in (OST_SUCCESS, OST_EJECTION_IN_PROGRESS):
                self.stays(slot)
                self._refused(slot, True, status)
        elif event == OST_DEVICE_CHECK and self._arriving >> slot & 1 and status != OST_INSERTION_IN_PROGRESS:
            self._arriving &= ~(1 << slot)
            if status != OST_SUCCESS:
                self._refused(slot, False, status)
