"""Standard input, output and error of a command in the guest, by ports of a virtio console; and its exit status.

Every byte comes as it was written, and the machine ends when the last of them is out. A slow reader slows the command
down, and one that has gone ends it, as SIGPIPE would; the command finds the end of its input where ours ends.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Final

from pyvmm.errors import UserError
from pyvmm.host.buffered import BufferedOutput
from pyvmm.host.tty import in_foreground
from pyvmm.loop import Loop
from pyvmm.machine.outcome import End, Outcome
from pyvmm.virtio.console import Port, VirtioConsole

NAMES: Final = ("stdin", "stdout", "stderr", "status")
"""The ports, in an order that has the status last."""
HIGH_WATER: Final = 256 << 10
"""Bytes that wait for a reader before the command waits too."""
CHUNK: Final = 64 << 10


class Streams:
    """The ports of *console* on descriptors of this process, by default its own three; close() leaves those open."""

    def __init__(self, console: VirtioConsole, fds: tuple[int, int, int] = (0, 1, 2)) -> None:
        self._input = _Input(console.port("stdin"), fds[0])
        self._outputs = [
            _Output(console.port("stdout"), fds[1], self._moved, self._gone),
            _Output(console.port("stderr"), fds[2], self._moved, lambda error: None),
        ]
        self._status = bytearray()
        console.port("status").output = self._status_written
        self._loop: Loop | None = None
        self._end: Callable[[Outcome], None] = lambda outcome: None
        self._fail: Callable[[UserError], None] = lambda error: None

    def attach(self, loop: Loop, end: Callable[[Outcome], None], fail: Callable[[UserError], None]) -> None:
        """Serve them from *loop*, under the machine lock. *end* is told how the command has ended, *fail* why
        its output cannot be written."""
        self._loop, self._end, self._fail = loop, end, fail
        self._input.attach(loop)
        for output in self._outputs:
            output.attach(loop)

    def detach(self) -> None:
        self._input.detach()
        for output in self._outputs:
            output.detach()
        self._loop = None

    def take_again(self) -> None:
        """The process may be in the foreground again, where a terminal's input is its own."""
        self._input.feed()

    def close(self) -> None:
        """Write what is left, as far as a reader takes it."""
        for output in self._outputs:
            output.close()

    def _status_written(self, data: bytes) -> None:
        if len(self._status) < 8:  # more than any status has
            self._status += data[:8]
        self._moved()

    def _moved(self) -> None:
        """Something has got further: the command may have ended, and all that it wrote be out."""
        status, newline, _ = bytes(self._status).partition(b"\n")
        if not newline or not status.isdigit() or self._loop is None:
            return
        if any(output.waiting for output in self._outputs):
            return
        if all(output.port.drained for output in self._outputs):
            self._end(Outcome(End.COMMAND, int(status) & 0xFF))
        else:
            self._loop.post(self._moved)  # the rest of a turn, which the loop goes on with

    def _gone(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            self._end(Outcome(End.COMMAND, 128 + signal.SIGPIPE))
        else:
            self._fail(UserError(f"cannot write to standard output: {error.strerror}"))


class _Output:
    """What comes from *port*, to the descriptor *fd*. *moved* is told when all of it has been written, *gone* that
    nobody takes any more; the rest is dropped then."""

    def __init__(self, port: Port, fd: int, moved: Callable[[], None], gone: Callable[[OSError], None]) -> None:
        self.port = port
        port.output = self._write
        self._fd = os.dup(fd)  # of our own: a loop knows a descriptor once
        self._out = BufferedOutput(self._fd, HIGH_WATER, self._failed)
        self._moved, self._gone = moved, gone
        self._lost = False

    @property
    def waiting(self) -> bool:
        """Something is still to be written."""
        return self._out.waiting

    def attach(self, loop: Loop) -> None:
        self._out.attach(loop, self._hold, self._moved)

    def detach(self) -> None:
        self._out.detach()

    def _hold(self, held: bool) -> None:
        if held:
            self.port.held = True
        else:
            self.port.release()

    def _write(self, data: bytes) -> None:
        if not self._lost:
            self._out.write(data)

    def _failed(self, error: OSError) -> None:
        self._lost = True
        self._gone(error)

    def close(self) -> None:
        if self._fd < 0:
            return
        try:
            self._out.close()
        finally:
            os.close(self._fd)
            self._fd = -1


class _Input:
    """What comes from the descriptor *fd*, to *port*; read only while the port takes it."""

    def __init__(self, port: Port, fd: int) -> None:
        self._port = port
        self._fd = fd
        self._loop: Loop | None = None
        self._buffer = b""
        self._pollable = True
        self._reading = False
        self._eof = False

    def attach(self, loop: Loop) -> None:
        self._loop = loop
        self._port.on_room = self.feed
        self.feed()

    def detach(self) -> None:
        self._port.on_room = None
        self._read_on(False)
        self._loop = None

    def feed(self) -> None:
        """Give the port what waits; read on once that is all gone, and close it at the end."""
        if self._buffer:
            self._buffer = self._buffer[self._port.receive(self._buffer) :]
        wanted = self._port.listening and not self._buffer and not self._eof and in_foreground(self._fd)
        self._read_on(wanted)

    def _read_on(self, wanted: bool) -> None:
        loop = self._loop
        if wanted == self._reading or loop is None:
            return
        self._reading = wanted
        if not wanted:
            loop.remove(self._fd)
        elif self._pollable:
            try:
                loop.add(self._fd, self._readable)
            except PermissionError:  # a regular file is always readable, and epoll refuses it
                self._pollable = False
        if wanted and not self._pollable:
            loop.post(self._readable)

    def _readable(self) -> None:
        if not self._reading:
            return
        if not in_foreground(self._fd):  # reading from a terminal would stop us
            self._read_on(False)
            return
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:  # somebody else was quicker
            return
        except OSError:
            data = b""
        self._buffer = data
        if not self._pollable:
            self._reading = False
        if not data:
            self._eof = True
            self._port.hang_up()
        self.feed()
