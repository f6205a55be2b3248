"""Reads and writes of 4 KiB a second at random places of a virtio disk, one and 32 at once: pyvmm beside QEMU.

The guest is guests/blk-bench, the same bytes for both; it times itself with the TSC, first request to last.
The disk is a file in the page cache. QEMU's is a q35's virtio-blk-pci with an iothread and aio=threads.
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.document import table
from benchmarks.pio import DEBUG_EXIT_0, QEMU_DEBUG_EXIT_0, tsc_hz
from benchmarks.programs import PYTHON, PYVMM, ROOT, BenchError, output_of, say
from benchmarks.stats import Runs, in_turn, paired_ratio, spread
from pyvmm import guests
from pyvmm.units import KIB, MIB

OURS, QEMU = "pyvmm", "QEMU"
SIZE: Final = 16 * MIB
BLOCK: Final = 4 * KIB
WAYS: Final = (("read", 1), ("write", 1), ("read", 32), ("write", 32))
GOALS: Final = {1: 0.9, 32: 1.0}
"""Of QEMU's, by how many are under way."""
COUNT: Final = {1: 5000, 32: 20000}
RESULT: Final = re.compile(r"^([0-9a-f]{16}) ([0-9a-f]{16}) ([0-9a-f]{16})\r?$", re.MULTILINE)


def flat32_bios(image: bytes) -> bytes:
    """A 64 KiB firmware for QEMU that copies *image* to 1 MiB and jumps there in flat 32-bit mode.

    At reset CS is 0xFFFF0000 and IP 0xFFF0, so offsets are those in the file, which is at 0xF0000 too (Intel SDM volume
    3, 10.1.4).
    """
    gdt, start = 0xFE00, 0xFF00
    rom = bytearray(b"\xf4" * 0x10000)
    rom[: len(image)] = image
    rom[gdt : gdt + 24] = struct.pack("<QQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)  # none, code, data
    rom[gdt + 24 : gdt + 30] = struct.pack("<HI", 23, 0xFFFF0000 + gdt)
    code = bytes.fromhex("fa fc 662e0f0116") + struct.pack("<H", gdt + 24)  # cli; cld; lgdtl %cs:
    code += bytes.fromhex("0f20c0 0c01 0f22c0")  # PE in cr0
    code += b"\x66\xea" + struct.pack("<IH", 0xF0000 + start + len(code) + 8, 8)  # ljmpl $8
    code += bytes.fromhex("b810000000 8ed8 8ec0 8ed0")  # ds = es = ss = 0x10
    code += struct.pack("<BIBIBI", 0xBE, 0xF0000, 0xBF, 0x100000, 0xB9, len(image)) + b"\xf3\xa4"  # rep movsb
    code += b"\xb8" + struct.pack("<I", 0x100000) + b"\xff\xe0"  # jmp *%eax
    rom[start : start + len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<h", start - 0xFFF3)
    return bytes(rom)


def cycles(output: str) -> int:
    """What blk-bench says that all its requests took."""
    found = RESULT.search(output)
    if not found:
        raise BenchError(f"blk-bench printed no result: {output!r}")
    return int(found[1], 16)


def qemu_command(firmware: Path, disk: Path) -> list[str]:
    command = ["qemu-system-x86_64", "-accel", "kvm", "-M", "q35", "-m", "64", "-nodefaults", "-display", "none"]
    command += ["-no-reboot", "-serial", "stdio"]
    command += ["-bios", str(firmware), "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-object", "iothread,id=io"]
    command += ["-drive", f"if=none,id=disk,file={disk},format=raw,aio=threads,cache=writeback"]
    return [*command, "-device", "virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on"]


@contextmanager
def contenders(hz: int) -> Iterator[dict[str, Callable[[], float]]]:
    """What can be run, by name and way; each returns IOPS."""
    with tempfile.TemporaryDirectory() as directory:
        disk, firmware = Path(directory) / "disk", Path(directory) / "bios"
        disk.write_bytes(bytes(SIZE))

        def one(name: str, way: str, depth: int) -> float:
            settings = {
                "count": COUNT[depth],
                "depth": depth,
                "write": int(way == "write"),
                "blocks": SIZE // BLOCK,
            }
            if name == QEMU:
                firmware.write_bytes(flat32_bios(guests.load("blk-bench").with_parameters(**settings).image))
                output = output_of(qemu_command(firmware, disk), QEMU_DEBUG_EXIT_0)
            else:
                command: list[str | Path] = [PYVMM, "run", "blk-bench", "--disk", str(disk)]
                for key, value in settings.items():
                    command += ["--set", f"{key}={value}"]
                output = output_of(command, DEBUG_EXIT_0)
            return COUNT[depth] * hz / cycles(output)

        yield {
            f"{name} {way} {depth}": lambda name=name, way=way, depth=depth: one(name, way, depth)  # type: ignore[misc]
            for way, depth in WAYS
            for name in (OURS, QEMU)
        }


def report(runs: Runs) -> str:
    """The table of both from their IOPS, *runs* by "NAME WAY DEPTH"."""
    rows = []
    for way, depth in WAYS:
        ours, qemu = runs[f"{OURS} {way} {depth}"], runs[f"{QEMU} {way} {depth}"]
        ratio, goal = paired_ratio(ours, qemu), GOALS[depth]
        verdict = f"{ratio:.2f} (goal: at least {goal:g}; {'met' if ratio >= goal else 'missed'})"
        rows.append([f"{way}, {depth} at once", spread(ours, 0), spread(qemu, 0), verdict])
    return table(["IOPS of 4 KiB (least–most)", OURS, QEMU, "pyvmm's, times QEMU's"], rows)


def where(hz: int) -> str:
    """The table of the processor time of each of pyvmm's threads for a read, as benchmarks/blk_machine.py sees it."""
    rows: dict[str, list[str]] = {}
    for depth in (1, 32):
        output = output_of([PYTHON, ROOT / "benchmarks" / "blk_machine.py", str(COUNT[depth]), str(depth)], 0)
        measured = json.loads(output)
        measured["all of it, by the guest's clock"] = cycles(measured.pop("said")) / hz * 1e6 / COUNT[depth]
        for name, us in measured.items():
            rows.setdefault(name, []).append(f"{us:.1f}")
    return table(["µs of a read", "1 at once", "32 at once"], [[name, *values] for name, values in rows.items()])


def measure(rounds: int) -> str:
    hz = tsc_hz()
    with contenders(hz) as programs:
        text = report(in_turn(programs, rounds, say))
    return text + "\n\nWhere pyvmm's time goes, in processor time of each thread:\n\n" + where(hz)
