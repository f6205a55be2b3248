"""Load what the user gave as a kernel, by whichever boot protocol it speaks, and say how its CPU starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvmm.boot.e820 import E820Entry, e820_map
from pyvmm.boot.error import BootError
from pyvmm.boot.flat import Flat, load_flat
from pyvmm.boot.image import Image, Source
from pyvmm.boot.lowmem import BASE_MEMORY_END
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm.boot.entry import CpuState
    from pyvmm.config import Module


def load(
    memory: GuestMemory,
    kernel: Source,
    *,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    e820: Sequence[E820Entry] | None = None,
    rsdp: int = 0,
    flat: Flat | None = None,
    fresh: bool = True,
) -> CpuState:
    """Load *kernel* and what goes with it into *memory*, and return the boot CPU's registers.

    *kernel* is a path or the bytes themselves, *modules* go with it as the protocol has it; *e820* is the guest's
    memory map, made from the RAM where it is None; *rsdp* is the guest physical address of the ACPI RSDP, 0 for none.
    *flat* says that the kernel is a flat binary and how it starts; else its bytes say what it is. *fresh* says that no
    guest has run in this RAM: above 1 MiB it is zero.

    Raises BootError, one line for the user, for everything that can be wrong with the files, the command line and the
    size of RAM.
    """
    entries = e820_map(memory.regions) if e820 is None else e820
    with Image(kernel) as image:
        try:
            if flat is not None and flat.mode != "linux32":
                if modules or cmdline:
                    what = "initrd" if modules else "command line"
                    raise BootError(f"{image.name}: a flat binary of mode {flat.mode} takes no {what}: leave it away")
                return load_flat(memory, image, flat)
            _need_low_memory(memory)
            return _load(memory, image, cmdline, modules, entries, rsdp, flat, fresh)
        except GuestMemoryError as error:
            raise BootError(f"{image.name}: does not fit ({error}): give the guest more RAM") from None


def _need_low_memory(memory: GuestMemory) -> None:
    try:
        memory.view(0, BASE_MEMORY_END)
        memory.view(MIB, MIB)
    except GuestMemoryError:
        raise BootError("a kernel needs 2 MiB of RAM at the very least: give the guest more RAM") from None


def _load(
    memory: GuestMemory,
    image: Image,
    cmdline: str,
    modules: Sequence[Module],
    e820: Sequence[E820Entry],
    rsdp: int,
    flat: Flat | None,
    fresh: bool,
) -> CpuState:
    # Here, not above: a guest that comes with pyvmm starts without any of them, and they take milliseconds to import.
    if flat is not None:
        from pyvmm.boot.rawlinux import load_linux32

        return load_linux32(memory, image, address=flat.address, cmdline=cmdline, modules=modules, e820=e820, rsdp=rsdp)
    from pyvmm.boot.bzimage import load_bzimage
    from pyvmm.boot.detect import BZIMAGE, PVH, detect
    from pyvmm.boot.multiboot import load_multiboot
    from pyvmm.boot.pvh import load_pvh

    protocol = detect(image)
    if protocol == BZIMAGE:
        return load_bzimage(memory, image, cmdline=cmdline, modules=modules, e820=e820, rsdp=rsdp)
    if protocol == PVH:
        return load_pvh(memory, image, cmdline=cmdline, modules=modules, e820=e820, rsdp=rsdp, fresh=fresh)
    return load_multiboot(memory, image, cmdline=cmdline, modules=modules, e820=e820, fresh=fresh)
