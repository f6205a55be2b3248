"""A disk under any requests, against a bytearray: each cache mode, temporary, read-only, with snapshots in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyvmm import state
from pyvmm.backends.overlay import CLUSTER
from tests.rig.blk_driver import DISCARD, EVENT_IDX, FLUSH, IN, IOERR, OK, OUT, PACKED, SECTOR, ZEROES, BlkDriver

SECTORS = 3 * CLUSTER // SECTOR + 5
"""Three clusters of an overlay, and a part of one."""
sectors = st.integers(0, SECTORS - 1) | st.sampled_from([0, 127, 128, 255, 256, 383, 384, SECTORS - 1])
counts = st.integers(1, 16) | st.just(128)
seeds = st.integers(1, 255)


class Disk(RuleBasedStateMachine):
    """Bytes of a pattern go in, and whatever is read must be what a bytearray has."""

    words: ClassVar[dict[str, Any]] = {}
    features: ClassVar[int] = EVENT_IDX
    tail: ClassVar[int] = 0
    """Bytes that the file is shorter than its last sector."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name) / "disk.img"
        self.content = bytearray(n // SECTOR * 7 + 1 & 0xFF for n in range(SECTORS * SECTOR))
        self.path.write_bytes(self.content[: len(self.content) - self.tail])
        self.content[len(self.content) - self.tail :] = bytes(self.tail)
        self.original = self.path.read_bytes()
        self.saved: list[tuple[state.Plain, bytes]] = []

    @initialize()
    def open(self) -> None:
        self.driver = BlkDriver(self.path, features=self.features, **self.words)

    def _span(self, sector: int, count: int) -> tuple[int, int]:
        count = min(count, SECTORS - sector)
        return sector * SECTOR, count * SECTOR

    @rule(sector=sectors, count=counts, pieces=st.integers(1, 5))
    def read(self, sector: int, count: int, pieces: int) -> None:
        at, length = self._span(sector, count)
        status, data = self.driver.do(IN, sector, into=length, pieces=pieces)
        assert status == OK and data == self.content[at : at + length]

    @rule(sector=sectors, count=counts, seed=seeds, pieces=st.integers(1, 5))
    def write(self, sector: int, count: int, seed: int, pieces: int) -> None:
        at, length = self._span(sector, count)
        data = bytes(seed + n // SECTOR & 0xFF for n in range(length))
        if self.words.get("readonly"):
            assert self.driver.do(OUT, sector, data)[0] == IOERR
            return
        self.driver.write(sector, data, pieces)
        self.content[at : at + length] = data

    @rule(sector=sectors, count=counts)
    def flush(self, sector: int, count: int) -> None:
        assert self.driver.do(FLUSH)[0] == OK

    @precondition(lambda self: not self.words.get("readonly"))
    @rule(sector=sectors, count=counts, kind=st.sampled_from([DISCARD, ZEROES]), unmap=st.booleans())
    def clear(self, sector: int, count: int, kind: int, unmap: bool) -> None:
        at, length = self._span(sector, count)
        flags = int(unmap and kind == ZEROES)
        assert self.driver.clear(kind, [(sector, length // SECTOR, flags)]) == OK
        self.content[at : at + length] = bytes(length)

    @rule(start=st.integers(0, SECTORS - 64), seed=seeds, kinds=st.lists(st.booleans(), min_size=2, max_size=8))
    def many_at_once(self, start: int, seed: int, kinds: list[bool]) -> None:
        """Each of its own sectors: they may be done in any order."""
        asked = []
        for number, is_write in enumerate(kinds):
            sector = start + 8 * number
            is_write = is_write and not self.words.get("readonly")
            data = bytes([seed + number & 0xFF]) * 8 * SECTOR
            request = self.driver.add(OUT, sector, data) if is_write else self.driver.add(IN, sector, into=8 * SECTOR)
            assert request is not None
            asked.append((request, sector * SECTOR, data if is_write else None))
        self.driver.kick()
        self.driver.wait()
        assert {chain for chain, _ in self.driver.queues[0].used()} == {request.chain for request, _, _ in asked}
        for request, at, written in asked:
            assert self.driver.status(request) == OK
            if written is None:
                assert self.driver.ram.read(request.at, request.length) == self.content[at : at + request.length]
            else:
                self.content[at : at + len(written)] = written

    @precondition(lambda self: self.words.get("temporary"))
    @rule()
    def save(self) -> None:
        self.saved.append((state.save(self.driver.device.disk), bytes(self.content)))

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0))
    def go_back(self, which: int) -> None:
        saved, content = self.saved[which % len(self.saved)]
        state.load(self.driver.device.disk, saved)
        self.content[:] = content

    @precondition(lambda self: self.words.get("temporary"))
    @rule()
    def take_to_another_process(self) -> None:
        disk = self.driver.device.disk
        saved = disk.portable(state.save(disk))
        self.driver.close()
        self.driver = BlkDriver(self.path, features=self.features, **self.words)
        state.load(self.driver.device.disk, saved)
        self.saved.clear()

    @precondition(lambda self: not self.words.get("temporary"))
    @rule()
    def open_again(self) -> None:
        self.driver.close()
        data = self.path.read_bytes()
        assert data.ljust(len(self.content), b"\0") == self.content
        self.driver = BlkDriver(self.path, features=self.features, **self.words)

    @invariant()
    def no_error_is_told(self) -> None:
        if hasattr(self, "driver"):
            assert self.driver.loop.lines == []

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.close()
        if self.words.get("temporary") or self.words.get("readonly"):
            assert self.path.read_bytes() == self.original
        self._directory.cleanup()


class Direct(Disk):
    words: ClassVar = {"cache": "none"}


class Unsafe(Disk):
    words: ClassVar = {"cache": "unsafe"}
    features = PACKED | EVENT_IDX


class Odd(Disk):
    tail = 300


class ReadOnly(Disk):
    words: ClassVar = {"readonly": True}
    tail = 1


class Temporary(Disk):
    words: ClassVar = {"temporary": True}
    tail = 300


few = settings(max_examples=10, stateful_step_count=25, deadline=None)
for machine in (Disk, Direct, Unsafe, Odd, ReadOnly, Temporary):
    machine.TestCase.settings = few
TestWriteback = Disk.TestCase
TestDirect = Direct.TestCase
TestUnsafe = Unsafe.TestCase
TestOdd = Odd.TestCase
TestReadOnly = ReadOnly.TestCase
TestTemporary = Temporary.TestCase
