"""A virtio console on a real machine: the terminal, sockets that come and go with it, one-line mistakes."""

from __future__ import annotations

import fcntl
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

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
