"""Disks in whole machines: what a snapshot, a pause, a reset and the end make of them, and what the user is told."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pyvmm.backends.image import FileImage
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.outcome import End
from pyvmm.units import MIB
from tests.rig.blk_driver import FLUSH, IN, OK, OUT, SECTOR, BlkDriver
from tests.rig.board import SPIN, Board, board

A, B, C = b"a" * SECTOR, b"b" * SECTOR, b"c" * SECTOR


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "code").write_bytes(bytes.fromhex(SPIN))
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(MIB))
    return file


def made(path: Path, *disks: str) -> Board:
    """A machine with disks, at *path* where the text begins with a comma, and a guest that only counts."""
    devices = tuple(f"virtio-blk,path={path}{words}" for words in disks)
    config = MachineConfig(memory=16 * MIB, kernel=path.parent / "code", flat="real@0x1000", devices=devices)
    return Board(config)


def driver(machine: Board) -> BlkDriver:
    return machine.call(lambda: BlkDriver.of_machine(machine))


def write(machine: Board, disk: BlkDriver, sector: int, data: bytes) -> None:
    machine.call(lambda: disk.write(sector, data))


def read(machine: Board, disk: BlkDriver, sector: int) -> bytes:
    return machine.call(lambda: disk.read(sector))


def test_a_temporary_disk_goes_back_with_its_machine(path: Path) -> None:
    with made(path, ",temporary") as machine:
        machine.start()
        disk = driver(machine)
        write(machine, disk, 1, A)
        first = machine.snapshot()
        write(machine, disk, 1, B)
        write(machine, disk, 200, B)
        second = machine.snapshot()
        write(machine, disk, 1, C)
        queues = disk.queues
        for snapshot, expected in ((first, [A, bytes(512)]), (second, [B, B]), (first, [A, bytes(512)])):
            machine.restore(snapshot)
            disk.queues = machine.call(lambda: disk.virtio.setup(1 << 32))
            assert [read(machine, disk, sector) for sector in (1, 200)] == expected
        assert queues
        second.save(path.parent / "saved")
    assert path.read_bytes() == bytes(MIB)
    with Board.restored(path.parent / "saved") as machine:
        machine.start()
        disk = driver(machine)
        assert [read(machine, disk, sector) for sector in (0, 1, 200)] == [bytes(512), B, B]
        write(machine, disk, 0, C)
    assert path.read_bytes() == bytes(MIB)


def test_a_disk_that_was_written_to_since_is_refused_and_the_machine_goes_on(path: Path) -> None:
    with made(path, "") as machine:
        machine.start()
        disk = driver(machine)
        write(machine, disk, 1, A)
        snapshot = machine.snapshot()
        assert read(machine, disk, 1) == A
        machine.restore(snapshot)
        disk = driver(machine)
        write(machine, disk, 1, B)
        snapshot.save(path.parent / "saved")
        with pytest.raises(UserError, match=f"^disk {path} was written to since this snapshot was made, .* temporary$"):
            machine.restore(snapshot)
        assert machine.state == "running"
        assert read(machine, disk, 1) == B
    with pytest.raises(UserError, match=f"^{path.parent}/saved: .*disk {path} was written to since"):
        Board.restored(path.parent / "saved")
    ran = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", "--restore", path.parent / "saved"], capture_output=True, text=True
    )
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "was written to since" in ran.stderr


def test_paths_are_saved_whole(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = MachineConfig(memory=MIB, kernel=Path("code"), flat="real@0x1000", devices=("virtio-blk,path=disk.img",))
    with Board(config) as machine:
        machine.snapshot().save("saved")
    monkeypatch.chdir("/")
    with Board.restored(tmp_path / "saved") as machine:
        assert machine.config.devices == (f"virtio-blk,path={path}",)
    path.unlink()
    with pytest.raises(UserError, match="there is no such file"):
        Board.restored(tmp_path / "saved")


class Slow:
    """Reads that begin and do not end until they may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on, self.begun, self.ended = threading.Event(), threading.Event(), 0
        read = FileImage.read

        def slow(image: FileImage, views: list[memoryview], offset: int) -> None:
            self.begun.set()
            assert self.go_on.wait(60)
            read(image, views, offset)
            self.ended += 1

        monkeypatch.setattr(FileImage, "read", slow)


