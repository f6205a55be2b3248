"""An expansion ROM: a file that a guest finds behind register 0x30, and runs or reads.

PCI Local Bus Specification 3.0, sections 6.2.5.2 and 6.3: the register is a BAR whose bit 0 lets it decode, and each
image in the ROM begins with 55 AA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyvmm.bus import ALL_ONES
from pyvmm.errors import UserError
from pyvmm.pci.bar import Bar
from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.regs import PCI_ROM_ADDRESS, PCI_ROM_ADDRESS_ENABLE
from pyvmm.units import MIB

SIGNATURE: Final = b"\x55\xaa"
LEAST, MOST = 0x800, 16 * MIB
"""Bytes that the register can ask for."""
INDEX: Final = 6
"""Behind the six BARs."""


class Rom:
    """The Device of *image*: reads it, and behind it ones; keeps nothing."""

    def __init__(self, image: bytes) -> None:
        self._image = image

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._image[offset : offset + size].ljust(size, b"\xff"), "little") & ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class RomBar(Bar):
    """The register of *image*, a power of two of at least 2 KiB."""

    def __init__(self, image: bytes) -> None:
        size = max(LEAST, 1 << (len(image) - 1).bit_length())
        super().__init__(INDEX, size, Rom(image), io=False, bits64=False, prefetchable=False)

    @property
    def offset(self) -> int:
        return PCI_ROM_ADDRESS

    def enabled(self, config: ConfigSpace) -> bool:
        return bool(config.get(self.offset, 4) & PCI_ROM_ADDRESS_ENABLE)


def read_rom(path: Path) -> bytes:
    """The file of an expansion ROM. Raises UserError."""
    try:
        with path.open("rb") as file:
            image = file.read(MOST + 1)
    except OSError as error:
        raise UserError(f"rom {path}: {error.strerror}") from None
    if len(image) > MOST:
        raise UserError(f"rom {path}: it has more than {MOST // MIB} MiB, which no expansion ROM has")
    if not image.startswith(SIGNATURE):
        raise UserError(f"rom {path} is no expansion ROM: one begins with the bytes 55 AA")
    return image
