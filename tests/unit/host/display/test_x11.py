"""The window under a real X server (Xvfb), with real key and mouse events (xdotool) and its real pixels."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from Xlib import X, error
from Xlib import display as xdisplay
from Xlib.ext import xtest
from Xlib.protocol import event

from pyvmm.clock import FakeClock
from pyvmm.devices.vga_frame import VGA_FRAME_SIZE
from pyvmm.devices.vga_text import VgaText
from pyvmm.errors import UserError
from pyvmm.host.display.x11 import TURN_BYTES, X11Window, open_display
from pyvmm.input import codes as ic
from pyvmm.screen.font import glyph
from tests.rig.input_fakes import FakeKeyboard, FakePointer, make_router
from tests.rig.xserver import start_server


@pytest.fixture(scope="module")
def server_and_name() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    process, name = start_server()
    yield process, name
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def server(server_and_name: tuple[subprocess.Popen[bytes], str]) -> str:
    return server_and_name[1]


@pytest.fixture(scope="module")
def server_process(server_and_name: tuple[subprocess.Popen[bytes], str]) -> subprocess.Popen[bytes]:
    return server_and_name[0]


class Desk:
    """A window on the server, the guest's devices behind it, and a second connection that looks at it."""

    def __init__(self, server: str, clock: FakeClock | None = None, **options: Any) -> None:
        self.server = server
        self.memory = bytearray(0x8000)
        self.clock = clock or FakeClock()
        self.frame = bytearray(VGA_FRAME_SIZE)
        self.vga = VgaText(memoryview(self.memory), self.clock, frame=memoryview(self.frame))
        self.keyboard = FakeKeyboard()
        self.mouse = FakePointer()
        self.tablet = FakePointer()
        self.router = make_router(ps2_keyboard=self.keyboard, ps2_mouse=self.mouse, virtio_tablet=self.tablet)
        self.closed: list[str] = []
        self.window = X11Window(self.vga, self.clock, self.on_close, self.router, display_name=server, **options)
        self.window.start()
        self.eye = xdisplay.Display(server)
        self.seen = self.eye.create_resource_object("window", self.window.window_id)
        self.xdotool("windowfocus", "--sync", str(self.window.window_id), "mousemove", "320", "200")

    def on_close(self, why: str) -> None:
        self.closed.append(why)

    def write(self, row: int, column: int, text: str, attribute: int = 0x07) -> None:
        for i, byte in enumerate(text.encode("cp437")):
            offset = 2 * (row * 80 + column + i)
            self.memory[offset : offset + 2] = bytes((byte, attribute))

    def palette(self, index: int, rgb: tuple[int, int, int]) -> None:
        """The DAC's entry that attribute colour *index* ends at, six bits a level."""
        self.vga.write(0x08, 1, index)
        for level in rgb:
            self.vga.write(0x09, 1, level)

    def xdotool(self, *arguments: str) -> None:
        subprocess.run(["xdotool", *arguments], env={**os.environ, "DISPLAY": self.server}, check=True, timeout=20)

    def until(self, condition: Callable[[], bool]) -> None:
        """Serve the window until *condition*; the test fails when it takes more than ten seconds."""
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, f"{self.keyboard.keys} {self.mouse.events} {self.tablet.events}"
            self.clock.advance(17_000_000)
            if select.select([self.window], [], [], 0.005)[0]:
                self.window.process()

    def pixels(self, row: int, column: int) -> list[int]:
        """The 128 pixels of a cell, as the server has them."""
        image = self.seen.get_image(column * 8, row * 16, 8, 16, X.ZPixmap, 0xFFFFFF).data
        return [int.from_bytes(image[i : i + 3], "little") for i in range(0, len(image), 4)]

    def drawn(self, row: int, scale: int) -> list[int]:
        """The pixels of a row."""
        image = self.seen.get_image(0, row * 16 * scale, 640 * scale, 16 * scale, X.ZPixmap, 0xFFFFFF).data
        return [int.from_bytes(image[i : i + 3], "little") for i in range(0, len(image), 4)]

    def shows(self, row: int, column: int, character: str, foreground: int, background: int) -> bool:
        lines = glyph(character.encode("cp437")[0])
        return self.pixels(row, column) == [
            foreground if line >> (7 - x) & 1 else background for line in lines for x in range(8)
        ]

    def close(self) -> None:
        self.window.close()
        self.eye.close()


