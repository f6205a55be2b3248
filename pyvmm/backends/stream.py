"""Frames over a Unix stream socket, each behind its length: 4 bytes, big-endian.

This is what passt speaks and what QEMU's `-netdev stream` and `-netdev socket` do (QEMU, net/stream.c). A partner that
is slow has `most_unsent` bytes before frames for it are dropped.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path
from typing import Final

from pyvmm.backends.accepting import Door
from pyvmm.backends.batches import TOGETHER, Batches
from pyvmm.backends.cable import Cable, Host
from pyvmm.backends.pcap import Dump
from pyvmm.backends.wire import HEADER_SIZE, MAX_FRAME
from pyvmm.errors import UserError, printable
from pyvmm.units import KIB, MIB

LENGTH: Final = 4
READ: Final = 256 * KIB
MAX_UNSENT: Final = MIB
SOCKET_BUFFER: Final = MIB
"""Asked for, either way; the kernel gives what net.core.wmem_max lets it."""
MOST_MET: Final = 3
"""Others, one after the other, of whom no frame comes."""
STALE_TRIES: Final = 3
"""A socket that nobody listens to is looked at so often, 50 ms apart, before it counts as left behind."""


class StreamCable(Cable):
    """Over a connected socket, once _use() has been given one."""

    most_unsent = MAX_UNSENT

    def __init__(self, name: str, host: Host, dump: Dump | None) -> None:
        super().__init__(name, host, dump)
        self.connected = False
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._at = 0
        """What of the buffer has been taken."""
        self._pending = Batches()

    def _use(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        self._socket, self._fd = connection, connection.fileno()
        self._buffer, self._at = b"", 0
        self._pending.clear()
        self._set_connected(True)
        self._watch()

    def _put(self, frame: bytes | bytearray | memoryview, more: bool) -> bool:
        assert self._socket is not None
        head = len(frame).to_bytes(LENGTH, "big")
        size = LENGTH + len(frame)
        if self._pending.size or (more and size < TOGETHER):
            if self._pending.size + size > self.most_unsent:
                return False
            self._pending.add(head, frame)
            if not self._events & select.EPOLLOUT and (not more or self._pending.size >= TOGETHER):
                self._flush()
                self._watch()
            return True
        try:
            done = self._socket.sendmsg((head, frame))
        except BlockingIOError:
            done = 0
        except OSError as error:
            self._lost(f"the other end has gone ({error.strerror})")
            return False
        if done < size:
            self._pending.add(head, frame, done)
            self._watch()
        return True

    @property
    def _unsent(self) -> bool:
        return self._pending.size > 0

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            self._pending.send(self._socket)
        except BlockingIOError:
            pass
        except OSError as error:
            self._lost(f"the other end has gone ({error.strerror})")

    @property
    def _buffered(self) -> bool:
        have = len(self._buffer) - self._at
        return have >= LENGTH and have >= LENGTH + self._length()

    def _length(self) -> int:
        return int.from_bytes(self._buffer[self._at : self._at + LENGTH], "big")

    def _take(self) -> bool:
        if len(self._buffer) - self._at >= LENGTH:
            length = self._length()
            if length > MAX_FRAME:
                self._lost(f"the other end sends what is no frame ({length} bytes)")
                return False
            start = self._at + LENGTH
            if len(self._buffer) >= start + length:
                self._at = start + length
                if length < HEADER_SIZE:
                    self.dropped += 1
                else:
                    self._deliver(self._buffer[start : self._at])
                return True
        return self._read()

    def _read(self) -> bool:
        assert self._socket is not None
        try:
            data = self._socket.recv(READ)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(f"the other end has gone ({error.strerror})")
            return False
        if not data:
            self._lost("the other end has gone")
            return False
        self._buffer, self._at = self._buffer[self._at :] + data, 0
        return True

    def _lost(self, why: str) -> None:
        self._disconnect()
        self._host.tell(f"{self.name}: {why}: the guest's link is down")
        self._set_connected(False)

    def _disconnect(self) -> None:
        super()._let_go()
        self._buffer, self._at = b"", 0
        self._pending.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _let_go(self) -> None:
        self._disconnect()


class SocketCable(StreamCable):
    """The Unix socket *path*: whoever comes first listens there, the second connects, and a third waits. The link is
    down until there are two; after one has gone, the other listens for the next."""

    def __init__(self, path: Path, host: Host, dump: Dump | None) -> None:
        super().__init__(f"net socket:{printable(str(path))}", host, dump)
        self._path = path
        self._listener: socket.socket | None = None
        self._door: Door | None = None
        self._made: tuple[int, int] | None = None
        """Which file is ours to remove."""
        self._met = self._received_before = 0
        """Others since a frame came, and how many had come by then."""
        try:
            self._meet()
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise
            cure = "name a socket in a folder that you may write to" if error.strerror else "name another"
            raise UserError(f"{self.name}: {error.strerror or error}: {cure}") from None

    def _meet(self) -> None:
        """Connect, or else listen."""
        if self._path.exists() and not self._path.is_socket():
            raise OSError("that is no socket")
        for tried in range(1, STALE_TRIES + 1):
            connection = self._connect()
            if connection is not None:
                self._use(connection)
                return
            if self._listen(tried == STALE_TRIES):
                return
            select.select((), (), (), 0.05)
        raise OSError("others come and go there")

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(os.fspath(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except BlockingIOError:
            connection.close()
            raise OSError("there are two at this wire already, and a third waits") from None
        except OSError:
            connection.close()
            raise
        return connection

    def _listen(self, remove: bool) -> bool:
        """Whether we listen now; with *remove* what nobody listens to goes."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if remove and self._path.is_socket():
                self._path.unlink(missing_ok=True)
            listener.bind(os.fspath(self._path))
        except OSError as error:
            listener.close()
            if self._path.is_socket() and error.errno == errno.EADDRINUSE:
                return False
            raise
        listener.setblocking(False)
        listener.listen(1)
        status = self._path.stat()
        self._made = status.st_dev, status.st_ino
        self._listener = listener
        self._door = Door(listener, self._host.loop, self._use)
        self._door.open()
        return True

    def _lost(self, why: str) -> None:
        super()._lost(why)
        if self.closed:
            return
        try:
            if self._door is not None:
                self._door.open()
            else:
                self._meet_another()
        except OSError:
            pass  # nobody finds us any more; the line has said that the link is down

    def _meet_another(self) -> None:
        """Who listened has gone: others may have waited for him, too, and one of them listens already. Who has us come
        and sends nothing but the end is left alone after some times."""
        if self.received != self._received_before:
            self._received_before, self._met = self.received, 0
        self._met += 1
        connection = self._connect() if self._met <= MOST_MET else None
        if connection is not None:
            self._use(connection)
        else:
            self._listen(remove=self._met <= MOST_MET)

    def close(self) -> None:
        super().close()
        if self._door is not None and self._listener is not None:
            self._door.shut()
            self._listener.close()
            self._door = self._listener = None
            try:
                status = self._path.stat()
                if (status.st_dev, status.st_ino) == self._made:
                    self._path.unlink()
            except OSError:
                pass
