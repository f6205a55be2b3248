from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyvmm.clock import FakeClock
from pyvmm.devices.vga_text import Cursor, VgaText
from pyvmm.screen.font import glyph
from pyvmm.screen.screen import BLINK_NS, Screen, SeenScreen


class Picture:
    """A VGA that tests write to by row and column."""

    def __init__(self) -> None:
        self.memory = bytearray(0x8000)
        self.vga = VgaText(memoryview(self.memory), FakeClock())

    def write(self, row: int, column: int, text: str, attribute: int = 0x07) -> None:
        for i, byte in enumerate(text.encode("cp437")):
            offset = 2 * (row * 80 + column + i)
            self.memory[offset : offset + 2] = bytes((byte, attribute))

    def out(self, port: int, index: int, value: int) -> None:
        self.vga.write(port - 0x3C0, 2, index | value << 8)

    @property
    def screen(self) -> Screen:
        return Screen.of(self.vga)


@pytest.fixture
def picture() -> Picture:
    return Picture()


def test_text(picture: Picture) -> None:
    picture.write(3, 5, "héllo ░▓│")
    lines = picture.screen.text()
    assert len(lines) == 25 and {len(line) for line in lines} == {80}
    assert lines[3] == "     héllo ░▓│".ljust(80)
    assert "héllo ░" in picture.screen and "hello" not in picture.screen
    assert str(picture.screen) == "\n\n\n     héllo ░▓│"
    assert len(repr(picture.screen)) < 200, "for who asks at a prompt what it is"


def test_text_that_runs_over_the_edge_is_found(picture: Picture) -> None:
    picture.write(0, 78, "login:")
    assert "login:" in picture.screen
    picture.write(2, 0, "one")
    picture.write(3, 0, "two")
    assert "one\ntwo" in picture.screen


def test_a_split_screen_in_text_and_picture(picture: Picture, tmp_path: Path) -> None:
    """Line compare 200 and the start at row 25: the upper part from there, the lower from the memory's beginning."""
    for row in range(50):
        picture.write(row, 0, f"{row:<80}", 0x17 if row < 25 else 0x27)
    before = picture.screen.seen()
    for index, value in ((0x11, 0x0E), (0x07, 0x0F), (0x09, 0x0F), (0x18, 200), (0x0C, 0x07), (0x0D, 0xD0)):
        picture.out(0x3D4, index, value)
    screen = picture.screen
    assert [int(line) for line in screen.text()] == [*range(25, 38), *range(12)]
    assert {runs[0].row for runs in screen.seen().changes(before)} == set(range(25)), "a display draws all that moved"
    screen.png(str(tmp_path / "split.png"))
    with Image.open(tmp_path / "split.png") as image:
        pixels = image.convert("RGB")
        colours = [pixels.getpixel((639, line)) for line in range(400)]
    assert colours == [(0, 0xAA, 0)] * (13 * 16) + [(0, 0, 0xAA)] * (12 * 16)


def test_control_characters_have_their_glyphs_names(picture: Picture) -> None:
    picture.memory[0:8] = b"\x01\x07\x7f\x07\xff\x07\x00\x07"
    assert picture.screen.text()[0].startswith("☺⌂  ")


def ink(image: Image.Image, row: int, column: int) -> bytes:
    """The sixteen scan lines of a cell of *image*: a bit for each pixel that is not black."""
    cell = image.convert("RGB").crop((column * 8, row * 16, column * 8 + 8, row * 16 + 16))
    pixels = cell.tobytes()
    lit = [any(pixels[i : i + 3]) for i in range(0, len(pixels), 3)]
    return bytes(sum(lit[8 * y + x] << (7 - x) for x in range(8)) for y in range(16))


def test_png_shows_the_glyphs(picture: Picture, tmp_path: Path) -> None:
    picture.write(1, 2, "Ag", 0x0C)
    picture.write(24, 79, "█", 0x02)
    picture.screen.png(str(tmp_path / "screen.png"))
    image = Image.open(tmp_path / "screen.png")
    assert image.size == (640, 400)
    assert ink(image, 1, 2) == glyph(ord("A")) and ink(image, 1, 3) == glyph(ord("g"))
    assert image.convert("RGB").getpixel((639, 399)) == (0, 0xAA, 0)
    assert {colour for _, colour in image.convert("RGB").getcolors() or []} == {
        (0, 0, 0),
        (0xFF, 0x55, 0x55),
        (0, 0xAA, 0),
        (0xAA, 0xAA, 0xAA),
    }
    assert ink(image, 0, 0) == bytes([0] * 13 + [0xFF] * 2 + [0])  # the cursor


