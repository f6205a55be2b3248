"""The driver's side of virtio, as a model: rings, negotiation and interrupts, the way a guest does them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvm_cffi.rings import PackedFiller, SplitFiller
from pyvmm.machine.machine import Machine
from pyvmm.memory import GuestMemory
from pyvmm.pci.doorbell import FakeDoorbells
from pyvmm.testing.pci import Board, Config
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.pci import VirtioPci

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
BAR0 = 0xC0000000
BAR2 = 0xC1000000
MESSAGE = 0xFEE00000

Buffer = tuple[int, int, bool]
"""(gpa, length, device writes it)."""


class SplitDriver:
    """A driver of a split ring at *base* in *memory*."""

    def __init__(self, memory: GuestMemory, base: int, size: int, event_idx: bool = False) -> None:
        self.memory, self.size, self.event_idx = memory, size, event_idx
        self.desc = base
        self.driver = base + 16 * size
        self.device = (self.driver + 6 + 2 * size + 3) & ~3
        self.end = self.device + 6 + 8 * size
        memory.write(base, bytes(self.end - base))
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.avail_idx = self.kicked_idx = self.last_used = 0

    def write_desc(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        self.memory.write(self.desc + 16 * index, struct.pack("<QIHH", address, length, flags, following))

    def add(self, buffers: Sequence[Buffer], indirect_at: int | None = None) -> int | None:
        """Make a chain available; its ID, or None if there is no room."""
        if indirect_at is not None:
            for i, (gpa, length, write) in enumerate(buffers):
                flags = (WRITE if write else 0) | (NEXT if i + 1 < len(buffers) else 0)
                self.memory.write(indirect_at + 16 * i, struct.pack("<QIHH", gpa, length, flags, i + 1))
            return self._publish([(indirect_at, 16 * len(buffers), INDIRECT)])
        return self._publish([(gpa, length, WRITE if write else 0) for gpa, length, write in buffers])

    def _publish(self, descriptors: list[tuple[int, int, int]]) -> int | None:
        if len(self.free) < len(descriptors):
            return None
        slots = [self.free.pop() for _ in descriptors]
        for i, (gpa, length, flags) in enumerate(descriptors):
            last = i + 1 == len(descriptors)
            self.write_desc(slots[i], gpa, length, flags | (0 if last else NEXT), 0 if last else slots[i + 1])
        self.chains[slots[0]] = slots
        self.offer(slots[0])
        return slots[0]

    def offer(self, head: int) -> None:
        """Put *head* in the available ring, whatever it is."""
        self.memory.write_int(self.driver + 4 + 2 * (self.avail_idx % self.size), 2, head)
        self.set_avail_idx(self.avail_idx + 1)

    def set_avail_idx(self, value: int) -> None:
        self.avail_idx = value & 0xFFFF
        self.memory.write_int(self.driver + 2, 2, self.avail_idx)

    def needs_kick(self) -> bool:
        """Whether the device asks to be kicked for what was added since the last time this was asked."""
        old, self.kicked_idx = self.kicked_idx, self.avail_idx
        if self.event_idx:
            event = self.memory.read_int(self.device + 4 + 8 * self.size, 2)
            return (self.avail_idx - event - 1) & 0xFFFF < (self.avail_idx - old) & 0xFFFF
        return not self.memory.read_int(self.device, 2) & 1

    def arm(self, wanted: bool = True) -> None:
        """Ask for an interrupt at the next used chain, or for none."""
        if self.event_idx:
            event = self.last_used if wanted else (self.last_used - 1) & 0xFFFF
            self.memory.write_int(self.driver + 4 + 2 * self.size, 2, event)
        else:
            self.memory.write_int(self.driver, 2, 0 if wanted else 1)

    def used(self) -> list[tuple[int, int]]:
        """(ID, length) of the chains that came back since the last time."""
        found = []
        while self.last_used != self.memory.read_int(self.device + 2, 2):
            at = self.device + 4 + 8 * (self.last_used % self.size)
            head, length = struct.unpack("<II", self.memory.read(at, 8))
            self.free += self.chains.pop(head)
            found.append((head, length))
            self.last_used = (self.last_used + 1) & 0xFFFF
        return found


class PackedDriver:
    """A driver of a packed ring at *base* in *memory*."""

    def __init__(self, memory: GuestMemory, base: int, size: int, event_idx: bool = False) -> None:
        self.memory, self.size, self.event_idx = memory, size, event_idx
        self.desc = base
        self.driver = base + 16 * size
        self.device = self.driver + 4
        self.end = self.device + 4
        memory.write(base, bytes(self.end - base))
        self.room = size
        self.chains: dict[int, int] = {}
        self.ids = list(range(size))
        self.next_avail, self.avail_wrap = 0, 1
        self.next_used, self.used_wrap = 0, 1
        self.added = 0

    def write_desc(self, index: int, address: int, length: int, buffer_id: int, flags: int) -> None:
        self.memory.write(self.desc + 16 * index, struct.pack("<QIHH", address, length, buffer_id, flags))

    def add(self, buffers: Sequence[Buffer], indirect_at: int | None = None) -> int | None:
        if indirect_at is not None:
            for i, (gpa, length, write) in enumerate(buffers):
                self.memory.write(indirect_at + 16 * i, struct.pack("<QIHH", gpa, length, 0, WRITE if write else 0))
            descriptors = [(indirect_at, 16 * len(buffers), INDIRECT)]
        else:
            descriptors = [(gpa, length, WRITE if write else 0) for gpa, length, write in buffers]
        if self.room < len(descriptors):
            return None
        buffer_id = self.ids.pop()
        self.chains[buffer_id] = len(descriptors)
        self.room -= len(descriptors)
        self.added += len(descriptors)
        first = None
        for i, (gpa, length, flags) in enumerate(descriptors):
            flags |= NEXT if i + 1 < len(descriptors) else 0
            flags |= AVAIL if self.avail_wrap else USED
            if first is None:
                first = (self.next_avail, gpa, length, buffer_id, flags)
            else:
                self.write_desc(self.next_avail, gpa, length, buffer_id, flags)
            self.next_avail += 1
            if self.next_avail == self.size:
                self.next_avail, self.avail_wrap = 0, self.avail_wrap ^ 1
        assert first is not None
        self.write_desc(*first)
        return buffer_id

    def needs_kick(self) -> bool:
        added, self.added = self.added, 0
        off_wrap, flags = struct.unpack("<HH", self.memory.read(self.device, 4))
        if flags == 2:
            event = off_wrap & 0x7FFF
            if off_wrap >> 15 != self.avail_wrap:
                event -= self.size
            return bool((self.next_avail - event - 1) & 0xFFFF < added)
        return bool(flags == 0)

    def arm(self, wanted: bool = True) -> None:
        if not wanted:
            self.memory.write(self.driver, struct.pack("<HH", 0, 1))
        elif self.event_idx:
            self.memory.write(self.driver, struct.pack("<HH", self.next_used | self.used_wrap << 15, 2))
        else:
            self.memory.write(self.driver, bytes(4))

    def used(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while True:
            _, length, buffer_id, flags = struct.unpack("<QIHH", self.memory.read(self.desc + 16 * self.next_used, 16))
            if flags & (AVAIL | USED) != (AVAIL | USED if self.used_wrap else 0):
                return found
            count = self.chains.pop(buffer_id)
            self.ids.append(buffer_id)
            self.room += count
            self.next_used += count
            if self.next_used >= self.size:
                self.next_used, self.used_wrap = self.next_used - self.size, self.used_wrap ^ 1
            found.append((buffer_id, length if flags & WRITE else 0))


Driver = SplitDriver | PackedDriver


def fill_in_c(ram: GuestMemory, wanted: bool) -> None:
    """Whether C spreads what a device has for the driver, or Python."""
    ram.make_split_filler = SplitFiller if wanted else None
    ram.make_packed_filler = PackedFiller if wanted else None


class BoardOf(Board):
    """A machine's, as a driver reaches it that runs on none of its vCPUs."""

    def __init__(self, machine: Machine) -> None:
        self.memory_bus = machine.board.mmio
        self.ram = machine.memory
        self.doorbells = FakeDoorbells()


