"""Where a guest physical address is on this host: the region and its slot, the process's address, the machine's."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kvm_cffi import address_of
from pyvmm.memory import GuestMemory, Region
from pyvmm.units import PAGE_SIZE

PAGEMAP_ENTRY, PAGEMAP_PRESENT, PAGEMAP_PFN = 8, 1 << 63, (1 << 55) - 1
"""Linux Documentation/admin-guide/mm/pagemap.rst."""


@dataclass(frozen=True)
class HostAddress:
    """Of one byte of guest RAM."""

    gpa: int
    region: Region
    virtual: int
    """In this process (HVA)."""
    physical: int | None
    """In this host's memory (HPA); None where the page is not there now, or only root may know."""

    def __str__(self) -> str:
        start, end = self.region.gpa, self.region.gpa + len(self.region.buffer)
        physical = "unknown: not there, or for root alone" if self.physical is None else f"{self.physical:#x}"
        return f"RAM {start:#x}-{end - 1:#x}, host virtual {self.virtual:#x}, host physical {physical}"


def locate(memory: GuestMemory, gpa: int) -> HostAddress | None:
    """None where there is no RAM."""
    for region in memory.ram:
        if region.gpa <= gpa < region.gpa + len(region.buffer):
            virtual = address_of(region.buffer) + gpa - region.gpa
            return HostAddress(gpa, region, virtual, host_physical(virtual))
    return None


def host_physical(virtual: int) -> int | None:
    """By /proc/self/pagemap, which shows page frames to root."""
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        entry = int.from_bytes(os.pread(fd, PAGEMAP_ENTRY, virtual // PAGE_SIZE * PAGEMAP_ENTRY), "little")
    except OSError:
        return None
    finally:
        os.close(fd)
    frame = entry & PAGEMAP_PFN
    return frame * PAGE_SIZE + virtual % PAGE_SIZE if entry & PAGEMAP_PRESENT and frame else None
