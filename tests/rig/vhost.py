"""vhost without a kernel: a server that takes what the kernel takes, refuses what it refuses, and serves the rings."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kvm_cffi import address_of
from pyvmm.memory import GuestMemory
from pyvmm.virtio.ring import Chain, QueueError
from pyvmm.virtio.split import SplitRing
from pyvmm.virtio.vhost import Resting, RingServer

FEATURES = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 27 | 1 << 26 | 1 << 1
"""Those of Linux 6.1's vhost-vsock: VERSION_1, EVENT_IDX, INDIRECT_DESC, ANY_LAYOUT, VHOST_F_LOG_ALL, SEQPACKET."""

NET_FEATURES = FEATURES & ~(1 << 1) | 1 << 15
"""Of vhost-net: without SEQPACKET, with MRG_RXBUF (and a virtio_net_hdr of its own, 27, as above)."""


class FakeServer:
    """vhost-vsock whose host sends back what the guest sends: each chain of ring 1 fills one of ring 0."""

    def __init__(self, memory: GuestMemory, taken: set[int]) -> None:
        self.memory = memory
        self.taken = taken
        self.cid = 0
        self.running = False
        self.closed = False
        self.known = FEATURES
        self.features = 0
        self.num: dict[int, int] = {}
        self.base: dict[int, int] = {}
        self.addr: dict[int, tuple[int, int, int]] = {}
        self.kick: dict[int, int] = {}
        self.call: dict[int, int] = {}
        self.backends = [-1, -1]
        """Of vhost-net, which serves while it has both."""
        self.log: list[tuple[str, int, int]] = []
        self.refuse: str | None = None
        """The call that fails."""
        self._rings: dict[int, SplitRing] = {}
        self._waiting: list[Chain] = []

    def _note(self, what: str, index: int = 0, value: int = 0) -> None:
        self.log.append((what, index, value))
        if self.refuse == what:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def get_features(self) -> int:
        return self.known

    def set_features(self, features: int) -> None:
        self._note("features", 0, features)
        if features & ~self.known:
            raise OSError(errno.EOPNOTSUPP, "no such features")
        self.features = features

    def _idle(self) -> None:
        if self.running:
            raise OSError(errno.EBUSY, "it is being served")

    def set_vring_num(self, index: int, num: int) -> None:
        self._note("num", index, num)
        self._idle()
        assert index < 2
        self.num[index] = num

    def set_vring_base(self, index: int, base: int) -> None:
        self._note("base", index, base)
        self._idle()
        self.base[index] = base

    def get_vring_base(self, index: int) -> int:
        if index in self._rings:
            held = self._waiting if index else ()
            return self._rings[index].progress(held)[0]
        return self.base[index]

    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None:
        self._note("addr", index)
        self.addr[index] = desc, avail, used

    def set_vring_kick(self, index: int, fd: int) -> None:
        self._note("kick", index, fd)
        self.kick[index] = fd

    def set_vring_call(self, index: int, fd: int) -> None:
        self._note("call", index, fd)
        self.call[index] = fd

    def set_guest_cid(self, cid: int) -> None:
        if cid in self.taken:
            raise OSError(errno.EADDRINUSE, "taken")
        self.taken.add(cid)
        self.cid = cid

    def _gpa(self, address: int) -> int:
        for region in self.memory.ram:
            offset = address - address_of(region.buffer)
            if 0 <= offset < len(region.buffer):
                return region.gpa + offset
        raise OSError(errno.EFAULT, "not in the table")

    def set_running(self, running: bool) -> None:
        self._note("running", 0, running)
        if running == self.running:
            return
        if running:
            for index in range(2):
                desc, avail, used = (self._gpa(address) for address in self.addr[index])
                ring = SplitRing(
                    self.memory, self.num[index], desc, avail, used, event_idx=bool(self.features >> 29 & 1)
                )  # whose parts we have looked at, so that it raises nothing
                shown = self.memory.read_int(used + 2, 2)
                ring.go_on_at((self.base[index], shown, shown))
                self._rings[index] = ring
        else:
            for index in range(2):
                self.base[index] = self.get_vring_base(index)
            self._rings.clear()
            self._waiting.clear()
        self.running = running

    def set_backend(self, index: int, fd: int) -> None:
        self._note("backend", index, fd)
        self.backends[index] = fd
        self.set_running(all(fd >= 0 for fd in self.backends))

    def serve(self, most: int = 1 << 16) -> None:
        """The kernel's thread has its turn: it looks at *most* chains, if somebody has kicked."""
        if not self.running:
            return
        assert not self.closed
        try:
            self._serve(most)
        except QueueError:  # vhost logs an error, and goes on when it is kicked again
            pass

    def _serve(self, most: int) -> None:
        receive, transmit = self._rings[0], self._rings[1]
        for ring in (receive, transmit):
            ring.set_kicks(True)
        moved = 0
        while moved < most:
            if not self._waiting:
                chain = transmit.pop()
                if chain is None:
                    break
                self._waiting.append(chain)
            room = receive.pop()
            if room is None:
                break
            chain = self._waiting.pop()
            data = chain.read(1 << 16)
            receive.push(room, room.write(data))
            transmit.push(chain, 0)
            moved += 1
        for index, ring in self._rings.items():
            if ring.flush() and self.call[index] >= 0:
                os.eventfd_write(self.call[index], 1)

    def close(self) -> None:
        self.closed = True
        self.running = False
        self.taken.discard(self.cid)


class FakeVhost:
    """See virtio.vhost.Vhost; call run() is a turn of the loop."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.taken: set[int] = set()
        self.servers: list[FakeServer] = []
        self.watched: dict[int, Callable[[], None]] = {}
        self.plain: set[int] = set()
        self.resting: list[Resting] = []
        self.writes = 0

    @property
    def server(self) -> FakeServer:
        """The last."""
        return self.servers[-1]

    def vsock(self) -> FakeServer:
        self.servers.append(FakeServer(self.memory, self.taken))
        return self.server

    def net(self) -> FakeServer:
        server = self.vsock()
        server.known = NET_FEATURES
        return server

    def release(self, server: RingServer) -> None:
        assert isinstance(server, FakeServer)
        server.close()

    def address(self, view: memoryview) -> int:
        return address_of(view)

    def written(self) -> None:
        self.writes += 1

    def eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.plain.add(fd)
        return fd

    def watch(self, call: Callable[[], None]) -> int:
        fd = self.eventfd()
        self.watched[fd] = call
        return fd

    def close_eventfd(self, fd: int) -> None:
        self.plain.remove(fd)
        self.watched.pop(fd, None)
        os.close(fd)

    def enlist(self, resting: Resting) -> None:
        self.resting.append(resting)

    def dismiss(self, resting: Resting) -> None:
        if resting in self.resting:
            self.resting.remove(resting)

    def run(self) -> None:
        """The server's turn, and the loop's."""
        for server in self.servers:
            server.serve()
        for fd, call in list(self.watched.items()):
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                continue
            call()

    def close(self) -> None:
        for fd in list(self.plain):
            self.close_eventfd(fd)
