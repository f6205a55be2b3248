from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.e820 import E820_TYPE_ACPI, E820_TYPE_RAM, E820_TYPE_RESERVED, E820Entry, e820_map, high_memory_end

GIB = 1 << 30
ECAM = E820Entry(0xE0000000, 0x10000000, E820_TYPE_RESERVED)


def test_small_machine() -> None:
    assert e820_map([(0, 128 << 20)]) == (
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xF0000, 0x10000, 2),
        (0x100000, (128 << 20) - 0x100000, 1),
    )


def test_machine_with_ram_above_the_hole() -> None:
    entries = e820_map([(0, 3 * GIB), (4 * GIB, GIB)], [ECAM])
    assert entries[3:] == ((0x100000, 3 * GIB - 0x100000, 1), ECAM, (4 * GIB, GIB, 1))
    assert high_memory_end(entries) == 3 * GIB


def test_ram_that_skips_the_vga_hole() -> None:
    entries = e820_map([(0, 0xA0000), (0xE0000, 0x20000), (0x100000, 15 << 20)])
    assert entries == e820_map([(0, 16 << 20)])


def test_reserved_ranges_are_carved_out_of_ram() -> None:
    tables = E820Entry((64 << 20) - 0x10000, 0x10000, E820_TYPE_ACPI)
    entries = e820_map([(0, 64 << 20)], [tables])
    assert entries[-2:] == ((0x100000, (64 << 20) - 0x110000, 1), tables)
    middle = E820Entry(0x800000, 0x1000, E820_TYPE_RESERVED)
    entries = e820_map([(0, 64 << 20)], [middle])
    assert entries[3:] == ((0x100000, 0x700000, 1), middle, (0x801000, (64 << 20) - 0x801000, 1))
    assert high_memory_end(entries) == 0x800000


@pytest.mark.parametrize(
    "entry",
    [
        E820Entry(0xFD00000000, 0x300000000, E820_TYPE_RESERVED),  # near 1 TiB: 2.6.10 does not boot with it
        E820Entry(4 * GIB, 0x1000, E820_TYPE_RESERVED),
        E820Entry(0x200000, 0x1000, E820_TYPE_RAM),
        E820Entry(0x200000, 0, E820_TYPE_RESERVED),
        E820Entry(0xF8000, 0x1000, E820_TYPE_RESERVED),  # meets the one that is always there
    ],
)
def test_what_cannot_be_reserved(entry: E820Entry) -> None:
    with pytest.raises(ValueError, match="memory map"):
        e820_map([(0, 64 << 20)], [entry])


def test_high_memory_end_without_high_memory() -> None:
    assert high_memory_end(e820_map([(0, 0xA0000)])) == 0x100000
    assert high_memory_end([]) == 0x100000


@given(
    low=st.integers(0, 3 * GIB),
    high=st.integers(0, 1 << 40),
    spots=st.lists(st.integers(0x100, 0xFFFFF), unique=True, max_size=12),
    pages=st.integers(1, 16),
)
def test_map_is_sorted_disjoint_and_offers_exactly_the_ram(low: int, high: int, spots: list[int], pages: int) -> None:
    reserved: list[E820Entry] = []
    for spot in sorted(spots):
        entry = E820Entry(spot << 12, pages << 12, E820_TYPE_RESERVED)
        if entry.end <= 4 * GIB and not (reserved and reserved[-1].end > entry.addr):
            reserved.append(entry)
    regions = [(0, low), (4 * GIB, high)]
    entries = e820_map(regions, reserved)
    for below, above in pairwise(entries):
        assert below.end <= above.addr
    assert all(entry.size > 0 for entry in entries)
    assert all(entry.end <= max(4 * GIB, 4 * GIB + high) for entry in entries)
    ram = sum(entry.size for entry in entries if entry.type == E820_TYPE_RAM)
    lost = [(0x9FC00, 0x100000), *((entry.addr, entry.end) for entry in reserved)]
    assert ram == low + high - sum(max(0, min(end, low) - start) for start, end in lost)
