"""TAP interfaces: /dev/net/tun and the ioctls that make one of it (linux/if_tun.h), sizes in bytes.

    tap = TapInterface("tap0", headers=True)
    os.read(tap.fd, 65561)      # a struct virtio_net_hdr and a frame

One that is opened several times has so many queues, between which the kernel spreads connections. It is gone with its
last descriptor, unless somebody has made it persistent (`ip tuntap add`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from typing import Final

TUN: Final = "/dev/net/tun"
IFNAMSIZ: Final = 16
"""Of a name, with the zero byte at its end."""

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETQUEUE: Final = 0x400454D9

IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_ATTACH_QUEUE: Final = 0x0200
IFF_DETACH_QUEUE: Final = 0x0400
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCGIFMTU: Final = 0x8921
SIOCSIFMTU: Final = 0x8922
IFF_UP: Final = 0x1

VNET_HEADER: Final = 12
"""struct virtio_net_hdr_mrg_rxbuf, which virtio 1.x has always."""


class TapInterface:
    """The TAP interface *name*, or a queue of it; it is made where there is none; "" for a name of the kernel's choice.

    Raises OSError as open(2) and TUNSETIFF do: EPERM without CAP_NET_ADMIN for one that is not the user's, EBUSY for
    one that somebody has, EINVAL for what is no TAP interface or has other flags. All of it but *fd* needs no right
    beyond what is said.
    """

    def __init__(self, name: str = "", *, headers: bool = False, queues: bool = False) -> None:
        """*headers*: each frame has a struct virtio_net_hdr of VNET_HEADER bytes before it, both ways. *queues*: the
        interface may be opened several times."""
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if headers else 0) | (IFF_MULTI_QUEUE if queues else 0)
        self.fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            made = fcntl.ioctl(self.fd, TUNSETIFF, _ifreq(name, struct.pack("H", flags)))
            if headers:
                fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
                self.set_offload(0)
        except BaseException:
            os.close(self.fd)
            raise
        self.name = made[:IFNAMSIZ].partition(b"\0")[0].decode(errors="replace")

    def set_offload(self, flags: int) -> None:
        """TUN_F_*: what the reader takes beyond whole frames with a good checksum. Raises OSError."""
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, flags)

    def set_attached(self, attached: bool) -> None:
        """Whether this queue is one of those that the kernel uses; one that is not can neither be read nor written.
        Raises OSError: EINVAL where it is so already."""
        flags = IFF_ATTACH_QUEUE if attached else IFF_DETACH_QUEUE
        fcntl.ioctl(self.fd, TUNSETQUEUE, _ifreq("", struct.pack("H", flags)))

    @property
    def is_there(self) -> bool:
        """Whether the interface has not been deleted; False of a queue that is not attached, too."""
        try:
            fcntl.ioctl(self.fd, TUNGETIFF, _ifreq("", b""))
        except OSError:
            return False
        return True

    @property
    def mtu(self) -> int:
        return int(struct.unpack_from("i", self._ask(SIOCGIFMTU, bytes(4)), IFNAMSIZ)[0])

    def set_mtu(self, mtu: int) -> None:
        """Raises OSError: EPERM without CAP_NET_ADMIN, EINVAL for what is out of range."""
        self._ask(SIOCSIFMTU, struct.pack("i", mtu))

    @property
    def is_up(self) -> bool:
        return bool(self._flags & IFF_UP)

    def set_up(self) -> None:
        """As `ip link set NAME up`. Raises OSError: EPERM without CAP_NET_ADMIN."""
        self._ask(SIOCSIFFLAGS, struct.pack("h", self._flags | IFF_UP))

    @property
    def _flags(self) -> int:
        return int(struct.unpack_from("h", self._ask(SIOCGIFFLAGS, bytes(2)), IFNAMSIZ)[0])

    def _ask(self, request: int, value: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
            return fcntl.ioctl(asker, request, _ifreq(self.name, value))

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)


def _ifreq(name: str, value: bytes) -> bytes:
    """struct ifreq: a name and what it is about, 40 bytes."""
    return name.encode().ljust(IFNAMSIZ, b"\0") + value.ljust(24, b"\0")
