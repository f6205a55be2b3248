"""All that a vCPU's page tables map, as ranges of linear addresses that lie as they do in guest physical memory.

Each is found by walks, from one entry that is present to the next. Tables are the guest's, and may map the same page a
billion times: so many walks are made, and no more, the kernel's half first.

Source: Intel SDM volume 3, chapter 4; pyvmm.vcpu.paging.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from pyvmm.memory import GuestMemoryError
from pyvmm.vcpu.paging import CR4_LA57, CR4_PAE, EFER_LMA, ControlRegisters, P, ReadInt, Walk, walk

WALKS: Final = 200_000
"""Pages that are looked at: Linux maps its image and a gigabyte of RAM with a thousand, a program with some hundred."""
_SHIFTS: Final = {"PML5": 48, "PML4": 39, "PDPT": 30, "PD": 21, "PT": 12}
_PRESENT: Final = {size: sum(P << 8 * size * n for n in range(4096 // size)) for size in (4, 8)}
"""The present bits of a table, by the size of its entries."""


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
            if found.physical is None:
                at = _behind(read_int, found, registers)
                continue
            at = (at & -1 << found.shift) + (1 << found.shift)
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


def _behind(read_int: ReadInt, found: Walk, registers: ControlRegisters) -> int:
    """The next linear address, after one that leads nowhere, whose entry in the table where it ended is present."""
    last = found.entries[-1]
    two_levels = not registers.efer & EFER_LMA and not registers.cr4 & CR4_PAE
    size, count = (4, 1024) if two_levels else (8, 512)
    shift = 22 if two_levels and last.level == "PD" else _SHIFTS[last.level]
    if last.level == "PDPT" and not registers.efer & EFER_LMA:
        count = 4
    left, skipped = count - last.index - 1, 1
    if left and last.value is not None:  # else there is no RAM for any of them
        try:
            present = read_int(last.address + size, left * size) & _PRESENT[size]
        except GuestMemoryError:  # RAM ends within the table
            present = 1
        skipped += ((present & -present).bit_length() - 1) // (8 * size) if present else left
    return ((found.linear >> shift) + skipped) << shift
