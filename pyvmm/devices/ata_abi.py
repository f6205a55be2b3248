"""Registers, bits and commands of ATA drives, as ATA/ATAPI-6 (T13 1410D) has them, chapters 7 and 8."""

from __future__ import annotations

from typing import Final, NamedTuple

SECTOR: Final = 512

# Registers, by their offset at the command block's ports
FEATURES, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, COMMAND = range(1, 8)
ERROR, STATUS = FEATURES, COMMAND

BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
READY: Final = DRDY | DSC
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
DIAGNOSTIC_PASSED: Final = 0x01
DEVICE_LBA, DEVICE_DEV = 0x40, 0x10

ACTIVE, IDLE, STANDBY, SLEEPING = 0xFF, 0x80, 0x00, 0x01
"""The first three as CHECK POWER MODE has them."""

SET_TRANSFER_MODE: Final = 0x03

NOTHING, PIO_IN, PIO_OUT, DMA_IN, DMA_OUT, VERIFY = range(6)
"""How data moves now."""


class Transfer(NamedTuple):
    """How a command moves data."""

    kind: int
    ext: bool = False
    multiple: bool = False
    through: bool = False
    """FUA: done once it is on the medium."""


TRANSFERS: Final[dict[int, Transfer]] = {
    0x20: Transfer(PIO_IN),  # READ SECTOR(S)
    0x21: Transfer(PIO_IN),  # without retries, until ATA-4
    0x24: Transfer(PIO_IN, ext=True),  # READ SECTOR(S) EXT
    0x25: Transfer(DMA_IN, ext=True),  # READ DMA EXT
    0x29: Transfer(PIO_IN, ext=True, multiple=True),  # READ MULTIPLE EXT
    0x30: Transfer(PIO_OUT),  # WRITE SECTOR(S)
    0x31: Transfer(PIO_OUT),
    0x34: Transfer(PIO_OUT, ext=True),  # WRITE SECTOR(S) EXT
    0x35: Transfer(DMA_OUT, ext=True),  # WRITE DMA EXT
    0x39: Transfer(PIO_OUT, ext=True, multiple=True),  # WRITE MULTIPLE EXT
    0x3D: Transfer(DMA_OUT, ext=True, through=True),  # WRITE DMA FUA EXT
    0x40: Transfer(VERIFY),  # READ VERIFY SECTOR(S)
    0x41: Transfer(VERIFY),
    0x42: Transfer(VERIFY, ext=True),  # READ VERIFY SECTOR(S) EXT
    0xC4: Transfer(PIO_IN, multiple=True),  # READ MULTIPLE
    0xC5: Transfer(PIO_OUT, multiple=True),  # WRITE MULTIPLE
    0xC8: Transfer(DMA_IN),  # READ DMA
    0xC9: Transfer(DMA_IN),
    0xCA: Transfer(DMA_OUT),  # WRITE DMA
    0xCB: Transfer(DMA_OUT),
    0xCE: Transfer(PIO_OUT, ext=True, multiple=True, through=True),  # WRITE MULTIPLE FUA EXT
}