@pytest.fixture
def desk(server: str) -> Iterator[Desk]:
    desk = Desk(server)
    yield desk
    desk.close()


def test_the_window_shows_the_guests_text(desk: Desk) -> None:
    text = "Hello, world █▒│"
    desk.write(10, 20, text, 0x1E)
    desk.write(24, 79, "Z", 0x4F)
    desk.until(lambda: desk.shows(24, 79, "Z", 0xFFFFFF, 0xAA0000))
    for i, character in enumerate(text):
        assert desk.shows(10, 20 + i, character, 0xFFFF55, 0x0000AA)
    assert desk.shows(10, 19, " ", 0xAAAAAA, 0)
    geometry = desk.seen.get_geometry()
    assert (geometry.width, geometry.height) == (640, 400)


@pytest.fixture(scope="module")
def large_server() -> Iterator[str]:
    process, name = start_server(size="2600x1650")
    yield name
    process.terminate()
    process.wait()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_scaled_window(server: str, large_server: str, scale: int) -> None:
    """Each pixel is a square, whether a row is drawn run by run, as an image of many colours or under the cursor."""
    small, large = Desk(server), Desk(large_server, scale=scale)
    try:
        for desk in (small, large):
            desk.write(2, 3, "Hello █▒", 0x1E)
            for column in range(40):
                desk.write(4, column, "%", column + 1)
            desk.write(24, 79, "Z", 0x4F)
            crtc(desk.vga, 0x0E, 0)
            crtc(desk.vga, 0x0F, 5)
            desk.write(0, 5, " ", 0x1F)
            desk.until(lambda desk=desk: desk.drawn(24, scale if desk is large else 1)[-1] == 0xAA0000)  # type: ignore[misc]
        geometry = large.seen.get_geometry()
        assert (geometry.width, geometry.height) == (640 * scale, 400 * scale)
        for row in (0, 2, 4, 24):
            wanted = small.drawn(row, 1)
            lines = [wanted[i : i + 640] for i in range(0, len(wanted), 640)]
            scaled = [pixel for line in lines for pixel in [p for p in line for _ in range(scale)] * scale]
            large.until(lambda row=row, scaled=scaled: large.drawn(row, scale) == scaled)  # type: ignore[misc]
    finally:
        small.close()
        large.close()


def enter_mode_13h(vga: VgaText) -> None:
    """The registers that make it, and a palette of 256 colours: n red, 63 - n / 4 blue."""
    for port, index, value in ((0x04, 4, 0x0E), (0x0E, 5, 0x40), (0x0E, 6, 0x05)):
        vga.write(port, 2, value << 8 | index)
    vga.write(0x08, 1, 0)
    for n in range(256):
        for level in (n >> 2, n >> 2, 63 - (n >> 2)):
            vga.write(0x09, 1, level)


def rgb(n: int) -> int:
    """Colour *n* of that palette."""

    def wide(six: int) -> int:
        return six << 2 | six >> 4

    return wide(n >> 2) << 16 | wide(n >> 2) << 8 | wide(63 - (n >> 2))


