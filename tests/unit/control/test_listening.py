"""A server of one client at a time that has no descriptor for it."""

from __future__ import annotations

import errno
import os
import socket
import threading

from pyvmm.control.listening import Listening


class Short(socket.socket):
    """Has a client for whom there is no descriptor, *times* times."""

    times = 3
    asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        if self.asked <= self.times:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


class Server(Listening):
    def __init__(self, listener: socket.socket) -> None:
        super().__init__("server", listener, None)
        self.served = threading.Event()
        self._start()

    def _talk_to(self, client: socket.socket) -> None:
        self.served.set()


def test_a_client_without_a_descriptor_is_looked_at_again_and_not_all_the_time() -> None:
    listener = Short(socket.AF_UNIX)
    listener.bind("")  # a name of the kernel's
    listener.listen()
    with Server(listener) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        assert server.served.wait(60)
    assert listener.asked == 4


def test_one_for_whom_there_is_never_a_descriptor_does_not_keep_it_from_ending() -> None:
    listener = Short(socket.AF_UNIX)
    listener.times = 1 << 30
    listener.bind("")
    listener.listen()
    with Server(listener), socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        while not listener.asked:
            pass
