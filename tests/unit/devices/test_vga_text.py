from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.devices import vga_text
from pyvmm.devices.vga_text import Cursor, VgaText


class Card:
    """A VGA with its memory, reached by port numbers."""

    def __init__(self) -> None:
        self.memory = bytearray(0x8000)
        self.clock = FakeClock()
        self.dirty = False
        self.vga = VgaText(memoryview(self.memory), self.clock, self.take_dirty)

    def take_dirty(self) -> bool:
        dirty, self.dirty = self.dirty, False
        return dirty

    def inb(self, port: int) -> int:
        return self.vga.read(port - 0x3C0, 1)

    def outb(self, port: int, value: int) -> None:
        self.vga.write(port - 0x3C0, 1, value)

    def outw(self, port: int, value: int) -> None:
        self.vga.write(port - 0x3C0, 2, value)

    def crtc(self, index: int, value: int) -> None:
        self.outb(0x3D4, index)
        self.outb(0x3D5, value)

    def attribute(self, index: int, value: int) -> None:
        self.inb(0x3DA)
        self.outb(0x3C0, index)
        self.outb(0x3C0, value)
        self.outb(0x3C0, 0x20)


@pytest.fixture
def card() -> Card:
    return Card()


def test_power_on_is_mode_3(card: Card) -> None:
    vga = card.vga
    assert (vga.columns, vga.rows, vga.cell_height, vga.start, vga.pitch) == (80, 25, 16, 0, 80)
    assert not vga.blank and vga.blink_enabled
    assert vga.cursor() == Cursor(0, 0, 13, 14)
    assert card.memory[:4] == b" \x07 \x07"
    assert vga.cells() == b" \x07" * 2000


def test_the_sixteen_colours_of_mode_3(card: Card) -> None:
    colours = " ".join(f"{r:02x}{g:02x}{b:02x}" for r, g, b in card.vga.palette())
    assert colours == (
        "000000 0000aa 00aa00 00aaaa aa0000 aa00aa aa5500 aaaaaa "
        "555555 5555ff 55ff55 55ffff ff5555 ff55ff ffff55 ffffff"
    )