@dataclass
class Virtio:
    """A guest's virtio driver of one function at 00:0a.0, through its BAR."""

    board: Board
    function: VirtioPci
    config: Config
    bar0: int = BAR0
    bar2: int = BAR2

    @classmethod
    def of(cls, device: VirtioDevice, board: Board | None = None, doorbells: bool = True, **kwargs: Any) -> Virtio:
        board = board or Board(doorbells)
        function = VirtioPci(device, **kwargs)
        board.host.root.add(function, 10)
        return cls(board, function, board.ecam(0, 10)).map()

    @classmethod
    def of_machine(cls, machine: Machine, device: VirtioDevice) -> Virtio:
        """Of a device that a machine has, whose guest leaves it alone; all inside machine.call()."""
        function = next(f for f in machine.board.pci.all_functions() if getattr(f, "device", None) is device)
        assert isinstance(function, VirtioPci)
        board = BoardOf(machine)
        config = board.ecam(0, int(function.name[:2], 16))
        bars = [config.read(at, 4) & ~0xF for at in (0x10, 0x18)]
        config.write(4, 2, 6)
        return cls(board, function, config, *bars)

    def map(self) -> Virtio:
        self.config.write(0x10, 4, self.bar0)
        self.config.write(0x14, 4, 0)
        self.config.write(0x18, 4, self.bar2)
        self.config.write(4, 2, 6)
        return self

    def read(self, offset: int, size: int) -> int:
        return self.board.memory_bus.read(self.bar0 + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if not self.board.doorbells.ring(self.board.memory_bus, self.bar0 + offset, size, value):
            self.board.memory_bus.write(self.bar0 + offset, size, value)

    @property
    def status(self) -> int:
        return self.read(20, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.write(20, 1, value)

    def offered(self) -> int:
        features = 0
        for select in (0, 1):
            self.write(0, 4, select)
            features |= self.read(4, 4) << 32 * select
        return features

    def accept(self, features: int) -> bool:
        """ACKNOWLEDGE to FEATURES_OK; whether the device agreed."""
        self.status = 0
        self.status = 1
        self.status = 3
        for select in (0, 1):
            self.write(8, 4, select)
            self.write(12, 4, features >> 32 * select & 0xFFFFFFFF)
        self.status = 11
        return bool(self.status & 8)

    def setup(self, features: int, size: int | None = None, base: int = 0x10000) -> list[Driver]:
        """Everything a driver does up to DRIVER_OK; returns its queues."""
        assert self.accept(features)
        queues: list[Driver] = []
        kind = PackedDriver if features >> 34 & 1 else SplitDriver
        for index in range(self.read(18, 2)):
            self.write(22, 2, index)
            driver = kind(self.board.ram, base, size or self.read(24, 2), bool(features >> 29 & 1))
            base = (driver.end + 0xFFF) & ~0xFFF
            self.program(index, driver)
            queues.append(driver)
        self.status = 15
        return queues

    def program(self, index: int, driver: Driver) -> None:
        self.write(22, 2, index)
        self.write(24, 2, driver.size)
        for at, value in ((32, driver.desc), (40, driver.driver), (48, driver.device)):
            self.write(at, 4, value & 0xFFFFFFFF)
            self.write(at + 4, 4, value >> 32)
        self.write(28, 2, 1)

    def kick(self, index: int, size: int = 2) -> None:
        self.write(0x1000 + 4 * index, size, index)

    def msix(self, config_vector: int = 0) -> None:
        """Turn MSI-X on with one message a vector, and vector n + 1 for queue n."""
        count = (self.config.read(self.config.find(0x11) + 2, 2) & 0x7FF) + 1
        for vector in range(count):
            for at, value in ((0, MESSAGE), (4, 0), (8, 0x40 + vector), (12, 0)):
                self.board.memory_bus.write(self.bar2 + 16 * vector + at, 4, value)
        self.config.write(self.config.find(0x11) + 2, 2, 0x8000)
        self.write(16, 2, config_vector)
        for index in range(count - 1):
            self.write(22, 2, index)
            self.write(26, 2, index + 1)

    @property
    def line(self) -> bool:
        """INTA of slot 0a."""
        return self.board.lines[2].level

    @property
    def messages(self) -> list[int]:
        """The data of the messages sent since the last time."""
        sent = [data for _, data in self.board.msi.sent]
        self.board.msi.sent.clear()
        return sent
