"""What an ATA drive says of itself: the 256 words of IDENTIFY DEVICE (ATA/ATAPI-6, T13 1410D)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MAX_MULTIPLE: Final = 16
"""Sectors of a DRQ block of READ and WRITE MULTIPLE, at the most."""
PIO_MODES: Final = 0x03
"""Word 64: modes 3 and 4."""
MWDMA_MODES: Final = 0x07
"""Word 63: multiword DMA modes 0 to 2."""
MAX_LBA28: Final = 0x0FFFFFFF
MAX_CYLINDERS: Final = 16383
HEADS, SECTORS_PER_TRACK = 16, 63
"""The default translation."""

GENERAL_CONFIGURATION: Final = 0x0040
"""A fixed device, no packets."""
CAPABILITIES_DMA_LBA_IORDY: Final = 0x0F00
WORDS_54_58_AND_64_70: Final = 0x0003
VERSION_ATA_6_AND_BEFORE: Final = 0x007C
SUPPORTED_82: Final = 0x0028
"""Volatile write cache, power management."""
SUPPORTED_83: Final = 0x7400
"""FLUSH CACHE EXT and FLUSH CACHE, 48-bit addresses."""
SUPPORTED_84: Final = 0x4040
"""WRITE DMA FUA EXT and WRITE MULTIPLE FUA EXT."""
WRITE_CACHE: Final = 0x0020
CYCLE_NS: Final = 120
INTEGRITY: Final = 0xA5


class Geometry(NamedTuple):
    """How cylinder, head and sector number a drive's sectors."""

    heads: int
    sectors: int

    def cylinders(self, total: int) -> int:
        return min(MAX_CYLINDERS, total // (self.heads * self.sectors))


DEFAULT_GEOMETRY: Final = Geometry(HEADS, SECTORS_PER_TRACK)


class DriveIdentity(NamedTuple):
    """What never changes of a drive."""

    model: str
    serial: str
    firmware: str
    sectors: int


def text(value: str, size: int) -> bytes:
    """An ATA string: ASCII, padded with spaces, the first character of each word in its high byte."""
    raw = value.encode("ascii", "replace")[:size].ljust(size, b" ")
    swapped = bytearray(size)
    swapped[0::2], swapped[1::2] = raw[1::2], raw[0::2]
    return bytes(swapped)


def identify(
    identity: DriveIdentity, number: int, geometry: Geometry, multiple: int, mwdma: int | None, write_cache: bool
) -> bytes:
    """The 512 bytes for device *number* (0 or 1) as it is set up now; *multiple* is 0 while READ MULTIPLE is off,
    *mwdma* None while a PIO mode is set."""
    words = [0] * 256
    sectors = identity.sectors
    words[0] = GENERAL_CONFIGURATION
    words[1], words[3], words[6] = DEFAULT_GEOMETRY.cylinders(sectors), HEADS, SECTORS_PER_TRACK
    words[47] = 0x8000 | MAX_MULTIPLE
    words[49], words[50] = CAPABILITIES_DMA_LBA_IORDY, 0x4000
    words[51] = 0x0200  # PIO mode 2, for who looks no further
    words[53] = WORDS_54_58_AND_64_70
    words[54], words[55], words[56] = geometry.cylinders(sectors), geometry.heads, geometry.sectors
    _put_32(words, 57, words[54] * words[55] * words[56])
    words[59] = 0x0100 | multiple if multiple else 0
    _put_32(words, 60, min(sectors, MAX_LBA28))
    words[63] = MWDMA_MODES | (0 if mwdma is None else 0x100 << mwdma)
    words[64] = PIO_MODES
    words[65] = words[66] = words[67] = words[68] = CYCLE_NS
    words[80] = VERSION_ATA_6_AND_BEFORE
    words[82], words[83], words[84] = SUPPORTED_82, SUPPORTED_83, SUPPORTED_84
    words[85] = SUPPORTED_82 & ~(0 if write_cache else WRITE_CACHE)
    words[86], words[87] = SUPPORTED_83 & 0x3FFF, SUPPORTED_84
    words[93] = 0x4300 if number else 0x400B  # its number is by a jumper; device 0 has passed its diagnostics
    for word in range(4):
        words[100 + word] = sectors >> 16 * word & 0xFFFF
    words[255] = INTEGRITY
    data = bytearray(struct.pack("<256H", *words))
    data[20:40] = text(identity.serial, 20)
    data[46:54] = text(identity.firmware, 8)
    data[54:94] = text(identity.model, 40)
    data[511] = -sum(data) & 0xFF
    return bytes(data)


def _put_32(words: list[int], at: int, value: int) -> None:
    words[at], words[at + 1] = value & 0xFFFF, value >> 16
