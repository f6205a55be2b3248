"""The table is read back as Linux reads it (arch/x86/kernel/mpparse.c), and by the rules of the specification."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.mptable import PciInterrupt, mptable, write_mptable
from pyvmm.memory import GuestMemory
from tests.rig.images import ram

LENGTHS = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def find(memory: GuestMemory) -> int:
    """The table that the floating pointer names, looked for where Linux looks."""
    for base, length in ((0, 0x400), (639 * 0x400, 0x400), (0xF0000, 0x10000)):
        for gpa in range(base, base + length, 16):
            pointer = memory.read(gpa, 16)
            if pointer[:4] == b"_MP_" and pointer[8] == 1 and sum(pointer) & 0xFF == 0 and pointer[9] in (1, 4):
                assert pointer[11] == 0, "not a default configuration"
                assert pointer[12] & 0x80 == 0, "virtual wire mode, no IMCR"
                return int.from_bytes(pointer[4:8], "little")
    raise AssertionError("no floating pointer")


def entries(table: bytes) -> list[bytes]:
    signature, length, spec, checksum, _, _, _, _, count, lapic, _ = struct.unpack_from("<4sHBB8s12sIHHII", table)
    assert (signature, spec, lapic) == (b"PCMP", 4, 0xFEE00000)
    assert sum(table[:length]) & 0xFF == 0, checksum
    found = []
    offset = 44
    while offset < length:
        size = LENGTHS[table[offset]]
        found.append(table[offset : offset + size])
        offset += size
    assert offset == length
    assert len(found) == count
    assert all(below[0] <= above[0] for below, above in pairwise(found)), "entries in the order of their type"
    return found


def of_type(table: bytes, kind: int) -> list[bytes]:
    return [entry for entry in entries(table) if entry[0] == kind]


def interrupts(table: bytes, kind: int = 3) -> list[tuple[int, ...]]:
    """(type, flags, bus, irq, apic, pin) of each entry."""
    return [struct.unpack("<xBHBBBB", entry) for entry in of_type(table, kind)]


def test_two_cpus() -> None:
    memory = ram(2)
    end = write_mptable(memory, [0, 1], cpu_signature=0x000806F8, cpu_features=0x1783FBFF)
    gpa = find(memory)
    assert gpa == 0xF0010
    table = memory.read(gpa, end - gpa)
    cpus = [struct.unpack("<xBBBII8x", entry) for entry in of_type(table, 0)]
    assert cpus == [(0, 0x14, 3, 0x000806F8, 0x1783FBFF), (1, 0x14, 1, 0x000806F8, 0x1783FBFF)]
    assert of_type(table, 1) == [b"\x01\x00ISA   "]
    assert of_type(table, 2) == [struct.pack("<BBBBI", 2, 2, 0x11, 1, 0xFEC00000)]
    assert interrupts(table) == [(0, 0, 0, irq, 2, irq or 2) for irq in range(16) if irq != 2]
    assert interrupts(table, 4) == [(3, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0xFF, 1)]


def test_pci_interrupts() -> None:
    routes = [PciInterrupt(3, 1, 11), PciInterrupt(3, 0, 10), PciInterrupt(0, 0, 20, bus=2)]
    table = mptable([0], pci_interrupts=routes)
    assert of_type(table, 1) == [b"\x01\x00PCI   ", b"\x01\x02PCI   ", b"\x01\x03ISA   "]
    pci = [entry for entry in interrupts(table) if entry[2] != 3]
    assert pci == [(0, 0xF, 0, 3 << 2, 1, 10), (0, 0xF, 0, 3 << 2 | 1, 1, 11), (0, 0xF, 2, 0, 1, 20)]
    isa = [entry[3] for entry in interrupts(table) if entry[2] == 3]
    assert isa == [0, 1, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15], "10 and 11 are level-triggered now"


def test_no_more_cpus_than_the_table_can_name() -> None:
    memory = ram(2)
    end = write_mptable(memory, range(255))
    assert end <= 0xF2000
    table = memory.read(0xF0010, end - 0xF0010)
    assert [entry[1] for entry in of_type(table, 0)] == list(range(255))
    assert of_type(table, 2)[0][1] == 0
    for ids in ([], [0, 0], [255], [-1], range(256)):
        with pytest.raises(ValueError, match="APIC ids"):
            mptable(ids)


def test_where_it_may_be_and_what_it_may_name() -> None:
    memory = ram(2)
    for gpa in (0xF0008, 0xE0000, 0xFFFF0):
        with pytest.raises(ValueError, match="no place"):
            write_mptable(memory, [0], gpa=gpa)
    for route in (PciInterrupt(32, 0, 10), PciInterrupt(0, 4, 10), PciInterrupt(0, 0, 24)):
        with pytest.raises(ValueError, match="no PCI interrupt"):
            mptable([0], pci_interrupts=[route])


@given(
    st.lists(st.integers(0, 254), min_size=1, max_size=255, unique=True),
    st.lists(
        st.builds(PciInterrupt, st.integers(0, 31), st.integers(0, 3), st.integers(0, 23), st.integers(0, 8)),
        max_size=32,
    ),
    st.sampled_from((0, 2)),
)
def test_any_machine_gives_a_table_that_reads_back(ids: list[int], routes: list[PciInterrupt], pin: int) -> None:
    table = mptable(ids, pci_interrupts=routes, timer_pin=pin)
    cpus = of_type(table, 0)
    assert [entry[1] for entry in cpus] == ids
    assert [entry[3] & 2 for entry in cpus] == [2] + [0] * (len(ids) - 1)
    buses = {entry[1]: entry[2:] for entry in of_type(table, 1)}
    assert list(buses) == sorted(buses)
    assert all(entry[2] in buses for entry in interrupts(table))
    assert {entry[4] for entry in interrupts(table)} <= {of_type(table, 2)[0][1]}
    # No input of the I/O APIC is edge for one source and level for another.
    by_pin: dict[int, set[int]] = {}
    for _, flags, _, _, _, where in interrupts(table):
        by_pin.setdefault(where, set()).add(flags)
    assert all(len(flags) == 1 for flags in by_pin.values())
