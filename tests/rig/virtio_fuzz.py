"""A random guest of one virtio device: guarded RAM, and what all such guests do. What is the device's is derived."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Final

from pyvmm.memory import GuestMemory
from pyvmm.testing.pci import Board
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.pci import VirtioPci
from tests.rig.virtio_driver import Buffer, Driver, PackedDriver, SplitDriver, Virtio

SEED: Final = int(os.environ.get("PYVMM_FUZZ_SEED", "1"))
GUARD: Final = 0x1000
LOW, HIGH, HIGH_GPA = 0x100000, 0x10000, 5 << 30
RINGS: Final = 0x10000
DATA: Final = 0x40000
INTERESTING: Final = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 63, 64, 65, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0x8000, 0xFFFF),
)


class GuardedMemory(GuestMemory):
    """Two regions of RAM inside a larger buffer; what lies around them must never change."""

    def __init__(self) -> None:
        self.whole = bytearray(b"\xa5" * (LOW + HIGH + 3 * GUARD))
        view = memoryview(self.whole)
        low, high = GUARD, 2 * GUARD + LOW
        super().__init__([(0, view[low : low + LOW]), (HIGH_GPA, view[high : high + HIGH])])
        self.guards = (view[:low], view[low + LOW : high], view[high + HIGH :])
        self.views = 0

    def view(self, gpa: int, length: int) -> memoryview:
        self.views += 1
        view = super().view(gpa, length)
        assert len(view) == length
        assert 0 <= gpa <= gpa + length <= LOW or HIGH_GPA <= gpa <= gpa + length <= HIGH_GPA + HIGH
        return view

    def check(self) -> None:
        assert all(bytes(guard) == b"\xa5" * len(guard) for guard in self.guards)


class RandomGuest:
    """With the first *count* queues of a device, which adopt() is given."""

    def __init__(self, count: int, lengths: tuple[int, ...], seed: int = SEED) -> None:
        self.random = random.Random(seed)
        self.ram = GuardedMemory()
        self.board = Board(ram=self.ram)
        self.count, self.lengths = count, lengths
        self.queues: list[Driver] = []
        """As long as there is a driver that knows where it is."""
        self.wheel: list[Callable[[], None]] = [
            *[self.setup] * 6,
            *(self.chain, self.spoil, self.registers, self.device_config, self.dma, self.status),
        ]
        """One of these each time; what is the device's own is added."""

    def adopt(self, device: VirtioDevice) -> None:
        self.virtio_device = device
        self.function = VirtioPci(device)
        self.board.host.root.add(self.function, 10)
        self.config = self.board.ecam(0, 10)

    def value(self, size: int) -> int:
        r = self.random
        chosen = r.choice((r.choice(INTERESTING), r.getrandbits(8 * size), RINGS, DATA))
        return chosen & (1 << 8 * size) - 1

    def address(self) -> int:
        r = self.random
        return r.choice((DATA, DATA + r.randrange(0x40000), DATA + r.randrange(0x40000), LOW - 16, RINGS, 1 << 40))

    def add(self, queue: int, buffers: list[Buffer], indirect: int | None = None) -> None:
        if self.queues:
            at = DATA + 0x60000 if self.random.random() < 0.2 else indirect
            self.queues[queue].add(buffers, at)

    def chain(self) -> None:
        r = self.random
        count = r.randrange(1, 5)
        writes = sorted(r.random() < 0.5 for _ in range(count)) if r.random() < 0.9 else [True, False]
        buffers = [(self.address(), r.choice(self.lengths), write) for write in writes]
        self.add(r.randrange(self.count), buffers, r.choice((None, None, DATA, RINGS + 0x400)))

    def spoil(self) -> None:
        r = self.random
        if r.random() < 0.1:
            at = RINGS + 0x1000 * r.randrange(self.count) + r.randrange(0x800)
            self.ram.write(at, r.randbytes(r.choice((1, 2, 4, 16))))

    def registers(self) -> None:
        size = self.random.choice((1, 2, 4, 8))
        self.function.write(self.random.randrange(0x40), size, self.value(size))
        self.function.read(self.random.randrange(0x40), size)

    def device_config(self) -> None:
        size = self.random.choice((1, 2, 4, 8))
        self.function.write(0x3000 + self.random.randrange(0x100), size, self.value(size))
        self.function.read(0x3000 + self.random.randrange(0x100), size)

    def dma(self) -> None:
        self.config.write(4, 2, self.random.choice((2, 6, 6)))

    def status(self) -> None:
        if self.random.random() < 0.2:
            self.function.write(20, 1, self.random.choice((0, 0, 15, 0x80, 0x40)))

    def used(self) -> None:
        """Take what has come back."""
        for number, queue in enumerate(self.queues):
            try:
                self.came_back(number, len(queue.used()))
            except KeyError:  # the ring was spoilt
                self.queues = []
                return

    def came_back(self, queue: int, chains: int) -> None: ...

    def setup(self) -> None:
        """A driver begins, where there is none; now and then another does."""
        r, write = self.random, self.function.write
        if self.virtio_device.driver_ok and self.queues and r.random() < 0.97:
            return
        self.config.write(4, 2, 6)
        features = 1 << 32 | r.getrandbits(24) | r.choice((0, 1 << 28, 1 << 29, 3 << 28, 5 << 32, 1 << 34))
        features &= self.virtio_device.features
        write(20, 1, 0)
        for select in (0, 1):
            write(8, 4, select)
            write(12, 4, features >> 32 * select & 0xFFFFFFFF)
        write(20, 1, 11)
        self.queues = []
        size = r.choice((4, 32, 64))
        for index in range(self.count):
            kind = PackedDriver if features >> 34 & 1 else SplitDriver
            driver = kind(self.ram, RINGS + 0x1000 * index, size, bool(features >> 29 & 1))
            for at, width, value in ((22, 2, index), (24, 2, size), (32, 8, driver.desc), (40, 8, driver.driver)):
                write(at, width, value)
            write(48, 8, driver.device)
            write(28, 2, 1)
            self.queues.append(driver)
        write(20, 1, 15)

    def healthy(self) -> None:
        """After a reset a well-behaved driver works."""
        raise NotImplementedError

    def well_behaved(self) -> tuple[Virtio, list[Driver]]:
        guest = Virtio(self.board, self.function, self.config).map()
        return guest, guest.setup(self.virtio_device.features & ~(1 << 34))

    def bounded(self) -> None:
        """What is under way is not too much."""

    def run(self, operations: int) -> None:
        for number in range(operations):
            self.random.choice(self.wheel)()
            self.bounded()
            if number % 1000 == 999 or number + 1 == operations:
                self.board.host.reset()
                self.queues = []
                self.healthy()
                self.board.host.reset()
                self.ram.check()
