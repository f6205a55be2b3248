from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.devices.vga_frame import VGA_FRAME_SIZE
from pyvmm.devices.vga_text import VgaText
from pyvmm.errors import UserError
from pyvmm.host.display.terminal import NOTE_NS, TerminalScreen, sgr
from pyvmm.screen.screen import Screen
from tests.rig.emulator import Emulator


class Desk:
    def __init__(self, columns: int = 80, lines: int = 25, clock: FakeClock | None = None) -> None:
        self.ours, self.theirs = pty.openpty()
        attributes = termios.tcgetattr(self.theirs)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(self.theirs, termios.TCSANOW, attributes)
        self.resize(columns, lines)
        self.memory = bytearray(0x8000)
        self.clock = clock or FakeClock()
        self.frame = bytearray(VGA_FRAME_SIZE)
        self.vga = VgaText(memoryview(self.memory), self.clock, frame=memoryview(self.frame))
        self.screen = TerminalScreen(self.vga, self.clock, self.theirs)
        self.sent = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.emulator = Emulator(columns, lines)

    def write(self, row: int, column: int, text: bytes, attribute: int = 0x07) -> None:
        for i, byte in enumerate(text):
            offset = 2 * (row * 80 + column + i)
            self.memory[offset : offset + 2] = bytes((byte, attribute))

    def cursor(self, row: int, column: int) -> None:
        self.vga.write(0x14, 2, 0x0E | (row * 80 + column) >> 8 << 8)
        self.vga.write(0x14, 2, 0x0F | ((row * 80 + column) & 0xFF) << 8)

    def look(self) -> Emulator:
        """Draw a frame and let the terminal have it."""
        sent = b""
        for _ in range(200):
            self.screen.refresh()
            if not select.select([self.ours], [], [], 0.002)[0]:
                break
            sent += os.read(self.ours, 65536)
        self.sent = sent
        self.emulator.feed(sent)
        return self.emulator

    def close(self) -> None:
        self.screen.close()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    desk.screen.start()
    yield desk
    desk.close()


def test_colours() -> None:
    assert sgr(7, 0) == "\x1b[37;40m" and sgr(4, 1) == "\x1b[31;44m" and sgr(14, 9) == "\x1b[93;104m"


def test_the_screen_and_its_colours(desk: Desk) -> None:
    desk.write(2, 3, "né ░".encode("cp437"), 0x1E)
    desk.cursor(2, 7)
    terminal = desk.look()
    assert terminal.text() == Screen.of(desk.vga).text()
    assert terminal.cells[2][3] == ("n", sgr(14, 1))
    assert terminal.modes == {1049: True, 7: False, 25: True}
    assert (terminal.row, terminal.column) == (2, 7)


def test_only_changes_are_sent(desk: Desk) -> None:
    desk.look()
    desk.look()
    assert desk.sent == b""
    desk.write(5, 6, b"hi")
    assert desk.look().text() == Screen.of(desk.vga).text()
    assert desk.sent == b"\x1b[?25l\x1b[6;7H\x1b[37;40mhi\x1b[1;1H\x1b[?25h"


def test_a_note_over_the_screen(desk: Desk) -> None:
    desk.write(0, 0, b"guest" * 4)
    desk.write(24, 0, b"below")
    desk.look()
    desk.screen.note(b"more\r\n" + b"x" * 100 + b"\r\n")
    desk.screen.note(b"\r\nCtrl-A h  help\r\n")
    assert [line.rstrip() for line in desk.look().text()[:4]] == ["Ctrl-A h  help", "more", "x" * 80, ""]
    desk.write(0, 0, b"ticks")
    assert desk.look().text()[0].startswith("Ctrl-A h  help"), "it stays when the guest writes"
    desk.screen.clear_note()
    text = desk.look().text()
    assert text[0].startswith("ticksguestguestguest ") and not text[1].strip() and text[24].startswith("below")
    desk.screen.note(b"".join(b"%d\r\n" % i for i in range(30)))
    assert [line.split()[0] for line in desk.look().text()] == [str(i) for i in range(25)]


@pytest.mark.parametrize("how", ["a key", "time"])
def test_nothing_is_left_of_a_note(how: str) -> None:
    """Not beside the guest's screen and not below it, on a terminal that is larger; and though nobody types."""
    desk = Desk(100, 40)
    desk.screen.start()
    desk.write(0, 0, b"guest")
    desk.look()
    for _ in range(2):
        desk.screen.note(b"".join(b"%d" % i + b"x" * 98 + b"\r\n" for i in range(15)))
        desk.clock.advance(NOTE_NS - 1_000_000_000)
    text = desk.look().text()
    assert all(line[99] in "x " and line[0].isdigit() for line in text[:30]), "all of them: each begins the time anew"
    if how == "a key":
        desk.screen.clear_note()
    else:
        desk.clock.advance(1_000_000_000)
    assert [line.rstrip() for line in desk.look().text()] == ["guest"] + [""] * 39
    assert {colours for row in desk.emulator.cells for _, colours in row} <= {"", "\x1b[0m", sgr(7, 0)}
    desk.close()


