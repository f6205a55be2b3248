"""Which frames a network card lets through: what its driver says by CTRL_RX and CTRL_MAC (virtio 1.2, section 5.1.6.5).

Until it says anything all come: a driver that has not negotiated CTRL_RX could not ask for them.
"""

from __future__ import annotations

import struct
from typing import Final

# linux/virtio_net.h
VIRTIO_NET_CTRL_RX_PROMISC: Final = 0
VIRTIO_NET_CTRL_RX_ALLMULTI: Final = 1
VIRTIO_NET_CTRL_RX_ALLUNI: Final = 2
VIRTIO_NET_CTRL_RX_NOMULTI: Final = 3
VIRTIO_NET_CTRL_RX_NOUNI: Final = 4
VIRTIO_NET_CTRL_RX_NOBCAST: Final = 5

ETH_ALEN: Final = 6
BROADCAST: Final = b"\xff" * ETH_ALEN
MAX_ADDRESSES: Final = 64
"""Of each table; where a driver wants more, all come."""
_COUNT: Final = struct.Struct("<I")


class Filter:
    """By destination address."""

    STATE = ("modes", "unicast", "multicast")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.modes = 1 << VIRTIO_NET_CTRL_RX_PROMISC
        """A bit for each VIRTIO_NET_CTRL_RX_* that is on."""
        self.unicast: list[bytes] | None = []
        """None: there are too many, all come."""
        self.multicast: list[bytes] | None = []

    def set_mode(self, mode: int, on: bool) -> bool:
        """Whether there is such a mode."""
        if mode > VIRTIO_NET_CTRL_RX_NOBCAST:
            return False
        self.modes = self.modes & ~(1 << mode) | int(on) << mode
        return True

    def set_tables(self, data: bytes) -> bool:
        """Two struct virtio_net_ctrl_mac, unicast first: le32 entries, then so many addresses. Whether *data* has
        them."""
        tables: list[list[bytes] | None] = []
        at = 0
        for _ in range(2):
            if len(data) < at + _COUNT.size:
                return False
            (count,) = _COUNT.unpack_from(data, at)
            at += _COUNT.size
            end = at + ETH_ALEN * count
            if len(data) < end:
                return False
            tables.append(
                [data[n : n + ETH_ALEN] for n in range(at, end, ETH_ALEN)] if count <= MAX_ADDRESSES else None
            )
            at = end
        self.unicast, self.multicast = tables
        return True

    def takes(self, destination: bytes, own: bytes) -> bool:
        """Whether a frame to *destination* is for the card whose address is *own*."""
        modes = self.modes
        if modes >> VIRTIO_NET_CTRL_RX_PROMISC & 1:
            return True
        if destination == BROADCAST:
            return not modes >> VIRTIO_NET_CTRL_RX_NOBCAST & 1
        if destination[0] & 1:
            if modes >> VIRTIO_NET_CTRL_RX_NOMULTI & 1:
                return False
            wanted, table = VIRTIO_NET_CTRL_RX_ALLMULTI, self.multicast
        else:
            if modes >> VIRTIO_NET_CTRL_RX_NOUNI & 1:
                return False
            if destination == own:
                return True
            wanted, table = VIRTIO_NET_CTRL_RX_ALLUNI, self.unicast
        return bool(modes >> wanted & 1) or table is None or destination in table
