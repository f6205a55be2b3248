"""Which pixel values of an X screen show the guest's sixteen colours, whatever the class of its visual.

Nothing here waits for the server once the window is there: a guest may change its palette at any time. TrueColor is
arithmetic, and so is DirectColor with a colormap of our own that holds ramps. Where colours are cells that a client can
write (PseudoColor, GrayScale), sixteen are ours from the start, of the default colormap or, where that is full, of one
of our own, and a new palette is stored into them; the server frees them with the connection. What a read-only map
(StaticGray, StaticColor) holds is asked once.

Source: X Window System Protocol, X11R7.7, chapter 1 ("visual"), AllocColorCells, StoreColors, QueryColors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from Xlib import X, error

from pyvmm.screen.screen import Rgb

COLOURS: Final = 16
_MOST_ENTRIES: Final = 256
"""Of a read-only map, so many are compared with each colour."""


class Colours(Protocol):
    """The pixel values of a palette; *colormap* is what the window must have."""

    colormap: Any

    many: bool
    """More than sixteen colours can be asked for."""

    def pixels(self, palette: Sequence[Rgb]) -> tuple[int, ...]:
        """A value for each of the sixteen colours of *palette*, or of any number where there are *many*."""


class TrueColour:
    """A visual whose pixel values are the colours: red, green and blue have fixed places in them."""

    many = True

    def __init__(self, colormap: Any, masks: tuple[int, int, int]) -> None:
        self.colormap = colormap
        self._masks = masks

    def pixels(self, palette: Sequence[Rgb]) -> tuple[int, ...]:
        return tuple(map(self._pixel, palette))

    def _pixel(self, colour: Rgb) -> int:
        pixel = 0
        for level, mask in zip(colour, self._masks, strict=True):
            unit = mask & -mask
            pixel |= level * (mask // unit) // 255 * unit
        return pixel


class ColourCells:
    """Sixteen cells of a colormap that are ours to write."""

    many = False

    def __init__(self, colormap: Any, cells: Sequence[int]) -> None:
        self.colormap = colormap
        self._cells = tuple(cells)
        self._stored: list[Rgb | None] = [None] * COLOURS

    def pixels(self, palette: Sequence[Rgb]) -> tuple[int, ...]:
        changed = [i for i in range(COLOURS) if palette[i] != self._stored[i]]
        if changed:
            flags = X.DoRed | X.DoGreen | X.DoBlue
            items = []
            for i in changed:
                red, green, blue = (level * 257 for level in palette[i])
                items.append({"pixel": self._cells[i], "red": red, "green": green, "blue": blue, "flags": flags})
            self._stored = list(palette)
            self.colormap.store_colors(items)
        return self._cells


class NearestColours:
    """A colormap as it is: *entries* are its colours, each level of 16 bits, in the order of their pixel values."""

    many = True

    def __init__(self, colormap: Any, entries: Sequence[tuple[int, int, int]]) -> None:
        self.colormap = colormap
        self._entries = entries
        self._nearest: dict[Rgb, int] = {}

    def pixels(self, palette: Sequence[Rgb]) -> tuple[int, ...]:
        return tuple(map(self._pixel, palette))

    def _pixel(self, colour: Rgb) -> int:
        pixel = self._nearest.get(colour)
        if pixel is None:
            if len(self._nearest) >= 4096:  # a guest may cycle its palette for ever
                self._nearest.clear()
            red, green, blue = (level * 257 for level in colour)
            distances = [(red - r) ** 2 + (green - g) ** 2 + (blue - b) ** 2 for r, g, b in self._entries]
            pixel = self._nearest[colour] = distances.index(min(distances))
        return pixel


def colours_of(screen: Any) -> Colours:
    """The colours of the root visual of *screen*; asks the server, and waits for its answer."""
    visual = next(v for depth in screen.allowed_depths for v in depth.visuals if v.visual_id == screen.root_visual)
    colormap = screen.default_colormap
    masks = (visual.red_mask, visual.green_mask, visual.blue_mask)
    match visual.visual_class:
        case X.TrueColor:
            return TrueColour(colormap, masks)
        case X.DirectColor:
            return TrueColour(_ramps(screen, masks), masks)
        case X.PseudoColor | X.GrayScale:
            for own in (False, True):
                cells = screen.root.create_colormap(screen.root_visual, X.AllocNone) if own else colormap
                try:
                    return ColourCells(cells, cells.alloc_color_cells(False, COLOURS, 0).pixels)
                except error.BadAlloc:  # others have them; or, of a map of our own, there are not so many
                    pass
    answers = colormap.query_colors(range(min(visual.colormap_entries, _MOST_ENTRIES)))
    return NearestColours(colormap, [(answer.red, answer.green, answer.blue) for answer in answers])


def _ramps(screen: Any, masks: tuple[int, int, int]) -> Any:
    """A colormap in which each of the three parts of a pixel value is the level of its colour."""
    colormap = screen.root.create_colormap(screen.root_visual, X.AllocAll)
    items = []
    for flag, mask in zip((X.DoRed, X.DoGreen, X.DoBlue), masks, strict=True):
        unit = mask & -mask
        most = mask // unit
        for i in range(most + 1):
            level = i * 65535 // most
            items.append({"pixel": i * unit, "red": level, "green": level, "blue": level, "flags": flag})
    colormap.store_colors(items)
    return colormap
