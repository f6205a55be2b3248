"""`pyvmm run` with its displays and the guest that is a keyboard driver: keys on the host to pixels on the host."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from Xlib import X, display
from Xlib.protocol import event

from pyvmm.testing.patience import PATIENCE
from tests.rig.console import Console
from tests.rig.emulator import Emulator
from tests.rig.xserver import read_text, start_server

PYVMM = Path(sys.executable).with_name("pyvmm")
READY = "The keyboard driver is ready"


def until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


class Window:
    """The window of a pyvmm, seen and used from outside."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.display = display.Display(server)
        until(lambda: bool(self.display.screen().root.query_tree().children), lambda: "no window")
        self.window = self.display.screen().root.query_tree().children[0]
        until(lambda: self.window.get_attributes().map_state == X.IsViewable, lambda: "the window is not mapped")

    def text(self) -> list[str]:
        return read_text(self.window.get_image(0, 0, 640, 400, X.ZPixmap, 0xFFFFFF).data, 640, 4)

    def expect(self, text: str) -> None:
        until(lambda: any(text in line for line in self.text()), lambda: "\n".join(self.text()))

    def xdotool(self, *arguments: str) -> None:
        subprocess.run(["xdotool", *arguments], env={**os.environ, "DISPLAY": self.server}, check=True, timeout=60)

    def ask_to_close(self) -> None:
        """As a window manager's close button does."""
        atoms = [self.display.intern_atom("WM_DELETE_WINDOW"), 0, 0, 0, 0]
        protocols = self.display.intern_atom("WM_PROTOCOLS")
        self.window.send_event(event.ClientMessage(window=self.window, client_type=protocols, data=(32, atoms)))
        self.display.flush()


@pytest.fixture
def server() -> Iterator[str]:
    process, name = start_server()
    yield name
    process.terminate()
    process.wait()


def test_keys_of_the_window_come_back_as_its_pixels(server: str) -> None:
    with Console([PYVMM, "run", "--display", "x11", "keyboard"], env={"DISPLAY": server}) as console:
        window = Window(server)
        window.expect(READY)
        window.xdotool("windowfocus", "--sync", str(window.window.id), "type", "--delay", "30", "Echo, Window 42!")
        window.expect("> Echo, Window 42!")
        window.ask_to_close()
        assert console.wait() == 7


def test_a_scaled_window_says_whose_it_is(server: str) -> None:
    command: list[str | Path] = [PYVMM, "run", "--display", "x11", "--scale", "2", "keyboard"]
    with Console(command, on_pty=True, env={"DISPLAY": server}) as console:
        console.expect("> ")
        window = Window(server)
        geometry = window.window.get_geometry()
        assert (geometry.width, geometry.height) == (1280, 800)
        for state, keys in (("running", ""), ("paused", "\x01z"), ("running", "\x01z")):
            console.send(keys)
            until(
                lambda state=state: window.window.get_wm_name() == f"keyboard ({state}) - pyvmm",  # type: ignore[misc]
                window.window.get_wm_name,
            )
        console.send("\x01x")
        assert console.wait() == 7


def test_a_window_that_cannot_open_is_one_line() -> None:
    ran = subprocess.run(
        [PYVMM, "run", "--display", "x11", "keyboard"], env={**os.environ, "DISPLAY": ":4711"}, capture_output=True
    )
    lines = ran.stderr.decode().splitlines()
    assert ran.returncode == 2 and len(lines) == 1 and "cannot open X display ':4711'" in lines[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_x_server_does_not_answer(number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = f"127.0.0.1:{listener.getsockname()[1] - 6000}"
        command: list[str | Path] = [PYVMM, "run", "--display", "x11", "keyboard"]
        with subprocess.Popen(command, env={**os.environ, "DISPLAY": name}, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            connection, _ = listener.accept()
            assert connection.recv(1), "its greeting, which gets no answer"
            process.send_signal(number)
            assert process.wait(PATIENCE) == 128 + number
            assert process.stderr.read() == f"pyvmm: signal {number}\n".encode()
        connection.close()


def test_the_screen_in_the_terminal() -> None:
    with Console([PYVMM, "run", "--display", "text", "keyboard"], on_pty=True) as console:
        console.expect("ready")
        console.send("Terminal 7?")
        console.expect("7?")
        console.send("\x01h")
        console.expect("press the power button")
        console.send("\x01r")
        console.expect("vCPU 0: 64-bit long mode")
        console.send("!")
        console.expect("!")
        console.send("\x01x")
        assert console.wait() == 7
        terminal = Emulator(80, 25)
        output = console.output.partition("\x1b[?1049h")[2].rpartition("\x1b[?1049l")[0]
        terminal.feed(output.encode())
    assert terminal.text()[0].startswith(READY)
    assert "> Terminal 7?!" in [line.rstrip() for line in terminal.text()]


def test_typing_after_a_text_and_the_screen_as_a_file(tmp_path: Path) -> None:
    picture = tmp_path / "screen.png"
    script = ["--type-after", r"> :one two\n", "--type-after", r"> :Three\n", "--type-after", "> :<ctrl-d>"]
    ran = subprocess.run(
        [PYVMM, "run", *script, "--screenshot", picture, "--timeout", "60", "keyboard"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert ran.returncode == 0, ran
    image = Image.open(picture).convert("RGB")
    lines = [line.rstrip() for line in read_text(image.tobytes(), 640, 3)]
    assert lines[0].startswith(READY)
    assert "> one two" in lines and "> Three" in lines


def test_a_script_that_cannot_be_typed_is_one_line() -> None:
    ran = subprocess.run([PYVMM, "run", "--type-after", "no keys", "keyboard"], capture_output=True)
    assert ran.returncode == 2 and len(ran.stderr.decode().splitlines()) == 1 and b"TEXT:KEYS" in ran.stderr
