"""Which firmware a machine starts: ours, Debian's SeaBIOS, or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyvmm import firmware
from pyvmm.board.rom import ROM_MOST
from pyvmm.config import SEABIOS, SEABIOS_FILE
from pyvmm.errors import UserError, printable
from pyvmm.units import MIB

BIOS: Final = "bios"


def firmware_path(name: str) -> Path | None:
    """The file that *name* means: seabios, seabios=FILE or FILE; None for the one that comes with pyvmm. Raises
    UserError."""
    if name == BIOS:
        return None
    kind, equals, file = name.partition("=")
    if kind != SEABIOS:
        return Path(name)
    if equals and not file:
        raise UserError(f"firmware {name}: name a file behind it, or leave the = away")
    return Path(file) if equals else SEABIOS_FILE


def read_firmware(name: str) -> bytes:
    """The image that *name* means. Raises UserError."""
    path = firmware_path(name)
    if path is None:
        return firmware.load(BIOS)
    try:
        with path.open("rb") as file:
            image = file.read(ROM_MOST + 1)
    except OSError as error:
        advice = ": apt-get install seabios" if path == SEABIOS_FILE else ""
        raise UserError(f"firmware {printable(str(path))}: {error.strerror}{advice}") from None
    if len(image) > ROM_MOST:
        raise UserError(f"firmware {printable(str(path))}: it has more than {ROM_MOST // MIB} MiB")
    return image
