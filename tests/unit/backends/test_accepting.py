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
from pyvmm.backends.accepting import REST, Door
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
def test_the_loop_looks_again_in_a_while(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before, though he is there."""
    path, loop = str(tmp_path / "socket"), Loop(nullcontext())
    with monkeypatch.context() as patch:
        if kind == "a wire":
            patch.setattr(socket, "socket", lambda *_: Short(socket.AF_UNIX))
            used: Any = HostNetworks(loop, loop, lambda: False, lambda line: None).open(f"socket:{path}")
        else:
            patch.setattr(stream_socket, "listen", listener)
            used = Sockets(loop).listen(path, End())
    short: Short = used._listener
    now = [loop.now()]
    monkeypatch.setattr(loop, "now", lambda: now[0])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        for number in range(1, 5):
            for _ in range(20):
                loop.run_once(0)
            assert short.asked == number
            now[0] += int(REST * 1e9)
            loop.timer(lambda: None).arm(0)
        assert used._client if kind != "a wire" else used.connected
    used.close()
    loop.run_once(0)
    loop.close()


def test_a_door_that_is_shut_while_he_waits_stays_so(tmp_path: Path) -> None:
    loop, short, came = Loop(nullcontext()), listener(str(tmp_path / "socket")), list[socket.socket]()
    door = Door(short, loop, came.append)
    door.open()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(short.getsockname())
        loop.run_once(0)
        door.shut()
        short.close()
        loop.run_once(2 * REST)
    assert short.asked == 1 and not came
    loop.close()
