"""The window under a real X server (Xvfb), with real key and mouse events (xdotool) and its real pixels."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from Xlib import X
from Xlib import display as xdisplay
from Xlib.ext import xtest
from Xlib.protocol import event

from pyvmm.clock import FakeClock
from pyvmm.devices.vga_text import VgaText
from pyvmm.errors import UserError
from pyvmm.host.display.x11 import X11Window, open_display
from pyvmm.input import codes as ic
from pyvmm.input.router import Router
from pyvmm.screen.font import glyph
from tests.rig.input_fakes import FakeKeyboard, FakePointer
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

    def __init__(self, server: str) -> None:
        self.server = server
        self.memory = bytearray(0x8000)
        self.clock = FakeClock()
        self.vga = VgaText(memoryview(self.memory), self.clock)
        self.keyboard = FakeKeyboard()
        self.mouse = FakePointer()
        self.tablet = FakePointer()
        self.router = Router(ps2_keyboard=self.keyboard, ps2_mouse=self.mouse, virtio_tablet=self.tablet)
        self.closed = 0
        self.window = X11Window(self.vga, self.clock, self.on_close, self.router, display_name=server)
        self.window.start()
        self.eye = xdisplay.Display(server)
        self.seen = self.eye.create_resource_object("window", self.window.window_id)
        self.xdotool("windowfocus", "--sync", str(self.window.window_id), "mousemove", "320", "200")

    def on_close(self) -> None:
        self.closed += 1

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


def test_only_what_changed_is_drawn(desk: Desk) -> None:
    desk.write(3, 0, "x")
    desk.until(lambda: desk.shows(3, 0, "x", 0xAAAAAA, 0))
    # Scribble over the window from outside: only the cells that change come back.
    gc = desk.seen.create_gc(foreground=0x123456)
    desk.seen.fill_rectangle(gc, 0, 0, 640, 400)
    desk.eye.sync()
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
    desk.router.virtio_tablet_driver(True)
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
    desk.until(lambda: desk.closed == 1)


def test_a_server_that_dies_asks_the_machine_and_releases() -> None:
    process, server = start_server()
    desk = Desk(server)
    desk.xdotool("keydown", "a")
    desk.until(lambda: desk.keyboard.keys == [(ic.KEY_A, 1)])
    process.kill()
    process.wait()
    desk.until(lambda: desk.closed == 1)
    assert desk.keyboard.keys == [(ic.KEY_A, 1), (ic.KEY_A, 0)]
    desk.window.refresh()
    desk.window.process()
    desk.window.close()
    assert desk.closed == 1


@pytest.mark.parametrize("name", [":4711", "no display", "nowhere.invalid:0", None])
def test_no_server_is_one_line(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(UserError) as caught:
        open_display(name)
    assert "\n" not in str(caught.value) and "--display" in str(caught.value)
