"""What drgn reads of guest RAM, through regions and page tables that may be anything."""

from __future__ import annotations

import pytest
from drgn import FaultError
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control.drgn.reader import read_linear, read_physical
from pyvmm.memory import GuestMemory
from pyvmm.units import PAGE_SIZE
from tests.rig.paged import DATA, TABLES, Paged


def two_regions_and_a_hole() -> GuestMemory:
    return GuestMemory([(start, memoryview(bytearray([start >> 12]) * 0x1000)) for start in (0x1000, 0x2000, 0x4000)])


def test_across_regions() -> None:
    memory = two_regions_and_a_hole()
    assert read_physical(memory, 0x1FFE, 4) == b"\x01\x01\x02\x02"
    assert read_physical(memory, 0x1000, 0x2000) == b"\x01" * 0x1000 + b"\x02" * 0x1000
    assert read_physical(memory, 0x1000, 0) == b""
    for address, length, where in ((0x2FFE, 4, 0x3000), (0, 1, 0), (0x4FFF, 2, 0x5000), (1 << 64, 8, 1 << 64)):
        with pytest.raises(FaultError, match="no guest RAM") as caught:
            read_physical(memory, address, length)
        assert caught.value.address == where


def test_across_pages() -> None:
    paged = Paged()
    paged.map(0x40000000, DATA + PAGE_SIZE)
    paged.map(0x40001000, DATA)
    paged.memory.write(DATA + 2 * PAGE_SIZE - 2, b"ab")
    paged.memory.write(DATA, b"cd")
    assert read_linear(paged.memory, paged.sregs, 0x40000FFE, 4) == b"abcd"
    with pytest.raises(FaultError, match="not present") as caught:
        read_linear(paged.memory, paged.sregs, 0x40001FFF, 2)
    assert caught.value.address == 0x40002000


def test_a_page_that_leads_out_of_ram() -> None:
    paged = Paged()
    paged.map(0x40000000, 1 << 40)
    with pytest.raises(FaultError, match="no guest RAM"):
        read_linear(paged.memory, paged.sregs, 0x40000000, 1)


@given(st.integers(0, (1 << 64) + 10), st.integers(0, 3 * PAGE_SIZE))
def test_any_physical_range(address: int, length: int) -> None:
    memory = two_regions_and_a_hole()
    inside = [any(gpa <= at < gpa + size for gpa, size in memory.regions) for at in (address, address + length - 1)]
    try:
        found = read_physical(memory, address, length)
    except FaultError:
        assert length and not (all(inside) and (address >= 0x4000 or address + length <= 0x3000))
    else:
        assert len(found) == length and (all(inside) or not length)


@given(
    st.binary(max_size=PAGE_SIZE),
    st.sampled_from([0, 0x40000000, 0xFFFFFFFFFFFFFFFE]),
    st.integers(0, 2 * PAGE_SIZE),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
)
def test_any_page_tables(content: bytes, address: int, length: int, cr3: int, cr4: int) -> None:
    paged = Paged()
    paged.map(0x40000000, TABLES)
    paged.memory.write(TABLES, content)
    sregs = paged.sregs
    for each in ((TABLES, paged.sregs.cr4), (cr3, cr4)):
        sregs.cr3, sregs.cr4 = each
        try:
            assert len(read_linear(paged.memory, sregs, address, length)) == length
        except FaultError:
            pass
