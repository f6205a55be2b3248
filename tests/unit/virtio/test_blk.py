"""virtio-blk: what each request gives, whatever the driver lays before it, and what becomes of errors of the host."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyvmm import state
from pyvmm.backends.image import FileImage
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory
from pyvmm.virtio import blk
from tests.rig.blk_driver import (
    DATA,
    DISCARD,
    EVENT_IDX,
    FLUSH,
    GET_ID,
    IN,
    INDIRECT,
    IOERR,
    OK,
    OUT,
    PACKED,
    SECTOR,
    UNSUPP,
    ZEROES,
    BlkDriver,
)

SECTORS = 2048


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(b"".join(bytes([n & 0xFF]) * SECTOR for n in range(SECTORS)))
    return file


@pytest.fixture
def disk(path: Path) -> Iterator[BlkDriver]:
    with BlkDriver(path, serial="a serial number") as driver:
        yield driver


def bits(features: int) -> set[int]:
    return {n for n in range(24) if features >> n & 1}


def test_identity_and_configuration(disk: BlkDriver) -> None:
    config = disk.virtio.config
    assert (config.read(0, 2), config.read(2, 2), config.read(8, 4) >> 8) == (0x1AF4, 0x1042, 0x010000)
    assert bits(disk.virtio.offered()) == {1, 2, 6, 9, 10, 11, 13, 14}
    assert disk.config(0, 8) == SECTORS
    assert (disk.config(8, 4), disk.config(12, 4)) == (1 << 20, 254)
    assert disk.config(20, 4) == 512
    assert [disk.config(24, 1), disk.config(26, 2)] == [3, 8]
    assert disk.config(32, 1) == 1
    assert [disk.config(at, 4) for at in (36, 40, 44, 48, 52)] == [4 << 20, 16, 8, 128 << 10, 1]
    assert disk.config(56, 1) == 1


def test_read_only_offers_nothing_that_writes(path: Path) -> None:
    path.chmod(0o444)
    with BlkDriver(path, readonly=True) as disk:
        assert bits(disk.virtio.offered()) == {1, 2, 5, 6, 9, 10, 11}
        assert disk.do(OUT, 0, bytes(512))[0] == IOERR
        assert [disk.clear(kind, [(0, 1, 0)]) for kind in (DISCARD, ZEROES)] == [UNSUPP, UNSUPP]
        assert disk.read(1) == b"\x01" * SECTOR
    assert path.read_bytes()[:512] == bytes(512)


def test_get_id(disk: BlkDriver) -> None:
    assert disk.do(GET_ID, into=20) == (OK, b"a serial number\0\0\0\0\0")
    assert disk.do(GET_ID, into=4) == (OK, b"a se")


@pytest.mark.parametrize("features", [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX])
def test_requests_come_back_with_few_interrupts(path: Path, features: int) -> None:
    with BlkDriver(path, features=features) as disk:
        asked = [disk.add(IN, n, into=SECTOR) for n in range(20)]
        disk.kick()
        disk.wait()
        assert len(disk.queues[0].used()) == 20
        for number, request in enumerate(asked):
            assert request is not None and disk.status(request) == OK
            assert disk.ram.read(request.at, SECTOR) == bytes([number]) * SECTOR


def test_what_is_quick_overtakes_what_is_slow(disk: BlkDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, read = threading.Event(), FileImage.read

    def slow(self: FileImage, views: list[memoryview], offset: int) -> None:
        if not offset:
            assert go_on.wait(60)
        read(self, views, offset)

    monkeypatch.setattr(FileImage, "read", slow)
    first, second = disk.add(IN, 0, into=SECTOR), disk.add(IN, 1, into=SECTOR)
    assert first is not None and second is not None
    disk.kick()
    back: list[int] = []
    while not back:
        disk.loop.run()
        back = [chain for chain, _ in disk.queues[0].used()]
    assert back == [second.chain] and disk.virtio.read(0x2000, 1) == 1
    go_on.set()
    disk.wait()
    assert [chain for chain, _ in disk.queues[0].used()] == [first.chain]


@pytest.mark.parametrize(
    ("kind", "sector", "out", "into", "status"),
    [
        (IN, SECTORS, b"", 512, IOERR),
        (IN, SECTORS - 1, b"", 1024, IOERR),
        (IN, (1 << 64) - 1, b"", 512, IOERR),
        (IN, 0, b"", 100, IOERR),
        (OUT, SECTORS, bytes(512), 0, IOERR),
        (OUT, 0, bytes(513), 0, IOERR),
        (IN, SECTORS - 1, b"", 512, OK),
        (IN, 0, b"", 0, OK),
        (2, 0, bytes(512), 0, UNSUPP),
        (0xFFFFFFFF, 0, b"", 512, UNSUPP),
        (DISCARD, 0, b"", 0, IOERR),
        (DISCARD, 0, bytes(15), 0, IOERR),
        (DISCARD, 0, struct.pack("<QII", 0, 1, 1), 0, UNSUPP),
        (DISCARD, 0, struct.pack("<QII", SECTORS - 1, 2, 0), 0, IOERR),
        (DISCARD, 0, struct.pack("<QII", 0, 8, 0) * 17, 0, IOERR),
        (DISCARD, 0, struct.pack("<QII", 0, 8, 0) * 16, 0, OK),
        (ZEROES, 0, struct.pack("<QII", 0, 1, 2), 0, UNSUPP),
        (ZEROES, 0, struct.pack("<QII", (1 << 64) - 1, 1, 0), 0, IOERR),
        (ZEROES, 0, struct.pack("<QII", 0, 1, 0) * 2, 0, IOERR),
        (ZEROES, 0, struct.pack("<QII", 0, 0, 1), 0, OK),
    ],
)
def test_what_a_request_must_not_ask_for(
    disk: BlkDriver, kind: int, sector: int, out: bytes, into: int, status: int
) -> None:
    assert disk.do(kind, sector, out, into)[0] == status
    assert disk.loop.lines == [] and disk.virtio.status == 15


def chain(disk: BlkDriver, buffers: list[tuple[int, int, bool]]) -> list[int]:
    """The lengths that come back for one chain."""
    disk.queues[0].add(buffers)
    disk.kick()
    disk.wait()
    return [length for _, length in disk.queues[0].used()]


def test_headers_in_pieces_and_a_status_at_the_end_of_the_data(disk: BlkDriver) -> None:
    disk.ram.write(DATA, struct.pack("<IIQ", IN, 0, 5))
    assert chain(disk, [(DATA, 3, False), (DATA + 3, 13, False), (DATA + 100, SECTOR + 1, True)]) == [SECTOR + 1]
    assert disk.ram.read(DATA + 100, SECTOR + 1) == b"\x05" * SECTOR + b"\0"
    disk.ram.write(DATA, struct.pack("<IIQ", OUT, 0, 6) + b"w" * SECTOR)
    assert chain(disk, [(DATA, 16 + SECTOR, False), (DATA + 2000, 1, True)]) == [1]
    assert disk.read(6) == b"w" * SECTOR


def test_a_header_that_is_too_short_is_an_error(disk: BlkDriver) -> None:
    disk.ram.write(DATA, b"\xee" * 100)
    assert chain(disk, [(DATA, 15, False), (DATA + 50, 1, True)]) == [1]
    assert disk.ram.read_int(DATA + 50, 1) == IOERR
    assert chain(disk, [(DATA + 60, 9, True)]) == [0]
    assert disk.ram.read_int(DATA + 68, 1) == IOERR


def test_nowhere_for_the_status_breaks_the_device(disk: BlkDriver) -> None:
    assert chain(disk, [(DATA, 16, False)]) == []
    assert disk.virtio.status & 0x40


def test_a_buffer_outside_ram_breaks_the_device_and_a_reset_mends_it(disk: BlkDriver) -> None:
    assert chain(disk, [(DATA, 16, False), (1 << 40, SECTOR, True), (DATA + 20, 1, True)]) == []
    assert disk.virtio.status & 0x40
    disk.queues = disk.virtio.setup(1 << 32)
    assert disk.read(2) == b"\x02" * SECTOR


def test_a_driver_that_asks_without_end_gets_no_more_than_a_ring_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host does nothing for a while; the driver lets the same chains be done again and again."""
    monkeypatch.setattr(blk, "MAX_DESCRIPTORS", 10 * (3 + blk.REQUEST_COST))
    go_on, read = threading.Event(), FileImage.read
    monkeypatch.setattr(FileImage, "read", lambda self, views, at: (go_on.wait(60), read(self, views, at))[1])
    with BlkDriver(path, size=64) as disk:
        for number in range(21):
            assert disk.add(IN, number, into=SECTOR) is not None
        disk.kick()
        disk.kick()
        assert disk.device.disk._worker.pending == 10
        go_on.set()
        disk.wait()
        assert len(disk.queues[0].used()) == 21


