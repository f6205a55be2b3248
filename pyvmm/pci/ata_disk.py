"""An ATA disk drive whose sectors are a raw file or a block device of this host; see devices/ata.py for the drive.

Its medium answers from threads (backends/disks.py). A write is in the drive's cache, which is the host's, until the
guest says FLUSH CACHE; with the write cache switched off (SET FEATURES 82h) each is on the medium first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pyvmm.backends import disks as backend
from pyvmm.backends.disks import Disk, Disks, OnDisk, Request
from pyvmm.devices.ata import AtaDrive, Done
from pyvmm.devices.ata_abi import SECTOR
from pyvmm.errors import UserError, printable
from pyvmm.trace import OFF, Channel

SERIAL_BYTES = 20
MODEL = "pyvmm disk"
FIRMWARE = "1"


class DiskMedium:
    """A Disk as an AtaDrive has it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.sectors = -(-disk.size // SECTOR)
        self.readonly = disk.readonly
        disk.completed = self._completed

    @property
    def busy(self) -> bool:
        return self._disk.busy

    def read(self, sector: int, views: Sequence[memoryview], done: Done) -> None:
        self._disk.submit(Request(backend.READ, sector * SECTOR, views, owner=done))

    def write(self, sector: int, views: Sequence[memoryview], through: bool, done: Done) -> None:
        self._disk.submit(Request(backend.WRITE, sector * SECTOR, views, through=through, owner=done))

    def flush(self, done: Done) -> None:
        self._disk.submit(Request(backend.FLUSH, owner=done))

    def give_up(self) -> None:
        self._disk.give_up()

    def _completed(self, batch: list[Request]) -> None:
        for request in batch:
            request.owner(request.error is None)


class AtaDisk(OnDisk):
    """A disk on an IDE controller, for guests without virtio: a raw file or block device (docs/disks.md)."""

    STATE: ClassVar[tuple[str, ...]] = ("disk",)  # the channel has the drive's

    def __init__(
        self,
        path: Path,
        disks: Disks,
        *,
        readonly: bool = False,
        cache: Literal["writeback", "none", "unsafe"] = "writeback",
        serial: str = "",
        size: str | None = None,
        temporary: bool = False,
        format: Literal["raw"] | None = None,
        trace: Channel = OFF,
    ) -> None:
        name = f"disk {printable(str(path))}"
        if len(serial) > SERIAL_BYTES or not serial.isascii():
            raise UserError(f"{name}: serial={printable(serial)}: it has at most {SERIAL_BYTES} ASCII characters")
        self.disk = disks.open(
            path, readonly=readonly, cache=cache, size=size, temporary=temporary, raw=format == "raw"
        )
        if self.disk.block != SECTOR:
            block = self.disk.block
            self.disk.close()
            raise UserError(f"{name}: cache=none reads {block} bytes at once here, an ATA disk {SECTOR}: leave it away")
        self.drive = AtaDrive(DiskMedium(self.disk), MODEL, serial, FIRMWARE, trace)
