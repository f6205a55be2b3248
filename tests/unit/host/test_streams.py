"""A command's standard streams by ports of a virtio console: exact, none lost, and the end after the last byte."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import UserError
from pyvmm.host.streams import HIGH_WATER, NAMES, Streams
from pyvmm.loop import Loop
from pyvmm.machine.outcome import End, Outcome
from tests.rig.console_driver import ConsoleDriver

PAGE = 4096


class Ends:
    """A guest's driver with all four ports open, and our ends of the descriptors."""

    def __init__(self, stdin: int | None = None, stdout: int | None = None) -> None:
        self.loop = Loop(threading.Lock())
        self.open: list[int] = []
        self.fds = [self._pipe(read=True), self._pipe(read=False), self._pipe(read=False)]
        """What the streams have; what we have of them is in *ours*."""
        self.guest = ConsoleDriver(names=NAMES)
        fds = (self.fds[0][0] if stdin is None else stdin, self.fds[1][0] if stdout is None else stdout, self.fds[2][0])
        self.streams = Streams(self.guest.device, fds)
        self.outcomes: list[Outcome] = []
        self.failed: list[str] = []
        self.streams.attach(self.loop, self.outcomes.append, lambda error: self.failed.append(str(error)))
        for name in NAMES:
            self.guest.open(name)

    def _pipe(self, read: bool) -> tuple[int, int]:
        reader, writer = os.pipe()
        theirs, ours = (reader, writer) if read else (writer, reader)
        os.set_blocking(ours, False)
        self.open += [reader, writer]
        return theirs, ours

    def turn(self, times: int = 6) -> None:
        for _ in range(times):
            self.loop.run_once(0)
            self.guest.virtio.board.run_later()

    def write(self, name: str, data: bytes) -> None:
        """The guest writes to a port, a page a time."""
        index = self.guest.device.port(name).transmitq.index
        for at in range(0, len(data), PAGE):
            self.guest.send(index, data[at : at + PAGE])

    def shown(self, number: int = 1) -> bytes:
        data = b""
        while True:
            try:
                more = os.read(self.fds[number][1], 1 << 16)
            except BlockingIOError:
                return data
            if not more:
                return data
            data += more

    def close(self) -> None:
        self.streams.detach()
        self.streams.close()
        self.loop.close()
        for fd in self.open:
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
def make() -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def one(**options: int) -> Ends:
        made.append(Ends(**options))
        return made[-1]

    yield one
    for ends in made:
        ends.close()


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=300)), max_size=20))
@settings(max_examples=25, deadline=None)
def test_output_is_exact_and_the_status_last(writes: list[tuple[str, bytes]]) -> None:
    ends = Ends()
    try:
        for name, data in writes:
            ends.write(name, data)
        ends.write("status", b"42\n")
        ends.turn()
        assert ends.shown(1) == b"".join(data for name, data in writes if name == "stdout")
        assert ends.shown(2) == b"".join(data for name, data in writes if name == "stderr")
        assert ends.outcomes[0] == Outcome(End.COMMAND, 42)
        assert ends.outcomes[0].status == 42
    finally:
        ends.close()


def test_a_slow_reader_gets_all_of_it_and_the_end_waits(make: Callable[..., Ends]) -> None:
    ends = make()
    port = ends.guest.device.port("stdout")
    text = os.urandom(PAGE) * (HIGH_WATER // PAGE + 40)
    written = 0
    queue = ends.guest.queues[port.transmitq.index]
    ends.guest.ram.write(0x1E0000, text[:PAGE])
    while not port.held:  # until the guest is held back
        assert queue.add([(0x1E0000, PAGE, False)]) is not None
        ends.guest.virtio.kick(port.transmitq.index)
        queue.used()
        ends.turn(1)
        written += PAGE
        assert written <= len(text)
    more = 0
    while queue.add([(0x1E0000, PAGE, False)]) is not None:  # which fills its ring
        more += PAGE
    ends.guest.virtio.kick(port.transmitq.index)
    ends.write("status", b"3\n")
    ends.turn(20)
    assert ends.outcomes == [] and port.held
    got = ends.shown()
    while not ends.outcomes:
        ends.turn(1)
        got += ends.shown()
    assert got == text[:PAGE] * ((written + more) // PAGE)
    assert ends.outcomes == [Outcome(End.COMMAND, 3)]


@pytest.mark.parametrize("status", [b"", b"5", b"x\n", b"-1\n", b"\n", b"123456789\n"])
def test_what_is_no_status_ends_nothing(make: Callable[..., Ends], status: bytes) -> None:
    ends = make()
    if status:
        ends.write("status", status)
    ends.turn()
    assert ends.outcomes == []


def test_a_reader_that_has_gone_ends_the_command(make: Callable[..., Ends]) -> None:
    ends = make()
    os.close(ends.fds[1][1])
    ends.write("stdout", b"y\n")
    ends.turn()
    assert [outcome.status for outcome in ends.outcomes] == [141]
    ends.write("stdout", b"y\n")
    ends.turn()


def test_without_a_reader_of_its_errors_it_goes_on(make: Callable[..., Ends]) -> None:
    ends = make()
    os.close(ends.fds[2][1])
    ends.write("stderr", b"y\n")
    ends.write("stdout", b"z\n")
    ends.write("status", b"0\n")
    ends.turn()
    assert ends.shown() == b"z\n" and [outcome.status for outcome in ends.outcomes] == [0]


def test_a_full_disk_is_told(make: Callable[..., Ends]) -> None:
    with open("/dev/full", "wb") as full:
        ends = make(stdout=full.fileno())
        ends.write("stdout", b"x")
        ends.write("status", b"0\n")
        ends.turn()
        assert ends.failed == ["cannot write to standard output: No space left on device"]
        assert issubclass(UserError, Exception)


def test_input_to_its_end(make: Callable[..., Ends]) -> None:
    """A pipe: what is written, then the end, and no byte after that."""
    ends = make()
    text = os.urandom(3000)
    os.write(ends.fds[0][1], text)
    os.close(ends.fds[0][1])
    got = b""
    for _ in range(60):
        ends.turn(2)
        port = ends.guest.device.port("stdin")
        heard = ends.guest.control()
        if heard:
            assert got == text and heard == [(0, 6, 0, b"")] and not port.host_open
            break
        got += b"".join(ends.guest.received(0, room=99))
    else:
        pytest.fail("the end has not come")


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_input_from_a_file(make: Callable[..., Ends], tmp_path: Path, size: int) -> None:
    """Which epoll does not wait for."""
    text = os.urandom(size)
    (tmp_path / "in").write_bytes(text)
    with open(tmp_path / "in", "rb") as file:
        ends = make(stdin=file.fileno())
        got = b""
        for _ in range(200):
            ends.turn(2)
            got += b"".join(ends.guest.received(0, room=99))
            if not ends.guest.device.port("stdin").host_open:
                break
        assert got == text and not ends.guest.device.port("stdin").host_open


def test_input_and_output_of_one_socket(make: Callable[..., Ends]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ends = make(stdin=theirs.fileno(), stdout=theirs.fileno())
        ours.sendall(b"question")
        ends.turn()
        assert ends.guest.received(0, room=9) == [b"question"]
        ends.write("stdout", b"answer")
        ends.turn()
        assert ours.recv(100) == b"answer"
        ends.streams.detach()


def test_what_is_left_when_the_machine_ends_is_written(make: Callable[..., Ends]) -> None:
    ends = make()
    ends.write("stdout", b"last words")
    ends.streams.detach()
    assert ends.shown() == b""
    ends.streams.close()
    assert ends.shown() == b"last words"
