"""Linux's initial RAM disk, at the top of RAM, out of the way of a kernel that unpacks itself upwards from 1 MiB.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst: an initramfs is any number of cpio archives
behind one another, each compressed or not and at a multiple of four bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from pyvmm.boot.compressed import compression
from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import FOUR_GIB
from pyvmm.boot.modules import load_at_top, opened

if TYPE_CHECKING:
    from pyvmm.boot.e820 import E820Entry
    from pyvmm.config import Module
    from pyvmm.memory import GuestMemory

ALIGNMENT: Final = 4
CPIO_MAGICS: Final = (b"070701", b"070702")


def load_initrd(
    memory: GuestMemory, modules: Sequence[Module], e820: Iterable[E820Entry], *, floor: int, limit: int = FOUR_GIB
) -> tuple[int, int] | None:
    """Load *modules* as one initrd, page-aligned as high as it goes between *floor* and *limit* (exclusive).

    Returns its (gpa, size in bytes), None without modules; raises BootError when there is no room, for arguments, and
    for several files that are not all archives.
    """
    if not modules:
        return None
    with opened(modules, "initrd") as images:
        for module, image in zip(modules, images, strict=True):
            if module.arguments:
                raise BootError(
                    f"{image.name}: Linux takes no arguments for an initrd: leave {module.arguments!r} away"
                )
            head = image.read(0, 6)
            if len(images) > 1 and head not in CPIO_MAGICS and not compression(head):
                raise BootError(
                    f"{image.name}: no cpio archive, plain or compressed, and only those can be several: give one"
                )
        placed = load_at_top(memory, images, e820, align=ALIGNMENT, floor=floor, limit=limit)
    return placed[0].gpa, placed[-1].end - placed[0].gpa
