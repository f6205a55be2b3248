"""A virtio console on a real machine: the terminal, sockets that come and go with it, one-line mistakes."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
from contextlib import closing
from functools import partial
from pathlib import Path

from pyvmm.config import HostConfig
from pyvmm.host.console import Console as Terminal
from pyvmm.host.session import Session
from tests.rig.board import board
from tests.rig.console import Console

PYVMM = Path(sys.executable).with_name("pyvmm")
GREETING = "q powers off.\r\n"


def test_what_is_typed_goes_to_com1_until_the_guest_has_hvc0_open() -> None:
    """Which this guest never has."""
    with Console([PYVMM, "run", "hello", "--device", "virtio-console"], on_pty=True, size=(31, 97)) as console:
        console.expect(GREETING)
        fcntl.ioctl(console._in, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
        console.send("abc")
        console.expect("abc")
        console.send("q")
        assert console.wait() == 0


def test_a_socket_is_there_while_the_machine_is(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command: list[str | Path] = [PYVMM, "run", "hello", "--device", f"virtio-console,port.a=socket:{path}"]
    with Console(command, on_pty=True) as console:
        console.expect(GREETING)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            second = subprocess.run(command, capture_output=True, text=True)
            assert second.returncode == 2
            assert second.stderr == f"pyvmm: socket {path}: another program listens there: choose another\n"
            console.send("q")
            assert console.wait() == 0
            assert client.recv(1) == b""
    assert not path.exists()


def test_a_signal_takes_the_socket_away_too(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Console([PYVMM, "run", "hello", "--device", f"virtio-console,port.a=socket:{path}"], on_pty=True) as console:
        console.expect(GREETING)
        assert path.is_socket()
        console.signal(signal.SIGTERM)
        assert console.wait() == 128 + signal.SIGTERM
    assert not path.exists()


def take(got: bytearray, data: bytes) -> int:
    got += data
    return len(data)


def test_hvc0_of_a_console_that_comes_has_the_terminal_until_it_goes() -> None:
    """The guest has COM1 alone and echoes what comes there; what a driver of hvc0 would do, the test does."""
    typed, type_in = os.pipe()
    show, shown = os.pipe()
    with (
        board("hello", root_ports=1) as machine,
        closing(Terminal(typed, shown)) as console,
        Session(machine, HostConfig(), console),
    ):
        machine.start()
        assert machine.wait(lambda: machine.output.endswith(b"powers off.\r\n"), 60)
        for _ in range(2):
            device = machine.plug("virtio-console,id=c,port=0")
            port, got = device.terminal, bytearray()
            machine.call(partial(port.output, b"from hvc0"))
            assert machine.wait(lambda: bool(select.select([show], [], [], 0)[0]), 60)
            assert os.read(show, 100) == b"from hvc0"
            port.receive = partial(take, got)
            machine.call(partial(setattr, port, "guest_open", True))
            os.write(type_in, b"to hvc0")
            assert machine.wait(partial(got.startswith, b"to hvc0"), 60)
            machine.unplug("c", force=True)
            machine.call(partial(port.output, b"lost"))
            machine.call(machine.output.clear)
            os.write(type_in, b"to COM1")
            assert machine.wait(lambda: machine.output == b"to COM1", 60)
            assert got == b"to hvc0"
    for fd in (typed, type_in, show, shown):
        os.close(fd)
