"""A Unix socket that one program at a time connects to, and a stream of a device behind it. Nothing here blocks.

What the device writes while nobody is connected is lost. A program that reads slowly slows the device down; one that
writes fast is read only while the device takes it. Who has gone makes room for the next.
"""

from __future__ import annotations

import select
import socket
from pathlib import Path
from typing import Final

from pyvmm.backends.accepting import Door
from pyvmm.backends.byte_stream import StreamEnd, Waiting
from pyvmm.backends.unix_socket import listen

HIGH_WATER: Final = 256 << 10
"""Bytes that wait for the program before the device waits too."""
CHUNK: Final = 64 << 10


class StreamSocket:
    """The socket *path*, which is made now, and *end*; close() takes it away. Raises UserError."""

    def __init__(self, path: str, loop: Waiting, end: StreamEnd) -> None:
        self.path = Path(path)
        self._loop = loop
        self._end = end
        self._client: socket.socket | None = None
        self._to_client = bytearray()
        self._to_device = b""
        self._input_ended = False
        self._gone = False
        """The program has left; what it had written is still to be read."""
        self._posted = False
        self._listener = listen(path)
        end.output = self._write
        end.on_room = self._feed
        self._door = Door(self._listener, loop, self._come)
        self._door.open()

    def _come(self, client: socket.socket) -> None:
        client.setblocking(False)
        self._client = client
        self._input_ended = self._gone = False
        self._end.connect()
        self._feed()

    # The device's output

    def _write(self, data: bytes) -> None:
        if self._client is None or self._gone:
            return
        self._to_client += data
        if len(self._to_client) > HIGH_WATER:
            self._end.held = True
        if not self._posted:
            self._posted = True
            self._loop.post(self._flush_posted)

    def _flush_posted(self) -> None:
        self._posted = False
        self._flush()
        self._watch()

    def _flush(self) -> None:
        client = self._client
        if client is None:
            return
        try:
            while self._to_client:
                del self._to_client[: client.send(self._to_client)]
        except BlockingIOError:
            return
        except OSError:  # the program has gone: its end is found by reading
            self._to_client.clear()
        self._end.release()

    # The program's

    @property
    def _reading(self) -> bool:
        return self._client is not None and not self._to_device and not self._input_ended and self._end.listening

    def _feed(self) -> None:
        """Give the device what waits, and read on."""
        if self._to_device:
            self._to_device = self._to_device[self._end.receive(self._to_device) :]
        if self._gone:
            self._drain()
        self._watch()

    def _read(self) -> bool:
        """Whether something came, or the end."""
        assert self._client is not None
        try:
            data = self._client.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._input_ended = True
            return True
        self._to_device = data[self._end.receive(data) :]
        return True

    def _watch(self) -> None:
        """For what there is to do; a socket whose program has left would be ready for ever."""
        client = self._client
        if client is None:
            return
        if self._gone:
            self._loop.remove(client.fileno())
            return
        events = (select.EPOLLIN if self._reading else 0) | (select.EPOLLOUT if self._to_client else 0)
        self._loop.add(client.fileno(), self._ready, events)

    def _ready(self) -> None:
        client = self._client
        if client is None:
            return
        self._flush()
        if self._reading:
            self._read()
        if _has_left(client):
            self._gone = True
            self._to_client.clear()
            self._end.release()
            self._drain()
        self._watch()

    def _drain(self) -> None:
        """All that a program that has left had written, as far as the device takes it. A device where nobody listens
        hears nothing of it."""
        while self._reading and self._read():
            pass
        if self._client is not None and (not self._end.listening or (self._input_ended and not self._to_device)):
            self._hang_up()

    def _hang_up(self) -> None:
        client = self._client
        if client is None:
            return
        self._client = None
        self._loop.remove(client.fileno())
        client.close()
        self._to_client.clear()
        self._to_device = b""
        self._gone = False
        self._end.release()
        self._end.hang_up()
        self._door.open()

    def begin_again(self) -> None:
        """The device is another: who was connected to the one before has to come anew."""
        if self._client is None:
            self._end.hang_up()
        self._hang_up()

    def close(self) -> None:
        """Once is enough."""
        if self._listener.fileno() < 0:
            return
        if self._client is not None:
            self._loop.remove(self._client.fileno())
            self._client.close()
            self._client = None
        self._door.shut()
        self._listener.close()
        self.path.unlink(missing_ok=True)


def _has_left(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(0))