@pytest.mark.parametrize("scale", [1, 3])
def test_a_frame_of_mode_13h(large_server: str, scale: int) -> None:
    """320x200 pixels, each two by two times the scale; what changes is drawn, and text is back after it."""
    desk = Desk(large_server, scale=scale)
    try:
        enter_mode_13h(desk.vga)
        desk.frame[:64000] = bytes(i % 251 for i in range(64000))

        def row(number: int) -> list[int]:
            lines = [desk.frame[y * 320 : (y + 1) * 320] for y in range(8 * number, 8 * number + 8)]
            wide = [[rgb(n) for n in line for _ in range(2 * scale)] for line in lines]
            return [pixel for line in wide for _ in range(2 * scale) for pixel in line]

        for number in (24, 0, 11):
            desk.until(lambda number=number: desk.drawn(number, scale) == row(number))  # type: ignore[misc]
        desk.frame[12 * 8 * 320 + 77] = 255
        desk.until(lambda: desk.drawn(12, scale) == row(12))
        desk.vga.write(0x0E, 2, 0x0E06)
        desk.until(lambda: set(desk.drawn(12, scale)) == {rgb(0)})
    finally:
        desk.close()


def test_what_a_window_manager_is_told(server: str) -> None:
    desk = Desk(server, title="guest\nβ")
    try:
        atom = desk.eye.intern_atom

        def told(name: str, kind: str) -> Any:
            desk.eye.sync()
            return desk.seen.get_full_property(atom(name), atom(kind)).value

        assert list(told("_NET_WM_PID", "CARDINAL")) == [os.getpid()]
        assert desk.seen.get_wm_client_machine() == os.uname().nodename
        width, height, *pixels = told("_NET_WM_ICON", "CARDINAL")
        assert (width, height) == (48, 48) and len(pixels) == 48 * 48 and len(set(pixels)) == 2
        assert told("_NET_WM_NAME", "UTF8_STRING").decode() == "guest\\nβ - pyvmm"
        assert desk.seen.get_wm_name() == "guest\\n? - pyvmm"
        for state in ("running", "paused", "ended"):
            desk.window.set_state(state)
            assert told("_NET_WM_NAME", "UTF8_STRING").decode() == f"guest\\nβ ({state}) - pyvmm"
    finally:
        desk.close()
    desk.window.set_state("running")  # it has gone, and nothing is said


def test_only_what_changed_is_drawn(desk: Desk) -> None:
    desk.write(3, 0, "x")
    desk.until(lambda: desk.shows(3, 0, "x", 0xAAAAAA, 0))
    # Scribble over the window from outside: only the cells that change come back.
    gc = desk.seen.create_gc(foreground=0x123456)
    for column in range(5):  # an Expose of when it was mapped may still be on its way, on a busy machine
        desk.seen.fill_rectangle(gc, 0, 0, 640, 400)
        desk.eye.sync()
        desk.write(20, column, "z")
        desk.until(lambda column=column: desk.shows(20, column, "z", 0xAAAAAA, 0))  # type: ignore[misc]
        if set(desk.pixels(3, 0)) == {0x123456}:
            break
    desk.write(5, 5, "new")
    desk.until(lambda: desk.shows(5, 7, "w", 0xAAAAAA, 0))
    assert set(desk.pixels(3, 0)) == {0x123456} and set(desk.pixels(5, 8)) == {0x123456}


def test_an_uncovered_window_is_drawn_again(desk: Desk) -> None:
    desk.write(3, 0, "x")
    desk.until(lambda: desk.shows(3, 0, "x", 0xAAAAAA, 0))
    desk.xdotool("windowunmap", "--sync", str(desk.window.window_id), "windowmap", str(desk.window.window_id))
    desk.until(lambda: desk.shows(3, 0, "x", 0xAAAAAA, 0))


@pytest.mark.usefixtures("no_wait")
def test_a_server_that_stops_answering_holds_up_nothing(desk: Desk, server_process: subprocess.Popen[bytes]) -> None:
    """Not even where the guest shows colours that it has not shown before."""
    desk.until(lambda: desk.shows(3, 0, " ", 0xAAAAAA, 0))
    server_process.send_signal(signal.SIGSTOP)
    try:
        for level in range(64):
            desk.palette(1, (level, 63 - level, 1))
            desk.write(3, 0, "x", 0x10 | level & 0xF)
            desk.clock.advance(17_000_000)
    finally:
        server_process.send_signal(signal.SIGCONT)
    desk.until(lambda: desk.shows(3, 0, "x", 0xFFFFFF, 0xFF0004))


