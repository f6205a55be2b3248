"""A frame of pixels as text: each cell of 80x25 is four pixels wide and eight high, two colours above each other.

For displays that have characters and sixteen colours alone. One pixel stands for the sixteen around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from pyvmm.devices.vga_frame import FRAME_HEIGHT, FRAME_WIDTH, Rgb, VgaFrame

COLUMNS: Final = 80
ROWS: Final = 25
LINES_A_ROW: Final = FRAME_HEIGHT // ROWS
_ACROSS: Final = FRAME_WIDTH // COLUMNS
UPPER_HALF: Final = 0xDF
"""The block of code page 437 that fills the upper half of a cell with the foreground's colour."""
SIXTEEN: Final[tuple[Rgb, ...]] = tuple(
    (
        (170 if i & 4 else 0) + (85 if i & 8 else 0),
        85 if i == 6 else (170 if i & 2 else 0) + (85 if i & 8 else 0),
        (170 if i & 1 else 0) + (85 if i & 8 else 0),
    )
    for i in range(16)
)
"""The colours of a VGA's text mode."""


@lru_cache(maxsize=4)
def _nearest(palette: tuple[Rgb, ...]) -> bytes:
    """Which of SIXTEEN each of *palette* is closest to."""

    def distance(a: Rgb, b: Rgb) -> int:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    return bytes(min(range(16), key=lambda i: distance(colour, SIXTEEN[i])) for colour in palette)


def cells(frame: VgaFrame) -> bytes:
    """A character and an attribute for each of COLUMNS x ROWS cells."""
    table = _nearest(frame.palette)

    def sampled(line: int) -> bytes:
        start = line * FRAME_WIDTH
        return frame.pixels[start + _ACROSS // 2 : start + FRAME_WIDTH : _ACROSS].translate(table)

    out = bytearray([UPPER_HALF, 0]) * (COLUMNS * ROWS)
    halves = LINES_A_ROW // 2
    for row in range(ROWS):
        upper = sampled(row * LINES_A_ROW + halves // 2)
        lower = sampled(row * LINES_A_ROW + halves + halves // 2)
        attributes = bytes(above | below << 4 for above, below in zip(upper, lower, strict=True))
        out[2 * row * COLUMNS + 1 : 2 * (row + 1) * COLUMNS : 2] = attributes
    return bytes(out)


def band(frame: VgaFrame, row: int) -> bytes:
    """The pixels of a row of cells: LINES_A_ROW lines of the frame."""
    size = LINES_A_ROW * FRAME_WIDTH
    return frame.pixels[row * size : (row + 1) * size]


def magnified(frame: VgaFrame, row: int, pixels: Sequence[bytes], scale: int) -> bytes:
    """The same as an image, each pixel *scale* times across and down; *pixels* are the bytes of the 256 values."""
    wide = [pixel * scale for pixel in pixels]
    values = band(frame, row)
    lines = (values[start : start + FRAME_WIDTH] for start in range(0, len(values), FRAME_WIDTH))
    return b"".join(b"".join(map(wide.__getitem__, line)) * scale for line in lines)
