"""A guest's driver of virtio-blk, as a model: requests one by one, or many at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvmm.backends.disks import Disks
from pyvmm.machine.machine import Machine
from pyvmm.testing.pci import Board
from pyvmm.virtio.blk import VirtioBlk
from tests.rig.virtio_driver import Driver, Virtio

IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
VERSION_1, EVENT_IDX, INDIRECT, PACKED = 1 << 32, 1 << 29, 1 << 28, 1 << 34
DATA = 0x100000
"""Where requests lie in RAM, each in a room of its own."""
ROOM = 0x40000
SECTOR = 512


class Loop:
    """What a disk posts to, and says."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []
        self.lines: list[str] = []
        self.disks = Disks(self.posted.append, self.lines.append)

    def run(self) -> None:
        calls, self.posted[:] = self.posted[:], []
        for call in calls:
            call()


@dataclass
class Pending:
    """A request that was made available."""

    at: int
    length: int
    """Bytes that the device was asked for."""
    chain: int


class BlkDriver:
    """Of one disk, on a board of its own."""

    def __init__(
        self,
        path: Path,
        *,
        features: int = 0,
        without: int = 0,
        size: int | None = None,
        board: Board | None = None,
        **words: Any,
    ) -> None:
        """*features* beside those of a disk, *without* some; *size* of its rings."""
        self.loop = Loop()
        device = VirtioBlk(path, self.loop.disks, **words)
        self._drive(
            device, Virtio.of(device, board), VERSION_1 | features | device.features & 0xFFFFFF & ~without, size
        )

    def _drive(self, device: VirtioBlk, virtio: Virtio, features: int, size: int | None = None) -> None:
        self.device, self.virtio, self.ram = device, virtio, virtio.board.ram
        self.queues: list[Driver] = virtio.setup(features, size)
        self._rooms = 0

    @classmethod
    def of_machine(cls, machine: Machine, name: str = "virtio-blk") -> BlkDriver:
        """Of a disk that a machine has, whose guest leaves it alone; all inside machine.call()."""
        device = machine.board.devices[name]
        assert isinstance(device, VirtioBlk)
        driver = cls.__new__(cls)
        driver._drive(device, Virtio.of_machine(machine, device), VERSION_1 | device.features & 0xFFFFFF)
        return driver

    def config(self, offset: int, size: int) -> int:
        return self.virtio.read(0x3000 + offset, size)

    def add(
        self, kind: int, sector: int = 0, out: bytes = b"", into: int = 0, queue: int = 0, pieces: int = 1
    ) -> Pending | None:
        """Make a request available, its data in *pieces* buffers; None where the ring has no room."""
        at = DATA + self._rooms % 32 * ROOM
        self._rooms += 1
        self.ram.write(at, struct.pack("<IIQ", kind, 0, sector) + b"\xee" + out)
        data, length = at + 17, len(out) or into
        buffers = [(at, 16, False)]
        step = max(1, -(-length // pieces))
        buffers += [(data + n, min(step, length - n), not out) for n in range(0, length, step)]
        buffers.append((at + 16, 1, True))
        chain = self.queues[queue].add(buffers)
        return None if chain is None else Pending(data, into, chain)

    def kick(self, queue: int = 0) -> None:
        self.virtio.kick(queue)

    def wait(self) -> None:
        """Until the disk has nothing to do."""
        self.device.disk.drain()

    def status(self, request: Pending) -> int:
        return self.ram.read_int(request.at - 1, 1)

    def do(
        self, kind: int, sector: int = 0, out: bytes = b"", into: int = 0, queue: int = 0, pieces: int = 1
    ) -> tuple[int, bytes]:
        """One request and its end: status and data."""
        request = self.add(kind, sector, out, into, queue, pieces)
        assert request is not None
        self.kick(queue)
        self.wait()
        assert [chain for chain, _ in self.queues[queue].used()] == [request.chain]
        return self.status(request), self.ram.read(request.at, into)

    def read(self, sector: int, count: int = 1) -> bytes:
        status, data = self.do(IN, sector, into=count * SECTOR)
        assert status == OK
        return data

    def write(self, sector: int, data: bytes, pieces: int = 1) -> None:
        assert self.do(OUT, sector, data, pieces=pieces)[0] == OK

    def clear(self, kind: int, ranges: Sequence[tuple[int, int, int]]) -> int:
        """DISCARD or WRITE_ZEROES of (sector, count, flags); its status."""
        return self.do(kind, 0, b"".join(struct.pack("<QII", *one) for one in ranges))[0]

    def close(self) -> None:
        self.device.close()

    def __enter__(self) -> BlkDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
