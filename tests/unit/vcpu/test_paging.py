"""The walk through a guest's page tables: every mode, what it refuses, and tables that hold anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_cffi import Sregs
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.vcpu.paging import (
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    NX,
    PCD,
    PS,
    RFLAGS_AC,
    A,
    D,
    G,
    P,
    PagingEntry,
    U,
    W,
    Walk,
    describe_walk,
    walk,
)  # fmt: skip
from tests.rig.paged import DATA, Paged

PE = 1


def table(memory: GuestMemory, at: int, index: int, value: int, size: int = 8) -> None:
    memory.write_int(at + index * size, size, value)


@pytest.mark.parametrize("cr0", [0, PE])
def test_without_paging(cr0: int) -> None:
    found = walk(GuestMemory.of_size(0x1000).read_int, Sregs(cr0=cr0, cr3=0x123), 0x1_1234_5678)
    assert (found.physical, found.entries, found.shift) == (0x12345678, (), 0)
    assert describe_walk(found) == "paging is off: GPA 0x12345678"
    assert found.refuses("write", Sregs(), True) == ""


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize(("shift", "size"), [(12, "4 KiB"), (21, "2 MiB"), (30, "1 GiB")])
@pytest.mark.parametrize("linear", [0x123_4567_8000, 0xFFFF_FFFF_8000_0000])
def test_long_mode(levels: int, shift: int, size: str, linear: int) -> None:
    paged = Paged(levels)
    linear &= ~((1 << shift) - 1)
    paged.map(linear, 5 << 30, shift=shift)
    found = walk(paged.memory.read_int, paged.sregs, linear + 0x123)
    assert found.physical == (5 << 30) + 0x123
    names = ["PML5", "PML4", "PDPT", "PD", "PT"][5 - levels :]
    assert [entry.level for entry in found.entries] == names[: levels - (shift - 12) // 9]
    assert [entry.index for entry in found.entries] == [
        linear >> 12 + 9 * level & 511 for level in range(levels - 1, (shift - 12) // 9 - 1, -1)
    ]
    assert found.entries[0].address == paged.cr3 + 8 * found.entries[0].index
    assert describe_walk(found).endswith(f"GPA {(5 << 30) + 0x123:#x} ({size}, RWX, user)")


def test_every_level_that_is_not_there() -> None:
    paged = Paged(5)
    paged.map(0x1000, DATA)
    for entry in walk(paged.memory.read_int, paged.sregs, 0x1000).entries:
        assert entry.value
        paged.memory.write_int(entry.address, 8, entry.value & ~P)
        found = walk(paged.memory.read_int, paged.sregs, 0x1000)
        assert (found.physical, found.fault, found.entries[-1].level) == (None, "not present", entry.level)
        paged.memory.write_int(entry.address, 8, 1 << 40 | P)
        if entry.level != "PT":
            found = walk(paged.memory.read_int, paged.sregs, 0x1000)
            assert found.entries[-1].value is None and found.fault.startswith("no RAM at 0x1000000000")
            assert "] > no RAM at " in describe_walk(found)
        paged.memory.write_int(entry.address, 8, entry.value)


@pytest.mark.parametrize(
    ("linear", "five", "ok"),
    [
        (0x7FFF_FFFF_FFFF, False, True),
        (0x8000_0000_0000, False, False),
        (0xFFFF_7FFF_FFFF_FFFF, False, False),
        (0xFFFF_8000_0000_0000, False, True),
        (0x8000_0000_0000, True, True),
        (0xFF_FFFF_FFFF_FFFF, True, True),
        (0x100_0000_0000_0000, True, False),
        (0xFF00_0000_0000_0000, True, True),
    ],
)
def test_canonical(linear: int, five: bool, ok: bool) -> None:
    paged = Paged(5 if five else 4)
    assert (walk(paged.memory.read_int, paged.sregs, linear).fault != "not canonical") == ok


def test_pae() -> None:
    memory = GuestMemory.of_size(0x10000)
    sregs = Sregs(cr0=CR0_PG | PE, cr4=CR4_PAE, cr3=0x1020 | 0x18, efer=EFER_NXE)
    table(memory, 0x1020, 3, 0x2000 | P)
    table(memory, 0x2000, 1, 0x3000 | P | W | U)
    table(memory, 0x2000, 2, 0x7_0020_0000 | P | PS | NX)
    table(memory, 0x3000, 0x45, 0xF_1234_5000 | P | U)
    found = walk(memory.read_int, sregs, 0xC0245678)
    assert (found.physical, found.shift) == (0xF_1234_5678, 12)
    assert (found.writable, found.user, found.executable) == (False, True, True)
    found = walk(memory.read_int, sregs, 0xC0445678)
    assert (found.physical, found.shift, found.executable) == (0x7_0024_5678, 21, False)
    table(memory, 0x1020, 3, 0x2000 | P | W)
    assert walk(memory.read_int, sregs, 0xC0245678).fault == "a reserved bit is set"


def test_32_bit() -> None:
    memory = GuestMemory.of_size(0x10000)
    sregs = Sregs(cr0=CR0_PG | PE, cr4=CR4_PSE, cr3=0x1FFF)
    table(memory, 0x1000, 0x300, 0x2000 | P | W, 4)
    table(memory, 0x1000, 0x301, 0xDE800000 | 0x12 << 13 | PS | P | U, 4)
    table(memory, 0x2000, 0x45, 0x89ABC000 | P | W | PS, 4)
    assert walk(memory.read_int, sregs, 0xC0045678).physical == 0x89ABC678
    found = walk(memory.read_int, sregs, 0xC0445678)
    assert (found.physical, found.shift) == (0x12_DE845678, 22)
    assert (
        describe_walk(found)
        == f"PD[301] {0xDE800000 | 0x12 << 13 | PS | P | U:#x} > GPA 0x12de845678 (4 MiB, RX, user)"
    )
    assert walk(memory.read_int, replace(sregs, cr4=0), 0xC0445678).fault, "PS means nothing: a table, in no RAM"
    table(memory, 0x1000, 0x301, 1 << 21 | PS | P, 4)
    assert walk(memory.read_int, sregs, 0xC0445678).fault == "a reserved bit is set"


@pytest.mark.parametrize(
    ("flags", "shift", "nxe", "fault"),
    [
        (P | NX, 12, True, ""),
        (P | NX, 12, False, "a reserved bit is set"),
        (P | 1 << 51, 12, True, "a reserved bit is set"),
        (P | 1 << 13, 21, True, "a reserved bit is set"),
        (P | 1 << 12, 21, True, ""),
        (P | 1 << 20, 30, True, "a reserved bit is set"),
        (P | 0x7FF << 52, 12, True, ""),
    ],
)
def test_reserved_bits(flags: int, shift: int, nxe: bool, fault: str) -> None:
    paged = Paged()
    paged.map(0x4000_0000, 0, flags, shift)
    sregs = replace(paged.sregs, efer=paged.sregs.efer & ~(0 if nxe else EFER_NXE))
    assert walk(paged.memory.read_int, sregs, 0x4000_0000, physical_bits=46).fault == fault


def test_a_processor_without_gigabyte_pages() -> None:
    paged = Paged()
    paged.map(0x4000_0000, 0, shift=30)
    assert walk(paged.memory.read_int, paged.sregs, 0x4000_0000).physical == 0
    found = walk(paged.memory.read_int, paged.sregs, 0x4000_0000, gigabyte_pages=False)
    assert (found.physical, found.fault) == (None, "a reserved bit is set")


def test_a_large_page_where_there_is_none() -> None:
    paged = Paged()
    paged.memory.write_int(paged.cr3, 8, P | PS)
    assert walk(paged.memory.read_int, paged.sregs, 0).fault == "a reserved bit is set"


ALLOWED = [
    # page, cr4, user, rflags: what is refused for read, write, fetch
    (P | W | U, 0, True, 0, ("", "", "")),
    (P | W, 0, True, 0, ("a supervisor page",) * 3),
    (P | W, 0, False, 0, ("", "", "")),
    (P, 0, False, 0, ("", "read-only", "")),
    (P | U, 0, True, 0, ("", "read-only", "")),
    (P | W | U | NX, 0, True, 0, ("", "", "NX")),
    (P | W | U, CR4_SMEP, False, 0, ("", "", "SMEP: a user page")),
    (P | W | U, CR4_SMAP, False, 0, ("SMAP: a user page", "SMAP: a user page", "")),
    (P | W | U, CR4_SMAP, False, RFLAGS_AC, ("", "", "")),
    (0, 0, False, 0, ("not present",) * 3),
]


@pytest.mark.parametrize(("flags", "cr4", "user", "rflags", "refused"), ALLOWED)
def test_access_rights(flags: int, cr4: int, user: bool, rflags: int, refused: tuple[str, str, str]) -> None:
    paged = Paged()
    paged.map(0x1000, DATA, flags)
    sregs = replace(paged.sregs, cr4=paged.sregs.cr4 | cr4)
    found = walk(paged.memory.read_int, sregs, 0x1000)
    assert tuple(found.refuses(a, sregs, user, rflags) for a in ("read", "write", "fetch")) == refused


def test_write_protection_of_the_supervisor() -> None:
    paged = Paged()
    paged.map(0x1000, DATA, P)
    found = walk(paged.memory.read_int, paged.sregs, 0x1000)
    assert found.refuses("write", replace(paged.sregs, cr0=CR0_PG | PE), False) == ""
    assert found.refuses("write", replace(paged.sregs, cr0=CR0_PG | PE), True) == "a supervisor page"


def test_flags_by_name() -> None:
    assert PagingEntry("PD", 0, 0, P | W | U | PCD | A | D | PS | G | NX).flags == "P W U PCD A D PS G NX"
    assert PagingEntry("PT", 0, 0, P | PS).flags == "P PAT"
    assert PagingEntry("PT", 0, 0, None).flags == ""


QUAD = st.integers(0, (1 << 64) - 1)
SREGS = st.builds(
    Sregs,
    cr0=st.sampled_from([0, PE, CR0_PG | PE, CR0_PG]),
    cr3=QUAD | st.integers(0, 0x7FFF),
    cr4=st.integers(0, 0xFF).map(lambda n: n | (CR4_LA57 if n & 1 else 0)),
    efer=st.sampled_from([0, EFER_LMA, EFER_LMA | EFER_NXE, EFER_NXE]),
)


@given(st.lists(QUAD | st.integers(0, 0x7FFF), min_size=8, max_size=64), SREGS, QUAD)
@settings(max_examples=1000, deadline=None)
def test_anything_in_tables_and_registers(words: list[int], sregs: Sregs, linear: int) -> None:
    """At most five reads, each of an entry, of what RAM there is; tables may lead to themselves."""
    memory = GuestMemory([(0x1000, memoryview(bytearray(b"".join(w.to_bytes(8, "little") for w in words) * 64)))])
    reads: list[tuple[int, int]] = []

    def read_int(gpa: int, size: int) -> int:
        reads.append((gpa, size))
        return memory.read_int(gpa, size)

    found = walk(read_int, sregs, linear)
    assert len(reads) <= 5 and {size for _, size in reads} <= {4, 8}
    assert [entry.address for entry in found.entries] == [gpa for gpa, _ in reads]
    assert (found.physical is None) == bool(found.fault)
    assert describe_walk(found).isprintable()
    for access in ("read", "write", "fetch"):
        found.refuses(access, sregs, True)


def test_no_ram_at_all() -> None:
    def read_int(gpa: int, size: int) -> int:
        raise GuestMemoryError(gpa, size)

    assert walk(read_int, Paged().sregs, 0).fault.startswith("no RAM at ")
    assert Walk(0, fault="x").refuses("read", Sregs(), False) == "x"
