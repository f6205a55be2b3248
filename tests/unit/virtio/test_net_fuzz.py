"""Random guests of a network card: frames, commands, rings, registers and resets in any state and order, while frames
come.

Nothing raises, nothing outside guest RAM changes, and after any of it a well-behaved driver sends and receives.
PYVMM_SOAK_OPS sets how many operations (default 6000; scripts/soak net), PYVMM_FUZZ_SEED which ones.
"""

from __future__ import annotations

import os
import random

import pytest

from pyvmm.testing.pci import Board
from pyvmm.virtio.net import VirtioNet
from pyvmm.virtio.pci import VirtioPci
from tests.rig.net_driver import MAC, FakeOffloadWire, FakeWire, OneWire, frame
from tests.rig.vhost import FakeVhost
from tests.rig.virtio_driver import Buffer, Driver, PackedDriver, SplitDriver, Virtio
from tests.unit.virtio.test_fuzz import DATA, INTERESTING, LOW, SEED, GuardedMemory

OPS = int(os.environ.get("PYVMM_SOAK_OPS", "6000"))
RINGS = 0x10000
LENGTHS = (0, 1, 11, 12, 13, 26, 60, 700, 1526, 4096, 0x10000, 0x20000, 0xFFFFFFFF)


class Fuzz:
    def __init__(self, wire: FakeWire, seed: int) -> None:
        self.random = random.Random(seed)
        self.ram = GuardedMemory()
        self.board = Board(ram=self.ram)
        self.wire = wire
        self.device = VirtioNet("tap", OneWire(wire), FakeVhost(self.ram), mac="52:54:00:12:34:56")
        self.function = VirtioPci(self.device)
        self.board.host.root.add(self.function, 10)
        self.config = self.board.ecam(0, 10)
        self.queues: list[Driver] = []
        self.done = [0, 0, 0]
        """Chains that came back, of each queue."""
        self.wheel = [self.buffer] * 12 + [self.frame_in] * 12 + [self.frame_out] * 10 + [self.command] * 5
        self.wheel += [self.kick] * 12 + [self.later] * 6 + [self.setup] * 6
        self.wheel += [self.chain, self.spoil, self.registers, self.dma, self.status, self.link]

    def value(self, size: int) -> int:
        r = self.random
        chosen = r.choice((r.choice(INTERESTING), r.getrandbits(8 * size), RINGS, DATA))
        return chosen & (1 << 8 * size) - 1

    def address(self) -> int:
        r = self.random
        return r.choice((DATA, DATA + r.randrange(0x40000), DATA + r.randrange(0x40000), LOW - 16, RINGS, 1 << 40))

    def add(self, queue: int, buffers: list[Buffer]) -> None:
        if self.queues:
            self.queues[queue].add(buffers, DATA + 0x60000 if self.random.random() < 0.2 else None)

    def buffer(self) -> None:
        r = self.random
        self.add(0, [(DATA + r.randrange(0x40000), r.choice((12, 60, 700, 1526, 1526, 4096)), True)])

    def frame_in(self) -> None:
        r = self.random
        if len(self.wire.waiting) < 8:
            size = r.choice((0, 46, 100, 1500, 9000, 65535))
            header = r.randbytes(12) if isinstance(self.wire, FakeOffloadWire) else b""
            self.wire.give(header + frame(size, r.choice((MAC, b"\xff" * 6, r.randbytes(6)))))

    def frame_out(self) -> None:
        r = self.random
        at = DATA + r.randrange(0x40000)
        self.ram.write(at, r.randbytes(40))
        length = r.choice((26, 72, 1526, 4096)) if r.random() < 0.9 else r.choice(LENGTHS)
        self.add(1, [(at, 12, False), (at + 12, length, False)] if r.random() < 0.5 else [(at, length, False)])

    def command(self) -> None:
        r = self.random
        at = DATA + 0x50000 + 64 * r.randrange(256)
        data = r.choice((b"\0", b"\1", MAC, r.randbytes(6), bytes(8), b"\1\0\0\0" + MAC + bytes(4), r.randbytes(20)))
        text = bytes((r.choice((0, 0, 1, 1, 3, 4, 255)), r.choice((0, 0, 1, 2, 3, 4, 5, 6)))) + data
        self.ram.write(at, text)
        self.add(2, [(at, len(text), False), (at + 40, 1, True)])

    def chain(self) -> None:
        r = self.random
        count = r.randrange(1, 5)
        writes = sorted(r.random() < 0.5 for _ in range(count)) if r.random() < 0.9 else [True, False]
        self.add(r.randrange(3), [(self.address(), r.choice(LENGTHS), write) for write in writes])

    def kick(self) -> None:
        self.function.kick(self.random.randrange(4))

    def spoil(self) -> None:
        r = self.random
        if r.random() < 0.1:
            at = RINGS + 0x1000 * r.randrange(3) + r.randrange(0x800)
            self.ram.write(at, r.randbytes(r.choice((1, 2, 4, 16))))

    def registers(self) -> None:
        size = self.random.choice((1, 2, 4, 8))
        self.function.write(self.random.randrange(0x40), size, self.value(size))
        self.function.read(self.random.randrange(0x40), size)
        self.function.write(0x3000 + self.random.randrange(0x100), size, self.value(size))
        self.function.read(0x3000 + self.random.randrange(0x100), size)

    def later(self) -> None:
        self.board.run_later()
        for number, queue in enumerate(self.queues):
            try:
                self.done[number] += len(queue.used())
            except KeyError:  # the ring was spoilt
                self.queues = []
                return

    def dma(self) -> None:
        self.config.write(4, 2, self.random.choice((2, 6, 6)))

    def status(self) -> None:
        if self.random.random() < 0.2:
            self.function.write(20, 1, self.random.choice((0, 0, 15, 0x80, 0x40)))

    def link(self) -> None:
        self.device.set_link(self.random.random() < 0.8)
        self.wire.connect(self.random.random() < 0.8)

    def setup(self) -> None:
        r = self.random
        if self.device.driver_ok and self.queues and r.random() < 0.97:
            return
        self.config.write(4, 2, 6)
        features = 1 << 32 | r.getrandbits(24) | r.choice((0, 1 << 28, 1 << 29, 3 << 28, 5 << 32, 1 << 34))
        features &= self.device.features
        write = self.function.write
        write(20, 1, 0)
        for select in (0, 1):
            write(8, 4, select)
            write(12, 4, features >> 32 * select & 0xFFFFFFFF)
        write(20, 1, 11)
        self.queues = []
        size = r.choice((4, 32, 64))
        for index in range(3):
            kind = PackedDriver if features >> 34 & 1 else SplitDriver
            driver = kind(self.ram, RINGS + 0x1000 * index, size, bool(features >> 29 & 1))
            for at, width, value in ((22, 2, index), (24, 2, size), (32, 8, driver.desc), (40, 8, driver.driver)):
                write(at, width, value)
            write(48, 8, driver.device)
            write(28, 2, 1)
            self.queues.append(driver)
        write(20, 1, 15)

    def healthy(self) -> None:
        self.board.host.reset()
        self.board.run_later()
        self.wire.waiting.clear()
        self.wire.connect(True)
        self.device.set_link(True)
        guest = Virtio(self.board, self.function, self.config).map()
        queues = guest.setup(self.device.features & ~(1 << 34))
        header = bytes(12) if isinstance(self.wire, FakeOffloadWire) else b""
        self.ram.write(DATA, bytes(12) + frame(200))
        queues[1].add([(DATA, 12 + 214, False)])
        guest.kick(1)
        assert self.wire.out[-1] == header + frame(200) and len(queues[1].used()) == 1
        queues[0].add([(DATA + 0x1000, 1526, True)])
        guest.kick(0)
        self.wire.give(header + frame(300))
        assert [length for _, length in queues[0].used()] == [12 + 314]
        assert self.ram.read(DATA + 0x1000, 12 + 314) == bytes(10) + b"\1\0" + frame(300)
        self.board.host.reset()
        self.queues = []

    def run(self, operations: int) -> None:
        for number in range(operations):
            self.random.choice(self.wheel)()
            del self.wire.out[:-4]
            if number % 1000 == 999:
                self.healthy()
                self.ram.check()
        self.healthy()
        self.ram.check()


@pytest.mark.parametrize("wire", [FakeWire, FakeOffloadWire])
def test_random_guests(wire: type[FakeWire]) -> None:
    fuzz = Fuzz(wire(), SEED)
    fuzz.run(OPS // 2)
    assert min(fuzz.done) > OPS // 400, "chains of each queue came back"