def test_vgacon_moves_cursor_and_origin_with_outw(card: Card) -> None:
    """write_vga of vgacon.c: one outw for the high byte, one for the low."""
    card.outw(0x3D4, 0x0E | 0x0100)
    card.outw(0x3D4, 0x0F | 0x4500)
    assert card.vga.cursor() == Cursor(0x145 % 80, 0x145 // 80, 13, 14)
    card.outw(0x3D4, 0x0C)
    card.outw(0x3D4, 0x0D | 80 << 8)
    card.memory[160:162] = b"A\x1f"
    assert card.vga.cells()[:2] == b"A\x1f"
    assert card.vga.cursor() == Cursor(0x145 % 80, 0x145 // 80 - 1, 13, 14)


def test_cursor_shapes_of_vgacon(card: Card) -> None:
    card.crtc(0x0A, 31)
    card.crtc(0x0B, 30)
    assert card.vga.cursor() is None  # CM_ERASE
    assert card.vga.cursor_position() == (0, 0)
    card.crtc(0x0A, 5)
    assert card.vga.cursor() == Cursor(0, 0, 5, 15)
    card.crtc(0x0A, 0x20 | 5)
    assert card.vga.cursor() is None
    card.outb(0x3D4, 0x0A)
    assert card.inb(0x3D5) == 0x25


def test_cursor_outside_the_screen_does_not_show(card: Card) -> None:
    card.outw(0x3D4, 0x0E | 2000 >> 8 << 8)
    card.outw(0x3D4, 0x0F | (2000 & 0xFF) << 8)
    assert card.vga.cursor() is None and card.vga.cursor_position() is None


def test_shown_memory_wraps_at_32_kib(card: Card) -> None:
    card.memory[:2] = b"Z\x02"
    card.memory[-2:] = b"Y\x03"
    card.crtc(0x0C, 0x3F)
    card.crtc(0x0D, 0xFF)
    cells = card.vga.cells()
    assert cells[:4] == b"Y\x03Z\x02" and len(cells) == 4000


def test_attribute_flip_flop(card: Card) -> None:
    card.outb(0x3C0, 0x01)  # index
    card.outb(0x3C0, 0x3F)  # data
    card.outb(0x3C0, 0x02)  # index again
    card.inb(0x3DA)  # ... which this undoes
    card.outb(0x3C0, 0x21)
    assert card.inb(0x3C0) == 0x21 and card.inb(0x3C1) == 0x3F
    card.outb(0x3C0, 0x07)
    assert card.inb(0x3C1) == 0x07


def test_palette_as_vgacon_startup_sets_it(card: Card) -> None:
    for i in range(16):
        card.inb(0x3DA)
        card.outb(0x3C0, i)
        card.outb(0x3C0, i)
    assert card.vga.blank  # the palette is open to the CPU until 0x20 closes it
    card.outb(0x3C0, 0x20)
    assert not card.vga.blank
    card.outb(0x3C8, 4)
    for level in (63, 21, 0):
        card.outb(0x3C9, level)
    assert card.inb(0x3C8) == 5
    assert card.vga.palette()[4] == (255, 85, 0)
    card.outb(0x3C7, 4)
    assert card.inb(0x3C7) == 3
    assert [card.inb(0x3C9) for _ in range(4)] == [63, 21, 0, 42]
    card.outb(0x3C8, 0)
    assert card.inb(0x3C7) == 0


def test_dac_takes_effect_after_blue(card: Card) -> None:
    card.outb(0x3C8, 1)
    card.outb(0x3C9, 63)
    card.outb(0x3C9, 63)
    assert card.vga.palette()[1] == (0, 0, 0xAA)
    card.outb(0x3C9, 63)
    assert card.vga.palette()[1] == (255, 255, 255)


def test_colour_page_and_plane_enable_and_pixel_mask(card: Card) -> None:
    card.attribute(0x12, 0x07)  # plane 3 off: bright colours are the dark ones
    assert card.vga.palette()[15] == card.vga.palette()[7]
    card.attribute(0x12, 0x0F)
    card.attribute(0x10, 0x8C)
    card.attribute(0x14, 0x03)
    assert card.vga.palette()[0] == (0x55, 0x55, 0)  # DAC entry 0x30: a third of red and of green
    card.outb(0x3C6, 0x00)
    assert set(card.vga.palette()) == {(0, 0, 0)}


def test_crtc_protection(card: Card) -> None:
    card.crtc(0x01, 39)
    card.crtc(0x07, 0x00)
    assert card.vga.columns == 80 and card.inb(0x3D5) == 0x0F  # bit 4, line compare, is not protected
    card.crtc(0x11, 0x0E)
    card.crtc(0x01, 39)
    assert card.vga.columns == 40


def split(card: Card, line: int) -> None:
    """Line compare at scan line *line*, the rest of registers 07 and 09 as it is."""
    card.outb(0x3D4, 0x07)
    card.outb(0x3D5, card.inb(0x3D5) & ~0x10 | (line >> 8 & 1) << 4)
    card.outb(0x3D4, 0x09)
    card.outb(0x3D5, card.inb(0x3D5) & ~0x40 | (line >> 9 & 1) << 6)
    card.crtc(0x18, line & 0xFF)


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (0, 0),
        (15, 1),
        (16, 1),
        (17, 2),
        (191, 12),
        (192, 12),
        (200, 13),
        (384, 24),
        (399, 25),
        (0x1FF, 25),
        (0x3FF, 25),
    ],
)
def test_line_compare_splits_the_screen(card: Card, line: int, row: int) -> None:
    """The lower part shows the memory from its beginning; the rows are those of QEMU's vga_draw_text."""
    for cell in range(4000):
        card.memory[2 * cell] = cell // 80
    card.outw(0x3D4, 0x070C)
    card.outw(0x3D4, 0xD00D)  # start at row 25
    split(card, line)
    shown = card.vga.cells()
    assert list(shown[::160]) == [25 + r for r in range(row)] + list(range(25 - row))
    assert len(shown) == 2 * 80 * 25


def test_line_compare_counts_the_lines_of_the_vertical_counter(card: Card) -> None:
    card.crtc(0x11, 0x0E)
    split(card, 191)
    card.crtc(0x09, 0x4F & ~0x40 | 0x80)  # each line is shown twice: 12 rows in 400 lines
    assert (card.vga.rows, card.vga.split_row) == (12, 6)
    card.crtc(0x09, 0x0F)
    card.crtc(0x17, card.vga.read(0x15, 1) | 0x04)  # the counter counts every second line
    assert card.vga.split_row == 24
    card.crtc(0x17, 0xA3)
    card.crtc(0x09, 0x07)
    assert (card.vga.rows, card.vga.split_row) == (50, 24)


def test_the_cursor_on_a_split_screen(card: Card) -> None:
    card.outw(0x3D4, 0x070C)
    card.outw(0x3D4, 0xD00D)
    split(card, 199)

    def cursor(cell: int) -> tuple[int, int] | None:
        card.crtc(0x0E, cell >> 8)
        card.crtc(0x0F, cell & 0xFF)
        return card.vga.cursor_position()

    assert cursor(2000 + 3 * 80 + 4) == (3, 4)
    assert cursor(2 * 80 + 7) == (15, 7)
    assert cursor(12 * 80) is None, "below the lower part's last row"
    assert cursor(2000 + 13 * 80) is None, "the upper part has no row 13"
    card.crtc(0x0C, 0)
    card.crtc(0x0D, 0)
    assert cursor(80) == (1, 0)