def test_a_smaller_mode_leaves_nothing_of_a_larger_one() -> None:
    desk = Desk(80, 50)
    desk.vga.write(0x14, 2, 0x4709)  # cells of eight lines: fifty rows
    desk.screen.start()
    desk.write(49, 0, b"the last row")
    assert desk.look().text()[49].startswith("the last row")
    desk.vga.write(0x14, 2, 0x4F09)
    assert not desk.look().text()[49].strip()
    desk.close()


def test_a_hidden_cursor_is_hidden(desk: Desk) -> None:
    desk.vga.write(0x14, 2, 0x200A)
    assert desk.look().modes[25] is False


def test_the_terminal_is_given_back(desk: Desk) -> None:
    desk.look()
    desk.screen.close()
    desk.screen.close()
    desk.look()
    assert desk.emulator.modes == {1049: False, 7: True, 25: True}
    desk.clock.advance(1_000_000_000)
    desk.look()
    assert desk.sent == b""


def test_frames_come_by_the_clock(desk: Desk) -> None:
    desk.look()
    desk.write(0, 0, b"tick")
    desk.clock.advance(17_000_000)
    assert b"tick" in os.read(desk.ours, 4096)


def test_a_small_terminal_shows_where_the_cursor_is() -> None:
    desk = Desk(40, 10)
    desk.screen.start()
    for row in range(25):
        desk.write(row, 0, b"row %d" % row + b"." * 60)
    desk.cursor(24, 3)
    assert [line.split(".")[0] for line in desk.look().text()] == [f"row {row}" for row in range(15, 25)]
    desk.cursor(20, 3)
    assert desk.look().text()[0].startswith("row 15") and desk.emulator.row == 5
    desk.cursor(2, 3)
    assert [line.split(".")[0] for line in desk.look().text()] == [f"row {row}" for row in range(2, 12)]
    desk.resize(80, 30)
    assert desk.look().text()[:25] == Screen.of(desk.vga).text()
    desk.close()


class BusyClock(FakeClock):
    """A clock that goes on by a millisecond whenever it is asked."""

    def now(self) -> int:
        self._now += 1_000_000
        return self._now


def test_a_frame_is_drawn_in_turns() -> None:
    """Of ten milliseconds, here as many rows: all of them come, and the cursor and the notes at the end."""
    desk = Desk(clock=BusyClock())
    desk.screen.start()
    desk.look()
    for row in range(25):
        desk.write(row, 0, b"row %d" % row, row)
    desk.screen.note(b"\r\nnote\r\n")
    desk.screen.refresh()
    desk.emulator.feed(os.read(desk.ours, 65536))
    rows = [line.rstrip() for line in desk.emulator.text()]
    assert rows[0] == "row 0" and 1 < len([row for row in rows if row]) < 12
    desk.write(0, 0, b"row 0, of the next frame")
    for _ in range(3):
        desk.look()
    rows = [line.rstrip() for line in desk.emulator.text()]
    assert rows == ["note"] + [f"row {row}" for row in range(1, 25)]
    assert desk.emulator.modes[25] is True
    desk.close()


def test_a_terminal_that_does_not_read_holds_up_nothing() -> None:
    desk = Desk()
    desk.screen.start()
    for i in range(300):
        desk.write(0, 0, bytes(0x21 + (i + j) % 90 for j in range(2000)))
        desk.screen.refresh()
    desk.look()
    assert desk.look().text() == Screen.of(desk.vga).text()
    desk.close()


def test_a_terminal_that_goes_away() -> None:
    desk = Desk()
    desk.screen.start()
    os.close(desk.ours)
    desk.write(0, 0, b"x")
    desk.screen.refresh()
    desk.screen.refresh()
    desk.screen.close()
    os.close(desk.theirs)


def test_no_terminal_is_one_line() -> None:
    read_fd, write_fd = os.pipe()
    with pytest.raises(UserError, match="terminal"):
        TerminalScreen(VgaText(memoryview(bytearray(0x8000)), FakeClock()), FakeClock(), write_fd)
    os.close(read_fd)
    os.close(write_fd)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 70), st.integers(0, 255), st.binary(max_size=9))))
def test_any_text_and_attribute(writes: list[tuple[int, int, int, bytes]]) -> None:
    desk = Desk()
    desk.screen.start()
    try:
        for row, column, attribute, text in writes:
            desk.write(row, column, text, attribute)
            desk.screen.refresh()
        assert desk.look().text() == Screen.of(desk.vga).text()
    finally:
        desk.close()


def test_a_frame_of_mode_13h(desk: Desk) -> None:
    """Half a character each for the colours above and below: red over blue here, black elsewhere."""
    for port, index_and_value in ((0x04, 0x0E04), (0x0E, 0x4005), (0x0E, 0x0506)):
        desk.vga.write(port, 2, index_and_value)
    desk.vga.write(0x08, 1, 1)
    for level in (0, 0, 42, 42, 0, 0):  # colours 1 and 2
        desk.vga.write(0x09, 1, level)
    for y in range(8):
        desk.frame[y * 320 : y * 320 + 160] = bytes([2 if y < 4 else 1]) * 160
    emulator = desk.look()
    assert emulator.text()[0] == "▀" * 80
    assert emulator.cells[0][39][1] == sgr(4, 1)
    assert emulator.cells[0][40][1] == emulator.cells[1][0][1] == sgr(0, 0)
