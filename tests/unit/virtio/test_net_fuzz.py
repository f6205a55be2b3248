"""Random guests of a network card: frames, commands, rings, registers and resets in any state and order, while frames
come.

Nothing raises, nothing outside guest RAM changes, and after any of it a well-behaved driver sends and receives.
PYVMM_SOAK_OPS sets how many operations (default 6000; scripts/soak net), PYVMM_FUZZ_SEED which ones.
"""

from __future__ import annotations

import os

import pytest

from pyvmm.virtio.net import VirtioNet
from tests.rig.net_driver import MAC, FakeOffloadWire, FakeWire, OneWire, frame
from tests.rig.vhost import FakeVhost
from tests.rig.virtio_fuzz import DATA, RandomGuest

OPS = int(os.environ.get("PYVMM_SOAK_OPS", "6000"))
LENGTHS = (0, 1, 11, 12, 13, 26, 60, 700, 1526, 4096, 0x10000, 0x20000, 0xFFFFFFFF)


class Fuzz(RandomGuest):
    def __init__(self, wire: FakeWire) -> None:
        super().__init__(3, LENGTHS)
        self.wire = wire
        self.device = VirtioNet("tap", OneWire(wire), FakeVhost(self.ram), mac="52:54:00:12:34:56")
        self.adopt(self.device)
        self.done = [0, 0, 0]
        """Chains that came back, of each queue."""
        self.wheel += [self.buffer] * 12 + [self.frame_in] * 12 + [self.frame_out] * 10 + [self.command] * 5
        self.wheel += [self.kick] * 12 + [self.later] * 6 + [self.link]

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

    def kick(self) -> None:
        self.function.kick(self.random.randrange(4))

    def later(self) -> None:
        self.board.run_later()
        self.used()

    def came_back(self, queue: int, chains: int) -> None:
        self.done[queue] += chains

    def link(self) -> None:
        self.device.set_link(self.random.random() < 0.8)
        self.wire.connect(self.random.random() < 0.8)

    def healthy(self) -> None:
        self.board.run_later()
        self.wire.waiting.clear()
        self.wire.connect(True)
        self.device.set_link(True)
        guest, queues = self.well_behaved()
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

    def bounded(self) -> None:
        del self.wire.out[:-4]


@pytest.mark.parametrize("wire", [FakeWire, FakeOffloadWire])
def test_random_guests(wire: type[FakeWire]) -> None:
    fuzz = Fuzz(wire())
    fuzz.run(OPS // 2)
    assert min(fuzz.done) > OPS // 400, "chains of each queue came back"
