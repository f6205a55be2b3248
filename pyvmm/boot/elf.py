"""ELF executables of 32 and 64 bits for x86: their loadable segments and the PVH entry note.

Source: System V ABI, chapters 4 and 5 (ELF header, program header, note section); Linux
include/xen/interface/elfnote.h. Nothing in the file is believed before it is checked: a segment lies wholly in the file
and wholly in guest RAM, and no two meet.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import FOUR_GIB, INFO_GPA, LOADER_END, align_up
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm.boot.image import Image

ELF_MAGIC: Final = b"\x7fELF"
ELFCLASS32: Final = 1
ELFCLASS64: Final = 2
ELFDATA2LSB: Final = 1
EM_386: Final = 3
EM_X86_64: Final = 62
PT_LOAD: Final = 1
PT_NOTE: Final = 4

XEN_ELFNOTE_PHYS32_ENTRY: Final = 18

NOTES_LIMIT: Final = MIB
"""Bytes of notes that are searched; a kernel has a few hundred."""

_EHDR32: Final = struct.Struct("<16s H H I I I I I H H H H H H")
_EHDR64: Final = struct.Struct("<16s H H I Q Q Q I H H H H H H")
_PHDR32: Final = struct.Struct("<8I")
_PHDR64: Final = struct.Struct("<II6Q")
_NHDR: Final = struct.Struct("<III")
_ZEROES: Final = bytes(MIB)


class LoadSegment(NamedTuple):
    """*filesz* bytes at *offset* of the file go to guest physical *paddr*, followed by zeroes up to *memsz*."""

    paddr: int
    memsz: int
    offset: int
    filesz: int
    vaddr: int


class Elf(NamedTuple):
    """What of an ELF file matters to a boot loader."""

    entry: int
    segments: tuple[LoadSegment, ...]
    """Lowest paddr first."""
    pvh_entry: int | None
    """The physical address in the note XEN_ELFNOTE_PHYS32_ENTRY."""

    @property
    def physical_entry(self) -> int:
        """*entry* as a physical address: kernels that are linked high give it as a virtual one."""
        for segment in self.segments:
            if segment.vaddr <= self.entry < segment.vaddr + segment.memsz:
                return self.entry - segment.vaddr + segment.paddr
        return self.entry


def parse_elf(image: Image) -> Elf:
    """Read the ELF header, the program headers and the notes; raises BootError that says what cannot be."""

    def refuse(why: str) -> BootError:
        return BootError(f"{image.name}: {why}")

    head = image.read(0, _EHDR64.size)
    if len(head) < 20 or head[:4] != ELF_MAGIC:
        raise refuse("not an ELF file, or cut off in its first bytes")
    if head[4] not in (ELFCLASS32, ELFCLASS64) or head[5] != ELFDATA2LSB:
        raise refuse("an ELF file, but not a little-endian one of 32 or 64 bits: give a kernel for x86")
    ehdr, phdr = (_EHDR32, _PHDR32) if head[4] == ELFCLASS32 else (_EHDR64, _PHDR64)
    if len(head) < ehdr.size:
        raise refuse(f"ELF file truncated: it has {len(head)} bytes, its header {ehdr.size}")
    _, _, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = ehdr.unpack_from(head)
    if machine not in (EM_386, EM_X86_64):
        raise refuse(f"an ELF file for machine {machine}, not for x86: give a kernel for x86")
    if phnum == 0:
        raise refuse("an ELF file without program headers, an object file perhaps: give a linked kernel")
    if phentsize != phdr.size:
        raise refuse(f"damaged ELF file: program headers of {phentsize} bytes, not {phdr.size}")
    table = image.read(phoff, phnum * phentsize)
    if len(table) != phnum * phentsize:
        raise refuse(f"ELF file truncated: its program headers end at {phoff + phnum * phentsize:#x}")

    segments = []
    pvh_entry = None
    notes_left = NOTES_LIMIT
    for fields in phdr.iter_unpack(table):
        if phdr is _PHDR64:
            kind, _, offset, vaddr, paddr, filesz, memsz, align = fields
        else:
            kind, offset, vaddr, paddr, filesz, memsz, _, align = fields
        if kind == PT_LOAD and memsz:
            if filesz > memsz:
                raise refuse(f"damaged ELF file: a segment of {filesz:#x} bytes in {memsz:#x} bytes of memory")
            if offset + filesz > image.size:
                raise refuse(f"ELF file truncated: a segment ends at {offset + filesz:#x} of {image.size:#x} bytes")
            segments.append(LoadSegment(paddr, memsz, offset, filesz, vaddr))
        elif kind == PT_NOTE and pvh_entry is None:
            notes = image.read(offset, min(filesz, notes_left))
            notes_left -= len(notes)
            pvh_entry = _find_pvh_entry(notes, 8 if align == 8 else 4)
    if not segments:
        raise refuse("an ELF file with nothing to load: give a linked kernel")
    return Elf(entry, tuple(sorted(segments)), pvh_entry)


def _find_pvh_entry(notes: bytes, align: int) -> int | None:
    position = 0
    while position + _NHDR.size <= len(notes):
        namesz, descsz, kind = _NHDR.unpack_from(notes, position)
        name = position + _NHDR.size
        desc = align_up(name + namesz, align)
        if kind == XEN_ELFNOTE_PHYS32_ENTRY and notes[name : name + namesz] == b"Xen\0" and descsz in (4, 8):
            value = notes[desc : desc + descsz]
            return int.from_bytes(value, "little") if len(value) == descsz else None
        position = align_up(desc + descsz, align)
    return None


def load_segments(memory: GuestMemory, image: Image, segments: Sequence[LoadSegment], entry: int) -> int:
    """Load *segments*, which are sorted by paddr, and return where the last ends; BootError where one cannot be.

    *entry* is a physical address and has to be in one of them.
    """
    end = 0
    for segment in segments:
        if segment.paddr < end:
            raise BootError(f"{image.name}: damaged: two of its segments are to be loaded to {segment.paddr:#x}")
        end = segment.paddr + segment.memsz
        if end > FOUR_GIB:
            raise BootError(f"{image.name}: a segment is to be loaded to {segment.paddr:#x}-{end:#x}, beyond 4 GiB")
        if segment.paddr < LOADER_END and end > INFO_GPA:
            raise BootError(
                f"{image.name}: a segment would cover {INFO_GPA:#x}-{LOADER_END - 1:#x}, "
                "where the boot information is: link it higher"
            )
    if not any(segment.paddr <= entry < segment.paddr + segment.memsz for segment in segments):
        raise BootError(f"{image.name}: its entry point {entry:#x} is in none of its segments")
    for segment in segments:
        try:
            view = memory.view(segment.paddr, segment.memsz)
        except GuestMemoryError:
            raise BootError(
                f"{image.name}: there is no RAM at {segment.paddr:#x}-{segment.paddr + segment.memsz:#x}, "
                "where it is to be loaded: give the guest more with -m"
            ) from None
        image.load(memory, segment.paddr, segment.offset, segment.filesz)
        for start in range(segment.filesz, segment.memsz, MIB):
            length = min(MIB, segment.memsz - start)
            view[start : start + length] = _ZEROES[:length] if length < MIB else _ZEROES
    return end
