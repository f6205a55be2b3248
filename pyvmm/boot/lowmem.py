"""The first MiB of guest memory as a PC's firmware and boot loader leave it: who owns which bytes.

    0x00000  interrupt vectors of real mode
    0x00400  BIOS data area
    0x90000  boot_params, hvm_start_info or Multiboot information
    0x91000  GDT
    0x92000  identity page tables, six pages
    0x98000  command lines of the kernel and of its modules
    0x9D000  two pages that Linux's decompressor borrows to change its paging mode
    0x9FC00  EBDA, 1 KiB
    0xA0000  VGA memory, then ROMs
    0xF0000  MP table, SMBIOS table; the kernel looks for pointers to both here
    0xFE000  what the interrupt vectors lead to

All that a loader writes lies at 0x90000 or above because a kernel as old as 2.6.10 unpacks through 0x2000-0x90000 while
it still runs on the loader's GDT (arch/i386/boot/compressed/misc.c, LOW_BUFFER_START and LOW_BUFFER_MAX).
"""

from __future__ import annotations

from typing import Final

BDA_EBDA_SEGMENT: Final = 0x40E
BDA_BASE_MEMORY_KB: Final = 0x413
INFO_GPA: Final = 0x90000
GDT_GPA: Final = 0x91000
PAGE_TABLES_GPA: Final = 0x92000
CMDLINE_GPA: Final = 0x98000
CMDLINE_ROOM: Final = 0x5000
"""Bytes at CMDLINE_GPA, the terminating zero included."""
LOADER_END: Final = CMDLINE_GPA + CMDLINE_ROOM
EBDA_GPA: Final = 0x9FC00
EBDA_SIZE: Final = 0x400
BASE_MEMORY_END: Final = 0xA0000
BIOS_GPA: Final = 0xF0000
MPTABLE_GPA: Final = BIOS_GPA
HIGH_MEMORY_GPA: Final = 0x100000
VIDEO_END: Final = 0xC0000
"""From BASE_MEMORY_END up to here is VGA memory."""
HOLE_GPA: Final = 0xC0000000
"""From here to 4 GiB are devices; RAM that does not fit below goes on at 4 GiB."""
FOUR_GIB: Final = 1 << 32


def no_ram_advice(start: int, end: int, elsewhere: str) -> str:
    """What a user can do who wants to load something to [start, end), which is not all RAM: more RAM may help, or
    *elsewhere*."""
    if start < FOUR_GIB and end > HOLE_GPA:
        return f"from {HOLE_GPA:#x} to 4 GiB a PC has devices, whatever its RAM: {elsewhere}"
    if start < VIDEO_END and end > BASE_MEMORY_END:
        return f"from {BASE_MEMORY_END:#x} to {VIDEO_END - 1:#x} a PC has video memory: {elsewhere}"
    return "give the guest more RAM"


def align_up(value: int, alignment: int) -> int:
    """*value*, or the next multiple of *alignment*, which is a power of two."""
    return (value + alignment - 1) & -alignment
