"""A disk under Linux, in the lab: requests a second of Debian's cloud kernel under pyvmm and QEMU.

In the guest benchmarks/blk_io.c reads and writes /dev/vda past the guest's page cache; the disk is a file in the lab's.
QEMU's is a q35's virtio-blk-pci with an iothread and aio=threads.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.document import table
from benchmarks.programs import PYTHON, BenchError, compiled, output_of, say
from benchmarks.stats import Runs, in_turn, paired_ratio, spread
from benchmarks.virtio import INITRAMFS, KERNEL, MEMORY_MB, OURS, QEMU, with_file
from pyvmm.units import MIB

CMDLINE: Final = 'console=ttyS0 quiet panic=-1 pyvmm.run="/bin/blk-io /dev/vda"'
SIZE: Final = 16 * MIB
TIMEOUT: Final = 300.0
WAYS: Final = {
    "read 1": ("read, 1 at once", 0.5),
    "write 1": ("write, 1 at once", 0.5),
    "read 32": ("read, 32 at once", 0.8),
    "write 32": ("write, 32 at once", 0.8),
    "read-on 4": ("MB/s, read one after the other", 1.0),
    "write-on 4": ("MB/s, written one after the other", 1.0),
}
"""What blk_io.c says, how the table says it, and which part of QEMU's is the goal."""
LINE: Final = re.compile(r"^blk ([a-z-]+ \d+) ([0-9.]+)\r?$", re.MULTILINE)


def rates(output: str) -> dict[str, float]:
    """What the guest measured; BenchError where something is missing."""
    found = {way: float(rate) for way, rate in LINE.findall(output)}
    if found.keys() != WAYS.keys():
        raise BenchError(f"blk-io did not end: {output[-1000:]!r}")
    return found


def command(name: str, initrd: Path, disk: Path) -> list[str | Path]:
    if name == OURS:
        words: list[str | Path] = [PYTHON, "-m", "pyvmm", "run", "-m", f"{MEMORY_MB}M", "-k", KERNEL, "-i", initrd]
        return [*words, "-p", CMDLINE, "--disk", str(disk)]
    words = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", str(MEMORY_MB)]
    words += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    words += ["-global", "kvm-apic.vapic=off"]  # see virtio.py
    words += ["-kernel", KERNEL, "-initrd", initrd, "-append", CMDLINE, "-object", "iothread,id=io"]
    words += ["-drive", f"if=none,id=disk,file={disk},format=raw,aio=threads,cache=writeback"]
    return [*words, "-device", "virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on"]


def report(seen: dict[str, list[dict[str, float]]]) -> str:
    """The table of what both measured, a dictionary a round."""
    rows = []
    for way, (says, goal) in WAYS.items():
        scale = MIB / 1e6 if "-on" in way else 1.0
        runs: Runs = {name: [one[way] * scale for one in seen[name]] for name in (OURS, QEMU)}
        ratio = paired_ratio(runs[OURS], runs[QEMU])
        verdict = f"{ratio:.2f} (goal: at least {goal:g}; {'met' if ratio >= goal else 'missed'})"
        rows.append([says, spread(runs[OURS], 0), spread(runs[QEMU], 0), verdict])
    return table(["4 KiB a second, or as it says (least–most)", OURS, QEMU, "pyvmm's, times QEMU's"], rows)


def prepare() -> None:
    """Compile outside the lab what the lab would take long to compile."""
    compiled("blk_io", "-static")


def measure(rounds: int) -> str:
    seen: dict[str, list[dict[str, float]]] = {OURS: [], QEMU: []}
    with tempfile.TemporaryDirectory() as directory:
        initrd, disk = Path(directory) / "initrd", Path(directory) / "disk"
        program = compiled("blk_io", "-static").read_bytes()
        initrd.write_bytes(with_file(INITRAMFS.read_bytes(), program, "bin/blk-io"))
        disk.write_bytes(bytes(SIZE))

        def run(name: str) -> float:
            seen[name].append(rates(output_of(command(name, initrd, disk), 0, TIMEOUT)))
            return seen[name][-1]["read 1"]

        contenders: dict[str, Callable[[], float]] = {OURS: lambda: run(OURS), QEMU: lambda: run(QEMU)}
        in_turn(contenders, rounds, say)
    return report(seen)
