"""From exec to the first byte that a boot sector sends: our BIOS, SeaBIOS here, and SeaBIOS under QEMU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from benchmarks.boot import MEMORY_MB, run_until
from benchmarks.document import table
from benchmarks.programs import PYVMM, say
from benchmarks.stats import in_turn, paired_ratio, spread

LINE: Final = b"boot sector"
SECTOR: Final = bytes.fromhex("fa 31c0 8ed8 fc be167c baf803 ac ee 84c0 75fa f4 ebfd")
"""Sends what is at 7C16 to COM1, whose transmitter is always ready here, and halts; without interrupts, at which
SeaBIOS sends the rest of its own."""
TEXT_AT: Final = 0x16
DISK_SIZE: Final = 1 << 20
BIOS: Final = "pyvmm, its BIOS"
SEABIOS: Final = "pyvmm, SeaBIOS"
QEMU: Final = "QEMU pc, SeaBIOS"


def write_disk(path: Path) -> None:
    """A disk that sends LINE when its boot sector starts."""
    sector = SECTOR.ljust(TEXT_AT, b"\x90") + LINE + b"\0"
    path.write_bytes((sector.ljust(510, b"\0") + b"\x55\xaa").ljust(DISK_SIZE, b"\0"))


def commands(disk: Path) -> dict[str, list[str]]:
    """The contenders' command lines: each has a VGA, a virtio disk, and COM1 on its standard output."""
    ours = [
        str(PYVMM),
        "run",
        "-m",
        f"{MEMORY_MB}M",
        "--disk",
        f"{disk},readonly",
        "--virtio-input",
        "none",
        "--firmware",
    ]
    qemu = ["qemu-system-x86_64", "-accel", "kvm", "-smp", "1", "-m", str(MEMORY_MB)]
    qemu += ["-machine", "pc", "-nodefaults", "-vga", "std", "-display", "none", "-serial", "stdio"]
    qemu += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on"]
    return {BIOS: [*ours, "bios"], SEABIOS: [*ours, "seabios"], QEMU: qemu}


def measure_until(line: bytes, made: dict[str, list[str]], rounds: int, what: str) -> str:
    """The table of how long each of the commands *made* takes from exec to *line*, which is *what*."""
    for name, command in made.items():
        say(f"{name}, not counted, for the page cache: {run_until(command, line).seconds:.2f}")
    contenders = {name: (lambda command=command: run_until(command, line).seconds) for name, command in made.items()}
    seconds = in_turn(contenders, rounds, say)
    head = ["", f"exec to {what}, s (least–most)", "its time, times that of our BIOS"]
    rows = [[name, spread(runs, 2), f"{paired_ratio(runs, seconds[BIOS]):.2f}"] for name, runs in seconds.items()]
    return table(head, rows)


def measure(rounds: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "disk.img"
        write_disk(disk)
        return measure_until(LINE, commands(disk), rounds, "the boot sector")
