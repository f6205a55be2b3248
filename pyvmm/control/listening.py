"""What servers of one client at a time have in common: a socket, a thread that waits at it, and what wakes it."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from types import TracebackType
from typing import Final, Self

from pyvmm import threads
from pyvmm.backends.accepting import accept

SEND_TIMEOUT: Final = 10.0
"""Seconds: a client that reads nothing for so long is gone."""
GOODBYE: Final = 1.0
"""Seconds that it gets to hear the last, whatever it still sends."""


class Listening:
    """Waits for clients of *listener*, which is at *path* where it is a Unix socket; a context manager. What is derived
    from it serves one in _talk_to(), and ends that when `_closing` is set and `_wake_fd` can be read."""

    def __init__(self, name: str, listener: socket.socket, path: str | None) -> None:
        self._listener = listener
        self._path = path
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def _start(self) -> None:
        threads.start(self._thread)

    def close(self) -> None:
        """Let go of the client and end; once is enough."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join()
        self._ended()
        self._listener.close()
        os.close(self._wake_fd)
        if self._path is not None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass

    def _ended(self) -> None:
        """The thread has ended; its descriptors are there still."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    # The thread

    def _main(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        while not self._closing:
            ready = dict(poll.poll())
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            if self._listener.fileno() in ready and not self._closing:
                self._accept()

    def _accept(self) -> None:
        client = accept(self._listener, self._wake_fd)
        if client is None:
            return
        with client:
            client.settimeout(SEND_TIMEOUT)
            self._talk_to(client)

    def _talk_to(self, client: socket.socket) -> None:
        """Serve it until it is gone or `_closing` is set; nothing may be raised."""
        raise NotImplementedError


def say_goodbye(client: socket.socket) -> None:
    """Let it read what was said last: a socket that is closed with something unread is reset."""
    client.shutdown(socket.SHUT_WR)
    until = time.monotonic() + GOODBYE
    while (left := until - time.monotonic()) > 0:
        client.settimeout(left)
        if not client.recv(65536):
            return
