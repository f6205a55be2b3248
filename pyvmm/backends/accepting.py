"""Who comes to a listening socket, where there may be no descriptor for him: he waits, and who looks does not spin."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Final

from pyvmm.backends.byte_stream import Waiting

SHORTAGE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""accept(2): the client is still there."""
REST: Final = 0.2
"""Seconds until who looks looks again."""


class Door:
    """Of *listener*, which does not block, in *loop*: while it is open who comes is given to *come*, and it is shut."""

    def __init__(self, listener: socket.socket, loop: Waiting, come: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._loop = loop
        self._come = come
        self._again = loop.timer(self.open)

    def open(self) -> None:
        """For the next."""
        self._loop.add(self._listener.fileno(), self._accept)

    def shut(self) -> None:
        """Who comes waits. Call it before the listener is closed."""
        self._again.cancel()
        self._loop.remove(self._listener.fileno())

    def _accept(self) -> None:
        try:
            client = self._listener.accept()[0]
        except OSError as error:
            if error.errno in SHORTAGE:  # he would be there to look at all the time
                self.shut()
                self._again.arm(self._loop.now() + int(REST * 1e9))
            return
        self.shut()
        self._come(client)


def accept(listener: socket.socket, wake_fd: int) -> socket.socket | None:
    """Who has come to *listener*, which is ready, from a thread that *wake_fd* wakes. None: he has gone again, or there
    is no descriptor for him, REST ago or until *wake_fd* was ready."""
    try:
        return listener.accept()[0]
    except OSError as error:
        if error.errno in SHORTAGE:
            wake = select.poll()
            wake.register(wake_fd, select.POLLIN)
            wake.poll(REST * 1000)
        return None
