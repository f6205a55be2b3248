"""boot_params, the "zero page" by which a boot loader tells Linux of the machine.

Source: Linux Documentation/x86/zero-page.rst, arch/x86/include/uapi/asm/bootparam.h, include/uapi/linux/screen_info.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from pyvmm.boot.e820 import E820Entry, high_memory_end
from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import HIGH_MEMORY_GPA
from pyvmm.units import PAGE_SIZE

# Offsets in struct boot_params.
SCREEN_INFO: Final = 0x000
ACPI_RSDP_ADDR: Final = 0x070
ALT_MEM_K: Final = 0x1E0
E820_ENTRIES: Final = 0x1E8
SETUP_HEADER: Final = 0x1F1
TYPE_OF_LOADER: Final = 0x210
CODE32_START: Final = 0x214
RAMDISK_IMAGE: Final = 0x218
CMD_LINE_PTR: Final = 0x228
E820_TABLE: Final = 0x2D0

E820_MAX_ENTRIES_ZEROPAGE: Final = 128
LOADER_UNDEFINED: Final = 0xFF
"""type_of_loader of a boot loader without an assigned id."""

_SCREEN_INFO: Final = struct.Struct("<BB H H BB BB H H BB H")
_E820_ENTRY: Final = struct.Struct("<QQI")


def boot_params(
    header: bytes,
    e820: Sequence[E820Entry],
    *,
    cmdline: int,
    initrd: tuple[int, int] | None = None,
    rsdp: int = 0,
    code32_start: int | None = None,
) -> bytearray:
    """The 4096 bytes for a PC whose screen is VGA text mode 3, 80x25.

    *header* is the kernel file from 0x1F1 to the end of its setup header, empty for a raw kernel; *cmdline* and *rsdp*
    are guest physical addresses, *initrd* is (gpa, size).
    """
    if len(e820) > E820_MAX_ENTRIES_ZEROPAGE:
        raise BootError(f"the memory map has {len(e820)} entries, boot_params takes {E820_MAX_ENTRIES_ZEROPAGE}")
    page = bytearray(PAGE_SIZE)
    page[SETUP_HEADER : SETUP_HEADER + len(header)] = header
    extended_kb = (high_memory_end(e820) - HIGH_MEMORY_GPA) >> 10
    _SCREEN_INFO.pack_into(
        page,
        SCREEN_INFO,
        *(0, 0),  # orig_x, orig_y
        min(extended_kb, 0xFFFF),  # ext_mem_k
        0,  # orig_video_page
        *(3, 80),  # orig_video_mode, orig_video_cols
        *(0, 0),
        3,  # orig_video_ega_bx: 256 KiB, colour
        0,
        *(25, 1),  # orig_video_lines, orig_video_isVGA
        16,  # orig_video_points
    )
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    struct.pack_into("<I", page, ALT_MEM_K, extended_kb)
    page[E820_ENTRIES] = len(e820)
    for index, entry in enumerate(e820):
        _E820_ENTRY.pack_into(page, E820_TABLE + index * _E820_ENTRY.size, *entry)
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    if code32_start is not None:
        struct.pack_into("<I", page, CODE32_START, code32_start)
    struct.pack_into("<II", page, RAMDISK_IMAGE, *(initrd or (0, 0)))
    struct.pack_into("<I", page, CMD_LINE_PTR, cmdline)
    return page