def test_all_queues_together_have_no_more_under_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blk, "MAX_DESCRIPTORS", 16 * (3 + blk.REQUEST_COST))
    go_on, read = threading.Event(), FileImage.read
    monkeypatch.setattr(FileImage, "read", lambda self, views, at: (go_on.wait(60), read(self, views, at))[1])
    with BlkDriver(path, size=64, queues=4) as disk:
        for number in range(4 * 21):
            assert disk.add(IN, 0, into=SECTOR, queue=number % 4) is not None
        for index in range(4):
            disk.kick(index)
        assert disk.device.disk._worker.pending == 16
        go_on.set()
        for _ in range(100):
            disk.wait()
            for call in disk.virtio.board.later[:]:
                disk.virtio.board.later.remove(call)
                call()
        assert [len(queue.used()) for queue in disk.queues] == [21] * 4


# The host's errors


class Failing:
    """A system call that fails as often as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int) -> None:
        self.times, self._call, self._number = times, getattr(os, name), number
        monkeypatch.setattr(os, name, self)

    def __call__(self, *arguments: object) -> object:
        if self.times:
            self.times -= 1
            raise OSError(self._number, os.strerror(self._number))
        return self._call(*arguments)


@pytest.mark.parametrize(
    ("call", "number", "kind", "said"),
    [
        ("preadv", errno.EIO, IN, "a read of 512 bytes at 0x400 failed: Input/output error"),
        ("pwritev", errno.ENOSPC, OUT, "a write of 512 bytes at 0x400 failed: No space left on device"),
    ],
)
def test_an_error_of_the_host_is_one_of_the_disk_and_one_line(
    disk: BlkDriver, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: int, said: str
) -> None:
    Failing(monkeypatch, call, number, 3)
    out, into = (bytes(512), 0) if kind == OUT else (b"", 512)
    assert [disk.do(kind, 2, out, into)[0] for _ in range(4)] == [IOERR, IOERR, IOERR, OK]
    (line,) = disk.loop.lines
    assert line == f"{disk.device.disk.name}: {said}: the guest hears of an I/O error"


def test_a_flush_that_failed_once_fails_for_good(disk: BlkDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets what it could not write, and says so once: no later success may be believed."""
    Failing(monkeypatch, "fdatasync", errno.EIO, 1)
    assert [disk.do(FLUSH)[0], disk.do(FLUSH)[0]] == [IOERR, IOERR]
    assert len(disk.loop.lines) == 1


