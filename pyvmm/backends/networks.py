"""Opens the wires of one machine's network cards, and closes them all; docs/networks.md has the words.

user           a passt of our own, see passt.py
tap            a TAP interface of this host's, see tap.py
socket:PATH    a Unix socket, see stream.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyvmm.backends.wire import Wire
from pyvmm.clock import Clock
from pyvmm.errors import UserError, printable, there_are
from pyvmm.loop import Loop

if TYPE_CHECKING:
    from pyvmm.backends.cable import Cable, Host
    from pyvmm.backends.pcap import Dump

KINDS: Final = ("user", "tap", "socket:PATH")
MIN_MTU, MAX_MTU = 68, 65535
"""Of IPv4 (RFC 791), and what virtio has room for."""


MAX_QUEUES: Final = 16
"""Of a tap: a pair of virtqueues each. The kernel takes 256 (MAX_TAP_QUEUES)."""


class NoWire:
    """Where the machine is not to run: nobody is at the other end."""

    sent = received = dropped = 0

    def __init__(self, queues: int = 1) -> None:
        self.others = tuple(NoWire() for _ in range(queues - 1))

    def use(self, count: int) -> None: ...

    def send(self, frame: bytes | bytearray | memoryview, more: bool = False) -> None:
        self.dropped += 1

    def listen(self, receive: Callable[[bytes], bool] | None, caught_up: Callable[[], None] | None = None) -> None: ...

    def ready(self) -> None: ...

    def close(self) -> None: ...


class HostNetworks:
    """The Networks of a machine."""

    def __init__(
        self,
        loop: Loop,
        clock: Clock,
        stands: Callable[[], bool],
        tell: Callable[[str], None],
        look_only: bool = False,
    ) -> None:
        """*clock* is the guest's, *stands* says whether it stands still; *tell* is what a network has to say to the
        user; with *look_only* the machine is not to run, and nothing is opened."""
        self.home = os.urandom(8)
        self._loop = loop
        self._clock = clock
        self._stands = stands
        self._tell = tell
        self._look_only = look_only
        self._open: list[Cable] = []

    def open(
        self,
        to: str,
        *,
        headers: bool = False,
        name: str | None = None,
        forward: str | None = None,
        mtu: int | None = None,
        dump: Path | None = None,
        queues: int = 1,
        lend: bool = False,
    ) -> Wire:
        kind, colon, path = to.partition(":")
        if kind not in ("user", "tap", "socket") or (kind == "socket") != bool(path) or (colon and not path):
            raise UserError(f"net {printable(to)}: there is no such network: {there_are(to, KINDS)}")
        if name is not None and kind != "tap":
            raise UserError(f"net {printable(to)}: name= is of a tap: leave it away")
        if forward is not None and kind != "user":
            raise UserError(f"net {printable(to)}: forward= is of user: leave it away")
        if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
            raise UserError(f"net {printable(to)}: mtu={mtu}: it is {MIN_MTU} to {MAX_MTU}")
        if (queues != 1 or lend) and kind != "tap":
            word = "vhost is" if lend else "queues= is"
            raise UserError(f"net {printable(to)}: {word} of a tap: leave it away")
        if not 1 <= queues <= MAX_QUEUES:
            raise UserError(f"net {printable(to)}: queues={queues}: it is 1 to {MAX_QUEUES}")
        if lend and dump is not None:
            raise UserError(f"net {printable(to)}: dump= shows no frames that vhost carries: leave one of them away")
        if self._look_only:
            return NoWire(queues)
        from pyvmm.backends.cable import Host

        host = Host(self._loop, self._clock, self._stands, self._tell)
        file = None if dump is None else _dump(to, dump)
        try:
            if kind == "tap":
                cable = _tap(host, file, headers, name, mtu, queues)
            elif kind == "user":
                cable = _user(host, file, forward, mtu)
            else:
                cable = _socket(host, file, Path(path))
        except BaseException:
            if file is not None:
                file.close()
            raise
        self._open = [*(other for other in self._open if not other.closed), cable]
        return cable

    def close(self) -> None:
        """Close all that are open still; once is enough."""
        for cable in self._open:
            cable.close()
        self._open.clear()


# Each is imported only where it is asked for.


def _tap(host: Host, dump: Dump | None, headers: bool, name: str | None, mtu: int | None, queues: int) -> Cable:
    from pyvmm.backends.tap import OffloadTapCable, TapCable

    if not headers:
        return TapCable(host, dump, name=name, mtu=mtu)
    return OffloadTapCable(host, dump, name=name, mtu=mtu, queues=queues)


def _user(host: Host, dump: Dump | None, forward: str | None, mtu: int | None) -> Cable:
    from pyvmm.backends.passt import UserCable

    return UserCable(host, dump, forward=forward, mtu=mtu)


def _socket(host: Host, dump: Dump | None, path: Path) -> Cable:
    from pyvmm.backends.stream import SocketCable

    return SocketCable(path, host, dump)


def _dump(to: str, path: Path) -> Dump:
    from pyvmm.backends.pcap import Dump

    try:
        return Dump(path)
    except UserError as error:
        raise UserError(f"net {printable(to)}: {error}") from None
