"""All that a vCPU's page tables map, as ranges of linear addresses that lie as they do in guest physical memory.

Each is found by a walk, and where a table has nothing the walk goes on behind what that table would map. Tables are the
guest's, and may map the same page a billion times: so many walks are made, and no more, the kernel's half first.

Source: Intel SDM volume 3, chapter 4; pyvmm.vcpu.paging.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from pyvmm.vcpu.paging import CR4_LA57, CR4_PAE, EFER_LMA, ControlRegisters, ReadInt, Walk, walk

WALKS: Final = 200_000
"""Pages and gaps that are looked at: Linux maps its image and a gigabyte of RAM with a thousand, a program's with some
hundred."""
_SHIFTS: Final = {"PML5": 48, "PML4": 39, "PDPT": 30, "PD": 21, "PT": 12}


class Mapping(NamedTuple):
    """*length* bytes at *linear* address are at guest physical address *physical*."""

    linear: int
    physical: int
    length: int


def mappings(read_int: ReadInt, registers: ControlRegisters, walks: int = WALKS) -> Iterator[Mapping]:
    """What *registers* map, in two ascending halves, the upper first; never raises, whatever the tables hold. Without
    paging there is nothing that is mapped."""
    if not walk(read_int, registers, 0).entries:
        return
    for start, end in _halves(registers):
        at, before = start, None
        while at < end and walks:
            walks -= 1
            found = walk(read_int, registers, at)
            size = 1 << (found.shift or _gap(found, registers))
            at = (at & -size) + size
            if found.physical is None:
                continue
            this = Mapping(found.linear, found.physical, at - found.linear)
            if before is None:
                before = this
            elif before.linear + before.length == this.linear and before.physical + before.length == this.physical:
                before = before._replace(length=before.length + this.length)
            else:
                yield before
                before = this
        if before is not None:
            yield before


def _halves(registers: ControlRegisters) -> tuple[tuple[int, int], tuple[int, int]]:
    """[start, end) of the linear addresses that there are."""
    if not registers.efer & EFER_LMA:
        return (1 << 31, 1 << 32), (0, 1 << 31)
    half = 1 << (56 if registers.cr4 & CR4_LA57 else 47)
    return ((1 << 64) - half, 1 << 64), (0, half)


def _gap(found: Walk, registers: ControlRegisters) -> int:
    """The power of two of the addresses that the entry is for at which the walk ended."""
    level = found.entries[-1].level
    two = not registers.efer & EFER_LMA and not registers.cr4 & CR4_PAE
    return 22 if two and level == "PD" else _SHIFTS[level]
