"""Random guests of a disk: requests, rings, registers and resets in any state and order, while threads serve them.

Nothing raises, nothing outside guest RAM changes, what is under way stays bounded, and after any of it a well-behaved
driver reads and writes. PYVMM_FUZZ_OPS sets how many operations (default 6000), PYVMM_FUZZ_SEED which ones;
`scripts/soak disk-fuzz` does 1,000,000.
"""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.backends.disks import Disks, Request
from pyvmm.testing.pci import Board
from pyvmm.virtio import blk
from pyvmm.virtio.blk import VirtioBlk
from pyvmm.virtio.pci import VirtioPci
from tests.rig.virtio_driver import Buffer, Driver, PackedDriver, SplitDriver, Virtio
from tests.unit.virtio.test_fuzz import DATA, INTERESTING, LOW, SEED, GuardedMemory
from tests.unit.virtio.test_fuzz import OPS as FEW

OPS = int(os.environ.get("PYVMM_SOAK_DISK_FUZZ", FEW))
SECTORS = 256
RINGS = 0x10000
KINDS = (*(0, 1) * 6, 4, 8, 11, 13, 2, 0xFFFFFFFF)
LENGTHS = (0, 1, 15, 16, 17, 20, 32, 511, 512, 513, 1024, 4096, 0x8000, 0x20000, 0xFFFFFFFF)


