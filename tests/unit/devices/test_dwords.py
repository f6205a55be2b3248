"""Registers of 32 bits at any width and offset, beside a plain row of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.dwords import read_dwords, written_dwords

LENGTH = 16


@given(st.binary(min_size=LENGTH, max_size=LENGTH), st.integers(0, LENGTH - 4), st.sampled_from([1, 2, 4]))
def test_a_read(row: bytes, offset: int, size: int) -> None:
    def register(at: int) -> int:
        assert at % 4 == 0
        return int.from_bytes(row[at : at + 4], "little")

    assert read_dwords(register, offset, size) == int.from_bytes(row[offset : offset + size], "little")


@given(st.binary(min_size=LENGTH, max_size=LENGTH), st.integers(0, LENGTH - 4), st.binary(min_size=1, max_size=4))
def test_a_write(row: bytes, offset: int, data: bytes) -> None:
    seen = bytearray(row)
    for register, value, mask in written_dwords(offset, len(data), int.from_bytes(data, "little")):
        assert register % 4 == 0 and mask and not value & ~mask
        old = int.from_bytes(seen[register : register + 4], "little")
        seen[register : register + 4] = (old & ~mask | value).to_bytes(4, "little")
    assert seen == row[:offset] + data + row[offset + len(data) :]
