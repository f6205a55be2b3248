"""Mode 13h: which registers make it, its pixels, its likeness in characters, its PNG."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pyvmm.clock import FakeClock
from pyvmm.devices.vga_frame import FRAME_HEIGHT, FRAME_WIDTH, VGA_FRAME_SIZE, VgaFrame, pixels
from pyvmm.devices.vga_text import VgaText
from pyvmm.screen import frame as frames
from pyvmm.screen.screen import Screen, ScreenFollower

GREYS = tuple((i, i, i) for i in range(256))


class Rig:
    """A VGA in mode 13h with a palette whose colour n is (n / 4, 0, 63 - n / 4) of 63."""

    def __init__(self) -> None:
        self.memory = bytearray(VGA_FRAME_SIZE)
        text = memoryview(bytearray(0x8000))
        self.vga = VgaText(text, FakeClock(), frame=memoryview(self.memory))
        self.vga.write(0x04, 2, 0x0E04)
        self.vga.write(0x0E, 2, 0x4005)
        self.vga.write(0x0E, 2, 0x0506)
        self.vga.write(0x14, 2, 0x2813)
        self.vga.write(0x08, 1, 0)
        for n in range(256):
            for level in (n >> 2, 0, 63 - (n >> 2)):
                self.vga.write(0x09, 1, level)


def test_three_bits_make_the_mode() -> None:
    rig = Rig()
    assert rig.vga.shows_frame
    for port, index_and_value in ((0x04, 0x0604), (0x0E, 0x0005), (0x0E, 0x0406)):
        rig = Rig()
        rig.vga.write(port, 2, index_and_value)
        assert not rig.vga.shows_frame and rig.vga.frame() is None


def test_pixels_and_colours() -> None:
    rig = Rig()
    rig.memory[0], rig.memory[321], rig.memory[63999] = 1, 0xFC, 7
    frame = rig.vga.frame()
    assert frame is not None
    assert (frame.pixels[0], frame.pixels[321], frame.pixels[63999]) == (1, 0xFC, 7)
    assert frame.palette[0xFC] == (255, 0, 0) and frame.palette[0] == (0, 0, 255)


def test_the_start_address_and_the_mask() -> None:
    rig = Rig()
    rig.memory[:] = bytes(i % 251 for i in range(VGA_FRAME_SIZE))
    rig.vga.write(0x14, 2, 0x500D)  # START_LO: 0x50 times four bytes
    rig.vga.write(0x06, 1, 0x0F)
    frame = rig.vga.frame()
    assert frame is not None
    assert frame.pixels[:4] == bytes(i % 251 for i in range(0x140, 0x144))
    assert frame.palette[0xF4] == frame.palette[0x04]


@given(st.integers(0, 0xFFFF), st.integers(1, 2040))
def test_wherever_it_begins_there_is_a_frame(start: int, pitch: int) -> None:
    memory = bytearray(i % 253 for i in range(VGA_FRAME_SIZE))
    got = pixels(memoryview(memory), start, pitch)
    assert len(got) == FRAME_WIDTH * FRAME_HEIGHT
    for line, column in ((0, 0), (199, 319), (77, 5)):
        at = (start + line * pitch) % VGA_FRAME_SIZE + column
        assert got[line * FRAME_WIDTH + column] == memory[at % VGA_FRAME_SIZE]


def test_a_likeness_in_characters() -> None:
    """Two colours a cell: the left half of the screen red above blue, in stripes of four lines."""
    palette = tuple(frames.SIXTEEN) + ((0, 0, 0),) * 240
    line = {0: bytes([4]) * 160 + bytes(160), 1: bytes([1]) * 160 + bytes(160)}
    frame = VgaFrame(b"".join(line[y // 4 % 2] for y in range(200)), palette)
    cells = frames.cells(frame)
    assert len(cells) == 2 * 80 * 25
    assert cells[:2] == bytes((0xDF, 0x14)) and cells[2 * 79 : 2 * 80] == bytes((0xDF, 0x00))


def test_the_picture_is_the_frame(tmp_path: Path) -> None:
    rig = Rig()
    rig.memory[:64000] = bytes(i % 256 for i in range(64000))
    screen = Screen.of(rig.vga)
    screen.png(str(tmp_path / "x.png"))
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (320, 200)
        assert image.convert("RGB").getpixel((252, 0)) == (255, 0, 0)
        assert image.convert("RGB").getpixel((0, 1)) == (64 >> 2 << 2 | 64 >> 2 >> 4, 0, 190)


@pytest.mark.parametrize(("at", "row"), [(0, 0), (8 * 320, 1), (63999, 24)])
def test_only_rows_that_change_are_drawn(at: int, row: int) -> None:
    """Also where the likeness does not show it."""
    rig = Rig()
    follower = ScreenFollower(rig.vga)
    first = follower.next(0)
    assert first is not None and len(list(first[1])) == 25
    assert follower.next(0) is None
    rig.memory[at] = 1
    after = follower.next(0)
    assert after is not None
    rows = list(after[1])
    assert [runs[0].row for runs in rows] == [row]
    assert sum(len(run.characters) for run in rows[0]) == 80
    rig.vga.write(0x08, 1, 1)
    for level in (1, 2, 3):
        rig.vga.write(0x09, 1, level)
    colours = follower.next(0)
    assert colours is not None and len(list(colours[1])) == 25


def test_back_in_text_mode_everything_is_drawn() -> None:
    rig = Rig()
    follower = ScreenFollower(rig.vga)
    assert follower.next(0) is not None
    rig.vga.write(0x0E, 2, 0x0E06)
    after = follower.next(0)
    assert after is not None
    assert after[0].frame is None and len(list(after[1])) == 25


def test_an_image_of_a_row() -> None:
    frame = VgaFrame(bytes(i % 256 for i in range(64000)), GREYS)
    image = frames.magnified(frame, 1, [bytes((i, i)) for i in range(256)], 2)
    assert len(image) == 8 * 2 * 320 * 2 * 2
    first = 8 * 320 % 256
    assert image[:8] == bytes([first] * 4 + [first + 1] * 4)
    assert image[: 320 * 4] == image[320 * 4 : 2 * 320 * 4], "each line twice"
