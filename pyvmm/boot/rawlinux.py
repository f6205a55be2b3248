"""A raw 32-bit Linux kernel: `objcopy -O binary vmlinux`, entered at its startup_32 with ESI = boot_params.

Source: Linux Documentation/x86/boot.rst, "32-bit Boot Protocol", less the setup header, which such a file has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyvmm.boot.bootparams import boot_params
from pyvmm.boot.bzimage import OLD_INITRD_ADDR_MAX
from pyvmm.boot.cmdline import write_cmdline
from pyvmm.boot.e820 import E820Entry, high_memory_end
from pyvmm.boot.entry import CpuState, protected_mode
from pyvmm.boot.error import BootError
from pyvmm.boot.initrd import load_initrd
from pyvmm.boot.lowmem import HIGH_MEMORY_GPA, INFO_GPA, no_ram_advice

if TYPE_CHECKING:
    from pyvmm.boot.image import Image
    from pyvmm.config import Module
    from pyvmm.memory import GuestMemory

RAW_KERNEL_CMDLINE: Final = 2047
"""COMMAND_LINE_SIZE since 2.6.22, less the zero; an older kernel cuts it at 255 itself."""


def load_linux32(
    memory: GuestMemory,
    image: Image,
    *,
    address: int = HIGH_MEMORY_GPA,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    e820: Sequence[E820Entry],
    rsdp: int = 0,
) -> CpuState:
    """Load kernel, *modules* as one initrd, command line and boot_params; BootError where they do not fit."""
    end = address + image.size
    if address < HIGH_MEMORY_GPA:
        raise BootError(f"{image.name}: a raw kernel goes to {HIGH_MEMORY_GPA:#x} or above, not to {address:#x}")
    if end > high_memory_end(e820):
        advice = no_ram_advice(address, end, "name another address")
        raise BootError(f"{image.name}: {image.size} bytes do not fit into RAM at {address:#x}: {advice}")
    cmdline_gpa = write_cmdline(memory, cmdline, RAW_KERNEL_CMDLINE)
    image.load(memory, address, 0, image.size)
    # No header says where the initrd may end; below the end of a 32-bit kernel's low memory is safe.
    initrd = load_initrd(memory, modules, e820, floor=end, limit=OLD_INITRD_ADDR_MAX + 1)
    memory.write(INFO_GPA, boot_params(b"", e820, cmdline=cmdline_gpa, initrd=initrd, rsdp=rsdp))
    return protected_mode(memory, address, esi=INFO_GPA)
