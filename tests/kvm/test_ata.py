"""ATA disks in whole machines, read by a guest of ours that runs on every /dev/kvm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.machine.outcome import End, Outcome
from pyvmm.pci.piix_ide import PiixIde
from pyvmm.units import MIB
from tests.rig.board import Board, board, counting

SECTOR = 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Each sector has its number as text."""
    file = tmp_path / "disk.img"
    file.write_bytes(b"".join(map(_sector, range(2048))))
    return file


def _sector(number: int) -> bytes:
    return f"sector {number}\n".encode().ljust(SECTOR, b"\0")


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_a_guest_reads_a_sector(path: Path, irqchip: str) -> None:
    with board("ata", devices=(f"ata-disk,path={path}",), parameters={"lba": 1234}, irqchip=irqchip) as machine:
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 0)
        assert machine.output == b"sector 1234\n"
        assert machine.value("interrupts") == 1


def test_a_sector_beyond_the_end(path: Path) -> None:
    with board("ata", devices=(f"ata-disk,path={path}",), parameters={"lba": 2048}) as machine:
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 3)
        assert machine.value("error") == 0x10, "ID not found"


def test_without_a_disk_there_is_no_controller() -> None:
    with board("ata") as machine:
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 1)
        assert not any(isinstance(function, PiixIde) for function in machine.board.pci.all_functions())


def test_after_a_reset_the_guest_finds_it_again(path: Path) -> None:
    with board("ata", devices=(f"ata-disk,path={path}",), parameters={"lba": 7}) as machine:
        machine.start()
        machine.reset()
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 0)
        assert machine.output.endswith(b"sector 7\n")


def drive(machine: Board, *writes: tuple[int, int]) -> None:
    for port, value in writes:
        machine.board.pio.write(port, 1, value)


def put(machine: Board, sector: int, byte: int) -> None:
    """As a driver, by PIO."""

    def begin() -> None:
        drive(machine, (0x1F6, 0xE0), (0x1F2, 1), (0x1F3, sector), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x30))
        for _ in range(SECTOR // 2):
            machine.board.pio.write(0x1F0, 2, byte << 8 | byte)
        machine.board.rest()

    machine.call(begin)


def get(machine: Board, sector: int) -> bytes:
    def run() -> bytes:
        drive(machine, (0x1F6, 0xE0), (0x1F2, 1), (0x1F3, sector), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x20))
        machine.board.rest()
        return b"".join(machine.board.pio.read(0x1F0, 2).to_bytes(2, "little") for _ in range(SECTOR // 2))

    return machine.call(run)


def test_snapshots_have_a_temporary_disk(path: Path, tmp_path: Path) -> None:
    with counting(tmp_path, devices=(f"ata-disk,path={path},temporary",)) as machine:
        machine.start()
        put(machine, 3, 0x41)
        snapshot = machine.snapshot()
        put(machine, 3, 0x42)
        machine.restore(snapshot)
        assert get(machine, 3) == b"A" * SECTOR
        snapshot.save(tmp_path / "saved")
    assert path.read_bytes()[3 * SECTOR : 4 * SECTOR] == _sector(3)
    with Board.restored(tmp_path / "saved") as machine:
        machine.start()
        assert get(machine, 3) == b"A" * SECTOR and get(machine, 4) == _sector(4)


def test_a_disk_that_was_written_to_since_is_refused(path: Path, tmp_path: Path) -> None:
    with counting(tmp_path, devices=(f"ata-disk,path={path}",)) as machine:
        machine.start()
        snapshot = machine.snapshot()
        machine.restore(snapshot)
        put(machine, 3, 0x42)
        with pytest.raises(UserError, match=f"^disk {path} was written to since this snapshot was made"):
            machine.restore(snapshot)
        assert get(machine, 3) == b"B" * SECTOR
    assert path.read_bytes()[3 * SECTOR : 4 * SECTOR] == b"B" * SECTOR


def test_four_beside_a_virtio_disk(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other.img").write_bytes(bytes(MIB))
    disks = tuple(f"ata-disk,path={path},readonly" for _ in range(4))
    with counting(tmp_path, devices=(f"virtio-blk,path={tmp_path / 'other.img'}", *disks)) as machine:
        assert sorted(machine.board.devices) == ["ata-disk", "ata-disk-2", "ata-disk-3", "ata-disk-4", "virtio-blk"]
        assert [type(function) for function in machine.board.pci.all_functions()].count(PiixIde) == 1
    with pytest.raises(UserError, match="there are at most 4 disks with bus=ata: leave one away"):
        counting(tmp_path, devices=(*disks, disks[0]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("none.img,bus=ata", "disk none.img: there is no such file: make one with  truncate -s 10G none.img  or add "
                             "size=10G"),
        ("disk.img,bus=ata,slot=3", "disk disk.img,slot=3: no PCI device: leave port and slot away"),
        ("disk.img,bus=ata,queues=2", "disk disk.img,queues=2: ata-disk has no key queues: it has path, readonly, "
                                      "cache, serial, size, temporary, format"),
        ("disk.img,bus=ata,serial=" + "x" * 21, f"disk disk.img: serial={'x' * 21}: it has at most 20 ASCII "
                                                "characters"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(path: Path, tmp_path: Path, words: str, line: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", "--disk", words], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (2, f"pyvmm: --{line}\n")


def test_what_the_documentation_shows(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "disks.md").read_text()
    _, *lines = text[text.index("guests/ata/guest.S") :].split("\n    ", 4)
    commands = [line.removeprefix("$ ") for line in lines[:2]]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["sh", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == lines[2].partition("\n")[0] + "\n", ran.stderr


def test_the_trace_names_ports_and_commands(path: Path) -> None:
    words = ["run", "ata", "--disk", f"{path},bus=ata", "--set", "lba=9", "--trace", "ide,ata-disk"]
    ran = subprocess.run([sys.executable, "-m", "pyvmm", *words], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (16, "sector 9\n")
    lines = [line.split(maxsplit=1)[1] for line in ran.stderr.splitlines()[:-1]]
    assert any(line.startswith("ide      port 0x1f0+0x7 W1 <- 0x20 rip=") for line in lines)
    assert "ata-disk command 0x20 registers 00 01 09 00 00 e0" in lines
