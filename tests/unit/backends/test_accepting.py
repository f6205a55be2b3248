"""Who comes where there is no descriptor for him is not forgotten, and who looks after him does not spin."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pyvmm.backends import stream_socket
from pyvmm.backends.networks import HostNetworks
from pyvmm.backends.sockets import Sockets
from pyvmm.control.listening import Listening
from pyvmm.loop import Loop
from tests.unit.backends.test_stream_socket import End


class Short(socket.socket):
    """Listens, and has no descriptor for who comes, *times* times."""

    times = 3
    asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.asked <= self.times:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def listener(path: str = "") -> Short:
    """At a name of the kernel's, unless given."""
    made = Short(socket.AF_UNIX)
    made.bind(path)
    made.listen()
    return made


class Server(Listening):
    def __init__(self, listener: socket.socket) -> None:
        super().__init__("server", listener, None)
        self.served = threading.Event()
        self._start()

    def _talk_to(self, client: socket.socket) -> None:
        self.served.set()


def test_a_thread_looks_again_in_a_while() -> None:
    short = listener()
    with Server(short) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(short.getsockname())
        assert server.served.wait(60)
    assert short.asked == 4


def test_a_thread_that_never_gets_one_ends() -> None:
    short = listener()
    short.times = 1 << 30
    with Server(short), socket.socket(socket.AF_UNIX) as client:
        client.connect(short.getsockname())
        while not short.asked:
            pass


@pytest.mark.parametrize("kind", ["a stream of a device's", "a wire"])
def test_the_loop_looks_again_when_the_next_comes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loop = str(tmp_path / "socket"), Loop(nullcontext())
    with monkeypatch.context() as patch:
        if kind == "a wire":
            patch.setattr(socket, "socket", lambda *_: Short(socket.AF_UNIX))
            used: Any = HostNetworks(loop, loop, lambda: False, lambda line: None).open(f"socket:{path}")
        else:
            patch.setattr(stream_socket, "listen", listener)
            used = Sockets(loop).listen(path, End())
    short: Short = used._listener
    short.times = 1
    clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for number, client in enumerate(clients, 1):
        client.connect(path)
        for _ in range(20):
            loop.run_once(0)
        assert short.asked == number
    for one in (*clients, used, loop):
        one.close()