class Fuzz:
    def __init__(self, path: Path, seed: int, **words: object) -> None:
        self.random = random.Random(seed)
        self.ram = GuardedMemory()
        self.lines: list[str] = []
        self.board = Board(ram=self.ram)
        self.disks = Disks(self.board.later.append, self.lines.append)
        self.device = VirtioBlk(path, self.disks, queues=2, **words)  # type: ignore[arg-type]
        self.function = VirtioPci(self.device)
        self.board.host.root.add(self.function, 10)
        self.config = self.board.ecam(0, 10)
        self.queues: list[Driver] = []
        self.good = 0
        """Requests that were done."""
        self.device.disk.completed = self._count(self.device.disk.completed)
        self.wheel = [self.request] * 20 + [self.kick] * 12 + [self.later] * 6 + [self.setup] * 6
        self.wheel += [self.chain, self.spoil, self.registers, self.device_config, self.dma, self.status]

    def _count(self, completed: Callable[[list[Request]], None]) -> Callable[[list[Request]], None]:
        def count(batch: list[Request]) -> None:
            self.good += sum(request.error is None for request in batch)
            completed(batch)

        return count

    def value(self, size: int) -> int:
        r = self.random
        chosen = r.choice((r.choice(INTERESTING), r.getrandbits(8 * size), RINGS, DATA))
        return chosen & (1 << 8 * size) - 1

    def address(self) -> int:
        r = self.random
        return r.choice(
            (DATA, DATA, DATA + r.randrange(0x40000), DATA + r.randrange(0x40000), LOW - 16, RINGS, 1 << 40)
        )

    def request(self) -> None:
        """Mostly as a driver would make it."""
        r = self.random
        if not self.queues:
            return
        kind, sector = r.choice(KINDS), r.randrange(SECTORS + 4) if r.random() < 0.9 else r.getrandbits(64)
        header = DATA + 0x50000 + 64 * r.randrange(256)
        self.ram.write(header, struct.pack("<IIQ", kind, 0, sector))
        length = r.choice((512, 1024, 4096)) if r.random() < 0.8 else r.choice(LENGTHS)
        data = DATA + r.randrange(0x40000)
        if kind in (11, 13):
            self.ram.write(
                data, struct.pack("<QII", r.randrange(SECTORS), r.randrange(SECTORS), r.choice((0, 0, 1, 2)))
            )
            length = r.choice((16, 16, 16, 32, 17))
        buffers: list[Buffer] = [(header, 16, False)]
        if kind != 4:
            buffers.append((data, length, kind in (0, 8)))
        buffers.append((header + 32, 1, True))
        if r.random() < 0.98 and length > 0x20000:
            return
        r.choice(self.queues).add(buffers, DATA + 0x60000 if r.random() < 0.2 else None)

    def chain(self) -> None:
        r = self.random
        if self.queues:
            count = r.randrange(1, 5)
            writes = sorted(r.random() < 0.5 for _ in range(count)) if r.random() < 0.9 else [True, False]
            buffers = [(self.address(), r.choice(LENGTHS), write) for write in writes]
            r.choice(self.queues).add(buffers, r.choice((None, None, DATA, RINGS + 0x400, DATA + 0x60000)))

    def kick(self) -> None:
        self.function.kick(self.random.randrange(3))
        if self.random.random() < 0.5:
            self.later()

    def spoil(self) -> None:
        r = self.random
        if r.random() < 0.1:
            at = r.choice((RINGS, RINGS + 0x1000)) + r.randrange(0x800)
            self.ram.write(at, r.randbytes(r.choice((1, 2, 4, 16))))
        self.ram.write(DATA + 0x50000 + r.randrange(0x4000), r.randbytes(8))

    def registers(self) -> None:
        size = self.random.choice((1, 2, 4, 8))
        self.function.write(self.random.randrange(0x40), size, self.value(size))
        self.function.read(self.random.randrange(0x40), size)

    def device_config(self) -> None:
        size = self.random.choice((1, 2, 4, 8))
        self.function.write(0x3000 + self.random.randrange(0x100), size, self.value(size))
        self.function.write(0x3020, 1, self.random.randrange(256))
        self.function.read(0x3000 + self.random.randrange(0x100), size)

    def later(self) -> None:
        if self.random.random() < 0.3:
            self.device.disk.drain()  # else the threads hardly have a turn
        self.board.run_later()
        for queue in self.queues:
            try:
                queue.used()
            except KeyError:  # the ring was spoilt
                self.queues = []
                return

    def dma(self) -> None:
        self.config.write(4, 2, self.random.choice((2, 6, 6)))

    def status(self) -> None:
        if self.random.random() < 0.2:
            self.function.write(20, 1, self.random.choice((0, 0, 15, 0x80, 0x40)))

    def setup(self) -> None:
        r = self.random
        if self.device.driver_ok and r.random() < 0.97:
            return
        self.config.write(4, 2, 6)
        features = (
            1 << 32
            | r.getrandbits(24) & self.device.features
            | r.choice((0, 1 << 28, 1 << 29, 3 << 28, 5 << 32, 1 << 34))
        )
        self.queues = self.start(features & self.device.features, r.choice((4, 32, 64)))

    def start(self, features: int, size: int) -> list[Driver]:
        write = self.function.write
        write(20, 1, 0)
        for select in (0, 1):
            write(8, 4, select)
            write(12, 4, features >> 32 * select & 0xFFFFFFFF)
        write(20, 1, 11)
        queues: list[Driver] = []
        for index in range(2):
            kind = PackedDriver if features >> 34 & 1 else SplitDriver
            driver = kind(self.ram, RINGS + 0x1000 * index, size, bool(features >> 29 & 1))
            for at, width, value in ((22, 2, index), (24, 2, size), (32, 8, driver.desc), (40, 8, driver.driver)):
                write(at, width, value)
            write(48, 8, driver.device)
            write(28, 2, 1)
            queues.append(driver)
        write(20, 1, 15)
        return queues

    def healthy(self) -> None:
        self.board.host.reset()
        self.device.disk.drain()
        self.board.run_later()
        assert not self.device._descriptors[0] and not self.device._descriptors[1] and not self.device.busy
        guest = Virtio(self.board, self.function, self.config).map()
        queues = guest.setup(self.device.features & ~(1 << 34))
        self.ram.write(DATA, struct.pack("<IIQ", 1, 0, 7) + b"h" * 512)
        self.ram.write(DATA + 0x1000, struct.pack("<IIQ", 0, 0, 7))
        wanted = 1 if self.device.disk.readonly else 0
        for out, into in (
            ((DATA, 528, False), (DATA + 0x800, 1, True)),
            ((DATA + 0x1000, 16, False), (DATA + 0x2000, 513, True)),
        ):
            queues[1].add([out, into])
            guest.kick(1)
            self.device.disk.drain()
            assert len(queues[1].used()) == 1
        assert self.ram.read_int(DATA + 0x800, 1) == wanted and self.ram.read_int(DATA + 0x2200, 1) == 0
        assert wanted or self.ram.read(DATA + 0x2000, 512) == b"h" * 512
        self.board.host.reset()
        self.queues = []

    def run(self, operations: int) -> None:
        for number in range(operations):
            self.random.choice(self.wheel)()
            assert max(self.device._descriptors) < blk.MAX_DESCRIPTORS + blk.REQUEST_COST + 2 * 1024
            if number % 1000 == 999:
                self.healthy()
                self.ram.check()
        self.healthy()
        self.ram.check()
        self.disks.close()


@pytest.mark.parametrize("words", [{}, {"temporary": True}, {"readonly": True}, {"cache": "none"}])
def test_random_guests(tmp_path: Path, words: dict[str, object]) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * 512))
    fuzz = Fuzz(path, SEED, **words)
    fuzz.run(OPS // 4)
    assert fuzz.good > OPS // 400, "requests were done, not only refused"
    assert not [line for line in fuzz.lines if "become shorter" in line]
    assert path.stat().st_size == SECTORS * 512
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("disk ")]