@pytest.mark.parametrize("what", ["pause", "snapshot", "reset"])
def test_what_is_under_way_ends_first(path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path.write_bytes(A * 2048)
    slow = Slow(monkeypatch)
    with made(path, "") as machine:
        machine.start()
        disk = driver(machine)
        request = machine.call(lambda: disk.add(IN, 3, into=SECTOR))
        assert request is not None
        machine.call(disk.kick)
        assert slow.begun.wait(60)
        threading.Timer(0.2, slow.go_on.set).start()
        getattr(machine, what)()
        assert slow.ended == 1
        with machine.paused():
            assert machine.memory.read(request.at, SECTOR) == A
            assert (len(disk.queues[0].used()) == 1) == (what != "reset")


def test_a_host_that_does_not_answer_holds_no_machine_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.backends.worker.Worker.drain.__defaults__", (0.1,))
    slow = Slow(monkeypatch)
    with made(path, "") as machine:
        machine.start()
        disk = driver(machine)
        machine.call(lambda: disk.add(IN, 3, into=SECTOR))
        machine.call(disk.kick)
        assert slow.begun.wait(60)
        with pytest.raises(
            UserError, match=f"^disk {path} does not come to rest within 0.1 s: its host does not answer$"
        ):
            machine.pause()
        assert machine.state == "running"
        slow.go_on.set()
        machine.pause()
        machine.resume()


def test_an_error_of_the_host_is_an_event(path: Path) -> None:
    with made(path, "") as machine:
        told: list[MachineEvent] = []
        machine.events.add(told.append)
        machine.start()
        disk = driver(machine)
        os.truncate(path, SECTOR)
        assert machine.call(lambda: disk.do(IN, 1, into=SECTOR))[0] != OK
        assert machine.call(lambda: disk.do(OUT, 1, A))[0] == OK
        (line,) = (event.message for event in told if event.kind == "io-error")
        assert line.startswith(f"disk {path}: a read of 512 bytes at 0x200 failed: the file has become shorter")


def test_who_hears_of_a_disk_is_inside_the_machine(path: Path) -> None:
    """In whichever thread: to wait there for the machine would be for good."""
    with made(path, "") as machine:
        inside: list[bool] = []
        heard = threading.Event()

        def hear(event: MachineEvent) -> None:
            if event.kind == "io-error":
                inside.append(machine.life.inside)
                heard.set()

        machine.events.add(hear)
        machine.start()
        disk = driver(machine)
        os.truncate(path, SECTOR)
        for kind, out, into in ((IN, b"", SECTOR), (FLUSH, b"", 0)):
            disk.device.disk._file._lost = errno.EIO  # the flush fails too
            machine.call(lambda kind=kind, out=out, into=into: disk.add(kind, 8, out, into))  # type: ignore[misc]
            machine.call(disk.kick)
            assert heard.wait(60)
            heard.clear()
        assert inside == [True, True]


def test_nothing_is_left_of_them(path: Path) -> None:
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for words in ([""], [",temporary", ",temporary"]):
        with made(path, *words) as machine:
            machine.start()
            disk = driver(machine)
            machine.call(lambda disk=disk: [disk.add(IN, n, into=SECTOR) for n in range(64)])  # type: ignore[misc]
            machine.call(disk.kick)
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (fds, threads)
    for words, line in (
        (["", ""], "another machine has it, and locked it"),
        ([",slot=0"], "slot 0 is taken by HostBridge"),
    ):
        with pytest.raises(UserError, match=line):
            made(path, *words)
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (fds, threads)
    with made(path, ""):
        pass


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("none.img", "disk none.img: there is no such file: make one with  truncate -s 10G none.img  or add size=10G"),
        (".", "disk .: it is a directory: name a file or block device"),
        ("disk.img,size=big", "disk disk.img: size='big' is no size: write it as 512M or 10G"),
        ("disk.img,cache=best", "disk disk.img,cache=best: 'cache=best' is no cache: it must be one of writeback, "
                                "none, unsafe"),
        ("disk.img,temporary,readonly", "disk disk.img: readonly and temporary do not go together: leave one away"),
        ("disk.img,serial=" + "x" * 21, f"disk disk.img: serial={'x' * 21}: it has at most 20 bytes"),
        ("disk.img,queues=65", "disk disk.img: queues=65: a disk has 1 to 64"),
        ("disk.img,quick", "disk disk.img,quick: virtio-blk has no key quick: it has path, readonly, cache, serial, "
                           "size, temporary, queues, format"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(path: Path, tmp_path: Path, words: str, line: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", "--disk", words], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (2, f"pyvmm: --{line}\n")


@pytest.mark.parametrize(("depth", "write"), [(1, 0), (32, 1)])
def test_a_guest_that_asks_again_and_again(tmp_path: Path, depth: int, write: int) -> None:
    """guests/blk-bench: each request ends once, and what it writes is in the file."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xa5" * MIB)
    parameters = {"count": 300, "depth": depth, "write": write, "blocks": MIB // 4096}
    with board("blk-bench", parameters=parameters, devices=(f"virtio-blk,path={path}",)) as machine:
        outcome = machine.finish()
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        cycles, interrupts, kicks = (int(word, 16) for word in machine.output.split())
        assert cycles and interrupts <= 300 and 0 < kicks <= 300  # a fast disk: it never found nothing and slept
    assert (path.read_bytes() != b"\xa5" * MIB) == bool(write)


def test_who_rings_is_not_heard_while_the_machine_stands(path: Path) -> None:
    """A snapshot copies RAM then, without the machine lock."""
    with made(path, "") as machine:
        machine.start()
        disk = driver(machine)
        request, fd = machine.call(lambda: disk.add(IN, 1, into=SECTOR)), disk.device.queues[0].kick_fd
        assert request is not None and fd is not None

        def ring() -> None:
            os.eventfd_write(fd, 1)
            while not machine.life.loop._posted and disk.status(request) == 0xEE:
                pass
            assert disk.status(request) == 0xEE and not disk.device.busy

        machine.life.while_standing("this test", ring)
        while not machine.call(disk.queues[0].used):
            pass


@pytest.mark.parametrize("depth", [1, 32])
def test_it_goes_back_while_it_asks(tmp_path: Path, depth: int) -> None:
    """What has rung when the machine comes to stand, and what was under way, is neither lost nor done twice."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    parameters = {"count": 6000, "depth": depth, "write": 1, "blocks": MIB // 4096}
    with board("blk-bench", parameters=parameters, devices=(f"virtio-blk,path={path},temporary",)) as machine:
        machine.start()
        dice = random.Random(depth)
        for _ in range(8):
            snapshot = machine.snapshot()
            time.sleep(dice.random() / 100)
            machine.restore(snapshot)
        outcome = machine.finish()
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