class BusyClock(FakeClock):
    """A clock that goes on by a millisecond whenever it is asked."""

    def now(self) -> int:
        self._now += 1_000_000
        return self._now


def crtc(vga: VgaText, index: int, value: int) -> None:
    vga.write(0x14, 2, index | value << 8)


def largest_screen(desk: Desk) -> None:
    """256 columns and 128 rows, in which no two neighbours have an attribute in common."""
    for index, value in ((0x11, 0x0E), (0x01, 0xFF), (0x09, 0x00), (0x12, 0xFF), (0x07, 0x42), (0x13, 0x80)):
        crtc(desk.vga, index, value)
    assert (desk.vga.columns, desk.vga.rows, desk.vga.pitch) == (256, 128, 256)
    for cell in range(0x4000):
        desk.memory[2 * cell : 2 * cell + 2] = bytes((0x21 + cell % 90, cell % 128))


@pytest.mark.parametrize("clock", [FakeClock, BusyClock])
def test_a_large_frame_is_drawn_in_turns(server: str, clock: Callable[[], FakeClock]) -> None:
    """Of ten milliseconds, or as much as the server takes at once, whatever the guest shows."""
    desk = Desk(server, clock())
    try:
        desk.until(lambda: desk.shows(3, 0, " ", 0xAAAAAA, 0))
        largest_screen(desk)
        connection = desk.window._display.display
        row = 256 * 8 * 16 * 4
        turns = 0
        while True:
            sent, requests = connection.data_sent_bytes + len(connection.data_send), connection.request_serial
            desk.window.refresh()
            turns += 1
            added = connection.data_sent_bytes + len(connection.data_send) - sent
            assert added <= TURN_BYTES + row + 1000
            assert connection.request_serial - requests <= 16, "one for a row, not one for a cell"
            if desk.window._left is None and desk.window._height == 128 * 16:
                break
            while connection.data_send:
                select.select([], [desk.window], [], 10)
                desk.window.process()
        assert turns >= 128 * row // (TURN_BYTES + row)
        desk.until(lambda: desk.shows(36, 99, chr(0x21 + (36 * 256 + 99) % 90), 0x00AAAA, 0xAA5500))
    finally:
        desk.close()


def test_the_next_frame_waits_for_the_rows_of_the_last(server: str) -> None:
    """So every row is drawn however fast the guest changes what is above it, and the window was uncovered meanwhile."""
    desk = Desk(server, BusyClock())
    try:
        desk.until(lambda: desk.shows(3, 0, " ", 0xAAAAAA, 0))
        for row in range(25):
            desk.write(row, 0, "x")
        for turn in range(20):
            desk.window._follower.redraw()
            desk.write(0, 0, chr(0x41 + turn))
            desk.window.refresh()
        desk.until(lambda: desk.shows(24, 0, "x", 0xAAAAAA, 0))
    finally:
        desk.close()


