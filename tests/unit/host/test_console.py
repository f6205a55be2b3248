"""The console between a serial port and a pair of descriptors: nothing lost, nothing blocked, escapes on terminals."""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.host.console import HIGH_WATER, Console
from pyvmm.host.tty import EscapeParser
from pyvmm.loop import Loop
from tests.rig.fakes import AlwaysWritable


class Port:
    """A serial port with a FIFO of *room* bytes that the test empties."""

    def __init__(self, room: int = 16, listening: bool = True) -> None:
        self.on_room: Callable[[], None] | None = None
        self.listening = listening
        self.room = room
        self.taken = bytearray()

    def receive(self, data: bytes) -> int:
        count = min(self.room, len(data))
        self.taken += data[:count]
        self.room -= count
        return count

    def empty(self, room: int = 16) -> None:
        """The guest has read the FIFO."""
        self.room = room
        if self.on_room is not None:
            self.on_room()


class Noted(list[str]):
    """Commands, each told to a test when it comes."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, letter: str) -> None:
        self._tell(letter)
        super().append(letter)


class Ends:
    """The console's two descriptors, and our ends of them."""

    def __init__(self, terminal: bool = False) -> None:
        if terminal:
            self.type_fd, self.fd_in = os.openpty()
            self.show_fd, self.fd_out = self.type_fd, self.fd_in
        else:
            self.fd_in, self.type_fd = os.pipe()
            self.show_fd, self.fd_out = os.pipe()
            fcntl.fcntl(self.fd_out, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.show_fd, False)
        self.loop = Loop(threading.Lock())
        self.console = Console(self.fd_in, self.fd_out)
        self.holds: list[bool] = []
        self.commands: list[str] = []
        self.port = Port()

    def attach(self, port: Port | None = None, keys: Callable[[bytes], None] | None = None) -> None:
        if port is not None:
            self.port = port
        self.console.attach(self.loop, self.port, self.holds.append, self.commands.append, keys)

    def type(self, data: bytes) -> None:
        os.write(self.type_fd, data)

    def shown(self) -> bytes:
        try:
            return os.read(self.show_fd, 1 << 20)
        except BlockingIOError:
            return b""

    def turn(self, times: int = 5) -> None:
        for _ in range(times):
            self.loop.run_once(0)

    def until(self, condition: Callable[[], bool]) -> None:
        """A terminal hands on what it is given when the kernel gets to it."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.loop.run_once(0.01)

    def close(self) -> None:
        self.console.close()
        self.loop.close()
        for fd in {self.fd_in, self.fd_out, self.type_fd, self.show_fd}:
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


@pytest.fixture
def terminal() -> Iterator[Ends]:
    ends = Ends(terminal=True)
    yield ends
    ends.close()


# Output


def test_output_is_written_by_the_loop_and_not_at_once(ends: Ends) -> None:
    ends.attach()
    ends.console.write(b"one ")
    ends.console.write(b"two")
    assert ends.shown() == b""
    ends.turn()
    assert ends.shown() == b"one two"


def test_output_before_the_first_attach_is_kept(ends: Ends) -> None:
    ends.console.write(b"early")
    ends.attach()
    ends.turn()
    assert ends.shown() == b"early"


def test_a_full_pipe_holds_the_guest_and_drains_without_loss(ends: Ends) -> None:
    ends.attach()
    sent = bytearray()
    while not ends.holds:
        chunk = os.urandom(1000)
        sent += chunk
        ends.console.write(chunk)
        ends.turn(2)
        assert len(sent) < HIGH_WATER + 20_000
    assert ends.holds == [True]
    assert len(sent) > HIGH_WATER
    got = bytearray()
    while len(got) < len(sent):
        got += ends.shown()
        ends.turn(1)
    assert got == sent
    ends.turn()
    assert ends.holds == [True, False]
    ends.console.write(b"and on")
    ends.turn()
    assert ends.shown() == b"and on"


def test_a_reader_that_is_gone_is_no_error(ends: Ends) -> None:
    ends.attach()
    os.close(ends.show_fd)
    ends.console.write(b"x" * 100_000)
    ends.turn()
    assert ends.holds in ([], [True, False])
    ends.console.write(b"y")
    ends.turn()


def test_close_writes_what_is_left(ends: Ends) -> None:
    ends.attach()
    ends.console.write(b"last words")
    ends.console.close()
    assert ends.shown() == b"last words"
    ends.console.close()


def test_detach_keeps_what_waits_for_the_next_machine(ends: Ends) -> None:
    ends.attach()
    ends.console.write(b"from one; ")
    ends.console.detach()
    assert ends.port.on_room is None
    ends.loop.run_once(0)
    ends.attach(Port())
    ends.console.write(b"from two")
    assert ends.shown() == b"from one; "
    ends.turn()
    assert ends.shown() == b"from two"


# Input


def test_input_goes_to_the_port_as_it_has_room(ends: Ends) -> None:
    ends.attach()
    text = bytes(range(256)) * 3
    ends.type(text)
    ends.turn()
    assert ends.port.taken == text[:16]
    for _ in range(100):
        ends.port.empty()
        ends.turn(1)
    assert ends.port.taken == text


def test_no_more_is_read_than_the_port_takes(ends: Ends) -> None:
    """What the user types while the guest does not look stays in the pipe, not in our memory."""
    ends.attach(Port(room=0))
    os.set_blocking(ends.type_fd, False)
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            written += os.write(ends.type_fd, b"x" * 4096)
            ends.turn(1)
    assert written < 1 << 20
    assert len(ends.console._input) <= 8192


def test_nothing_is_given_to_a_port_without_a_driver(ends: Ends) -> None:
    ends.attach(Port(listening=False))
    ends.type(b"early")
    ends.turn()
    assert ends.port.taken == b""
    ends.port.listening = True
    ends.port.empty()
    assert ends.port.taken == b"early"


def test_what_was_typed_goes_to_the_next_machine(ends: Ends) -> None:
    ends.attach(Port(room=3))
    ends.type(b"onetwo")
    ends.turn()
    ends.console.detach()
    ends.type(b"three")
    ends.attach(Port(room=100))
    ends.turn()
    assert ends.port.taken == b"twothree"


def test_the_end_of_input(ends: Ends) -> None:
    ends.attach()
    ends.type(b"abc")
    os.close(ends.type_fd)
    ends.turn()
    assert ends.port.taken == b"abc"
    ends.port.empty()
    ends.console.write(b"the guest goes on")
    ends.turn()
    assert ends.shown() == b"the guest goes on"


def test_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(range(256)) * 100)
    ends = Ends()
    with (tmp_path / "in").open("rb") as file, (tmp_path / "out").open("wb") as out:
        os.dup2(file.fileno(), ends.fd_in)
        os.dup2(out.fileno(), ends.fd_out)
        ends.console = Console(ends.fd_in, ends.fd_out)
        ends.attach()
        ends.console.write(b"x" * 200_000)
        for _ in range(3000):
            ends.turn(1)
            ends.port.empty()
        assert ends.port.taken == bytes(range(256)) * 100
        ends.close()
    assert (tmp_path / "out").read_bytes() == b"x" * 200_000


def test_ctrl_a_is_a_byte_as_any_other_on_a_pipe(ends: Ends) -> None:
    ends.attach()
    ends.type(b"\x01x\x01h")
    ends.turn()
    assert ends.port.taken == b"\x01x\x01h"
    assert ends.commands == []


def test_keys_take_the_input_and_the_port_is_not_shown(ends: Ends) -> None:
    keys: list[bytes] = []
    ends.attach(keys=keys.append)
    ends.type(b"abc")
    ends.console.write(b"not shown")
    ends.turn()
    assert b"".join(keys) == b"abc"
    assert not ends.port.taken
    assert ends.shown() == b""


# On a terminal


def test_escapes_on_a_terminal(terminal: Ends) -> None:
    terminal.attach(Port(room=100))
    terminal.type(b"a\x01rb\x01\x01c\x01xd")
    terminal.until(lambda: len(terminal.port.taken) == 5)
    assert terminal.port.taken == b"ab\x01cd"
    assert terminal.commands == ["r", "x"]


def test_a_command_comes_after_what_was_typed_before_it(terminal: Ends) -> None:
    taken: list[tuple[str, bytes]] = []
    terminal.commands = Noted(lambda letter: taken.append((letter, bytes(terminal.port.taken))))
    terminal.attach(Port(room=100))
    terminal.type(b"ab\x01bc\x01Bd")
    terminal.until(lambda: terminal.port.taken == b"abcd")
    assert taken == [("b", b"ab"), ("b", b"abc")]


@pytest.mark.usefixtures("no_wait")
def test_the_loop_does_not_wait_for_a_terminal(terminal: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """poll() has said that there is room, and another process took it."""
    monkeypatch.setattr(select, "poll", AlwaysWritable)
    terminal.console = Console(terminal.fd_in, terminal.fd_out)
    terminal.attach()
    terminal.console.write(b"x" * (1 << 20))
    terminal.turn()
    assert len(terminal.shown()) > 0
    assert terminal.holds == [True]
    assert os.get_blocking(terminal.fd_out), "the user's description stays as it was"


def test_an_escape_works_while_the_guest_takes_nothing(terminal: Ends) -> None:
    terminal.attach(Port(room=100))
    terminal.port.room = 0
    terminal.type(b"\x01x")
    terminal.until(lambda: bool(terminal.commands))
    assert terminal.commands == ["x"]


# The parser of escapes


@given(st.lists(st.binary(max_size=6)))
@settings(max_examples=300, deadline=None)
def test_escapes_do_not_depend_on_how_the_input_is_cut(chunks: list[bytes]) -> None:
    parser, whole = EscapeParser(), EscapeParser()
    parts = [part for chunk in chunks for part in parser.feed(chunk)]
    assert joined(parts) == joined(whole.feed(b"".join(chunks)))


def joined(parts: list[bytes | str]) -> list[bytes | str]:
    """With neighbouring pieces for the guest as one."""
    result: list[bytes | str] = []
    for part in parts:
        if isinstance(part, bytes) and result and isinstance(last := result[-1], bytes):
            result[-1] = last + part
        else:
            result.append(part)
    return result


@given(st.binary(min_size=1))
def test_without_ctrl_a_everything_passes(data: bytes) -> None:
    data = data.replace(b"\x01", b"!")
    assert EscapeParser().feed(data) == [data]


@given(st.binary(min_size=1))
def test_doubled_ctrl_a_brings_everything_through(data: bytes) -> None:
    assert EscapeParser().feed(data.replace(b"\x01", b"\x01\x01")) == [data]


def test_every_other_character_after_ctrl_a_is_a_command_in_either_case() -> None:
    for code in set(range(256)) - {1}:
        assert EscapeParser().feed(b"<\x01%c>" % code) == [b"<", chr(code).lower(), b">"]


# What is sent by script


def test_what_is_sent_goes_to_the_port_before_what_is_typed(ends: Ends) -> None:
    port = Port(room=4)
    ends.attach(port)
    ends.console.send(b"scripted")
    ends.type(b"typed")
    ends.turn()
    assert bytes(port.taken) == b"scri"
    port.empty(4)
    ends.turn()
    assert bytes(port.taken) == b"scripted"
    port.empty()
    ends.turn()
    assert bytes(port.taken) == b"scriptedtyped"


def test_it_does_so_where_keys_take_the_input_and_only_when_a_driver_listens(ends: Ends) -> None:
    port, keys = Port(listening=False), bytearray()
    ends.attach(port, keys.extend)
    ends.console.send(b"scripted")
    ends.type(b"typed")
    ends.turn()
    assert (bytes(port.taken), bytes(keys)) == (b"", b"typed")
    port.listening = True
    port.empty()
    assert (bytes(port.taken), bytes(keys)) == (b"scripted", b"typed")
