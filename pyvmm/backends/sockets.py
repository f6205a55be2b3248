"""Unix sockets for the devices of one machine, and a way into its loop: a device that takes `sockets: Sockets` is given
the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.backends.byte_stream import StreamEnd, Waiting

if TYPE_CHECKING:
    from pyvmm.backends.stream_socket import StreamSocket


class Sockets:
    """Of the machine whose loop is *loop*; with *look_only* it is not to run, and nothing is made."""

    def __init__(self, loop: Waiting, look_only: bool = False) -> None:
        self._loop = loop
        self._look_only = look_only

    def listen(self, path: str, end: StreamEnd) -> StreamSocket | None:
        """A socket at *path*, and *end* behind it. Raises UserError."""
        if self._look_only:
            return None
        from pyvmm.backends.stream_socket import StreamSocket

        return StreamSocket(path, self._loop, end)

    def post(self, call: Callable[[], None]) -> None:
        """Run *call* in the loop, soon; from any thread."""
        self._loop.post(call)
