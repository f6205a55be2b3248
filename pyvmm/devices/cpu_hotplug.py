"""CPU hot-plug by ACPI: the registers by which the board's AML learns which processors are there, come and are to go.

QEMU's block of 12 I/O ports, little-endian, of whose registers all but the first are those of the selected CPU:

    00  32 bits  written: CPU selector; read: 0, the upper half of an APIC ID
    04   8 bits  CPUHP_ENABLED is there; CPUHP_INSERT has come, CPUHP_REMOVE is to go, and no OS was told: a written 1
                 says that it was; CPUHP_EJECT written: the guest has let go of it, which takes it out
    05   8 bits  written: command, what is done now and what the last register is
    08  32 bits  command data

    command 0    select the next CPU of which an OS was not told, if there is one; data: the selector
            1    data written: the event that _OST is about
            2    data written: its status, what the OS has made of that event
            3    data: the CPU's APIC ID, which is its number

Where the selector is no CPU that there may be, all registers are 0 and writes are lost. A change sets general-purpose
event GPE_CPU_HOTPLUG, whose method asks by command 0 and notifies the CPUs' devices. The first CPU stays.
Registers may be read at any width; a write of a part of one writes zeros to the rest of it.

Source: QEMU, docs/specs/acpi_cpu_hotplug; ACPI 6.5, 6.3.5 (_OST).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.devices.ost import (
    OST_EJECTION,
    OST_EJECTION_IN_PROGRESS,
    OST_INSERTION,
    OST_INSERTION_IN_PROGRESS,
    OST_SUCCESS,
)
from pyvmm.trace import OFF, Channel

CPUHP_SELECTOR: Final = 0x00
CPUHP_STATUS: Final = 0x04
CPUHP_COMMAND: Final = 0x05
CPUHP_DATA: Final = 0x08
CPU_HOTPLUG_LENGTH: Final = 12
"""Bytes of the whole block of ports."""
GPE_CPU_HOTPLUG: Final = 4

# CPUHP_STATUS
CPUHP_ENABLED: Final = 1 << 0
CPUHP_INSERT: Final = 1 << 1
CPUHP_REMOVE: Final = 1 << 2
CPUHP_EJECT: Final = 1 << 3

# CPUHP_COMMAND
CPUHP_NEXT: Final = 0
CPUHP_OST_EVENT: Final = 1
CPUHP_OST_STATUS: Final = 2
CPUHP_ID: Final = 3


class CpuHotplug:
    """The block of CPU_HOTPLUG_LENGTH ports, of *possible* CPUs, the first *present* of which are there from the start.

    *changed* sets the general-purpose event; *ejected* is told each CPU that the guest has let go of, asked or not;
    *refused* a CPU that it was told of and does not take or let go of, with event and status of _OST, once each time.
    """

    STATE = (
        "present", "_inserted", "_to_remove", "_coming", "_leaving", "_selector", "_command", "_ost_event",
    )  # fmt: skip

    def __init__(
        self,
        possible: int,
        present: int,
        changed: Callable[[], None],
        ejected: Callable[[int], None],
        refused: Callable[[int, int, int], None],
        trace: Channel = OFF,
    ) -> None:
        self._possible = possible
        self._changed = changed
        self._ejected = ejected
        self._refused = refused
        self._trace = trace
        self.present = (1 << present) - 1
        """The CPUs that are there, a bit each."""
        self.reset()

    def reset(self) -> None:
        """What the guest has not taken notice of it finds when it starts; what is there stays."""
        self._inserted = self._to_remove = 0  # no OS was told yet
        self._coming = self._leaving = 0  # no OS has answered yet
        self._selector = self._command = self._ost_event = 0

    def restored(self) -> None:
        """What was loaded may be a file's, which has anything; the first CPU is there."""
        mask = (1 << self._possible) - 1
        self.present = self.present & mask | 1
        self._inserted &= mask
        self._to_remove &= mask
        self._selector &= 0xFFFFFFFF

    # What is done to the CPUs

    def plugged(self, cpu: int) -> None:
        """CPU number *cpu* is there now."""
        self.present |= 1 << cpu
        self._inserted |= 1 << cpu
        self._coming |= 1 << cpu
        self._changed()

    def unplugged(self, cpu: int) -> None:
        """It is there no more."""
        others = ~(1 << cpu)
        self.present &= others
        self._inserted &= others
        self._to_remove &= others
        self._coming &= others
        self._leaving &= others

    def ask_to_eject(self, cpu: int) -> None:
        """Ask the guest to let go of it."""
        self._to_remove |= 1 << cpu
        self._leaving |= 1 << cpu
        self._changed()

    def leaving(self, cpu: int) -> bool:
        """Whether the guest has been asked to, and has not said no."""
        return bool(self._leaving >> cpu & 1)

    # What the guest does

    def read(self, offset: int, size: int) -> int:
        if self._selector >= self._possible:
            return 0
        cpu = self._selector
        status = self.present >> cpu & 1
        status |= (self._inserted >> cpu & 1) * CPUHP_INSERT | (self._to_remove >> cpu & 1) * CPUHP_REMOVE
        data = cpu if self._command in (CPUHP_NEXT, CPUHP_ID) else 0
        registers = status << 8 * CPUHP_STATUS | data << 8 * CPUHP_DATA
        return registers >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        registers, end = value << 8 * offset, offset + size
        if offset < CPUHP_STATUS:
            self._selector = registers & 0xFFFFFFFF
        if self._selector >= self._possible:
            return
        if offset <= CPUHP_STATUS < end:
            self._control(self._selector, registers >> 8 * CPUHP_STATUS & 0xFF)
        if offset <= CPUHP_COMMAND < end:
            self._command = registers >> 8 * CPUHP_COMMAND & 0xFF
            if self._command == CPUHP_NEXT:
                self._select_next()
        if end > CPUHP_DATA:
            self._take_data(self._selector, registers >> 8 * CPUHP_DATA & 0xFFFFFFFF)

    def _control(self, cpu: int, value: int) -> None:
        if value & CPUHP_INSERT:
            self._inserted &= ~(1 << cpu)
        if value & CPUHP_REMOVE:
            self._to_remove &= ~(1 << cpu)
        if value & CPUHP_EJECT and cpu and self.present >> cpu & 1:
            if self._trace.enabled:
                self._trace(f"CPU {cpu} is ejected")
            self.unplugged(cpu)
            self._ejected(cpu)

    def _select_next(self) -> None:
        """From the selected CPU on, itself included, and around."""
        waiting = self._inserted | self._to_remove
        later = waiting >> self._selector << self._selector
        if waiting:
            first = later or waiting
            self._selector = (first & -first).bit_length() - 1

    def _take_data(self, cpu: int, value: int) -> None:
        if self._command == CPUHP_OST_EVENT:
            self._ost_event = value
        elif self._command == CPUHP_OST_STATUS:
            self._answered(cpu, self._ost_event, value)

    def _answered(self, cpu: int, event: int, status: int) -> None:
        """What an OS says once, after Notify, is the answer; what it does by itself nobody waits for."""
        if self._trace.enabled:
            self._trace(f"CPU {cpu}: _OST event {event:#x} status {status:#x}")
        bit = 1 << cpu
        if event in OST_INSERTION and self._coming & bit and status != OST_INSERTION_IN_PROGRESS:
            self._coming &= ~bit
        elif event in OST_EJECTION and self._leaving & bit and status not in (OST_SUCCESS, OST_EJECTION_IN_PROGRESS):
            self._leaving &= ~bit
        else:
            return
        if status != OST_SUCCESS:
            self._refused(cpu, event, status)
