"""Multiboot 1: a kernel with a header in its first 8 KiB, entered in 32-bit flat mode with EBX = boot information.

Source: Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state), 3.3 (boot information). The header's
bit 16 says where the file is to be loaded (the "a.out kludge"); without it the file is ELF and its segments say so.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.cmdline import write_cmdline
from pyvmm.boot.e820 import E820Entry, high_memory_end
from pyvmm.boot.elf import ELF_MAGIC, LoadSegment, load_segments, parse_elf
from pyvmm.boot.entry import CpuState, protected_mode
from pyvmm.boot.error import BootError
from pyvmm.boot.initrd import load_initrd
from pyvmm.boot.lowmem import EBDA_GPA, HIGH_MEMORY_GPA, INFO_GPA, PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.boot.image import Image
    from pyvmm.memory import GuestMemory

MULTIBOOT_SEARCH: Final = 8192
MULTIBOOT_HEADER_MAGIC: Final = 0x1BADB002
MULTIBOOT_BOOTLOADER_MAGIC: Final = 0x2BADB002
BOOT_LOADER_NAME: Final = b"pyvmm\0"

# Flags of the header.
MULTIBOOT_PAGE_ALIGN: Final = 1 << 0
MULTIBOOT_MEMORY_INFO: Final = 1 << 1
MULTIBOOT_VIDEO_MODE: Final = 1 << 2
MULTIBOOT_AOUT_KLUDGE: Final = 1 << 16

# Flags of the information.
MULTIBOOT_INFO_MEMORY: Final = 1 << 0
MULTIBOOT_INFO_CMDLINE: Final = 1 << 2
MULTIBOOT_INFO_MODS: Final = 1 << 3
MULTIBOOT_INFO_MEM_MAP: Final = 1 << 6
MULTIBOOT_INFO_BOOT_LOADER_NAME: Final = 1 << 9
MULTIBOOT_INFO_FRAMEBUFFER_INFO: Final = 1 << 12
MULTIBOOT_FRAMEBUFFER_TYPE_EGA_TEXT: Final = 2

_MAGIC: Final = struct.Struct("<3I")
_ADDRESSES: Final = struct.Struct("<5I")
_INFO: Final = struct.Struct("<I II I I II 16x II II I I I 16x Q I I I B B 6x")
_MODULE: Final = struct.Struct("<4I")
_MMAP_ENTRY: Final = struct.Struct("<I Q Q I")

# Within the page at INFO_GPA, behind the information itself.
_MODULE_GPA: Final = INFO_GPA + 0x80
_NAME_GPA: Final = INFO_GPA + 0xA0
_STRING_GPA: Final = INFO_GPA + 0x100
_STRING_ROOM: Final = 0x100
_MMAP_GPA: Final = INFO_GPA + 0x200
MMAP_MAX: Final = (PAGE_SIZE - 0x200) // _MMAP_ENTRY.size


class MultibootHeader(NamedTuple):
    """The header's flags, and where in the file it stands."""

    offset: int
    flags: int


def find_multiboot_header(head: bytes) -> MultibootHeader | None:
    """The first header in *head*, the first 8 KiB of a file: 4-byte aligned, and its first three words sum to zero."""
    pattern = MULTIBOOT_HEADER_MAGIC.to_bytes(4, "little")
    offset = head.find(pattern)
    while 0 <= offset <= MULTIBOOT_SEARCH - _MAGIC.size:
        if offset % 4 == 0 and offset + _MAGIC.size <= len(head):
            magic, flags, checksum = _MAGIC.unpack_from(head, offset)
            if (magic + flags + checksum) & 0xFFFFFFFF == 0:
                return MultibootHeader(offset, flags)
        offset = head.find(pattern, offset + 1)
    return None