def test_a_file_that_has_become_shorter(disk: BlkDriver, path: Path) -> None:
    os.truncate(path, 10 * SECTOR + 100)
    assert disk.read(9) == b"\x09" * SECTOR
    assert [disk.do(IN, n, into=SECTOR)[0] for n in (10, 11, SECTORS - 1)] == [IOERR] * 3
    assert disk.loop.lines[0].endswith("the file has become shorter: the guest hears of an I/O error")
    disk.write(11, b"x" * SECTOR)
    assert disk.read(11) == b"x" * SECTOR


def test_no_thread_is_an_error_of_the_disk(disk: BlkDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("pyvmm.threads.start", refuse)
    assert disk.do(IN, 0, into=SECTOR)[0] == IOERR
    assert "can't start new thread" in disk.loop.lines[0]


# What is safe when


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes there were when each fdatasync began."""
    writes, seen = [0], []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def write(*arguments: object) -> int:
        writes[0] += 1
        return pwritev(*arguments)  # type: ignore[arg-type]

    def sync(fd: int) -> None:
        seen.append(writes[0])
        fdatasync(fd)

    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    return seen


def test_a_flush_comes_after_the_writes_that_were_told_of(disk: BlkDriver, synced: list[int]) -> None:
    disk.write(0, bytes(512))
    disk.write(1, bytes(512))
    assert synced == []
    assert disk.do(FLUSH)[0] == OK and synced == [2]


def test_without_flush_each_write_is_through(path: Path, synced: list[int]) -> None:
    with BlkDriver(path, without=1 << 9 | 1 << 11) as disk:
        disk.write(0, bytes(512))
        disk.write(1, bytes(512))
        assert synced == [1, 2]
        assert disk.clear(ZEROES, [(0, 1, 1)]) == OK and len(synced) == 3


def test_without_flush_writeback_reads_zero(path: Path, synced: list[int]) -> None:
    with BlkDriver(path, without=1 << 9) as disk:
        assert disk.config(32, 1) == 0
        disk.write(0, bytes(512))
        assert synced == [1]


def test_the_driver_switches_the_cache(disk: BlkDriver, synced: list[int]) -> None:
    disk.virtio.write(0x3020, 1, 0)
    assert disk.config(32, 1) == 0
    disk.write(0, bytes(512))
    assert synced == [1]
    disk.virtio.write(0x3020, 1, 1)
    assert disk.config(32, 1) == 1
    disk.write(0, bytes(512))
    assert synced == [1]
    disk.virtio.write(0x3020, 1, 0)
    disk.virtio.status = 0
    assert disk.config(32, 1) == 1, "a reset ends it"


def test_unsafe_is_what_it_says(path: Path, synced: list[int]) -> None:
    with BlkDriver(path, cache="unsafe") as disk:
        disk.write(0, bytes(512))
        assert disk.do(FLUSH)[0] == OK and synced == []


def test_trim_gives_blocks_back(disk: BlkDriver, path: Path) -> None:
    before = path.stat().st_blocks
    assert disk.clear(DISCARD, [(0, 1024, 0)]) == OK
    assert disk.clear(ZEROES, [(1024, 512, 1)]) == OK
    assert path.stat().st_blocks <= before - 1536
    assert disk.clear(ZEROES, [(1536, 256, 0)]) == OK
    assert path.stat().st_blocks <= before - 1536
    assert disk.read(0, 256) == disk.read(1536, 256) == bytes(256 * SECTOR)


def test_a_file_system_that_cannot_punch(disk: BlkDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(fd: int, mode: int, offset: int, length: int) -> None:
        asked.append(mode)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("pyvmm.backends.image.fallocate", refuse)
    assert [disk.clear(DISCARD, [(8, 8, 0)]) for _ in range(3)] == [OK, OK, OK]
    assert disk.read(8) == b"\x08" * SECTOR, "a hint that nobody could follow"
    assert [disk.clear(ZEROES, [(8, 8, unmap)]) for unmap in (1, 0, 1)] == [OK, OK, OK]
    assert disk.read(7, 10) == b"\x07" * SECTOR + bytes(8 * SECTOR) + b"\x10" * SECTOR
    assert len(asked) == 2 and disk.loop.lines == []


# Queues, resets, life


def test_several_queues(path: Path) -> None:
    with BlkDriver(path, queues=3, size=8) as disk:
        assert disk.virtio.read(18, 2) == 3 and disk.config(34, 2) == 3
        assert 12 in bits(disk.virtio.offered())
        for queue in range(3):
            assert disk.do(IN, queue, into=SECTOR, queue=queue) == (OK, bytes([queue]) * SECTOR)


def test_a_reset_ends_when_what_was_begun_has_ended(disk: BlkDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, read = threading.Event(), threading.Event(), FileImage.read

    def wait(image: FileImage, views: Sequence[memoryview], at: int) -> None:
        begun.set()
        go_on.wait(60)
        read(image, views, at)

    monkeypatch.setattr(FileImage, "read", wait)
    requests = [disk.add(IN, n, into=SECTOR) for n in range(30)]
    disk.kick()
    assert begun.wait(60)
    disk.virtio.status = 0
    assert disk.virtio.status != 0, "that RAM may still be written to"
    go_on.set()
    disk.wait()
    assert disk.virtio.status == 0
    assert disk.queues[0].used() == [] and disk.virtio.read(0x2000, 1) == 0
    assert all(request is not None and disk.status(request) == 0xEE for request in requests)
    disk.queues = disk.virtio.setup(1 << 32)
    assert disk.read(2) == b"\x02" * SECTOR


def test_a_request_that_ends_while_dma_is_forbidden_comes_back_after(disk: BlkDriver) -> None:
    request = disk.add(IN, 1, into=SECTOR)
    assert request is not None
    disk.kick()
    disk.virtio.config.write(4, 2, 2)
    disk.wait()
    assert disk.queues[0].used() == []
    with pytest.raises(UserError, match=r"its driver waits for requests and has forbidden DMA: try again later$"):
        state.save(disk.virtio.function)
    disk.virtio.config.write(4, 2, 6)
    assert len(disk.queues[0].used()) == 1 and disk.status(request) == OK


def test_closing_ends_threads_and_descriptors(path: Path) -> None:
    fds, running = len(os.listdir("/proc/self/fd")), threading.active_count()
    for words in ({}, {"temporary": True}, {"cache": "none"}):
        with BlkDriver(path, **words) as disk:
            for number in range(40):
                disk.add(IN, number, into=SECTOR)
            disk.kick()
            assert threading.active_count() > running
        disk.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (fds, running)


def test_the_file_grows_and_the_driver_is_told(disk: BlkDriver, path: Path) -> None:
    disk.device.resize()
    assert disk.virtio.read(0x2000, 1) == 0
    os.truncate(path, (SECTORS + 8) * SECTOR)
    assert disk.do(IN, SECTORS, into=SECTOR)[0] == IOERR
    generation = disk.virtio.read(21, 1)
    assert disk.virtio.read(0x2000, 1) == 1
    disk.device.resize()
    assert disk.virtio.read(0x2000, 1) == 2 and disk.virtio.read(21, 1) == generation + 1
    assert disk.config(0, 8) == SECTORS + 8
    assert disk.read(SECTORS) == bytes(SECTOR)


def test_large_requests_with_many_buffers(tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    data = os.urandom(3 << 20)
    path.write_bytes(data)
    with BlkDriver(path, features=INDIRECT) as disk:
        ram = disk.ram
        assert isinstance(ram, GuestMemory)
        ram.write(0x400000, struct.pack("<IIQ", IN, 0, 0))
        buffers = [(0x400000, 16, False)]
        buffers += [(0x500000 + n * 3072, 3072, True) for n in range(1022)]
        buffers += [(0x400020, 1, True)]
        disk.queues[0].add(buffers, 0x410000)
        disk.kick()
        disk.wait()
        assert [length for _, length in disk.queues[0].used()] == [1022 * 3072 + 1]
        assert ram.read(0x500000, 1022 * 3072) == data[: 1022 * 3072]


# Snapshots


def test_a_snapshot_waits_for_what_is_under_way(disk: BlkDriver) -> None:
    requests = [disk.add(IN, n, into=SECTOR) for n in range(10)]
    disk.kick()
    state.save(disk.virtio.function)
    assert len(disk.queues[0].used()) == 10
    assert all(request is not None and disk.status(request) == OK for request in requests)


def test_a_disk_that_was_written_to_since_is_refused(disk: BlkDriver) -> None:
    saved = state.save(disk.virtio.function)
    disk.read(0)
    disk.virtio.function.check_saved(saved)
    state.load(disk.virtio.function, saved)
    disk.write(0, bytes(512))
    with pytest.raises(
        UserError, match=r"disk \S+ was written to since .*: put back the file of then, or use temporary$"
    ):
        disk.virtio.function.check_saved(saved)
    with pytest.raises(UserError, match="was written to since"):
        state.load(disk.virtio.function, saved)


def test_a_map_of_another_process_leads_nowhere(path: Path) -> None:
    with BlkDriver(path, temporary=True) as disk:
        disk.write(0, bytes(512))
        saved = state.save(disk.device.disk)
    with BlkDriver(path, temporary=True) as disk, pytest.raises(UserError, match="is in another process"):
        state.load(disk.device.disk, saved)


def test_a_file_of_the_future(path: Path) -> None:
    os.utime(path, (2e9, 2e9 + 1e9))
    with BlkDriver(path) as disk:
        saved = state.save(disk.device)
        disk.device.check_saved(saved)


def test_another_process_finds_out_too(path: Path) -> None:
    with BlkDriver(path) as disk:
        disk.write(0, bytes(512))
        saved = state.save(disk.device)
    with BlkDriver(path) as disk:
        disk.device.check_saved(saved)
        disk.write(0, bytes(512))  # at once: the file's clock has moved on all the same
    with BlkDriver(path) as disk, pytest.raises(UserError, match="was written to since"):
        disk.device.check_saved(saved)


@pytest.mark.parametrize("words", [{"temporary": True}, {"readonly": True}])
def test_what_lies_below_must_be_what_it_was(path: Path, words: dict[str, Any]) -> None:
    with BlkDriver(path, **words) as disk:
        saved = disk.device.portable(state.save(disk.device))
    with BlkDriver(path, **words) as disk:
        disk.device.check_saved(saved)
    with BlkDriver(path) as disk, pytest.raises(UserError):
        disk.device.check_saved(saved if "temporary" in words else {"disk": {"overlay": b""}})
    with path.open("r+b") as file:
        file.write(b"changed")
    with BlkDriver(path, **words) as disk, pytest.raises(UserError, match="was written to since"):
        disk.device.check_saved(saved)
    os.truncate(path, 512)
    with BlkDriver(path, **words) as disk, pytest.raises(UserError, match="another size than in this snapshot"):
        disk.device.check_saved(saved)
