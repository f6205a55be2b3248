"""RAM as a Linux kernel leaves it, as far as who looks for VMCOREINFO is concerned."""

from __future__ import annotations

import struct

from pyvmm.report import vmcoreinfo
from tests.rig.paged import TABLES, Paged

SWAPPER = 0xFFFFFFFF82E10000
PHYS_BASE = TABLES - (SWAPPER - vmcoreinfo.START_KERNEL_MAP)


def text(release: str = "6.1.0", swapper: int = SWAPPER, phys_base: int = PHYS_BASE) -> bytes:
    lines = [f"OSRELEASE={release}", f"SYMBOL(swapper_pg_dir)={swapper:x}", f"NUMBER(phys_base)={phys_base}", ""]
    return "\n".join(lines).encode()


def kernel() -> Paged:
    paged = Paged()
    paged.map(SWAPPER, TABLES)
    return paged


def note(name: bytes, desc: bytes) -> bytes:
    return struct.pack("<III", len(name), len(desc), 0) + name.ljust(len(name) + 3 & ~3, b"\0") + desc
