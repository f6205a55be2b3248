"""Where an initrd goes: at the top of RAM, out of the way of a kernel that unpacks itself upwards from 1 MiB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyvmm.boot.e820 import E820_TYPE_RAM, E820Entry
from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import FOUR_GIB, HIGH_MEMORY_GPA, PAGE_SIZE
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm.boot.image import Image


def load_initrd(
    memory: GuestMemory, initrd: Image, e820: Iterable[E820Entry], *, floor: int, limit: int = FOUR_GIB
) -> tuple[int, int]:
    """Load *initrd* page-aligned as high as it goes between *floor* and *limit* (exclusive), in RAM below 4 GiB.

    Returns its (gpa, size in bytes); raises BootError when there is no room.
    """
    top = floor
    for entry in sorted(e820, reverse=True):
        if entry.type != E820_TYPE_RAM or entry.end <= HIGH_MEMORY_GPA or entry.addr >= FOUR_GIB:
            continue
        end = min(entry.end, limit)
        gpa = (end - initrd.size) & -PAGE_SIZE
        top = max(top, end)
        if gpa >= max(entry.addr, floor, HIGH_MEMORY_GPA):
            try:
                initrd.load(memory, gpa, 0, initrd.size)
            except GuestMemoryError:
                continue
            return gpa, initrd.size
    size = f"{initrd.size / MIB:.1f} MiB"
    if initrd.size > memory.size:
        raise BootError(f"{initrd.name}: {size}, larger than RAM: give the guest more with -m")
    room = f"{max(0, top - floor) / MIB:.1f} MiB between {floor:#x} and {top:#x}"
    advice = "this kernel takes none above: use a smaller one" if top == limit else "give the guest more RAM with -m"
    raise BootError(f"{initrd.name}: {size} do not fit into the {room}: {advice}")
