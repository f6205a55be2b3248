"""What a device whose rings somebody else serves needs of this host: the server, and eventfds.

kvm_cffi.vhost has the servers, board/vhost.py gives all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class RingServer(Protocol):
    """Serves split rings, numbered from 0; see kvm_cffi.vhost.Vhost. All of it raises OSError where it is refused."""

    def get_features(self) -> int: ...

    def set_features(self, features: int) -> None: ...

    def set_vring_num(self, index: int, num: int) -> None: ...

    def set_vring_base(self, index: int, base: int) -> None: ...

    def get_vring_base(self, index: int) -> int: ...

    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None: ...

    def set_vring_kick(self, index: int, fd: int) -> None: ...

    def set_vring_call(self, index: int, fd: int) -> None: ...


class VsockServer(RingServer, Protocol):
    """See kvm_cffi.vhost.VhostVsock."""

    def set_guest_cid(self, cid: int) -> None: ...

    def set_running(self, running: bool) -> None: ...


class NetServer(RingServer, Protocol):
    """See kvm_cffi.vhost.VhostNet."""

    def set_backend(self, index: int, fd: int) -> None: ...


class Resting(Protocol):
    """What must not touch guest memory while the machine stands still."""

    def rest(self) -> None:
        """Take back what somebody else does, and begin nothing until go_on()."""

    def go_on(self) -> None: ...


class RingServers(Protocol):
    """Gives servers and eventfds: what an offloaded device is made with."""

    def vsock(self) -> VsockServer:
        """/dev/vhost-vsock, which knows guest memory from now on, as it comes and goes. Raises UserError."""

    def net(self) -> NetServer:
        """/dev/vhost-net, likewise; one for each pair of queues."""

    def release(self, server: RingServer) -> None:
        """Close a server."""

    def address(self, view: memoryview) -> int:
        """Where guest memory is in this process."""

    def written(self) -> None:
        """A server has written to guest memory, nobody knows where."""

    def eventfd(self) -> int:
        """One that nobody reads yet."""

    def watch(self, call: Callable[[], None]) -> int:
        """One for a server to signal: *call* hears of it, by the loop."""

    def close_eventfd(self, fd: int) -> None:
        """One of the two kinds."""

    def enlist(self, resting: Resting) -> None:
        """Let *resting* rest whenever the machine stands still; at once, where it does."""

    def dismiss(self, resting: Resting) -> None:
        """It has ended, and serves nothing any more; nothing where it is not known."""
