"""Guest RAM: nothing outside it can be reached, whatever is asked for."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.memory import GuestMemory, GuestMemoryError

A, B = 0x100, 0x200
"""Region of 64 bytes at 0x100, of 32 bytes at 0x200, of 16 bytes right behind that."""


def make() -> tuple[GuestMemory, list[bytearray]]:
    buffers = [bytearray(64), bytearray(32), bytearray(16)]
    regions = [(0x200, buffers[1]), (0x100, buffers[0]), (0x220, buffers[2])]
    return GuestMemory((gpa, memoryview(buffer)) for gpa, buffer in regions), buffers


PLACES = {
    **{A + i: (0, i) for i in range(64)},
    **{B + i: (1, i) for i in range(32)},
    **{0x220 + i: (2, i) for i in range(16)},
}


@given(st.integers(-0x10, 0x240) | st.integers(-(2**70), 2**70), st.integers(-4, 80) | st.integers(-(2**70), 2**70))
@settings(max_examples=500, deadline=None)
def test_a_view_is_one_regions_bytes_or_an_error(gpa: int, length: int) -> None:
    memory, buffers = make()
    places = [PLACES.get(gpa + i) for i in range(length)] if 0 <= length <= 100 else [None]
    inside = all(place is not None for place in places) and len({place[0] for place in places if place}) <= 1
    if length == 0:
        return  # an empty range is no access
    if not inside:
        with pytest.raises(GuestMemoryError) as error:
            memory.view(gpa, length)
        assert (error.value.gpa, error.value.length) == (gpa, length)
        assert f"{gpa:#x}" in str(error.value)
        return
    view = memory.view(gpa, length)
    assert len(view) == length
    view[:] = bytes(range(1, length + 1))
    for i, place in enumerate(places):
        assert place is not None
        assert buffers[place[0]][place[1]] == i + 1
    assert sum(sum(buffer) for buffer in buffers) == sum(range(1, length + 1)), "and nothing else"


@given(st.integers(0, 60), st.sampled_from([1, 2, 3, 4, 8]), st.integers(-(2**70), 2**70))
@settings(max_examples=200, deadline=None)
def test_integers_are_little_endian_and_cut_to_size(offset: int, size: int, value: int) -> None:
    memory, buffers = make()
    if offset + size > 64:
        with pytest.raises(GuestMemoryError):
            memory.write_int(A + offset, size, value)
        with pytest.raises(GuestMemoryError):
            memory.read_int(A + offset, size)
        return
    memory.write_int(A + offset, size, value)
    cut = value % (1 << 8 * size)
    assert memory.read_int(A + offset, size) == cut
    assert buffers[0][offset : offset + size] == cut.to_bytes(size, "little")


def test_bytes() -> None:
    memory, buffers = make()
    memory.write(A + 10, b"hello")
    assert memory.read(A + 10, 5) == b"hello" == buffers[0][10:15]
    with pytest.raises(GuestMemoryError):
        memory.write(A + 62, b"hello")
    assert buffers[0][62:] == b"\0\0", "not half of it"
    with pytest.raises(GuestMemoryError):
        memory.read(B + 20, 20)


def test_a_range_across_two_regions_is_refused_although_they_touch() -> None:
    memory, _ = make()
    with pytest.raises(GuestMemoryError):
        memory.view(0x218, 16)


def test_regions_and_size() -> None:
    memory, _ = make()
    assert memory.regions == ((0x100, 64), (0x200, 32), (0x220, 16))
    assert memory.size == 112


def test_regions_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap at 0x1f"):
        GuestMemory([(0, memoryview(bytearray(0x20))), (0x1F, memoryview(bytearray(1)))])


def test_a_view_is_no_copy() -> None:
    memory = GuestMemory.of_size(16, 0x1000)
    view = memory.view(0x1004, 4)
    memory.write(0x1004, b"abcd")
    assert bytes(view) == b"abcd"


@pytest.mark.parametrize("length", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (2 << 20) + 3])
def test_clear(length: int) -> None:
    memory = GuestMemory([(0x1000, memoryview(bytearray(b"\xff" * (3 << 20))))])
    memory.clear(0x1234, length)
    assert memory.read(0x1233, 1) == b"\xff"
    assert memory.read(0x1234, length) == bytes(length)
    assert memory.read(0x1234 + length, 1) == b"\xff"
    with pytest.raises(GuestMemoryError):
        memory.clear(0x1000, (3 << 20) + 1)


def test_clear_gives_memory_to_nothing_that_is_zero_already() -> None:
    ram = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = GuestMemory([(0, memoryview(ram))])

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident()
    memory.clear(0, 64 << 20)
    assert resident() - before < 8 << 20
