"""A picture of the guest's screen, taken at one moment: what tests read and what displays draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

from pyvmm.devices.vga_frame import FRAME_HEIGHT, FRAME_WIDTH, VgaFrame
from pyvmm.devices.vga_text import Cursor, VgaText
from pyvmm.screen import frame as frames
from pyvmm.screen.font import GLYPH_HEIGHT, GLYPH_WIDTH, glyph_rows

Rgb = tuple[int, int, int]

CP437: Final = (
    " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
    + bytes(range(0x20, 0x7F)).decode("cp437")
    + "⌂"
    + bytes(range(0x80, 0xFF)).decode("cp437")
    + " "
)
"""The Unicode character of each byte as a VGA shows it; 0x00 and 0xFF look like a space and are one here."""

BLINK_NS: Final = 533_000_000
"""A blinking character shows for half of this time (32 frames of 70 Hz); the cursor blinks twice as fast."""


class Run(NamedTuple):
    """Neighbouring cells of one row that share an attribute: where they start, their bytes, their colours."""

    row: int
    column: int
    characters: bytes
    foreground: int
    background: int


@dataclass(frozen=True)
class Screen:
    """Columns x rows cells, the cursor and the colours.

    *cells* holds a byte of code page 437 and a byte of attribute a cell, row by row. *cursor* is None where none shows.
    *palette* has sixteen (red, green, blue) of 0 to 255. *blank* says that the screen is switched dark. *frame* is what
    mode 13h shows, of which the cells are a likeness (frame.py); None in text mode.
    """

    columns: int
    rows: int
    cells: bytes = field(repr=False)
    cursor: Cursor | None
    cell_height: int
    palette: tuple[Rgb, ...] = field(repr=False)
    blink_enabled: bool
    blank: bool
    frame: VgaFrame | None = field(default=None, repr=False)

    @classmethod
    def of(cls, vga: VgaText) -> Screen:
        """What *vga* shows now."""
        frame = vga.frame()
        if frame is not None:
            cells, sixteen = frames.cells(frame), frames.SIXTEEN
            return cls(frames.COLUMNS, frames.ROWS, cells, None, GLYPH_HEIGHT, sixteen, False, vga.blank, frame)
        return cls(
            columns=vga.columns,
            rows=vga.rows,
            cells=vga.cells(),
            cursor=vga.cursor(),
            cell_height=vga.cell_height,
            palette=vga.palette(),
            blink_enabled=vga.blink_enabled,
            blank=vga.blank,
        )

    def text(self) -> list[str]:
        """The characters, a string of *columns* characters a row, whether or not the screen is dark."""
        characters = "".join(map(CP437.__getitem__, self.cells[::2]))
        return [characters[i : i + self.columns] for i in range(0, len(characters), self.columns)]

    def __str__(self) -> str:
        """The rows as one reads them: without spaces at their ends, and without the empty ones below the last."""
        return "\n".join(line.rstrip() for line in self.text()).rstrip("\n")

    def __contains__(self, text: str) -> bool:
        """Whether *text* stands in the rows, one after the other: a console's line may run over the right edge."""
        return text in "".join(self.text()) or text in "\n".join(line.rstrip() for line in self.text())

    def attribute(self, row: int, column: int) -> int:
        """The attribute byte of a cell."""
        return self.cells[2 * (row * self.columns + column) + 1]

    def seen(self, now: int = 0) -> SeenScreen:
        """What the eye sees at the time *now* (ns), with what blinks shown or not."""
        characters = bytearray(self.cells[::2])
        attributes = self.cells[1::2]
        if self.blank:
            return SeenScreen(self, b" " * len(characters), bytes(len(attributes)), None, ((0, 0, 0),) * 16)
        if self.blink_enabled:
            if now % BLINK_NS >= BLINK_NS // 2 and max(attributes, default=0) >= 0x80:
                for i, attribute in enumerate(attributes):
                    if attribute & 0x80:
                        characters[i] = 0x20
            attributes = attributes.translate(_WITHOUT_BLINK)
        cursor = self.cursor if now % (BLINK_NS // 2) < BLINK_NS // 4 else None
        return SeenScreen(self, bytes(characters), attributes, cursor, self.palette)

    def png(self, path: str) -> None:
        """Write the picture to a PNG file, 8x16 pixels a cell, or 320x200 of a frame; raises OSError where the file
        can't be written."""
        self.seen().png(path)


_WITHOUT_BLINK: Final = bytes(attribute & 0x7F for attribute in range(256))


@dataclass(frozen=True)
class SeenScreen:
    """A Screen at one phase of blinking; two of them tell a display what to draw."""

    screen: Screen
    characters: bytes
    attributes: bytes
    cursor: Cursor | None
    palette: tuple[Rgb, ...]

    @property
    def frame(self) -> VgaFrame | None:
        """The pixels that are seen, None where there are characters, or nothing."""
        return None if self.screen.blank else self.screen.frame

    def changes(self, before: SeenScreen | None) -> Iterator[list[Run]]:
        """The rows that differ from what was drawn *before*, all of them if there was nothing or other colours: of each
        the runs from its first to its last cell that differs, found when it is asked for.

        A cell that the cursor entered, left or changed its shape in is among them.
        """
        columns, rows = self.screen.columns, self.screen.rows
        frame = self.frame
        was = None if before is None else before.frame
        if (frame and frame.palette) != (was and was.palette):
            before = None
        if before is not None and (
            before.palette != self.palette or (before.screen.columns, before.screen.rows) != (columns, rows)
        ):
            before = None
        moved = set()
        if before is not None and before.cursor != self.cursor:
            moved = {(c.row, c.column) for c in (before.cursor, self.cursor) if c is not None}
        for row in range(rows):
            start, end = row * columns, (row + 1) * columns
            characters, attributes = self.characters[start:end], self.attributes[start:end]
            first, last = 0, columns
            if before is not None:
                old_characters, old_attributes = before.characters[start:end], before.attributes[start:end]
                different = [column for r, column in moved if r == row]
                if characters != old_characters or attributes != old_attributes:
                    different += [
                        column
                        for column in range(columns)
                        if characters[column] != old_characters[column] or attributes[column] != old_attributes[column]
                    ]
                if not different:
                    if frame is None or was is None or frames.band(frame, row) == frames.band(was, row):
                        continue
                    different = [0]
                first, last = min(different), max(different) + 1
            if frame is not None:  # pixels are drawn a whole row at a time
                first, last = 0, columns
            yield _runs(row, first, characters[first:last], attributes[first:last])

    def png(self, path: str) -> None:
        """Write the picture to a PNG file, 8x16 pixels a cell; raises OSError where the file can't be written."""
        from PIL import Image  # costs tens of milliseconds, which a run without a picture should not pay

        if self.frame is not None:
            picture = Image.frombytes("P", (FRAME_WIDTH, FRAME_HEIGHT), self.frame.pixels)
            picture.putpalette([level for colour in self.frame.palette for level in colour])
            picture.save(path, "PNG")
            return
        from pyvmm.screen.pixels import CellPixels

        size = (self.screen.columns * GLYPH_WIDTH, self.screen.rows * GLYPH_HEIGHT)
        pixels = CellPixels([bytes((colour,)) for colour in range(16)])
        image = Image.frombytes("P", size, b"".join(pixels.row(runs) for runs in self.changes(None)))
        image.putpalette([level for colour in self.palette for level in colour])
        if self.cursor is not None:
            image.paste(self.cursor_colour(), cursor_box(self.cursor, self.screen.cell_height))
        image.save(path, "PNG")

    def cursor_colour(self) -> int:
        """The palette entry of the cursor: its cell's foreground."""
        assert self.cursor is not None
        return self.attributes[self.cursor.row * self.screen.columns + self.cursor.column] & 0x0F


class ScreenFollower:
    """Watches a VGA for one display: what to draw next, and nothing while nothing changes."""

    def __init__(self, vga: VgaText) -> None:
        self._vga = vga
        self._generation = -1
        self._screen: Screen | None = None
        self._drawn: SeenScreen | None = None

    def redraw(self) -> None:
        """Everything must be drawn again: the window was covered, the terminal resized."""
        self._drawn = None

    def next(self, now: int) -> tuple[SeenScreen, Iterator[list[Run]]] | None:
        """What is seen at the time *now* (ns) and the rows of it that the last call did not give, see changes(); None
        if that is nothing. The rows must be drawn before the next call, at whatever pace."""
        generation = self._vga.generation()
        if self._screen is None or generation != self._generation:
            self._generation = generation
            self._screen = Screen.of(self._vga)
        seen = self._screen.seen(now)
        rows = seen.changes(self._drawn)
        first = next(rows, None)
        self._drawn = seen
        return None if first is None else (seen, chain([first], rows))


def scan_lines(characters: bytes) -> list[bytes]:
    """The pixels of a row of characters, sixteen lines of a byte a character; bit 7 is the leftmost pixel."""
    return [characters.translate(table) for table in glyph_rows()]


def cursor_box(cursor: Cursor, cell_height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the cursor in pixels, the last two excluded."""
    x, y = cursor.column * GLYPH_WIDTH, cursor.row * GLYPH_HEIGHT
    first = cursor.first_line * GLYPH_HEIGHT // cell_height
    last = max((cursor.last_line + 1) * GLYPH_HEIGHT // cell_height, first + 1)
    return x, y + first, x + GLYPH_WIDTH, y + last


def _runs(row: int, column: int, characters: bytes, attributes: bytes) -> list[Run]:
    runs = []
    start = 0
    for i in range(1, len(attributes) + 1):
        if i == len(attributes) or attributes[i] != attributes[start]:
            attribute = attributes[start]
            runs.append(Run(row, column + start, characters[start:i], attribute & 0x0F, attribute >> 4))
            start = i
    return runs
