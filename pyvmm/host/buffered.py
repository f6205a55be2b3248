"""What a guest writes, on its way to a descriptor whose reader takes it as he likes: nothing waits for him, and the
guest is held when too much does."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

from pyvmm.host.nonblocking import Output
from pyvmm.loop import Loop

CLOSE_MS: Final = 1000
"""What a reader gets for each piece of what is left at the end."""


class BufferedOutput:
    """Of *fd*, which stays open. More than *high_water* bytes hold the guest. *failed* is told why nothing more can be
    written; what waited is dropped then."""

    def __init__(self, fd: int, high_water: int, failed: Callable[[OSError], None]) -> None:
        self._out = Output(fd)
        self._high_water = high_water
        self._failed = failed
        self._buffer = bytearray()
        self._loop: Loop | None = None
        self._hold: Callable[[bool], None] = lambda held: None
        self._drained: Callable[[], None] = lambda: None
        self._flushing = False
        self._held = False

    @property
    def waiting(self) -> bool:
        """Something is still to be written."""
        return bool(self._buffer)

    def attach(self, loop: Loop, hold: Callable[[bool], None], drained: Callable[[], None] = lambda: None) -> None:
        """Write from *loop*. *hold* is told True when output has piled up and False when it has drained; *drained* each
        time when all is written."""
        self._loop, self._hold, self._drained = loop, hold, drained
        self._held = self._flushing = False
        if self._buffer:
            self._flush()

    def detach(self) -> None:
        """Leave the loop; what waits stays for the next attach() or close()."""
        if self._loop is not None:
            self._loop.remove(self._out.fd)
            self._loop = None

    def write(self, data: bytes) -> None:
        """*data* behind what waits."""
        self._buffer += data
        loop = self._loop
        if loop is None:
            return
        if not self._flushing:
            self._flushing = True
            loop.post(self._flush)
        if len(self._buffer) > self._high_water and not self._held:
            self._held = True
            self._hold(True)

    def _flush(self) -> None:
        if self._loop is None:
            return
        if not self._write_out(0):
            self._loop.add(self._out.fd, self._flush, select.EPOLLOUT)
            return
        self._loop.remove(self._out.fd)
        self._flushing = False
        if self._held:
            self._held = False
            self._hold(False)
        self._drained()

    def _write_out(self, patience: int) -> bool:
        """Write what is taken, waiting up to *patience* ms each time; True when all is written."""
        try:
            written = self._out.write(self._buffer, patience)
        except OSError as error:
            written = len(self._buffer)
            self._failed(error)
        del self._buffer[:written]
        return not self._buffer

    def close(self) -> None:
        """Write what is left, as far as the reader takes it."""
        self.detach()
        try:
            self._write_out(CLOSE_MS)
        finally:
            self._out.close()
