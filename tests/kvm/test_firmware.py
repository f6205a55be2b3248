"""A machine that starts a firmware at the reset vector: ours, with what is on its disks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.machine.outcome import End
from pyvmm.units import MIB
from tests.rig.board import Board

PRINT = "31c0 8ed8 be1a7c ac 84c0 7409 b40e bb0700 cd10 ebf2 b000 e6f4 f4"
"""Prints what is at 7C1A by INT 10h, AH=0Eh, and ends with debug-exit 0."""
KINDS = {
    "virtio": "virtio-blk,path={}",
    "ata": "ata-disk,path={}",
    "floppy": "floppy,path={}",
}


def boot_sector(code: str, text: str = "") -> bytes:
    """512 bytes with *code*, in hexadecimal, at the beginning and *text* behind it."""
    return (bytes.fromhex(code).ljust(0x1A, b"\x90") + text.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@contextlib.contextmanager
def booted(tmp_path: Path, image: bytes, kind: str = "virtio", **options: object) -> Iterator[Board]:
    """A machine with our BIOS and *image* on a disk of *kind*."""
    path = tmp_path / "disk.img"
    path.write_bytes(image)
    fields = {"memory": 2 * MIB, "devices": (KINDS[kind].format(path),), **options}
    with Board(MachineConfig(**fields)) as machine:  # type: ignore[arg-type]
        yield machine


@pytest.mark.parametrize("kind", KINDS)
def test_a_boot_sector_prints(tmp_path: Path, kind: str) -> None:
    """From the reset vector to 0000:7C00, whatever is behind INT 13h; the serial port has the text too."""
    with booted(tmp_path, boot_sector(PRINT, "Hello from the disk"), kind) as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        assert machine.screen.text()[0].startswith("Hello from the disk ")
        assert machine.output == b"Hello from the disk"


def test_no_boot_disk(tmp_path: Path) -> None:
    """The BIOS says so on the screen, and pyvmm in one line, with a status of its own."""
    with booted(tmp_path, bytes(1024)) as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.status) == (End.NO_BOOT_DISK, 10)
        found = "drive 00h: none, drive 80h: no boot sector (55 AA)"
        assert outcome.message == f"{found}: give a disk or floppy whose first 512 bytes end with 55 AA"
        assert machine.screen.text()[0].rstrip() == f"No boot disk: {found}"


def test_a_reset_begins_at_the_reset_vector_and_ram_stays(tmp_path: Path) -> None:
    """The boot sector counts its starts at 0000:9000, and resets by the keyboard controller until there were three."""
    again = "31c0 8ed8 ff060090 833e009003 7304 b0fe e664 f4 b000 e6f4 f4"
    with booted(tmp_path, boot_sector(again)) as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        assert machine.memory.read_int(0x9000, 2) == 3


def test_what_a_firmware_is_started_for(tmp_path: Path) -> None:
    """A disk alone is enough; with a guest or a kernel it is there for that."""
    disk = DeviceSpec("virtio-blk", (("path", "x"),))
    assert MachineConfig(devices=(disk,)).complete().firmware == "bios"
    assert MachineConfig(devices=(disk,), guest="pio").complete().firmware is None
    assert MachineConfig(devices=(disk,), kernel=tmp_path).complete().firmware is None
    assert MachineConfig(devices=("virtio-rng",)).complete().firmware is None
