"""All that page tables map: what a walk of any address in it says, and an end, whatever they hold."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_cffi import Sregs
from pyvmm.memory import GuestMemory
from pyvmm.vcpu.mappings import Mapping, mappings
from pyvmm.vcpu.paging import CR0_PG, CR4_PAE, CR4_PSE, PS, P, W, walk
from tests.rig.paged import DATA, TABLES, Paged

UPPER = 0xFFFF_8000_0000_0000


def found(paged: Paged, walks: int = 100_000) -> list[Mapping]:
    return list(mappings(paged.memory.read_int, paged.sregs, walks))


def test_what_lies_together_is_one() -> None:
    for levels in (4, 5):
        paged = Paged(levels)
        for page in range(3):
            paged.map(0x40000000 + 0x1000 * page, DATA + 0x1000 * page)
        paged.map(0x40003000, DATA)
        paged.map(0x7FFFFFFFF000, 0x1000)
        paged.map((1 << 64) - 0x200000, 0x200000, shift=21)
        paged.map((1 << 64) - 0x400000, 0, shift=21)
        assert found(paged) == [
            ((1 << 64) - 0x400000, 0, 0x400000),
            (0x40000000, DATA, 0x3000),
            (0x40003000, DATA, 0x1000),
            (0x7FFFFFFFF000, 0x1000, 0x1000),
        ]


def test_the_kernels_half_comes_first_when_there_is_too_much() -> None:
    paged = Paged()
    for page in range(0, 512, 2):
        paged.map(0x1000 * page, DATA)
    paged.map(UPPER, DATA)
    some = found(paged, walks=150)
    assert some[0] == (UPPER, DATA, 0x1000) and 1 < len(some) < 257 == len(found(paged))


def test_32_bits() -> None:
    memory = GuestMemory.of_size(0x10000)
    sregs = Sregs(cr0=CR0_PG | 1, cr3=0x1000, cr4=CR4_PSE)
    memory.write_int(0x1000, 4, 0x2000 | P | W)
    memory.write_int(0x2000 + 4 * 5, 4, 0x7000 | P)
    memory.write_int(0x1000 + 4 * 1023, 4, 0x400000 | P | PS)
    assert list(mappings(memory.read_int, sregs)) == [(0xFFC00000, 0x400000, 0x400000), (0x5000, 0x7000, 0x1000)]
    pae = Sregs(cr0=CR0_PG | 1, cr3=0x3000, cr4=CR4_PAE)
    memory.write_int(0x3000 + 8 * 3, 8, 0x4000 | P)
    memory.write_int(0x4000 + 8 * 511, 8, 0x600000 | P | PS)
    assert list(mappings(memory.read_int, pae)) == [(0xFFE00000, 0x600000, 0x200000)]


def test_without_paging() -> None:
    assert list(mappings(GuestMemory.of_size(0x1000).read_int, Sregs())) == []


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1 << 32), st.booleans())
def test_any_tables(seed: int, loops: bool) -> None:
    """Two pages of tables whose entries are random, or lead to themselves."""
    rng = random.Random(seed)
    paged = Paged()
    for entry in range(1024):
        if rng.random() < 0.05:
            target = rng.choice([TABLES, TABLES + 0x1000, DATA, 1 << 40, rng.getrandbits(52)])
            flags = rng.getrandbits(12) | (P if loops else 0)
            paged.memory.write_int(TABLES + 8 * entry, 8, (target & ~0xFFF) | flags | rng.getrandbits(1) << 63)
    halves: list[list[Mapping]] = [[], []]
    for each in found(paged, walks=3000):
        halves[each.linear < 1 << 63].append(each)
        for inside in (0, each.length - 1, rng.randrange(each.length)):
            assert walk(paged.memory.read_int, paged.sregs, each.linear + inside).physical == each.physical + inside
    for half in halves:
        ends = [(each.linear, each.linear + each.length) for each in half]
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_a_table_at_the_end_of_ram() -> None:
    """Of which the last entries are nowhere."""
    memory = GuestMemory.of_size(0x1800)
    sregs = Sregs(cr0=CR0_PG | 1, cr3=0x1000, cr4=CR4_PSE)
    memory.write_int(0x17FC, 4, 0x800000 | P | PS)
    memory.write_int(0x1000, 4, 0x400000 | P | PS)
    assert list(mappings(memory.read_int, sregs)) == [(0, 0x400000, 0x400000), (0x7FC00000, 0x800000, 0x400000)]
