"""The virtio console as users ask for it: a terminal /dev/hvc0, and ports with names, on sockets or in Python's hands.

--device virtio-console,console=terminal            hvc0 on this terminal
                       ,console=socket:PATH         or on a Unix socket
                       ,port.NAME=socket:PATH       a port that the guest knows as NAME, on a Unix socket
                       ,port.NAME                   or in Python's hands: board.devices["virtio-console"]["NAME"]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from pyvmm.backends.sockets import Sockets
from pyvmm.errors import UserError, printable
from pyvmm.tap import Handle, Tap
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.console import (
    MAX_PORTS,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_F_SIZE,
    Port,
    VirtioConsole,
)
from pyvmm.virtio.device import RING_FEATURES

if TYPE_CHECKING:
    from pyvmm.backends.stream_socket import StreamSocket

CONSOLE: Final = "console"
"""What the port of hvc0 is called, where there is one."""
PIECE: Final = 64 << 10
"""Bytes that a guest is given at once."""
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class PortTap:
    """A port in Python's hands; from any thread. What the guest writes comes under the machine lock, to all."""

    def __init__(self, port: Port, post: Callable[[Callable[[], None]], None]) -> None:
        self.port = port
        self._post = post
        self._waiting = bytearray()
        self._written: Tap[bytes] = Tap()
        port.output = self._written
        port.on_room = self._give

    @property
    def guest_open(self) -> bool:
        """Somebody in the guest has it open."""
        return self.port.guest_open

    def add(self, callback: Callable[[bytes], None]) -> Handle[bytes]:
        """Call *callback* with what the guest writes from now on."""
        return self._written.add(callback)

    def write(self, data: bytes) -> None:
        """Give the guest *data*; what it has no room for waits here."""
        self._post(partial(self._add, bytes(data)))

    def connect(self) -> None:
        """Be at the host's end, as one is from the beginning."""
        self._post(self._connect)

    def hang_up(self) -> None:
        """Leave: a reader in the guest finds the end behind all that it has been given; what waits is dropped."""
        self._post(self._hang_up)

    def _add(self, data: bytes) -> None:
        self._waiting += data
        self._give()

    def _connect(self) -> None:
        self.port.connect()
        self._give()

    def _give(self) -> None:
        """A piece at a time, for a guest may have any room."""
        if not self._waiting:
            return
        piece = bytes(self._waiting[:PIECE])
        taken = self.port.receive(piece)
        del self._waiting[:taken]
        if self._waiting and taken == len(piece):
            self._post(self._give)

    def _hang_up(self) -> None:
        self.drop()
        self.port.hang_up()

    def drop(self) -> None:
        self._waiting.clear()


class ConsolePorts(VirtioConsole):
    """A virtio console: hvc0 on the terminal or a socket, and ports with names (docs/consoles.md)."""

    STATE: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        sockets: Sockets,
        *,
        console: str | None = None,
        port: Mapping[str, str] = {},  # it is only read
        trace: Channel = OFF,
    ) -> None:
        if console is None and not port:
            console = "terminal"
        names = [CONSOLE] * (console is not None) + list(port)
        self._check(names, console, port)
        super().__init__(names, trace)
        self.features = RING_FEATURES | 1 << VIRTIO_CONSOLE_F_MULTIPORT
        self.terminal: Port | None = None
        """hvc0, where the terminal is to have it: whoever ties the machine to this host looks here."""
        self._taps: dict[str, PortTap] = {}
        self._sockets: list[StreamSocket] = []
        if console is not None:
            self.features |= 1 << VIRTIO_CONSOLE_F_SIZE | 1 << VIRTIO_CONSOLE_F_EMERG_WRITE
            self.ports[0].is_console = True
        try:
            for one, where in zip(self.ports, [console] * (console is not None) + list(port.values()), strict=True):
                self._tie(one, where or "", sockets)
        except BaseException:
            self.close()
            raise

    def _check(self, names: list[str], console: str | None, port: Mapping[str, str]) -> None:
        """Raises UserError."""
        if len(names) > MAX_PORTS:
            raise UserError(f"virtio-console: {len(names)} ports: it has at most {MAX_PORTS}")
        for name, where in port.items():
            key = f"port.{printable(name)}"
            if not _NAME.fullmatch(name) or (name == CONSOLE and console is not None):
                raise UserError(f"virtio-console: {key}: a port's name is of letters, digits, '.', '_' and '-'")
            if where != "" and not where.startswith("socket:"):
                raise UserError(f"virtio-console: {key}={printable(where)}: it is {key}=socket:PATH, or {key} alone")
        if console is not None and console != "terminal" and not console.startswith("socket:"):
            raise UserError(f"virtio-console: console={printable(console)}: it is terminal, or socket:PATH")

    def _tie(self, port: Port, where: str, sockets: Sockets) -> None:
        """Raises UserError."""
        kind, _, path = where.partition(":")
        if kind == "socket":
            port.comes_and_goes, port.host_open = True, port.is_console
            socket = sockets.listen(path, port)
            if socket is not None:
                self._sockets.append(socket)
        elif kind == "terminal":
            self.terminal = port
        else:
            port.comes_and_goes = True
            self._taps[port.name] = PortTap(port, sockets.post)

    def __getitem__(self, name: str) -> PortTap:
        """The port that is in Python's hands; KeyError where it is not."""
        return self._taps[name]

    def get(self, name: str) -> PortTap | None:
        return self._taps.get(name)

    def restored(self) -> None:
        """Who is at the host's end now is somebody else, and knows nothing of what was said before."""
        for tap in self._taps.values():
            tap.drop()
        for socket in self._sockets:
            socket.begin_again()

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
