"""Random guests: configuration space, common configuration, rings and doorbells in any state and order.

No access raises, none leaves guest RAM, the number of mapped ranges stays small, and after any of it a reset and a
well-behaved driver work. PYVMM_FUZZ_OPS sets how many operations (default 6000), PYVMM_FUZZ_SEED which ones:

    PYVMM_FUZZ_OPS=1000000 pytest tests/unit/virtio/test_fuzz.py
"""

from __future__ import annotations

import os
import random
import struct
from contextlib import nullcontext

from pyvmm.backends.sockets import Sockets
from pyvmm.loop import Loop
from pyvmm.pci.host_bridge import HostBridge
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import Board
from pyvmm.virtio.console import MAX_MESSAGES
from pyvmm.virtio.console_ports import ConsolePorts
from pyvmm.virtio.input import VirtioKeyboard, VirtioMouse, VirtioTablet, virtio_input_functions
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.rng import VirtioRng
from pyvmm.virtio.vsock import VirtioVsock
from tests.rig.toys import Toy
from tests.rig.vhost import FakeVhost
from tests.rig.virtio_driver import PackedDriver, SplitDriver, Virtio
from tests.rig.virtio_fuzz import DATA, HIGH, HIGH_GPA, INTERESTING, LOW, RINGS, SEED, GuardedMemory

OPS = int(os.environ.get("PYVMM_FUZZ_OPS", "6000"))
RINGS_SIZE = 0x10000
ADDRESSES = (0, RINGS, RINGS + 0x400, RINGS + 0x1002, DATA, LOW - 8, LOW, HIGH_GPA, HIGH_GPA + HIGH - 16, 1 << 40)
FIELDS = ((0, 4), (8, 4), (12, 4), (16, 2), (20, 1), (22, 2), (24, 2), (26, 2), (28, 2), (32, 8), (40, 8), (48, 8))