def test_png_of_a_dark_screen_is_black(picture: Picture, tmp_path: Path) -> None:
    picture.write(0, 0, "secret")
    picture.out(0x3C4, 1, 0x20)
    picture.screen.png(str(tmp_path / "screen.png"))
    assert Image.open(tmp_path / "screen.png").convert("RGB").getcolors() == [(640 * 400, (0, 0, 0))]
    assert "secret" in picture.screen


def test_blinking_text_comes_and_goes(picture: Picture) -> None:
    picture.write(0, 10, "now", 0x87)
    screen = picture.screen
    assert screen.seen(0).characters[10:13] == b"now"
    assert screen.seen(BLINK_NS // 2).characters[10:13] == b"   "
    assert screen.seen(BLINK_NS).characters[10:13] == b"now"
    assert screen.seen(0).attributes[10] == 0x07
    assert screen.seen(0).cursor == Cursor(0, 0, 13, 14)
    assert screen.seen(BLINK_NS // 4).cursor is None


def test_without_blink_bit_7_is_a_bright_background(picture: Picture) -> None:
    picture.write(0, 10, "now", 0xF0)
    for value in (0x10, 0x04, 0x20):
        picture.vga.write(0, 1, value)
    (run,) = [run for runs in picture.screen.seen(BLINK_NS // 2).changes(None) for run in runs if run.background == 15]
    assert run == (0, 10, b"now", 0, 15)


def test_changes_are_only_what_changed(picture: Picture) -> None:
    before = picture.screen.seen()
    assert list(before.changes(before)) == []
    picture.write(4, 7, "abc", 0x1E)
    after = picture.screen.seen()
    assert list(after.changes(before)) == [[(4, 7, b"abc", 14, 1)]]
    assert [len(runs) for runs in after.changes(None)] == [1] * 4 + [3] + [1] * 20


def test_a_moved_cursor_is_a_change(picture: Picture) -> None:
    before = picture.screen.seen()
    picture.out(0x3D4, 0x0F, 83)
    assert list(picture.screen.seen().changes(before)) == [[(0, 0, b" ", 7, 0)], [(1, 3, b" ", 7, 0)]]


def test_other_colours_change_everything(picture: Picture) -> None:
    before = picture.screen.seen()
    picture.out(0x3C6, 0x0F, 0)
    assert len(list(picture.screen.seen().changes(before))) == 25


def draw(canvas: dict[tuple[int, int], tuple[int, int, int]], seen: SeenScreen, before: SeenScreen | None) -> None:
    for run in chain.from_iterable(seen.changes(before)):
        for i, character in enumerate(run.characters):
            canvas[run.row, run.column + i] = (character, run.foreground, run.background)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 24), st.integers(0, 75), st.integers(0, 255), st.binary(max_size=5))),
        min_size=1,
        max_size=5,
    )
)
def test_drawing_the_changes_gives_the_screen(steps: list[list[tuple[int, int, int, bytes]]]) -> None:
    picture = Picture()
    canvas: dict[tuple[int, int], tuple[int, int, int]] = {}
    before = None
    for step in steps:
        for row, column, attribute, text in step:
            picture.write(row, column, text.decode("cp437"), attribute)
        seen = picture.screen.seen()
        draw(canvas, seen, before)
        before = seen
    whole: dict[tuple[int, int], tuple[int, int, int]] = {}
    assert before is not None
    draw(whole, before, None)
    assert canvas == whole


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=25, max_size=25), st.integers(0, 2 * BLINK_NS))
def test_any_geometry_can_be_drawn(registers: bytes, now: int) -> None:
    picture = Picture()
    picture.out(0x3D4, 0x11, 0)
    for index, value in enumerate(registers):
        if index != 0x11:
            picture.out(0x3D4, index, value)
    seen = picture.screen.seen(now)
    runs = list(chain.from_iterable(seen.changes(None)))
    assert sum(len(run.characters) for run in runs) == picture.vga.columns * picture.vga.rows
