"""pyvmm killed, reset and put back while a guest writes: all that the guest was told is safe is in the file.

The guest is guests/blk-log, which tells of each batch of sectors when the FLUSH behind it has come back, or the writes
themselves where it has no FLUSH. PYVMM_SOAK_KILLS sets how many kills (default 10), PYVMM_FUZZ_SEED when they come.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.units import MIB
from pyvmm.virtio.blk import VirtioBlk

KILLS: Final = int(os.environ.get("PYVMM_SOAK_KILLS", "10"))
SEED: Final = int(os.environ.get("PYVMM_FUZZ_SEED", "1"))
SECTOR: Final = 512
SECTORS: Final = 1 << 17
WAYS: Final = (("writeback", 1), ("none", 1), ("writeback", 0), ("none", 0))
"""Cache, and whether the driver agrees to FLUSH."""


def lost(path: Path, told: list[int], batch: int) -> list[int]:
    """The sectors of batches that the guest told of and that the file has otherwise."""
    with path.open("rb") as file:
        return missing(file.read((max(told, default=-1) + 1) * batch * SECTOR), told, batch)


def missing(written: bytes, told: list[int], batch: int) -> list[int]:
    """The same of the disk's first bytes."""
    found = []
    for number in told:
        for sector in range(batch * number, batch * (number + 1)):
            if written[SECTOR * sector : SECTOR * (sector + 1)] != struct.pack("<II", number, sector) * 64:
                found.append(sector)
    return found


def killed(path: Path, cache: str, flush: int, batch: int, dice: random.Random) -> list[int]:
    """The batches that the guest told of until it was killed."""
    command = [sys.executable, "-m", "pyvmm", "run", "blk-log", "--disk", f"{path},cache={cache}"]
    command += ["--set", f"flush={flush}", "--set", f"batch={batch}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in range(dice.randrange(1, 200 if flush else 50))]
        time.sleep(dice.random() / 100)
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
        assert process.wait() == -9, process.stderr.read()
    return [int(line, 16) for line in lines if len(line) == 9]


def test_what_was_flushed_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    dice = random.Random(SEED)
    for kill in range(KILLS):
        cache, flush = WAYS[kill % len(WAYS)]
        batch = dice.choice((1, 4, 4, 32))
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(SECTORS * SECTOR)
        told = killed(path, cache, flush, batch, dice)
        assert told and told == list(range(len(told))), f"kill {kill}, {cache}, flush {flush}"
        assert lost(path, told, batch) == [], f"kill {kill}, {cache}, flush {flush}"
    with path.open("r+b") as file:  # and one that was not there would have been found
        file.seek(SECTOR * (batch * told[-1]) + 3)
        file.write(b"\xee")
    assert lost(path, told, batch) == [batch * told[-1]]


def test_what_was_flushed_is_there_after_snapshots_and_resets(tmp_path: Path) -> None:
    """Each at some moment of the writer's life; its disk goes back with it."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4 << 20))
    said, more = bytearray(), threading.Event()

    def hear(data: bytes) -> None:
        said.extend(data)
        more.set()

    def told() -> list[int]:
        """What was told since a machine began or went back: numbers, the last of which may not be whole."""
        return [int(line, 16) for line in bytes(said).split(b"\n")[:-1]]

    def until(count: int) -> None:
        while len(told()) < count:
            assert more.wait(60), f"the guest tells no more: {told()}"
            more.clear()

    config = MachineConfig(guest="blk-log", memory=16 * MIB, devices=(f"virtio-blk,path={path},temporary",))
    with Machine(config) as machine:
        machine.serial.add(hear)
        machine.start()
        until(20)
        with machine.paused():
            snapshot, begun = machine.snapshot(), bytes(said)
        for _ in range(3):
            until(len(begun) // 9 + 20)
            with machine.paused():
                machine.restore(snapshot)
                said[:] = begun
        until(len(begun) // 9 + 20)
        assert told() == list(range(len(told())))
        for _ in range(3):
            with machine.paused():
                machine.reset()
                said.clear()
            until(20)
        machine.pause()
        numbers = told()
        assert numbers == list(range(len(numbers)))
        disk = machine.board.devices["virtio-blk"]
        assert isinstance(disk, VirtioBlk)
        written = bytearray((numbers[-1] + 1) * 4 * SECTOR)
        disk.disk._image.read([memoryview(written)], 0)
        assert missing(bytes(written), numbers, 4) == []
    assert path.read_bytes() == bytes(4 << 20)
