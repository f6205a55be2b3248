"""PVH: an ELF kernel that is entered in 32-bit flat mode with EBX = hvm_start_info.

Source: Xen docs/misc/pvh.pandoc (CPU state); Linux include/xen/interface/hvm/start_info.h (layout). Linux offers
it with CONFIG_PVH, in vmlinux.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyvmm.boot.cmdline import write_cmdlines
from pyvmm.boot.e820 import E820Entry
from pyvmm.boot.elf import load_segments, parse_elf
from pyvmm.boot.entry import CpuState, protected_mode
from pyvmm.boot.error import BootError
from pyvmm.boot.initrd import load_initrd
from pyvmm.boot.lowmem import INFO_GPA
from pyvmm.boot.modules import load_at_top, opened
from pyvmm.units import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.boot.image import Image
    from pyvmm.config import Module
    from pyvmm.memory import GuestMemory

XEN_HVM_START_MAGIC_VALUE: Final = 0x336EC578

_START_INFO: Final = struct.Struct("<I I I I Q Q Q Q I I")
_MODLIST_ENTRY: Final = struct.Struct("<Q Q Q Q")
_MEMMAP_ENTRY: Final = struct.Struct("<Q Q I I")

# Within the page at INFO_GPA, behind the start info itself: the modules, then the memory map.
_LISTS_GPA: Final = INFO_GPA + 0x80
_LISTS_ROOM: Final = PAGE_SIZE - 0x80


def load_pvh(
    memory: GuestMemory,
    image: Image,
    *,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    e820: Sequence[E820Entry],
    rsdp: int = 0,
    fresh: bool = True,
) -> CpuState:
    """Load kernel, modules, command line and start info; BootError where they do not fit.

    Linux takes the first module for its initrd and looks at no other, so it gets *modules* as one.
    """
    elf = parse_elf(image)
    if elf.pvh_entry is None:
        raise BootError(f"{image.name}: an ELF file without a PVH entry note: build the kernel with CONFIG_PVH")
    texts = [] if elf.is_linux else [module.arguments for module in modules]
    cmdline_gpa, *module_cmdlines = write_cmdlines(memory, cmdline, texts)
    end = load_segments(memory, image, elf.segments, elf.pvh_entry, fresh)
    modlist = b""
    if elf.is_linux:
        if initrd := load_initrd(memory, modules, e820, floor=end):
            modlist = _MODLIST_ENTRY.pack(*initrd, 0, 0)
    elif modules:
        with opened(modules, "module") as images:
            placed = load_at_top(memory, images, e820, floor=end)
        for place, gpa in zip(placed, module_cmdlines, strict=True):
            modlist += _MODLIST_ENTRY.pack(*place, gpa, 0)
    memmap = b"".join(_MEMMAP_ENTRY.pack(*entry, 0) for entry in e820)
    if len(modlist) + len(memmap) > _LISTS_ROOM:
        raise BootError(
            f"{image.name}: {len(modules)} modules and a memory map of {len(e820)} entries are more than a page has "
            "room for: give fewer"
        )
    info = _START_INFO.pack(
        XEN_HVM_START_MAGIC_VALUE,
        1,
        0,
        len(modlist) // _MODLIST_ENTRY.size,
        _LISTS_GPA if modlist else 0,
        cmdline_gpa,
        rsdp,
        _LISTS_GPA + len(modlist),
        len(e820),
        0,
    )
    memory.write(INFO_GPA, info)
    memory.write(_LISTS_GPA, modlist + memmap)
    return protected_mode(memory, elf.pvh_entry, ebx=INFO_GPA)