def test_fifty_lines(card: Card) -> None:
    card.crtc(0x09, 0x47)
    assert (card.vga.rows, card.vga.cell_height) == (50, 8)
    assert card.vga.cursor() is None  # lines 13-14 are below an 8-line cell


@pytest.mark.parametrize(("max_scan", "mode", "lines"), [(0x80, 0, 2 * 400), (0, 0x04, 400 // 2), (0x80, 0x04, 400)])
def test_lines_shown_twice_and_counted_by_two(card: Card, max_scan: int, mode: int, lines: int) -> None:
    """How vgacon_doresize() makes its 25 rows of 16 lines where a BIOS has left one or both of these bits set."""
    card.crtc(0x09, 0x4F | max_scan)
    card.crtc(0x17, 0xA3 | mode)
    card.crtc(0x11, 0x0E)
    card.crtc(0x12, lines - 1 & 0xFF)
    card.crtc(0x07, 0x1F & ~0x42 | (lines - 1 >> 8 & 1) << 1 | (lines - 1 >> 9 & 1) << 6)
    assert (card.vga.rows, card.vga.cell_height) == (25, 16)


@pytest.mark.parametrize(("port", "index", "value"), [(0x3C4, 1, 0x20), (0x3D4, 0x17, 0x23)])
def test_switching_the_screen_off(card: Card, port: int, index: int, value: int) -> None:
    card.outb(port, index)
    before = card.inb(port + 1)
    card.outb(port + 1, value)
    assert card.vga.blank
    card.outb(port + 1, before)
    assert not card.vga.blank


def test_registers_read_back(card: Card) -> None:
    for index_port, count in ((0x3C4, 5), (0x3CE, 9), (0x3D4, 0x19)):
        card.crtc(0x11, 0)
        for index in range(count):
            card.outw(index_port, index | (0x5A ^ index) << 8)
        for index in range(count):
            card.outb(index_port, index)
            assert card.inb(index_port) == index
            assert card.inb(index_port + 1) == 0x5A ^ index
    card.outb(0x3C2, 0x63)
    assert card.inb(0x3CC) == 0x63
    card.outb(0x3DA, 0x01)
    assert card.inb(0x3CA) == 0x01
    card.outb(0x3D4, 0x80)
    assert card.inb(0x3D5) == 0


def test_retrace_comes_and_goes_seventy_times_a_second(card: Card) -> None:
    edges, last = 0, 0
    for _ in range(10_000):
        card.clock.advance(100_000)
        status = card.inb(0x3DA)
        assert status & 0x01 or not status & 0x08
        edges += (status & 0x08) > last
        last = status & 0x08
    assert edges == pytest.approx(70, abs=1)


def test_generation_moves_only_when_something_may_have_changed(card: Card) -> None:
    first = card.vga.generation()
    assert card.vga.generation() == first
    card.inb(0x3DA)
    card.inb(0x3C9)
    assert card.vga.generation() == first
    card.dirty = True
    second = card.vga.generation()
    assert second != first and card.vga.generation() == second
    card.outw(0x3D4, 0x500F)
    assert card.vga.generation() != second


def test_reset_clears_the_screen(card: Card) -> None:
    card.memory[:] = b"\xff" * 0x8000
    card.outw(0x3D4, 0x500D)
    card.vga.reset()
    assert card.vga.cells() == b" \x07" * 2000 and card.vga.start == 0


def test_wrong_memory_size() -> None:
    with pytest.raises(ValueError, match="0x8000"):
        VgaText(memoryview(bytearray(4096)), FakeClock())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 31), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1))))
def test_any_writes_leave_a_screen_that_can_be_read(writes: list[tuple[int, int, int]]) -> None:
    card = Card()
    for offset, size, value in writes:
        card.vga.write(offset, size, value & ((1 << 8 * size) - 1))
        assert 0 <= card.vga.read(offset, size) < 1 << 8 * size
    vga = card.vga
    assert len(vga.cells()) == 2 * vga.columns * vga.rows
    assert len(vga.palette()) == 16
    cursor = vga.cursor()
    assert cursor is None or (cursor.column < vga.columns and cursor.row < vga.rows)
    assert len(card.memory) == vga_text.VGA_TEXT_SIZE


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=25, max_size=25))
def test_any_crtc_leaves_a_screen_that_can_be_read(registers: bytes) -> None:
    card = Card()
    card.crtc(0x11, 0)
    for index, value in enumerate(registers):
        if index != 0x11:
            card.crtc(index, value)
    vga = card.vga
    assert len(vga.cells()) == 2 * vga.columns * vga.rows
    cursor = vga.cursor()
    assert cursor is None or (cursor.column < vga.columns and cursor.row < vga.rows)