class Fuzz:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ram = GuardedMemory()
        self.board = board = Board(ram=self.ram)
        self.messages = 0
        self.inputs = [VirtioKeyboard("standard"), VirtioMouse(), VirtioTablet("standard")]
        self.functions = virtio_input_functions(self.inputs)
        root = board.host.root
        root.add(HostBridge(0xE0000000), 0)
        for number, function in enumerate(self.functions):
            root.add(function, 10, number)
        self.loop = Loop(nullcontext())
        self.console = ConsolePorts(Sockets(self.loop), console="terminal", port={"out": ""})
        self.functions.append(VirtioPci(self.console))
        root.add(self.functions[-1], 6)
        self.vhost = FakeVhost(self.ram)
        self.functions.append(VirtioPci(VirtioVsock(3, self.vhost)))
        root.add(self.functions[-1], 7)
        self.functions.append(VirtioPci(VirtioRng(lambda count: bytes(count))))
        self.port = port = RootPort()
        root.add(port, 4)
        port.child.add(self.functions[-1], 0)
        self.toy = Toy()
        root.add(self.toy, 5)
        self.ops = (
            (6, self.config),
            (6, self.common),
            (10, self.ring_word),
            (18, self.descriptor),
            (14, self.index),
            (20, self.kick),
            (10, self.send),
            (3, self.bar_anywhere),
            (4, self.msix),
            (2, self.bus_anywhere),
            (1, self.ports),
            (12, self.setup),
            (2, self.deferred),
        )
        self.wheel = [op for weight, op in self.ops for _ in range(weight)]

    def value(self, size: int) -> int:
        choice = self.random.random()
        if choice < 0.5:
            return self.random.choice(INTERESTING) & ((1 << 8 * size) - 1)
        if choice < 0.7:
            return self.random.choice(ADDRESSES) & ((1 << 8 * size) - 1)
        return self.random.getrandbits(8 * size)

    def function(self) -> VirtioPci:
        """One whose driver is there, as a rule."""
        live = [function for function in self.functions if function.device.driver_ok]
        return self.random.choice(live if live and self.random.random() < 0.8 else self.functions)

    def config(self) -> None:
        """Mostly the registers that matter, of any function."""
        r = self.random
        function = r.choice(self.board.host.all_functions())
        size = r.choice((1, 2, 4))
        offset = r.choice((4, 4, 4, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x3E, r.randrange(0x120)))
        value = r.choice((6, 6, 7, 7, 0xFFFFFFFF, self.value(4))) if offset == 4 else self.value(4)
        function.config_write(offset, size, value & ((1 << 8 * size) - 1))
        function.config_read(r.randrange(0x1000), size)

    def common(self) -> None:
        function = self.function()
        at, size = self.random.choice(FIELDS)
        value = self.value(size)
        if at == 20 and self.random.random() < 0.7:
            value = self.random.choice((1, 3, 11, 15, 15, 15))
        elif at == 20 and value == 0 and self.random.random() < 0.8:
            return
        elif at == 28:
            value = 1
        elif at in (32, 40, 48) and self.random.random() < 0.7:
            value = RINGS + 16 * self.random.randrange(RINGS_SIZE // 16)
        function.write(at, size, value)
        assert 0 <= function.read(at, size) < 1 << 8 * size

    def ring_word(self) -> None:
        at = RINGS + 2 * self.random.randrange(RINGS_SIZE // 2)
        self.ram.write_int(at, 2, self.value(2))

    def descriptor(self) -> None:
        r = self.random
        queue = r.choice(self.function().device.queues)
        index = r.randrange(max(queue.size, 1) if r.random() < 0.9 else 0x400)
        address = r.choice((DATA, DATA, DATA + r.randrange(0x1000), RINGS, queue.desc, r.choice(ADDRESSES)))
        length = r.choice((0, 1, 7, 8, 8, 8, 16, 32, 0x100, 0x10000, r.getrandbits(32)))
        if r.random() < 0.5:
            rest = (r.choice((0, 1, 2, 2, 2, 3, 4, 5, 6)), r.choice((0, 1, 2, 3, 63, 64)))
        else:
            rest = (r.choice((0, 1, 2, 63)), r.choice((0, 1, 2, 2, 2, 3, 4)) | r.choice((0, 1 << 7, 1 << 15)))
        if queue.desc + 16 * index <= LOW - 16:
            self.ram.write(queue.desc + 16 * index, struct.pack("<QIHH", address, length, *rest))

    def index(self) -> None:
        """Move an available index on, by one as a rule."""
        function = self.function()
        queue = self.random.choice(function.device.queues)
        try:
            old = self.ram.read_int(queue.driver + 2, 2)
            self.ram.write_int(queue.driver + 4 + 2 * (old % max(queue.size, 1)), 2, self.random.randrange(8))
            self.ram.write_int(queue.driver + 2, 2, old + self.random.choice((1, 1, 1, 1, 1, 1, 1, 2, 3, 65, 0x8000)))
        except ValueError:
            return
        function.kick(queue.index)

    def kick(self) -> None:
        function = self.function()
        function.write(0x1000 + self.random.choice((0, 4, 4, 8, 2, 12, 16, 20)), self.random.choice((1, 2, 4, 8)), 0)

    def send(self) -> None:
        r = self.random
        device = r.choice(self.inputs)
        events = [(r.choice((0, 1, 2, 3, 0x11)), r.randrange(0x120), r.randrange(-2, 3)) for _ in range(r.randrange(4))]
        device.send(events * r.choice((1, 1, 1, 40)))
        if r.random() < 0.1:
            device.config_changed()
        port = r.choice(self.console.ports)
        assert 0 <= port.receive(bytes(r.choice((0, 1, 9, 5000)))) <= 5000
        if r.random() < 0.1:
            port.hang_up()
        port.held = r.random() < 0.2
        port.release()
        if r.random() < 0.1:
            port.connect()
            self.console.resize(r.randrange(3), 25)

    def bar_anywhere(self) -> None:
        function = self.function()
        size = self.random.choice((1, 2, 4, 8))
        offset = self.random.randrange(0x4000)
        function.write(offset, size, self.value(size))
        function.read(self.random.randrange(0x4000), size)

    def msix(self) -> None:
        function = self.function()
        if self.random.random() < 0.5:
            vector = self.random.randrange(function.vectors.count)
            for at, word in ((0, 0xFEE00000), (4, 0), (8, 0x4000 | vector), (12, 0)):
                function.vectors.write(16 * vector + at, 4, word)
            function.write(22, 2, self.random.randrange(2))
            function.write(26, 2, vector)
        size = self.random.choice((1, 2, 4, 8))
        value = self.random.choice((0xFEE00000, 0, 1, self.value(size))) & ((1 << 8 * size) - 1)
        function.vectors.write(self.random.randrange(0x1000), size, value)
        function.vectors.read(self.random.randrange(0x1000), size)
        function.config_write(function.vectors.offset + 2, 2, self.random.choice((0, 0x8000, 0x8000, 0xC000)))

    def bus_anywhere(self) -> None:
        r = self.random
        size = r.choice((1, 2, 4, 8))
        spans = self.board.memory_bus.ranges
        start, end, _, _ = r.choice(spans)
        address = r.choice((r.randrange(start, end), start - 1, end - 1, r.getrandbits(52)))
        self.board.memory_bus.write(address, size, self.value(size))
        self.board.memory_bus.read(address, size)

    def ports(self) -> None:
        r = self.random
        self.board.io_bus.write(0xCF8, 4, 0x80000000 | r.choice((0, 0x5000, 0x2000, r.getrandbits(24))) & 0xFFFFFC)
        size = r.choice((1, 2, 4))
        self.board.io_bus.write(r.randrange(0xCF8, 0xD00), size, r.getrandbits(8 * size))
        self.board.io_bus.read(r.randrange(0xCF5, 0xD02), size)

    def setup(self) -> None:
        """A driver that starts properly, in memory that the rest goes on to spoil."""
        r = self.random
        function = r.choice(self.functions)
        if function.device.driver_ok and r.random() < 0.9:
            return
        self.port.config_write(4, 2, 7)
        function.config_write(4, 2, 6)
        features = 1 << 32 | r.choice((0, 1 << 28, 1 << 29, 3 << 28)) & function.device.features
        features |= r.choice((0, 1 << 34)) & function.device.features
        function.write(20, 1, 0)
        for select in (0, 1):
            function.write(8, 4, select)
            function.write(12, 4, features >> 32 * select & 0xFFFFFFFF)
        function.write(20, 1, 11)
        assert function.read(20, 1) == 11
        for index in range(len(function.device.queues)):
            size = r.choice((4, 8, 64))
            kind = PackedDriver if features >> 34 & 1 else SplitDriver
            before = self.functions[: self.functions.index(function)]
            place = r.randrange(8) if r.random() < 0.1 else sum(len(one.device.queues) for one in before) + index
            driver = kind(self.ram, RINGS + 0x1000 * place, size, bool(features >> 29 & 1))
            for _ in range(r.randrange(4)):
                driver.add([(DATA, 8, index == 0)])
            for at, width, value in (
                (22, 2, index),
                (24, 2, size),
                (32, 8, driver.desc),
                (40, 8, driver.driver),
                (48, 8, driver.device),
                (28, 2, 1),
            ):
                function.write(at, width, value)
        function.write(20, 1, 15)

    def deferred(self) -> None:
        self.board.run_later()
        self.vhost.run()
        (offload,) = self.vhost.resting
        if self.random.random() < 0.1:
            offload.rest()
            assert not self.vhost.server.running
            offload.go_on()

    def healthy(self) -> None:
        """After all that, a bus reset and an honest driver."""
        board = self.board
        board.host.reset()
        self.deferred()
        self.messages += len(board.msi.sent)
        board.msi.sent.clear()
        for number in (0, 1, 2):
            guest = Virtio(board, self.functions[number], board.ecam(0, 10, number)).map()
            guest.config.write(0x3C, 1, 0)
            queues = guest.setup(guest.offered())
            for i in range(2):
                queues[0].add([(DATA + 8 * i, 8, True)])
            guest.kick(0)
            self.inputs[number].send([(1, 30, 1), (1, 0x110, 1)])
            assert [length for _, length in queues[0].used()] == [8, 8]
            assert guest.read(0x2000, 1) == 1
            board.host.reset()
        assert not any(line.level for line in board.lines)

    def run(self, operations: int) -> None:
        for number in range(operations):
            self.random.choice(self.wheel)()
            if number % 1000 == 999:
                self.healthy()
                self.ram.check()
                assert len(self.board.memory_bus.ranges) < 64
                assert len(self.board.doorbells.active) <= 16
                assert len(self.console.messages) <= MAX_MESSAGES + 12
        self.ram.check()
        self.healthy()


def test_random_guests() -> None:
    fuzz = Fuzz(SEED)
    fuzz.run(OPS)
    assert fuzz.ram.views > OPS // 2 and fuzz.messages > OPS // 2000, "the rings were walked, not only refused"
