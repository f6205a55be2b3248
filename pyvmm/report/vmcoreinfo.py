"""What a Linux kernel tells debuggers of itself, VMCOREINFO: lines of text in a page of its RAM.

A page may be left over from a kernel that ran before a reset, or be a program's that wants to be taken for it. That of
the kernel that runs is told by the page tables in use: they map its swapper_pg_dir to where its phys_base says.

Source: Linux Documentation/admin-guide/kdump/vmcoreinfo.rst; kernel/crash_core.c (crash_save_vmcoreinfo_init: a page of
its own that begins with OSRELEASE); arch/x86/kernel/machine_kexec_64.c (phys_base); arch/x86/mm/pti.c (two tables).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.units import GIB, PAGE_SIZE
from pyvmm.vcpu.paging import ControlRegisters, walk

SEARCHED: Final = 4 * GIB
"""Bytes of RAM that are searched for it."""
CANDIDATES: Final = 256
"""Pages that are taken for it at the most: a guest may have made as many as it likes."""
START_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Where a 64-bit kernel's image is mapped, phys_base apart (arch/x86/include/asm/page_64_types.h)."""
PTI_USER_PGTABLE: Final = 1 << PAGE_SIZE.bit_length() - 1
"""The bit of CR3 that is set while a program runs, where page tables are isolated: the kernel's are a page below."""
NOTE_LIMIT: Final = 2 * PAGE_SIZE
"""Bytes of a note that are read; Linux has VMCOREINFO_BYTES, a page, and the header."""
_NOTE: Final = struct.Struct("<III")
_MAGIC: Final = b"OSRELEASE="
_LINE: Final = re.compile(rb"([A-Z-]+(?:\([^()\n]{1,128}\))?)=([^\n]{1,128})")
_MASK: Final = (1 << 64) - 1


def candidates(memory: GuestMemory) -> Iterator[bytes]:
    """The texts in RAM that begin a page as VMCOREINFO does, CANDIDATES at the most, without the NULs that follow."""
    return islice(_texts(memory), CANDIDATES)


def _texts(memory: GuestMemory) -> Iterator[bytes]:
    left = SEARCHED
    for region in memory.ram:
        buffer = region.buffer[: max(0, left)]
        left -= len(buffer)
        firsts = bytes(buffer[::PAGE_SIZE])
        page = firsts.find(_MAGIC[:1])
        while page >= 0:
            start = page * PAGE_SIZE
            text = bytes(buffer[start : start + PAGE_SIZE])
            if text.startswith(_MAGIC):
                yield text.split(b"\0", 1)[0]
            page = firsts.find(_MAGIC[:1], page + 1)


def parse(text: bytes) -> dict[str, str]:
    """Its lines NAME=VALUE: "OSRELEASE", "SYMBOL(init_task)" …; of two the first counts, other lines do not."""
    found: dict[str, str] = {}
    for line in text.split(b"\n"):
        match = _LINE.fullmatch(line)
        if match:
            found.setdefault(match[1].decode("utf-8", "replace"), match[2].decode("utf-8", "replace"))
    return found


def symbol(lines: dict[str, str], name: str) -> int | None:
    """The linear address of kernel symbol *name*; None where *lines* do not have it."""
    return _number(lines.get(f"SYMBOL({name})", ""), 16)


class Vmcoreinfo(NamedTuple):
    """The *text* of a kernel, and the page tables of its own that a vCPU uses, or has beside a program's."""

    text: bytes
    cr3: int


def of_note(memory: GuestMemory, address: int, size: int) -> bytes | None:
    """The text of the ELF note of *size* bytes at guest physical *address*; None where there is no such note."""
    try:
        note = memory.read(address, min(size, NOTE_LIMIT))
    except GuestMemoryError:
        return None
    name_size, length, _ = _NOTE.unpack_from(note.ljust(_NOTE.size, b"\0"))
    start = _NOTE.size + (name_size + 3 & ~3)
    if note[_NOTE.size : _NOTE.size + name_size] != b"VMCOREINFO\0" or start + length > len(note):
        return None
    return note[start : start + length].split(b"\0", 1)[0]


def find(memory: GuestMemory, cpus: Iterable[ControlRegisters], told: Iterable[bytes] = ()) -> Vmcoreinfo | None:
    """That of the kernel that the page tables of one of *cpus* belong to: one that was *told*, or is in RAM. None where
    there is none."""
    tables = [_WithCr3(registers, cr3) for registers in cpus for cr3 in _kernel_tables(registers.cr3)]
    for text in chain(told, candidates(memory)):
        for each in tables:
            if _maps(memory, each, text):
                return Vmcoreinfo(text, each.cr3)
    return None


class _WithCr3:
    """A vCPU's control registers with another CR3."""

    def __init__(self, registers: ControlRegisters, cr3: int) -> None:
        self.cr0, self.cr3, self.cr4, self.efer = registers.cr0, cr3, registers.cr4, registers.efer


def _kernel_tables(cr3: int) -> list[int]:
    return [cr3, cr3 & ~PTI_USER_PGTABLE] if cr3 & PTI_USER_PGTABLE else [cr3]


def _maps(memory: GuestMemory, registers: ControlRegisters, text: bytes) -> bool:
    lines = parse(text)
    swapper, phys_base = symbol(lines, "swapper_pg_dir"), _number(lines.get("NUMBER(phys_base)", ""), 10)
    if swapper is None or phys_base is None:
        return False
    physical = walk(memory.read_int, registers, swapper & _MASK).physical
    return physical is not None and physical == swapper - START_KERNEL_MAP + phys_base & _MASK


def _number(text: str, base: int) -> int | None:
    try:
        return int(text, base)
    except ValueError:
        return None
