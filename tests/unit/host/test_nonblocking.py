"""Output that never waits, to a terminal, a pipe or a file, through a description that is not the user's."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.nonblocking import Output
from tests.rig.fakes import AlwaysWritable


@pytest.fixture(params=["terminal", "pipe"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """What is read from, and what is written to."""
    if request.param == "pipe":
        ours, theirs = os.pipe()
    else:
        ours, theirs = os.openpty()
        tty.setraw(theirs)
    os.set_blocking(ours, False)
    yield ours, theirs
    for fd in (ours, theirs):
        try:
            os.close(fd)
        except OSError:
            pass


def read_all(fd: int) -> bytes:
    got = b""
    while True:
        try:
            got += os.read(fd, 65536)
        except BlockingIOError:
            return got


@pytest.mark.usefixtures("no_wait")
def test_a_full_reader_takes_nothing_even_if_poll_says_otherwise(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "poll", AlwaysWritable)  # another process takes the room between our poll and our write
    ours, theirs = ends
    output = Output(theirs)
    data = os.urandom(1 << 20)
    written = 0
    while count := output.write(data[written:], 30):  # a terminal takes more when the kernel gets to it
        written += count
    assert 0 < written < len(data)
    got = b""
    while len(got) < len(data):
        got += read_all(ours)
        written += output.write(data[written:])
    assert got == data
    output.close()


def test_the_users_description_is_left_alone(ends: tuple[int, int]) -> None:
    _, theirs = ends
    before = fcntl.fcntl(theirs, fcntl.F_GETFL)
    output = Output(theirs)
    assert fcntl.fcntl(output.fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert fcntl.fcntl(theirs, fcntl.F_GETFL) == before
    assert not before & os.O_NONBLOCK
    own = output.fd
    output.close()
    output.close()
    with pytest.raises(OSError):
        os.fstat(own)
    os.fstat(theirs)


@pytest.mark.parametrize("ends", ["pipe"], indirect=True)
def test_the_reader_sees_the_end_when_both_are_closed(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    output = Output(theirs)
    os.close(theirs)
    assert output.write(b"last") == 4
    output.close()
    os.set_blocking(ours, True)
    assert (os.read(ours, 10), os.read(ours, 10)) == (b"last", b"")


def test_a_reader_that_is_gone(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    output = Output(theirs)
    os.close(ours)
    with pytest.raises(OSError):
        output.write(b"x")
    output.close()


def test_a_file_keeps_its_place(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as file:
        file.write(b"before ")
        output = Output(file.fileno())
        assert output.fd == file.fileno()
        assert output.write(b"x" * 10_000) == 10_000
        output.close()
        file.write(b" after")
    assert (tmp_path / "out").read_bytes() == b"before " + b"x" * 10_000 + b" after"


def test_a_socket() -> None:
    ours, theirs = socket.socketpair()
    output = Output(theirs.fileno())
    assert output.write(b"hello") == 5
    assert ours.recv(10) == b"hello"
    output.close()
    theirs.send(b"still open")
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("no_wait")
def test_a_terminal_that_cannot_be_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another user's, and not our controlling terminal: byte by byte, as long as there is room."""

    def refuse(path: str, flags: int) -> int:
        raise PermissionError

    ours, theirs = os.openpty()
    tty.setraw(theirs)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        output = Output(theirs)
    assert output.fd == theirs
    data = b"x" * 100_000
    written = 0
    while count := output.write(data[written:]):
        written += count
    assert 0 < written < len(data)
    os.set_blocking(ours, False)
    assert read_all(ours)
    output.close()
    os.close(ours)
    os.close(theirs)


AFTER_SU = """
import fcntl, os, termios
from pyvmm.host.nonblocking import Output

def open_only_dev_tty(path, flags):
    if path != "/dev/tty":
        raise PermissionError
    return real(path, flags)

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
real, os.open = os.open, open_only_dev_tty
output = Output(0)
assert output.fd > 2 and not os.get_blocking(output.fd) and os.get_blocking(0)
output.write(b"by /dev/tty")
"""


def test_the_controlling_terminal_of_another_user() -> None:
    """As after su: the device may not be opened, but /dev/tty may."""
    ours, theirs = os.openpty()
    code = [sys.executable, "-c", AFTER_SU]
    ran = subprocess.run(code, stdin=theirs, stderr=subprocess.PIPE, start_new_session=True)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert os.read(ours, 100) == b"by /dev/tty"
    os.close(ours)
    os.close(theirs)
