"""What a BIOS does to PCI before the guest starts: bus numbers, BARs, bridge windows, decode bits.

A guest that assigns resources itself (Linux with ACPI) may redo all of it; one that trusts firmware (Linux 2.6 without
ACPI, small guests) finds every BAR placed and decoded. PCI Firmware Specification 3.0, section 3.5; windows are aligned
as PCI-to-PCI Bridge Architecture 1.2, section 3.2.5 wants them: 4 KiB of I/O, 1 MiB of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from pyvmm.pci.bar import Bar
from pyvmm.pci.bridge import PciBridge, bridges
from pyvmm.pci.bus import PciBus
from pyvmm.pci.device import PciDevice
from pyvmm.pci.host import PciHost
from pyvmm.pci.regs import (
    PCI_COMMAND,
    PCI_COMMAND_IO,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
    PCI_IO_BASE,
    PCI_IO_LIMIT,
    PCI_MEMORY_BASE,
    PCI_MEMORY_LIMIT,
    PCI_PRIMARY_BUS,
)

IO_WINDOW: Final = 0x1000
MEMORY_WINDOW: Final = 0x100000
LAST_BUS: Final = 255


class _Need(NamedTuple):
    """Something that wants *size* bytes aligned to *align*; place() tells it where."""

    size: int
    align: int
    place: Callable[[int], None]
    bits64: bool = False
    """It may be above 4 GiB."""
    empty: bool = False
    """A window with nothing behind it yet: it goes behind all others."""


def assign_resources(
    host: PciHost, io: tuple[int, int], memory: tuple[int, int], memory64: tuple[int, int] | None = None
) -> None:
    """Number the buses, place every BAR in [start, end) of *io* and *memory* (below 4 GiB), turn decoding on. Where
    those do not fit, 64-bit BARs of bus 0 go to *memory64*, the largest first.

    Raises ValueError if they do not fit. What bridges keep for later of the I/O ports is left out where it does not.
    """
    _number(host.root, 0)
    spare_io = _layout([need._replace(place=_nowhere) for need in _needs(host.root, io=True, spare=True)], io[0])
    _place("I/O ports", _needs(host.root, io=True, spare=spare_io <= io[1]), io)
    low, high = _needs(host.root, io=False, spare=True), list[_Need]()
    movable = sorted((need for need in low if need.bits64), key=lambda need: need.size) if memory64 is not None else []
    while movable and _layout([need._replace(place=_nowhere) for need in low], memory[0]) > memory[1]:
        high.append(movable.pop())
        low.remove(high[-1])
    _place("memory", low, memory)
    if memory64 is not None:
        _place("memory above 4 GiB", high, memory64)
    for function in host.all_functions():
        bits = PCI_COMMAND_MASTER | PCI_COMMAND_IO | PCI_COMMAND_MEMORY if isinstance(function, PciBridge) else 0
        for bar in function.bars.values():
            bits |= PCI_COMMAND_IO if bar.io else PCI_COMMAND_MEMORY
        function.config_write(PCI_COMMAND, 2, bits)


def _place(what: str, needs: list[_Need], room: tuple[int, int]) -> None:
    start, end = room
    if (needed := _layout(needs, start)) > end:
        raise ValueError(f"the PCI devices need {needed - start:#x} of {what}, there is {end - start:#x}")


def _nowhere(base: int) -> None:
    """To find out how much is needed."""


def _number(bus: PciBus, number: int) -> int:
    """Number the buses behind *bus*, depth first; returns the highest number used or reserved."""
    last = number
    for bridge in bridges(bus):
        bridge.config_write(PCI_PRIMARY_BUS, 4, number | (last + 1) << 8 | 0xFF << 16)
        below = _number(bridge.child, last + 1) + bridge.reserved_buses
        if below > LAST_BUS:
            raise ValueError(f"the PCI bridges need {below} buses, there are {LAST_BUS}")
        bridge.config_write(PCI_PRIMARY_BUS, 4, number | (last + 1) << 8 | below << 16)
        last = below
    return last


def _needs(bus: PciBus, io: bool, spare: bool) -> list[_Need]:
    """With *spare*, of what bridges keep for later too."""
    needs = []
    for _, function in sorted(bus.functions.items()):
        needs += [_bar_need(function, bar) for bar in function.bars.values() if bar.io == io]
        if isinstance(function, PciBridge):
            needs.append(_bridge_need(function, io, spare))
    return needs


def _bar_need(function: PciDevice, bar: Bar) -> _Need:
    def place(base: int) -> None:
        function.config_write(bar.offset, 4, base & 0xFFFFFFFF)
        if bar.bits64:
            function.config_write(bar.offset + 4, 4, base >> 32)

    return _Need(bar.size, bar.size, place, bar.bits64)


def _bridge_need(bridge: PciBridge, io: bool, spare: bool) -> _Need:
    behind = _needs(bridge.child, io, spare)
    align = IO_WINDOW if io else MEMORY_WINDOW
    align = max([align, *(need.align for need in behind)])
    kept = (bridge.reserved_io if io else bridge.reserved_memory) if spare else 0
    size = max(kept, (_layout([need._replace(place=_nowhere) for need in behind], 0) + align - 1) & ~(align - 1))

    def place(base: int) -> None:
        if not size:
            return
        _layout(behind, base)
        limit = base + size - 1
        if io:
            bridge.config_write(PCI_IO_BASE, 1, base >> 8 & 0xF0)
            bridge.config_write(PCI_IO_LIMIT, 1, limit >> 8 & 0xF0)
        else:
            bridge.config_write(PCI_MEMORY_BASE, 2, base >> 16 & 0xFFF0)
            bridge.config_write(PCI_MEMORY_LIMIT, 2, limit >> 16 & 0xFFF0)

    return _Need(size, align, place, empty=not any(need.size for need in behind))


def _layout(needs: list[_Need], start: int) -> int:
    """Place *needs* from *start* up, the largest alignment first, empty windows last; returns the end of the last."""
    for need in sorted(needs, key=lambda need: (need.empty, -need.align)):
        if need.size:
            start = (start + need.align - 1) & ~(need.align - 1)
            need.place(start)
            start += need.size
    return start
