"""Cells as an image of pixels, of whatever size a pixel has: for rows whose colours change from cell to cell."""

from __future__ import annotations

from collections.abc import Sequence

from pyvmm.screen.font import GLYPH_WIDTH
from pyvmm.screen.screen import Run, scan_lines


class CellPixels:
    """The glyphs in the sixteen *colours*, each the bytes of a pixel, all of one length; a pixel of a glyph is a square
    of *scale* by *scale*."""

    def __init__(self, colours: Sequence[bytes], scale: int = 1) -> None:
        self._colours = [colour * scale for colour in colours]
        self._scale = scale
        self._lines: dict[tuple[int, int], list[bytes]] = {}

    def row(self, runs: Sequence[Run]) -> bytes:
        """The 16 scan lines of *runs*, which are neighbours in one row: 8 pixels a cell, nothing between the lines, all
        times the scale."""
        cells = [table for run in runs for table in [self._table(run)] * len(run.characters)]
        lines = scan_lines(b"".join(run.characters for run in runs))
        drawn = [
            b"".join([table[bits] for table, bits in zip(cells, line, strict=True)]) * self._scale for line in lines
        ]
        return b"".join(drawn)

    def _table(self, run: Run) -> list[bytes]:
        """The pixels of all 256 scan lines that a glyph may have, in the run's colours."""
        key = run.foreground, run.background
        table = self._lines.get(key)
        if table is None:
            ink, ground = self._colours[run.foreground], self._colours[run.background]
            half = GLYPH_WIDTH // 2
            halves = [b"".join(ink if bits >> x & 1 else ground for x in reversed(range(half))) for bits in range(16)]
            table = self._lines[key] = [left + right for left in halves for right in halves]
        return table
