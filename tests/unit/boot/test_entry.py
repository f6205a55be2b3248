from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.entry import SegmentRegister, long_mode, protected_mode, real_mode
from pyvmm.memory import GuestMemory, GuestMemoryError


def descriptor_fields(descriptor: int) -> tuple[int, int]:
    """(base, limit in bytes) as a CPU reads them out of the 8 bytes."""
    limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
    if descriptor >> 55 & 1:
        limit = limit << 12 | 0xFFF
    return descriptor >> 16 & 0xFFFFFF | (descriptor >> 56) << 24, limit


def walk(memory: GuestMemory, cr3: int, address: int) -> int | None:
    """What 4-level paging makes of *address*; None where nothing is mapped."""
    table = cr3
    for shift in (39, 30, 21):
        entry = memory.read_int(table + (address >> shift & 511) * 8, 8)
        if not entry & 1:
            return None
        assert entry & 2, "not writable"
        if entry & 0x80:
            assert shift == 21, "a page of 1 GiB"
            return entry & -(1 << 21) & ~0xFFF | address & 0x1FFFFF
        table = entry & ~0xFFF
    raise AssertionError("a table of 4 KiB pages")


def test_known_descriptors() -> None:
    """The values every boot loader's source has."""
    assert SegmentRegister(0, 0xFFFFFFFF, 0x10, 0xB, s=1, db=1, g=1).descriptor() == 0x00CF9B000000FFFF
    assert SegmentRegister(0, 0xFFFFFFFF, 0x18, 0x3, s=1, db=1, g=1).descriptor() == 0x00CF93000000FFFF
    assert SegmentRegister(0, 0xFFFFFFFF, 0x10, 0xB, s=1, l=1, g=1).descriptor() == 0x00AF9B000000FFFF


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFF), st.booleans())
def test_descriptor_base_and_limit(base: int, limit: int, g: bool) -> None:
    if g:
        limit = limit << 12 | 0xFFF
    assert descriptor_fields(SegmentRegister(base, limit, 8, 3, s=1, g=int(g)).descriptor()) == (base, limit)


def test_real_mode() -> None:
    state = real_mode(0x1234, 0x5678, sp=0x7C00)
    assert (state.cs.base, state.cs.selector, state.rip, state.rsp) == (0x12340, 0x1234, 0x5678, 0x7C00)
    for segment in (state.cs, state.ds, state.es, state.fs, state.gs, state.ss):
        assert (segment.base, segment.limit, segment.db, segment.l, segment.g) == (0x12340, 0xFFFF, 0, 0, 0)
    assert state.cr0 & 0x80000001 == 0
    assert state.efer == 0
    assert state.rflags == 2


def test_real_mode_refuses_what_real_mode_cannot_reach() -> None:
    for cs, ip, sp in ((0x10000, 0, 0), (0, 0x10000, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match="real-mode"):
            real_mode(cs, ip, sp=sp)


def test_protected_mode() -> None:
    memory = GuestMemory.of_size(0xA0000)
    state = protected_mode(memory, 0x100000, eax=1, ebx=2, esi=3, esp=4)
    assert (state.rip, state.rax, state.rbx, state.rsi, state.rsp) == (0x100000, 1, 2, 3, 4)
    assert state.rbp == state.rdi == 0
    assert state.cr0 & 0x80000001 == 1
    assert state.rflags & 0x200 == 0
    assert state.efer == state.cr4 == 0
    for segment, selector in ((state.cs, 0x10), (state.ds, 0x18), (state.es, 0x18), (state.ss, 0x18)):
        assert (segment.selector, segment.base, segment.limit, segment.db) == (selector, 0, 0xFFFFFFFF, 1)
        # A far jump or a reload of the selector has to find the same segment in memory.
        assert memory.read_int(state.gdt.base + selector, 8) == segment.descriptor()
    assert state.gdt.limit >= 0x1F
    assert (state.tr.type, state.tr.present, state.ldt.present) == (0xB, 1, 0)


def test_long_mode_maps_the_first_4_gib_to_themselves() -> None:
    memory = GuestMemory.of_size(0xA0000)
    state = long_mode(memory, 0x1000200, rsi=0x90000)
    assert (state.rip, state.rsi) == (0x1000200, 0x90000)
    assert state.cr0 & 0x80000001 == 0x80000001
    assert state.cr4 & 0x20
    assert state.efer == 0x500
    assert (state.cs.l, state.cs.db, state.cs.selector) == (1, 0, 0x10)
    assert memory.read_int(state.gdt.base + 0x10, 8) == state.cs.descriptor()
    for address in (0, 0x1FFFFF, 0x200000, 0x90000, 0xFEE00030, 0xFFFFFFFF, *range(0, 1 << 32, 0x0DEADBEE)):
        assert walk(memory, state.cr3, address) == address
    for address in (1 << 32, 1 << 39, 1 << 47):
        assert walk(memory, state.cr3, address) is None


def test_tables_need_ram() -> None:
    with pytest.raises(GuestMemoryError):
        long_mode(GuestMemory.of_size(0x10000), 0x1000)
    state = long_mode(GuestMemory.of_size(0x10000), 0x1000, gdt=0x8000, page_tables=0x9000)
    assert (state.cr3, state.gdt.base) == (0x9000, 0x8000)
