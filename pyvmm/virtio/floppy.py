"""A floppy without a floppy drive: a virtio disk that tells its driver it is one, by its serial number.

Our BIOS shows it as drive 00h (firmware/bios); for any other driver it is a disk. A real drive would want a controller
(82077AA), a DMA controller and their interrupt, and gives the guest the same sectors, at 62 KB a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyvmm.backends.disks import Disks
from pyvmm.errors import UserError, printable
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.blk import VirtioBlk

SERIAL: Final = "floppy"


class Floppy(VirtioBlk):
    """A disk that the BIOS shows as drive 00h: a boot sector or an image of a floppy, a raw file (docs/firmware.md)."""

    def __init__(
        self, path: Path, disks: Disks, *, readonly: bool = False, temporary: bool = False, trace: Channel = OFF
    ) -> None:
        if not path.exists():
            raise UserError(
                f"floppy {printable(str(path))}: there is no such file: name a boot sector or a floppy's image"
            )
        try:
            super().__init__(path, disks, readonly=readonly, temporary=temporary, serial=SERIAL, trace=trace)
        except UserError as error:
            raise UserError(str(error).replace("disk ", "floppy ", 1)) from None
