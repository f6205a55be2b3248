"""Frames that wait for a stream socket, in what one call is to send: a frame, or several small ones.

passt loses its place in the stream where what it reads breaks off inside a frame and the next read does not bring all
the rest (before 2024; tap.c, tap_handler_passt()). Then it takes no frame, for a minute perhaps, until by chance one
begins where it looks. What is read breaks off where a buffer of the kernel's does, of some 36,000 bytes
(net/unix/af_unix.c, unix_stream_sendmsg()). So a large frame goes alone, in two of those at most, and small ones go
together in one.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

from pyvmm.units import KIB

TOGETHER: Final = 32 * KIB
"""Bytes of frames that go together."""
MOST_CALLS: Final = 32
"""One after the other: a partner that reads as fast as we send does not keep the machine lock."""


class Batches:
    """*size* is the number of bytes that wait."""

    def __init__(self) -> None:
        self.size = 0
        self._batches: deque[bytearray] = deque()
        self._broken_off = False
        """The socket has taken a part of the first."""

    def clear(self) -> None:
        self._batches.clear()
        self.size, self._broken_off = 0, False

    def add(self, head: bytes, frame: bytes | bytearray | memoryview, done: int = 0) -> None:
        """*head* and *frame*, of which the socket has taken *done* bytes, if nothing waits yet."""
        size = len(head) + len(frame)
        only = self._broken_off and len(self._batches) == 1
        if not self._batches or only or len(self._batches[-1]) + size > TOGETHER:
            self._batches.append(bytearray())
        self._batches[-1] += head
        self._batches[-1] += frame
        self.size += size
        if done:
            self._sent(done)

    def send(self, connection: socket.socket) -> None:
        """What *connection* takes without waiting; raises OSError, BlockingIOError where that is nothing more."""
        for _ in range(min(MOST_CALLS, len(self._batches))):
            self._sent(connection.send(self._batches[0]))

    def _sent(self, done: int) -> None:
        first = self._batches[0]
        self.size -= done
        self._broken_off = done < len(first)
        if self._broken_off:
            del first[:done]
        else:
            self._batches.popleft()
