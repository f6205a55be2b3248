"""What vhost needs of the board: guest memory in its table, eventfds, and to rest while the machine stands still."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from kvm_cffi import address_of
from kvm_cffi.vhost import Vhost, VhostNet, VhostVsock
from pyvmm.board.eventfd import high_eventfd, watched_eventfd
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory, Region
from pyvmm.virtio.vhost import Resting, RingServer

V = TypeVar("V", bound=Vhost)


class MemoryTable:
    """A Listener that keeps the memory table of *server*: all RAM, as it comes and goes."""

    def __init__(self, server: Vhost) -> None:
        self._server = server
        self._regions: dict[int, memoryview] = {}

    def added(self, region: Region) -> None:
        if region.kind != "ram":
            return
        self._regions[region.gpa] = region.buffer
        try:
            self._server.set_mem_table(sorted(self._regions.items()))
        except OSError:
            del self._regions[region.gpa]
            raise

    def removed(self, region: Region) -> None:
        if self._regions.pop(region.gpa, None) is not None:
            self._server.set_mem_table(sorted(self._regions.items()))


class BoardVhost:
    """See virtio.vhost.RingServers."""

    def __init__(self, memory: GuestMemory, loop: Loop) -> None:
        self._memory = memory
        self._loop = loop
        self._servers: dict[RingServer, MemoryTable] = {}
        self._resting: list[Resting] = []
        self._stands = False

    def vsock(self) -> VhostVsock:
        return self._open(VhostVsock)

    def net(self) -> VhostNet:
        return self._open(VhostNet)

    def _open(self, kind: type[V]) -> V:
        """Raises UserError."""
        try:
            server = kind()
        except FileNotFoundError:
            raise UserError(f"{kind.path} does not exist: as root, modprobe {kind.module}") from None
        except PermissionError:
            raise UserError(
                f"no permission for {kind.path}: as root, chmod 666 it, or put who runs pyvmm into its group (kvm)"
            ) from None
        except OSError as error:
            raise UserError(f"{kind.path}: {error.strerror}: as root, modprobe {kind.module}, and see dmesg") from None
        table = MemoryTable(server)
        try:
            server.set_owner()
            self._memory.watch(table)
        except OSError as error:
            server.close()
            raise UserError(f"{kind.path}: {error}: see dmesg") from None
        self._servers[server] = table
        return server

    def release(self, server: RingServer) -> None:
        table = self._servers.pop(server, None)
        if table is not None:
            self._memory.unwatch(table)
        if isinstance(server, Vhost):
            server.close()

    def address(self, view: memoryview) -> int:
        return address_of(view)

    def written(self) -> None:
        self._memory.written_anywhere()

    def eventfd(self) -> int:
        return high_eventfd()

    def watch(self, call: Callable[[], None]) -> int:
        return watched_eventfd(self._loop, call)

    def close_eventfd(self, fd: int) -> None:
        self._loop.remove(fd)
        os.close(fd)

    def enlist(self, resting: Resting) -> None:
        self._resting.append(resting)
        if self._stands:
            resting.rest()

    def dismiss(self, resting: Resting) -> None:
        if resting in self._resting:
            self._resting.remove(resting)

    def rest(self) -> None:
        """The machine stands still: no server touches guest memory until go_on()."""
        self._stands = True
        for resting in self._resting:
            resting.rest()

    def go_on(self) -> None:
        self._stands = False
        for resting in self._resting:
            resting.go_on()

    def close(self) -> None:
        """Close what no device has released."""
        for server in list(self._servers):
            self.release(server)
