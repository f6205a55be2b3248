"""benchmarks/blk.py and blk_lab.py: the firmware that they make for QEMU, what guests print, and the tables."""

from __future__ import annotations

import struct

import pytest

from benchmarks import blk, blk_lab
from benchmarks.blk import OURS, QEMU
from benchmarks.programs import BenchError


def test_firmware_starts_at_the_reset_vector_and_copies_the_image() -> None:
    image = bytes(range(1, 200))
    rom = blk.flat32_bios(image)
    assert len(rom) == 0x10000 and rom[: len(image)] == image
    assert rom[0xFFF0] == 0xE9
    start = 0xFFF3 + struct.unpack("<h", rom[0xFFF1:0xFFF3])[0]
    assert rom[start : start + 2] == b"\xfa\xfc"
    far = rom.index(b"\x66\xea", start)
    target, selector = struct.unpack("<IH", rom[far + 2 : far + 8])
    assert (target, selector) == (0xF0000 + far + 8, 8)
    assert struct.pack("<BI", 0xB9, len(image)) in rom[far:]


def test_what_the_guests_print() -> None:
    assert blk.cycles("SeaBIOS\n0000000000000010 0000000000000001 0000000000000002\r\n") == 16
    with pytest.raises(BenchError, match="printed no result"):
        blk.cycles("")
    text = "".join(f"blk {way} {number}.5\r\n" for number, way in enumerate(blk_lab.WAYS))
    assert blk_lab.rates(text)["write 1"] == 1.5
    with pytest.raises(BenchError, match="did not end"):
        blk_lab.rates(text[:40])


def test_reports_judge_each_way() -> None:
    runs = {f"{name} {way} {depth}": [100.0, 110.0] for way, depth in blk.WAYS for name in (OURS, QEMU)}
    runs["pyvmm read 1"] = [80.0, 99.0]
    first, second = blk.report(runs).splitlines()[2:4]
    assert first == "| read, 1 at once | 90 (80–99) | 105 (100–110) | 0.85 (goal: at least 0.9; missed) |"
    assert second.endswith("| 1.00 (goal: at least 0.9; met) |")
    seen = {name: [dict.fromkeys(blk_lab.WAYS, 100.0)] for name in (OURS, QEMU)}
    assert "| MB/s, read one after the other | 105 (105–105) | 105 (105–105) |" in blk_lab.report(seen)
