"""Who comes to a listening socket, where there may be no descriptor for him: he waits, and who looks does not spin."""

from __future__ import annotations

import errno
import select
import socket
from typing import Final

SHORTAGE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""accept(2): the client is still there."""
ONCE: Final = select.EPOLLIN | select.EPOLLET
"""For the loop: to be called once for each who comes, also where there is no descriptor for him. He waits for the next
then, or for who is served to go."""
REST: Final = 0.2
"""Seconds until who looks looks again."""


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
