"""A TAP interface of this host's: what the guest sends comes out of it, what the host sends there the guest gets.

With headers the kernel computes checksums and makes segments of frames of up to 64 KiB, and gives the same to a driver
that takes them; there may be several queues; and vhost may carry the frames of each (docs/networks.md says how an
interface is made that a user may have).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from kvm_cffi.tun import (
    IFNAMSIZ,
    TUN,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_TSO_ECN,
    TapInterface,
)
from pyvmm.backends.cable import BURST, Cable, Host
from pyvmm.backends.pcap import Dump
from pyvmm.backends.wire import MAX_FRAME, VNET_HEADER
from pyvmm.errors import UserError, printable
from pyvmm.loop import Loop

# linux/virtio_net.h
VIRTIO_NET_F_CSUM: Final = 0
VIRTIO_NET_F_GUEST_CSUM: Final = 1
VIRTIO_NET_F_GUEST_TSO4: Final = 7
VIRTIO_NET_F_GUEST_TSO6: Final = 8
VIRTIO_NET_F_GUEST_ECN: Final = 9
VIRTIO_NET_F_HOST_TSO4: Final = 11
VIRTIO_NET_F_HOST_TSO6: Final = 12
VIRTIO_NET_F_HOST_ECN: Final = 13
_HOST: Final = (VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN)
_GUEST: Final = {
    VIRTIO_NET_F_GUEST_TSO4: TUN_F_TSO4,
    VIRTIO_NET_F_GUEST_TSO6: TUN_F_TSO6,
    VIRTIO_NET_F_GUEST_ECN: TUN_F_TSO_ECN,
}
OFFLOADS: Final = sum(1 << feature for feature in (*_HOST, VIRTIO_NET_F_GUEST_CSUM, *_GUEST))

VLAN_TAG: Final = 4
READ: Final = VNET_HEADER + MAX_FRAME + VLAN_TAG


class TapCable(Cable):
    """The interface *name*, or a new one. Raises UserError."""

    def __init__(self, host: Host, dump: Dump | None, *, name: str | None, mtu: int | None) -> None:
        super().__init__("net tap" if name is None else f"net tap,name={printable(name)}", host, dump)
        if name is not None and (not 0 < len(name.encode()) < IFNAMSIZ or set(name) & set("/ %:")):
            raise self._error(f"an interface's name has 1 to {IFNAMSIZ - 1} characters, none of them / % : or a space")
        self._tap = self._open(name or "")
        self.interface = self._tap.name
        self.name = f"net tap,name={printable(self.interface)}"
        try:
            self._prepare(mtu)
        except BaseException:
            self._tap.close()
            raise
        self._fd = self._tap.fd
        self._watch()

    headers = False
    several = False
    """It may have more than one queue."""

    def _error(self, why: str) -> UserError:
        return UserError(f"{self.name}: {why}")

    def _open(self, name: str) -> TapInterface:
        try:
            return TapInterface(name, headers=self.headers, queues=self.several)
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise
            raise self._error(_why(error, name, self.several)) from None

    def _prepare(self, mtu: int | None) -> None:
        tap = self._tap
        try:
            if mtu is not None and tap.mtu < mtu:
                try:
                    tap.set_mtu(mtu)
                except OSError as error:
                    cure = f"as root, ip link set {tap.name} mtu {mtu}"
                    raise self._error(f"its MTU is {tap.mtu}: {error.strerror}: {cure}") from None
            if not tap.is_up:
                try:
                    tap.set_up()
                except OSError as error:
                    cure = f"as root, ip link set {tap.name} up"
                    raise self._error(f"it is down: {error.strerror}: {cure}") from None
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise
            raise self._error(error.strerror or str(error)) from None

    def _take(self) -> bool:
        try:
            frame = os.read(self._fd, READ)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(error)
            return False
        self._deliver(frame)
        return True

    def _put(self, frame: bytes | bytearray | memoryview, more: bool) -> bool:
        try:
            os.write(self._fd, frame)
        except OSError as error:
            if error.errno == errno.EBADFD:
                self._lost(error)
            return False  # it is full or down, or the header is nonsense
        return True

    def _lost(self, error: OSError) -> None:
        self._let_go()
        self._tap.close()
        why = "the interface has gone" if error.errno == errno.EBADFD else error.strerror
        self._host.tell(f"{self.name}: {why}: the guest's link is down")
        self._set_connected(False)

    def close(self) -> None:
        super().close()
        self._tap.close()


RTMGRP_LINK: Final = 1
"""linux/rtnetlink.h: what interfaces come, go and change."""


class LinkChanges:
    """Calls *changed* when an interface of this host has come, gone or changed (rtnetlink(7)); anybody may listen."""

    def __init__(self, loop: Loop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, RTMGRP_LINK))
        loop.add(self._socket.fileno(), self._ready)

    def _ready(self) -> None:
        # Nothing more is there, or more was than it could keep: then one is to be looked for, too.
        with contextlib.suppress(OSError):
            for _ in range(BURST):
                self._socket.recv(1 << 16)
        self._changed()

    def close(self) -> None:
        self._loop.remove(self._socket.fileno())
        self._socket.close()


class OffloadTapCable(TapCable):
    """With headers: an OffloadWire, a QueuedWire and a LendingWire."""

    headers = True
    offset = VNET_HEADER
    offloads = OFFLOADS
    _is_first = True
    """Of the queues of its interface: it speaks for all of them."""

    def __init__(self, host: Host, dump: Dump | None, *, name: str | None, mtu: int | None, queues: int = 1) -> None:
        self.several = queues > 1
        self.others: Sequence[TapQueue] = ()
        self._lent = False
        self._changes: LinkChanges | None = None
        super().__init__(host, dump, name=name, mtu=mtu)
        try:
            for _ in range(queues - 1):
                self.others = (*self.others, TapQueue(self))
            self.use(1)
        except BaseException:
            self.close()
            raise

    @property
    def _away(self) -> bool:
        return self._lent

    def use(self, count: int) -> None:
        for number, queue in enumerate(self.others, 1):
            queue.attach(number < count)

    def lend(self) -> int:
        if self._fd < 0:
            raise OSError(errno.EBADFD, "the interface has gone")
        self._lent = True
        self._watch()
        if self._changes is None and self._is_first:  # for nobody reads who would see it go
            self._changes = LinkChanges(self._host.loop, self._look)
        return self._fd

    def take_back(self) -> None:
        self._lent = False
        self._watch()
        if self._changes is not None:
            self._changes.close()
            self._changes = None

    def _look(self) -> None:
        if self._fd >= 0 and not self._tap.is_there:
            self._lost(OSError(errno.EBADFD, os.strerror(errno.EBADFD)))

    def _lost(self, error: OSError) -> None:
        super()._lost(error)
        for queue in self.others:
            queue._lost(error)

    def close(self) -> None:
        self.take_back()
        for queue in self.others:
            queue.close()
        super().close()

    def offload(self, features: int) -> None:
        flags = 0
        if features >> VIRTIO_NET_F_GUEST_CSUM & 1:  # the others need it (section 5.1.3.1)
            flags = TUN_F_CSUM
            for feature, flag in _GUEST.items():
                flags |= flag if features >> feature & 1 else 0
            if not flags & (TUN_F_TSO4 | TUN_F_TSO6):
                flags &= ~TUN_F_TSO_ECN
        try:
            self._tap.set_offload(flags)
        except OSError:
            pass  # the interface has gone, which the next read says


class TapQueue(OffloadTapCable):
    """Another queue of the interface of *first*, which is not used before it is attached."""

    _is_first = False

    def __init__(self, first: OffloadTapCable) -> None:
        Cable.__init__(self, first.name, first._host, first._dump)
        self.several = True
        self.others = ()
        self._lent = False
        self._changes = None
        self._tap = self._open(first.interface)
        self.interface = self._tap.name
        self._attached = True
        self._fd = self._tap.fd
        self._watch()

    @property
    def _away(self) -> bool:
        return self._lent or not self._attached

    def attach(self, attached: bool) -> None:
        if self._fd < 0 or attached == self._attached:
            return
        if not attached:  # before there is an error for the loop to see
            self._attached = False
            self._watch()
        with contextlib.suppress(OSError):  # the interface has gone, which the first queue tells
            self._tap.set_attached(attached)
            self._attached = attached
        self._watch()

    def _lost(self, error: OSError) -> None:
        self._let_go()
        self._tap.close()
        self._set_connected(False)

    def close(self) -> None:
        self._dump = None  # it is the first one's
        super().close()


def _why(error: OSError, name: str, several: bool) -> str:
    who = name or "tap0"
    kind = "mode tap multi_queue" if several else "mode tap"
    if error.filename == TUN:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return f"there is no {TUN} on this host: as root, modprobe tun"
        return f"{TUN}: {error.strerror}: you must be allowed to read and write it"
    if error.errno == errno.EPERM:
        return f"it is not yours: as root, ip tuntap add {who} {kind} user $USER; ip link set {who} up; then name={who}"
    if error.errno == errno.EBUSY:
        return "another program has it: name one that is free"
    if error.errno == errno.EINVAL:
        kind = "several queues" if several else "one queue"
        return f"there is an interface of this name that is no tap of {kind}: name another"
    return error.strerror or str(error)
