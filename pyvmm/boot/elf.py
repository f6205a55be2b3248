"""ELF executables of 32 and 64 bits for x86: their loadable segments and the PVH entry note.

Source: System V ABI, chapters 4 and 5 (ELF header, program header, note section); Linux
include/xen/interface/elfnote.h. Nothing in the file is believed before it is checked: a segment lies wholly in the file
and wholly in guest RAM, and no two meet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import FOUR_GIB, HIGH_MEMORY_GPA, INFO_GPA, LOADER_END, align_up, no_ram_advice
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

XEN_NOTE: Final = b"Xen\0"
XEN_ELFNOTE_PHYS32_ENTRY: Final = 18
LINUX_NOTE: Final = b"Linux\0"

NOTES_LIMIT: Final = MIB
"""Bytes of notes that are searched; a kernel has a few hundred."""

LINK_ELSEWHERE: Final = "link it elsewhere, or give it a load address of its own (AT() in a linker script)"

_EHDR32: Final = struct.Struct("<16s H H I I I I I H H H H H H")
_EHDR64: Final = struct.Struct("<16s H H I Q Q Q I H H H H H H")
_PHDR32: Final = struct.Struct("<8I")
_PHDR64: Final = struct.Struct("<II6Q")
_NHDR: Final = struct.Struct("<III")


class LoadSegment(NamedTuple):
    """*filesz* bytes at *offset* of the file go to guest physical *paddr*, followed by zeroes up to *memsz*."""

    paddr: int
    memsz: int
    offset: int
    filesz: int
    vaddr: int


NOTE_SLICE: Final = 16
"""Bytes of a note's name and of its desc that are looked at; those that are wanted are shorter."""


class Note(NamedTuple):
    """The beginning of one entry of a note segment."""

    name: bytes
    type: int
    desc: bytes


class Elf(NamedTuple):
    """What of an ELF file matters to a boot loader."""

    entry: int
    segments: tuple[LoadSegment, ...]
    """Lowest paddr first."""
    pvh_entry: int | None
    """The physical address in the note XEN_ELFNOTE_PHYS32_ENTRY."""
    is_linux: bool
    """It has notes of Linux' own."""

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
    is_linux = False
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
        elif kind == PT_NOTE:
            data = image.read(offset, min(filesz, notes_left))
            notes_left -= len(data)
            for note in _notes(data, 8 if align == 8 else 4):
                is_linux = is_linux or note.name == LINUX_NOTE
                wanted = note.name == XEN_NOTE and note.type == XEN_ELFNOTE_PHYS32_ENTRY and len(note.desc) in (4, 8)
                if wanted and pvh_entry is None:
                    pvh_entry = int.from_bytes(note.desc, "little")
    if not segments:
        raise refuse("an ELF file with nothing to load: give a linked kernel")
    return Elf(entry, tuple(sorted(segments)), pvh_entry, is_linux)


def _notes(data: bytes, align: int) -> Iterator[Note]:
    """The notes in *data*, a segment that says that they are aligned to *align* bytes, 4 or 8.

    Linkers put notes of either alignment into one segment: after each, the next may begin where the one or the other
    leads.
    """
    other = 12 - align
    reached, seen = [0], {0}
    while reached:
        position = reached.pop()
        if position + _NHDR.size > len(data):
            continue
        namesz, descsz, kind = _NHDR.unpack_from(data, position)
        name = position + _NHDR.size
        for step in (other, align) if position % 8 == 0 else (4,):
            desc = align_up(name + namesz, step)
            end = desc + descsz
            # What is pushed last is looked at first: the likelier.
            for begin in (align_up(end, 12 - step), align_up(end, step)):
                if begin not in seen:
                    seen.add(begin)
                    reached.append(begin)
        yield Note(data[name : name + min(namesz, NOTE_SLICE)], kind, data[desc : desc + min(descsz, NOTE_SLICE)])


def load_segments(
    memory: GuestMemory, image: Image, segments: Sequence[LoadSegment], entry: int, fresh: bool = True
) -> int:
    """Load *segments*, which are sorted by paddr, and return where the last ends; BootError where one cannot be.

    *entry* is a physical address and has to be in one of them. *fresh* says that RAM above 1 MiB is zero yet.
    """
    end = 0
    for segment in segments:
        if segment.paddr < end:
            raise BootError(f"{image.name}: damaged: two of its segments are to be loaded to {segment.paddr:#x}")
        end = segment.paddr + segment.memsz
        if end > FOUR_GIB:
            raise BootError(
                f"{image.name}: a segment is to be loaded to {segment.paddr:#x}-{end:#x}, beyond 4 GiB: "
                f"{LINK_ELSEWHERE}"
            )
        if segment.paddr < LOADER_END and end > INFO_GPA:
            raise BootError(
                f"{image.name}: a segment would cover {INFO_GPA:#x}-{LOADER_END - 1:#x}, "
                "where the boot information is: link it higher"
            )
        try:
            memory.view(segment.paddr, segment.memsz)
        except GuestMemoryError:
            advice = no_ram_advice(segment.paddr, end, LINK_ELSEWHERE)
            raise BootError(
                f"{image.name}: there is no RAM at {segment.paddr:#x}-{end:#x}, where it is to be loaded: {advice}"
            ) from None
    if not any(segment.paddr <= entry < segment.paddr + segment.memsz for segment in segments):
        raise BootError(f"{image.name}: its entry point {entry:#x} is in none of its segments")
    for segment in segments:
        image.load(memory, segment.paddr, segment.offset, segment.filesz)
        bss, bss_end = segment.paddr + segment.filesz, segment.paddr + segment.memsz
        if fresh:  # below 1 MiB are the machine's tables by now
            bss_end = max(bss, min(bss_end, HIGH_MEMORY_GPA))
        memory.clear(bss, bss_end - bss)
    return end
