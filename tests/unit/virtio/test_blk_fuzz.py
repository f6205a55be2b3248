"""Random guests of a disk: requests, rings, registers and resets in any state and order, while threads serve them.

Nothing raises, nothing outside guest RAM changes, what is under way stays bounded, and after any of it a well-behaved
driver reads and writes. PYVMM_FUZZ_OPS sets how many operations (default 6000), PYVMM_FUZZ_SEED which ones;
`scripts/soak disk-fuzz` does 1,000,000.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.backends.disks import Disks, Request
from pyvmm.virtio import blk
from pyvmm.virtio.blk import VirtioBlk
from tests.rig.virtio_driver import Buffer
from tests.rig.virtio_fuzz import DATA, RandomGuest
from tests.unit.virtio.test_fuzz import OPS as FEW

OPS = int(os.environ.get("PYVMM_SOAK_DISK_FUZZ", FEW))
SECTORS = 256
KINDS = (*(0, 1) * 6, 4, 8, 11, 13, 2, 0xFFFFFFFF)
LENGTHS = (0, 1, 15, 16, 17, 20, 32, 511, 512, 513, 1024, 4096, 0x8000, 0x20000, 0xFFFFFFFF)


class Fuzz(RandomGuest):
    def __init__(self, path: Path, **words: object) -> None:
        super().__init__(2, LENGTHS)
        self.lines: list[str] = []
        self.disks = Disks(self.board.later.append, self.lines.append)
        self.device = VirtioBlk(path, self.disks, queues=2, **words)  # type: ignore[arg-type]
        self.adopt(self.device)
        self.good = 0
        """Requests that were done."""
        self.device.disk.completed = self._count(self.device.disk.completed)
        self.wheel += [self.request] * 20 + [self.kick] * 12 + [self.later] * 6 + [self.cache]

    def _count(self, completed: Callable[[list[Request]], None]) -> Callable[[list[Request]], None]:
        def count(batch: list[Request]) -> None:
            self.good += sum(request.error is None for request in batch)
            completed(batch)

        return count

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
        self.add(r.randrange(2), buffers)

    def kick(self) -> None:
        self.function.kick(self.random.randrange(3))
        if self.random.random() < 0.5:
            self.later()

    def spoil(self) -> None:
        super().spoil()
        self.ram.write(DATA + 0x50000 + self.random.randrange(0x4000), self.random.randbytes(8))

    def cache(self) -> None:
        self.function.write(0x3020, 1, self.random.randrange(256))

    def later(self) -> None:
        if self.random.random() < 0.3:
            self.device.disk.drain()  # else the threads hardly have a turn
        self.board.run_later()
        self.used()

    def healthy(self) -> None:
        self.device.disk.drain()
        self.board.run_later()
        assert not self.device._descriptors[0] and not self.device._descriptors[1] and not self.device.busy
        guest, queues = self.well_behaved()
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

    def bounded(self) -> None:
        assert max(self.device._descriptors) < blk.MAX_DESCRIPTORS + blk.REQUEST_COST + 2 * 1024


@pytest.mark.parametrize("words", [{}, {"temporary": True}, {"readonly": True}, {"cache": "none"}])
def test_random_guests(tmp_path: Path, words: dict[str, object]) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * 512))
    fuzz = Fuzz(path, **words)
    fuzz.run(OPS // 4)
    fuzz.disks.close()
    assert fuzz.good > OPS // 400, "requests were done, not only refused"
    assert not [line for line in fuzz.lines if "become shorter" in line]
    assert path.stat().st_size == SECTORS * 512
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("disk ")]