@pytest.mark.parametrize("longest_request", [1 << 18, 1 << 14])
def test_many_colours_in_a_row(desk: Desk, longest_request: int) -> None:
    """One image of the cells that changed, where the server takes requests of its size."""
    desk.window._most_bytes = longest_request
    text = "".join(map(chr, range(0x21, 0x7F)))[:40]
    for i, character in enumerate(text):
        desk.write(7, 20 + i, character, i)
    desk.until(lambda: desk.shows(7, 59, text[39], 0xAAAAAA, 0x00AA00))
    for i in (0, 15, 16, 31):
        foreground = desk.vga.palette()[i % 16]
        background = desk.vga.palette()[i // 16]
        assert desk.shows(7, 20 + i, text[i], int.from_bytes(foreground, "big"), int.from_bytes(background, "big"))


VISUALS = [(8, X.StaticGray), (8, X.GrayScale), (8, X.StaticColor), (8, X.PseudoColor), (8, X.TrueColor)]
VISUALS += [(8, X.DirectColor), (16, X.TrueColor), (24, X.TrueColor), (24, X.DirectColor)]


class Eye:
    """Sees a window's colours, whatever the class of its visual."""

    def __init__(self, desk: Desk) -> None:
        self._window = desk.seen
        self._info = desk.eye.display.info
        screen = desk.eye.screen()
        visuals = [visual for depth in screen.allowed_depths for visual in depth.visuals]
        self.visual = next(visual for visual in visuals if visual.visual_id == screen.root_visual)
        self._bits = {f.depth: f.bits_per_pixel for f in self._info.pixmap_formats}[screen.root_depth]
        self.colormap = self._window.get_attributes().colormap
        self.has_default = self.colormap == screen.default_colormap

    def colours(self, row: int, column: int) -> list[tuple[int, int, int]]:
        """Red, green and blue, 0 to 255, of the 128 pixels of a cell."""
        image = self._window.get_image(column * 8, row * 16, 8, 16, X.ZPixmap, 0xFFFFFFFF).data
        size = self._bits // 8
        pixels = [int.from_bytes(image[i : i + size], "little") for i in range(0, len(image), size)]
        answer = self.colormap.query_colors(pixels)
        return [(colour.red >> 8, colour.green >> 8, colour.blue >> 8) for colour in answer]


@pytest.mark.parametrize(("depth", "visual_class"), VISUALS)
def test_every_class_of_visual(depth: int, visual_class: int) -> None:
    """A guest that changes its palette for ever, as runs and as images, ends in its last colours."""
    process, server = start_server(depth, visual_class)
    try:
        desk = Desk(server)
        eye = Eye(desk)
        assert eye.visual.visual_class == visual_class
        desk.write(3, 0, "run", 0x12)
        for column in range(40):
            desk.write(5, column, "█", column % 2 * 0x10 | 2)
        for level in range(600):
            desk.palette(2, (level % 64, level // 8 % 64, level // 64))
            desk.clock.advance(17_000_000)
            desk.window.process()
        # To the two ends, which every map has.
        desk.palette(1, (0, 0, 0))
        desk.palette(2, (63, 63, 63))
        ink, ground = (255, 255, 255), (0, 0, 0)
        lines = glyph(ord("r"))
        expected = [ink if line >> (7 - x) & 1 else ground for line in lines for x in range(8)]
        desk.until(lambda: eye.colours(3, 0) == expected)
        desk.until(lambda: eye.colours(5, 7) == [ink] * 128)
        assert desk.closed == []
        desk.close()
    finally:
        process.terminate()
        process.wait()


def test_a_colormap_that_is_full() -> None:
    """Then the window has one of its own; and a second window, whose first gave its cells back, none."""
    process, server = start_server(8)
    try:
        other = xdisplay.Display(server)
        taken = 0
        while True:
            try:
                other.screen().default_colormap.alloc_color_cells(False, 1, 0)
                taken += 1
            except error.BadAlloc:
                break
        assert taken > 100
        desk = Desk(server)
        eye = Eye(desk)
        assert not eye.has_default
        desk.write(3, 0, "█", 4)
        desk.until(lambda: eye.colours(3, 0) == [(0xAA, 0, 0)] * 128)
        desk.close()
        other.close()
        for _ in range(30):  # each takes sixteen of the 256
            desk = Desk(server)
            assert Eye(desk).has_default
            desk.close()
    finally:
        process.terminate()
        process.wait()


def test_an_x_error_is_no_end(desk: Desk) -> None:
    """Whatever the server refuses, to a request that waits for an answer or to one that does not."""

    def refuse(*_: object, **__: object) -> None:
        raise error.BadAlloc(desk.window._display.display, bytes(32))

    desk.until(lambda: desk.shows(3, 0, " ", 0xAAAAAA, 0))
    desk.window._window.grab_pointer = refuse
    desk.xdotool("click", "1")
    desk.window._window.change_attributes(cursor=0x12345)
    desk.write(3, 0, "x")
    desk.until(lambda: desk.shows(3, 0, "x", 0xAAAAAA, 0))
    assert desk.closed == [] and desk.window._input is not None and not desk.window._input.grabbed


def test_the_cursor_blinks(desk: Desk) -> None:
    on = [0xAAAAAA] * 16
    desk.until(lambda: desk.pixels(0, 0)[13 * 8 : 15 * 8] == on)
    desk.until(lambda: set(desk.pixels(0, 0)) == {0})
    desk.until(lambda: desk.pixels(0, 0)[13 * 8 : 15 * 8] == on)


def test_the_window_follows_the_mode(desk: Desk) -> None:
    desk.vga.write(0x14, 2, 0x4709)  # cells of eight lines: fifty rows
    desk.until(lambda: desk.seen.get_geometry().height == 800)


def test_typed_keys_are_linux_codes(desk: Desk) -> None:
    desk.xdotool("key", "--delay", "5", "a", "Up", "Escape", "F12", "KP_Enter")
    desk.xdotool("type", "--delay", "5", "lL")
    codes = [ic.KEY_A, ic.KEY_UP, ic.KEY_ESC, ic.KEY_F12, ic.KEY_KPENTER]
    expected = [(code, value) for code in codes for value in (1, 0)]
    expected += [(ic.KEY_L, 1), (ic.KEY_L, 0), (ic.KEY_LEFTSHIFT, 1), (ic.KEY_L, 1)]
    expected += [(ic.KEY_LEFTSHIFT, 0), (ic.KEY_L, 0)]  # the order in which xdotool lets go
    desk.until(lambda: len(desk.keyboard.keys) >= len(expected))
    assert desk.keyboard.keys == expected


def test_every_key_that_a_pc_has(desk: Desk) -> None:
    codes = [*range(ic.KEY_ESC, ic.KEY_F12 + 1), *range(ic.KEY_KPENTER, ic.KEY_COMPOSE + 1)]
    for code in codes:
        xtest.fake_input(desk.eye, X.KeyPress, code + 8)
        xtest.fake_input(desk.eye, X.KeyRelease, code + 8)
    desk.eye.sync()
    desk.until(lambda: len(desk.keyboard.keys) >= 2 * len(codes))
    assert desk.keyboard.keys == [(code, value) for code in codes for value in (1, 0)]


def test_a_held_key_does_not_repeat(desk: Desk) -> None:
    desk.xdotool("keydown", "a", "sleep", "1", "keyup", "a")
    desk.until(lambda: len(desk.keyboard.keys) >= 2)
    assert desk.keyboard.keys == [(ic.KEY_A, 1), (ic.KEY_A, 0)]


def test_losing_the_focus_releases_all_keys(desk: Desk) -> None:
    desk.xdotool("keydown", "a", "keydown", "shift")
    desk.until(lambda: len(desk.keyboard.keys) == 2)
    desk.eye.set_input_focus(X.NONE, X.RevertToNone, X.CurrentTime)
    desk.eye.sync()
    desk.until(lambda: len(desk.keyboard.keys) == 4)
    assert sorted(desk.keyboard.keys[2:]) == [(ic.KEY_A, 0), (ic.KEY_LEFTSHIFT, 0)]
    desk.xdotool("keyup", "a", "keyup", "shift")


def test_a_click_takes_the_mouse_and_both_ctrl_keys_give_it_back(desk: Desk) -> None:
    desk.xdotool("mousemove_relative", "5", "5")
    desk.xdotool("click", "1")
    desk.until(lambda: desk.window._input is not None and desk.window._input.grabbed)
    desk.xdotool("mousemove_relative", "7", "3", "click", "3", "click", "4", "click", "5", "click", "9")
    desk.until(lambda: len(desk.mouse.events) >= 7)
    assert desk.mouse.events == [
        ("motion", 7, 3),
        ("button", ic.BTN_RIGHT, 1),
        ("button", ic.BTN_RIGHT, 0),
        ("wheel", 1, 0),
        ("wheel", -1, 0),
        ("button", ic.BTN_EXTRA, 1),
        ("button", ic.BTN_EXTRA, 0),
    ]
    assert "both Ctrl" in desk.seen.get_wm_name()
    desk.xdotool("keydown", "Control_L", "keydown", "Control_R", "keyup", "Control_R", "keyup", "Control_L")
    desk.until(lambda: desk.window._input is not None and not desk.window._input.grabbed)
    desk.until(lambda: desk.seen.get_wm_name() == "pyvmm")
    assert desk.keyboard.keys == [(ic.KEY_LEFTCTRL, 1), (ic.KEY_LEFTCTRL, 0)]


def test_the_mouse_may_move_for_ever(desk: Desk) -> None:
    desk.xdotool("click", "1")
    desk.until(lambda: desk.window._input is not None and desk.window._input.grabbed)

    def moved() -> tuple[int, int]:
        motions = [event for event in desk.mouse.events if event[0] == "motion"]
        return sum(dx for _, dx, _ in motions), sum(dy for _, _, dy in motions)

    for i in range(1, 21):
        desk.xdotool("mousemove_relative", "100", "60")
        desk.until(lambda i=i: moved() == (100 * i, 60 * i))  # type: ignore[misc]


def test_a_tablet_needs_no_grab(desk: Desk) -> None:
    desk.tablet.on_driver_ok(True)
    desk.xdotool("mousemove", "639", "399", "mousemove", "0", "0", "click", "1")
    desk.until(lambda: len(desk.tablet.events) >= 4 and desk.tablet.events[-1][2] == 0)
    assert desk.tablet.events[-4:] == [
        ("absolute", 32767, 32767),
        ("absolute", 0, 0),
        ("button", ic.BTN_LEFT, 1),
        ("button", ic.BTN_LEFT, 0),
    ]
    assert desk.mouse.events == []


def test_closing_the_window_asks_the_machine(desk: Desk) -> None:
    # What a window manager sends for its close button.
    message = event.ClientMessage(
        window=desk.seen,
        client_type=desk.eye.intern_atom("WM_PROTOCOLS"),
        data=(32, [desk.eye.intern_atom("WM_DELETE_WINDOW"), 0, 0, 0, 0]),
    )
    desk.seen.send_event(message)
    desk.eye.flush()
    desk.until(lambda: bool(desk.closed))
    assert desk.closed == ["the window was closed"]


def test_a_window_that_somebody_destroys_is_a_closed_one(desk: Desk) -> None:
    desk.xdotool("keydown", "a")
    desk.until(lambda: desk.keyboard.keys == [(ic.KEY_A, 1)])
    desk.xdotool("windowclose", str(desk.window.window_id))  # DestroyWindow, which asks nobody
    desk.until(lambda: bool(desk.closed))
    assert desk.closed == ["the window was closed"]
    assert desk.keyboard.keys == [(ic.KEY_A, 1), (ic.KEY_A, 0)]
    desk.xdotool("keyup", "a")


def test_a_server_that_dies_asks_the_machine_and_releases() -> None:
    process, server = start_server()
    desk = Desk(server)
    desk.xdotool("keydown", "a")
    desk.until(lambda: desk.keyboard.keys == [(ic.KEY_A, 1)])
    process.kill()
    process.wait()
    desk.until(lambda: bool(desk.closed))
    assert desk.keyboard.keys == [(ic.KEY_A, 1), (ic.KEY_A, 0)]
    desk.window.refresh()
    desk.window.process()
    desk.window.close()
    assert desk.closed == [f"X display {server}: the server has gone, or has closed our connection"]


@pytest.mark.parametrize("name", [":4711", "no display", "nowhere.invalid:0", None])
def test_no_server_is_one_line(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(UserError) as caught:
        open_display(name)
    assert "\n" not in str(caught.value) and "--display" in str(caught.value)
