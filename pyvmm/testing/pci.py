"""A PCI host without a machine, and what a guest does to it: find functions, walk capabilities, size and place BARs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyvmm.bus import Bus
from pyvmm.clock import FakeClock
from pyvmm.devices.reset_control import ResetControl
from pyvmm.irq import FakeIrq
from pyvmm.memory import GuestMemory
from pyvmm.pci.doorbell import FakeDoorbells
from pyvmm.pci.host import PciHost
from pyvmm.pci.msi import FakeMsiRouter
from pyvmm.pci.window import FakeWindows
from pyvmm.trace import OFF, Channel

ECAM = 0xE0000000


class Board:
    """A PCI host on buses of its own, with 16 MiB of RAM at 0, as small as a machine can be.

    What was deferred waits in `later` for run_later(), a turn of the loop.
    """

    def __init__(self, doorbells: bool = True, ram: GuestMemory | None = None, trace: Channel = OFF) -> None:
        self.memory_bus = Bus("mem", 1 << 52)
        self.io_bus = Bus("io", 0x10000)
        self.ram = GuestMemory.of_size(16 << 20) if ram is None else ram
        self.lines = [FakeIrq() for _ in range(4)]
        self.msi = FakeMsiRouter()
        self.doorbells = FakeDoorbells()
        self.windows = FakeWindows()
        self.clock = FakeClock()
        self.later: list[Callable[[], None]] = []
        self.resets = 0
        self.reset_control = ResetControl(self._reset, self._reset)
        self.host = PciHost(
            self.memory_bus,
            self.io_bus,
            self.ram,
            self.lines,
            self.msi,
            clock=self.clock,
            defer=self.later.append,
            doorbells=self.doorbells if doorbells else None,
            windows=self.windows,
            trace=trace,
            reset_control=self.reset_control,
        )
        self.io_bus.map(0xCF8, 8, self.host.config_ports)
        self.memory_bus.map(ECAM, 256 << 20, self.host.ecam)

    def run_later(self) -> None:
        calls, self.later[:] = self.later[:], []
        for call in calls:
            call()

    def _reset(self) -> None:
        self.resets += 1

    def ecam(self, bus: int = 0, slot: int = 0, function: int = 0) -> Config:
        base = ECAM + (bus << 20 | slot << 15 | function << 12)
        return Config(
            lambda offset, size: self.memory_bus.read(base + offset, size),
            lambda offset, size, value: self.memory_bus.write(base + offset, size, value),
        )

    def ports(self, bus: int = 0, slot: int = 0, function: int = 0) -> Config:
        def select(offset: int) -> int:
            self.io_bus.write(0xCF8, 4, 0x80000000 | bus << 16 | slot << 11 | function << 8 | offset & 0xFC)
            return 0xCFC + (offset & 3)

        return Config(
            lambda offset, size: self.io_bus.read(select(offset), size),
            lambda offset, size, value: self.io_bus.write(select(offset), size, value),
        )


@dataclass
class Config:
    """The configuration space of one function as a guest has it."""

    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(ID, offset) of each; fails on a chain that is cyclic or not aligned."""
        if not self.read(6, 2) & 0x10:
            return
        seen = set()
        offset = self.read(0x34, 1)
        while offset:
            assert offset not in seen and offset % 4 == 0 and offset >= 0x40
            seen.add(offset)
            yield self.read(offset, 1), offset
            offset = self.read(offset + 1, 1)

    def find(self, cap_id: int) -> int:
        return next((offset for found, offset in self.capabilities() if found == cap_id), 0)

    def size_bar(self, index: int) -> tuple[int, int]:
        """(flags, size) the way the PCI specification says: write all ones, read back, restore."""
        at = 0x10 + 4 * index
        old = self.read(at, 4)
        self.write(at, 4, 0xFFFFFFFF)
        mask = self.read(at, 4)
        self.write(at, 4, old)
        if not mask:
            return 0, 0
        if mask & 1:
            return mask & 3, (~(mask & ~3) & 0xFFFFFFFF) + 1
        if mask & 6 == 4:
            high = self.read(at + 4, 4)
            self.write(at + 4, 4, 0xFFFFFFFF)
            mask |= self.read(at + 4, 4) << 32
            self.write(at + 4, 4, high)
        else:
            mask |= 0xFFFFFFFF << 32
        return mask & 0xF, (~(mask & ~0xF) & 0xFFFFFFFFFFFFFFFF) + 1


def scan(access: Callable[[int, int, int], Config], bus: int = 0) -> dict[tuple[int, int, int], tuple[int, int]]:
    """(bus, slot, function) -> (vendor, device), numbering bridges depth first as a BIOS does."""
    found, _ = _scan(access, bus)
    return found


def _scan(
    access: Callable[[int, int, int], Config], bus: int
) -> tuple[dict[tuple[int, int, int], tuple[int, int]], int]:
    found: dict[tuple[int, int, int], tuple[int, int]] = {}
    last = bus
    for slot in range(32):
        for function in range(8):
            config = access(bus, slot, function)
            vendor = config.read(0, 2)
            if vendor == 0xFFFF:
                if function == 0:
                    break
                continue
            found[bus, slot, function] = (vendor, config.read(2, 2))
            header = config.read(0x0E, 1)
            if header & 0x7F == 1:
                config.write(0x18, 4, bus | (last + 1) << 8 | 0xFF << 16)
                behind, end = _scan(access, last + 1)
                config.write(0x1A, 1, end)
                found |= behind
                last = end
            if function == 0 and not header & 0x80:
                break
    return found, last