def load_multiboot(
    memory: GuestMemory,
    image: Image,
    *,
    cmdline: str = "",
    initrd: Image | None = None,
    e820: Sequence[E820Entry],
    rsdp: int = 0,
) -> CpuState:
    """Load kernel, initrd as its one module, command line and information; BootError where they do not fit.

    Multiboot has no field for *rsdp*: the kernel looks for the RSDP itself.
    """
    head = image.read(0, MULTIBOOT_SEARCH)
    header = find_multiboot_header(head)
    if header is None:
        raise BootError(f"{image.name}: no Multiboot header in its first 8 KiB")
    unknown = header.flags & 0xFFFF & ~(MULTIBOOT_PAGE_ALIGN | MULTIBOOT_MEMORY_INFO | MULTIBOOT_VIDEO_MODE)
    if unknown:
        raise BootError(f"{image.name}: its Multiboot header demands features {unknown:#x}, which no loader offers")
    if header.flags & MULTIBOOT_AOUT_KLUDGE:
        segment, entry = _kludge(image, head, header.offset)
        segments: Sequence[LoadSegment] = (segment,)
    elif head[:4] == ELF_MAGIC:
        elf = parse_elf(image)
        segments, entry = elf.segments, elf.physical_entry
    else:
        raise BootError(f"{image.name}: a Multiboot kernel that is not ELF and does not say where it goes (flag 16)")
    if len(e820) > MMAP_MAX:
        raise BootError(f"the memory map has {len(e820)} entries, Multiboot information has room for {MMAP_MAX}")
    cmdline_gpa = write_cmdline(memory, cmdline)
    end = load_segments(memory, image, segments, entry)

    flags = MULTIBOOT_INFO_MEMORY | MULTIBOOT_INFO_CMDLINE | MULTIBOOT_INFO_MEM_MAP | MULTIBOOT_INFO_BOOT_LOADER_NAME
    if initrd is not None:
        flags |= MULTIBOOT_INFO_MODS
        gpa, size = load_initrd(memory, initrd, e820, floor=max(end, HIGH_MEMORY_GPA))
        memory.write(_MODULE_GPA, _MODULE.pack(gpa, gpa + size, _STRING_GPA, 0))
        memory.write(_STRING_GPA, initrd.path.encode("utf-8", "replace")[: _STRING_ROOM - 1] + b"\0")
    memory.write(_NAME_GPA, BOOT_LOADER_NAME)
    mmap = b"".join(_MMAP_ENTRY.pack(_MMAP_ENTRY.size - 4, *entry) for entry in e820)
    memory.write(_MMAP_GPA, mmap)
    framebuffer = (0, 0, 0, 0, 0, 0)
    if header.flags & MULTIBOOT_VIDEO_MODE:
        # What the kernel asks for is a wish; what the machine has is VGA text.
        flags |= MULTIBOOT_INFO_FRAMEBUFFER_INFO
        framebuffer = (0xB8000, 160, 80, 25, 16, MULTIBOOT_FRAMEBUFFER_TYPE_EGA_TEXT)
    info = _INFO.pack(
        flags,
        EBDA_GPA >> 10,  # mem_lower, KiB
        (high_memory_end(e820) - HIGH_MEMORY_GPA) >> 10,  # mem_upper, KiB
        0,  # boot_device
        cmdline_gpa,
        *((1, _MODULE_GPA) if initrd is not None else (0, 0)),
        *(len(mmap), _MMAP_GPA),
        *(0, 0),  # drives
        0,  # config_table
        _NAME_GPA,
        0,  # apm_table
        *framebuffer,
    )
    memory.write(INFO_GPA, info)
    return protected_mode(memory, entry, eax=MULTIBOOT_BOOTLOADER_MAGIC, ebx=INFO_GPA)


def _kludge(image: Image, head: bytes, offset: int) -> tuple[LoadSegment, int]:
    """The one segment that the address fields of the header describe, and the entry point (3.1.3)."""

    def refuse(why: str) -> BootError:
        return BootError(f"{image.name}: damaged Multiboot header: {why}")

    fields = head[offset + _MAGIC.size : offset + _MAGIC.size + _ADDRESSES.size]
    if len(fields) < _ADDRESSES.size:
        raise refuse("the file ends inside it")
    header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr = _ADDRESSES.unpack(fields)
    start = offset - (header_addr - load_addr)
    if header_addr < load_addr or start < 0:
        raise refuse(f"load_addr {load_addr:#x} is not in the file, header_addr is {header_addr:#x}")
    filesz = load_end_addr - load_addr if load_end_addr else image.size - start
    if filesz <= 0 or start + filesz > image.size:
        raise refuse(f"load_end_addr {load_end_addr:#x} is not in the file")
    memsz = max(filesz, bss_end_addr - load_addr) if bss_end_addr else filesz
    return LoadSegment(load_addr, memsz, start, filesz, load_addr), entry_addr
