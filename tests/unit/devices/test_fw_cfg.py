"""fw_cfg as libcflat and SeaBIOS read it: a selector of 16 bits, a byte at a time."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.fw_cfg import FwCfg
from pyvmm.units import GIB


def item(device: FwCfg, key: int, length: int) -> bytes:
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(length))


def test_items() -> None:
    device = FwCfg(5 * GIB, 3)
    assert bytes(device.read(1, 1) for _ in range(5)) == b"QEMU\0", "selected after power-on"
    assert item(device, 0, 6) == b"QEMU\0\0"
    assert item(device, 1, 4) == b"\1\0\0\0", "no DMA"
    assert item(device, 3, 9) == (5 * GIB).to_bytes(9, "little")
    assert item(device, 5, 3) == item(device, 0x0F, 3) == b"\3\0\0"
    assert item(device, 0x4005, 2) == b"\3\0", "the write channel"
    for unknown in (2, 0x18, 0x20, 0x8001, 0xFFFF):
        assert item(device, unknown, 4) == bytes(4)


def test_files_are_found_in_the_directory() -> None:
    files = {"etc/e820": b"map", "bootorder": b"", "opt/" + "x" * 51: b"last"}
    device = FwCfg(1, 1, files)
    assert item(device, 0x19, 4) == b"\0\0\0\3"
    directory = item(device, 0x19, 4 + 64 * 3)[4:]
    found = {}
    for size, key, name in struct.iter_unpack(">IH2x56s", directory):
        found[name.rstrip(b"\0").decode()] = item(device, key, size)
    assert found == files and list(found) == sorted(files)
    assert item(FwCfg(1, 1), 0x19, 6) == bytes(6), "none: the count alone"
    with pytest.raises(ValueError, match="too long"):
        FwCfg(1, 1, {"x" * 56: b""})


def test_other_widths_do_nothing() -> None:
    device = FwCfg(1, 1)
    item(device, 0, 1)
    device.write(0, 1, 5)
    device.write(0, 4, 5)
    device.write(1, 1, 5)
    assert device.read(0, 2) == 0xFFFF and device.read(0, 4) == 0xFFFFFFFF
    assert device.read(1, 1) == ord("E")
    device.reset()
    assert device.read(1, 1) == ord("Q")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF))))
def test_any_access(accesses: list[tuple[bool, int, int, int]]) -> None:
    device = FwCfg(1 << 40, 255, {"a": b"b"})
    for is_write, offset, size, value in accesses:
        if is_write:
            device.write(offset, size, value & ((1 << 8 * size) - 1))
        else:
            assert 0 <= device.read(offset, size) < 1 << 8 * size
        assert device.offset <= 68, "no item is longer, and a guest that reads on moves nothing"
