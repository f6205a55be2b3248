"""The memory map that a PC's firmware tells of with INT 15h, AX=E820h: what is RAM and what is not.

Source: ACPI specification 6.2, section 15 (types and rules); Linux arch/x86/include/uapi/asm/bootparam.h,
struct boot_e820_entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from pyvmm.boot.lowmem import BASE_MEMORY_END, BIOS_GPA, EBDA_GPA, FOUR_GIB, HIGH_MEMORY_GPA

E820_TYPE_RAM: Final = 1
E820_TYPE_RESERVED: Final = 2
E820_TYPE_ACPI: Final = 3
E820_TYPE_NVS: Final = 4
E820_TYPE_UNUSABLE: Final = 5


class E820Entry(NamedTuple):
    """*size* bytes of guest physical memory at *addr*."""

    addr: int
    size: int
    type: int = E820_TYPE_RAM

    @property
    def end(self) -> int:
        """The first address above the range."""
        return self.addr + self.size


def e820_map(regions: Iterable[tuple[int, int]], reserved: Iterable[E820Entry] = ()) -> tuple[E820Entry, ...]:
    """The map of a machine whose RAM is *regions*, (gpa, length) as in GuestMemory.regions; sorted, without overlap.

    RAM between the EBDA and 1 MiB is not offered, whoever backs it. *reserved* adds entries of any type but RAM, carved
    out of RAM where they meet it. They may not overlap one another, and may not lie above both 4 GiB and the end of
    RAM: Linux 2.6.10 and 2.6.11 map everything up to the last entry and stop with "Cannot find space for the kernel
    page tables" when that is far away. Raises ValueError for such an entry.
    """
    ram = [(gpa, gpa + length) for gpa, length in regions if length]
    limit = max([FOUR_GIB, *(end for _, end in ram)])
    taken = [
        E820Entry(EBDA_GPA, BASE_MEMORY_END - EBDA_GPA, E820_TYPE_RESERVED),
        E820Entry(BIOS_GPA, HIGH_MEMORY_GPA - BIOS_GPA, E820_TYPE_RESERVED),
    ]
    for entry in reserved:
        if entry.type == E820_TYPE_RAM or entry.addr < 0 or entry.size <= 0 or entry.end > limit:
            raise ValueError(f"no reserved range of the memory map: {entry}")
        for other in taken:
            if entry.addr < other.end and other.addr < entry.end:
                raise ValueError(f"reserved ranges of the memory map overlap: {entry}, {other}")
        taken.append(entry)
    holes = [(entry.addr, entry.end) for entry in taken]
    holes.append((BASE_MEMORY_END, HIGH_MEMORY_GPA))
    for hole_start, hole_end in holes:
        pieces = []
        for start, end in ram:
            if start < min(end, hole_start):
                pieces.append((start, min(end, hole_start)))
            if max(start, hole_end) < end:
                pieces.append((max(start, hole_end), end))
        ram = pieces
    return tuple(sorted([*taken, *(E820Entry(start, end - start) for start, end in ram)]))


def high_memory_end(entries: Iterable[E820Entry]) -> int:
    """Where the RAM that begins at 1 MiB ends; 1 MiB if there is none."""
    for entry in entries:
        if entry.type == E820_TYPE_RAM and entry.addr <= HIGH_MEMORY_GPA < entry.end:
            return entry.end
    return HIGH_MEMORY_GPA
