"""Multiboot 1: a kernel with a header in its first 8 KiB, entered in 32-bit flat mode with EBX = boot information.

Source: Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state), 3.3 (boot information). The header's
bit 16 says where the file is to be loaded (the "a.out kludge"); without it the file is ELF and its segments say so.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.cmdline import write_cmdlines
from pyvmm.boot.e820 import E820Entry, high_memory_end
from pyvmm.boot.elf import ELF_MAGIC, LoadSegment, load_segments, parse_elf
from pyvmm.boot.entry import CpuState, protected_mode
from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import EBDA_GPA, HIGH_MEMORY_GPA, INFO_GPA, align_up
from pyvmm.boot.modules import load_behind, opened
from pyvmm.units import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.boot.image import Image
    from pyvmm.config import Module
    from pyvmm.memory import GuestMemory

MULTIBOOT_SEARCH: Final = 8192
"""The header lies wholly in so many bytes of the file (3.1)."""
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

# Within the page at INFO_GPA, behind the information itself: the loader's name, then the memory map and the modules.
_NAME_GPA: Final = INFO_GPA + 0x80
_LISTS_GPA: Final = INFO_GPA + 0x90
_LISTS_ROOM: Final = PAGE_SIZE - 0x90


class MultibootHeader(NamedTuple):
    """The header's flags, and where in the file it stands."""

    offset: int
    flags: int


def find_multiboot_header(head: bytes) -> MultibootHeader | None:
    """The first header in *head*, the first 8 KiB of a file: 4-byte aligned, and its first three words sum to zero."""
    return find_header(head[:MULTIBOOT_SEARCH], MULTIBOOT_HEADER_MAGIC, _MAGIC.size, 4)


def find_header(data: bytes, magic: int, size: int, align: int) -> MultibootHeader | None:
    """The first header in *data*: *size* bytes at a multiple of *align* that begin with *magic* and flags (Multiboot 2:
    architecture) and whose 32-bit words sum to zero."""
    pattern = magic.to_bytes(4, "little")
    offset = data.find(pattern)
    while 0 <= offset <= len(data) - size:
        words = struct.unpack_from(f"<{size // 4}I", data, offset)
        if offset % align == 0 and sum(words) & 0xFFFFFFFF == 0:
            return MultibootHeader(offset, words[1])
        offset = data.find(pattern, offset + 1)
    return None


def load_multiboot(
    memory: GuestMemory,
    image: Image,
    *,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    e820: Sequence[E820Entry],
    fresh: bool = True,
) -> CpuState:
    """Load kernel, modules, command lines and information; BootError where they do not fit.

    A command line, the kernel's and each module's, begins with the name of the file, as kernels expect (3.3). Multiboot
    has no field for the ACPI RSDP: the kernel looks for it itself.
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
    end = load_segments(memory, image, segments, entry, fresh)
    with opened(modules, "module") as images:
        texts = [_with_name(file, module.arguments) for file, module in zip(images, modules, strict=True)]
        cmdline_gpa, *module_cmdlines = write_cmdlines(memory, _with_name(image, cmdline), texts)
        # Behind the kernel, where GRUB has them and kernels look for no others; QEMU keeps its information in the page
        # between, so that a kernel that takes the first page behind itself is lucky there too.
        floor = align_up(max(end, HIGH_MEMORY_GPA), PAGE_SIZE) + PAGE_SIZE
        placed = load_behind(memory, images, e820, floor=floor)
    mmap = b"".join(_MMAP_ENTRY.pack(_MMAP_ENTRY.size - 4, *entry) for entry in e820)
    mods = b"".join(
        _MODULE.pack(place.gpa, place.end, gpa, 0) for place, gpa in zip(placed, module_cmdlines, strict=True)
    )
    if len(mmap) + len(mods) > _LISTS_ROOM:
        raise BootError(
            f"{image.name}: {len(modules)} modules and a memory map of {len(e820)} entries are more than a page has "
            "room for: give fewer"
        )
    memory.write(_NAME_GPA, BOOT_LOADER_NAME)
    memory.write(_LISTS_GPA, mmap + mods)
    flags = MULTIBOOT_INFO_MEMORY | MULTIBOOT_INFO_CMDLINE | MULTIBOOT_INFO_MEM_MAP | MULTIBOOT_INFO_BOOT_LOADER_NAME
    if mods:
        flags |= MULTIBOOT_INFO_MODS
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
        *((len(modules), _LISTS_GPA + len(mmap)) if mods else (0, 0)),
        *(len(mmap), _LISTS_GPA),
        *(0, 0),  # drives
        0,  # config_table
        _NAME_GPA,
        0,  # apm_table
        *framebuffer,
    )
    memory.write(INFO_GPA, info)
    return protected_mode(memory, entry, eax=MULTIBOOT_BOOTLOADER_MAGIC, ebx=INFO_GPA)


def _with_name(file: Image, arguments: str) -> str:
    return f"{file.path} {arguments}" if arguments else file.path


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
