"""PVH: an ELF kernel that is entered in 32-bit flat mode with EBX = hvm_start_info.

Source: Xen docs/misc/pvh.pandoc (CPU state); Linux include/xen/interface/hvm/start_info.h (layout). Linux offers
it with CONFIG_PVH, in vmlinux.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyvmm.boot.cmdline import write_cmdline
from pyvmm.boot.e820 import E820Entry
from pyvmm.boot.elf import load_segments, parse_elf
from pyvmm.boot.entry import CpuState, protected_mode
from pyvmm.boot.error import BootError
from pyvmm.boot.initrd import load_initrd
from pyvmm.boot.lowmem import INFO_GPA, PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.boot.image import Image
    from pyvmm.memory import GuestMemory

XEN_HVM_START_MAGIC_VALUE: Final = 0x336EC578

_START_INFO: Final = struct.Struct("<I I I I Q Q Q Q I I")
_MODLIST_ENTRY: Final = struct.Struct("<Q Q Q Q")
_MEMMAP_ENTRY: Final = struct.Struct("<Q Q I I")

# Within the page at INFO_GPA, behind the start info itself.
_MODLIST_GPA: Final = INFO_GPA + 0x80
_MEMMAP_GPA: Final = INFO_GPA + 0x100
MEMMAP_MAX: Final = (PAGE_SIZE - 0x100) // _MEMMAP_ENTRY.size


def load_pvh(
    memory: GuestMemory,
    image: Image,
    *,
    cmdline: str = "",
    initrd: Image | None = None,
    e820: Sequence[E820Entry],
    rsdp: int = 0,
) -> CpuState:
    """Load kernel, initrd, command line and start info; BootError where they do not fit."""
    elf = parse_elf(image)
    if elf.pvh_entry is None:
        raise BootError(f"{image.name}: an ELF file without a PVH entry note: build the kernel with CONFIG_PVH")
    if len(e820) > MEMMAP_MAX:
        raise BootError(f"the memory map has {len(e820)} entries, hvm_start_info has room for {MEMMAP_MAX}")
    cmdline_gpa = write_cmdline(memory, cmdline)
    end = load_segments(memory, image, elf.segments, elf.pvh_entry)
    modules = b""
    if initrd is not None:
        modules = _MODLIST_ENTRY.pack(*load_initrd(memory, initrd, e820, floor=end), 0, 0)
    memory.write(_MODLIST_GPA, modules)
    memory.write(_MEMMAP_GPA, b"".join(_MEMMAP_ENTRY.pack(*entry, 0) for entry in e820))
    info = _START_INFO.pack(
        XEN_HVM_START_MAGIC_VALUE,
        1,
        0,
        len(modules) // _MODLIST_ENTRY.size,
        _MODLIST_GPA if modules else 0,
        cmdline_gpa,
        rsdp,
        _MEMMAP_GPA,
        len(e820),
        0,
    )
    memory.write(INFO_GPA, info)
    return protected_mode(memory, elf.pvh_entry, ebx=INFO_GPA)
