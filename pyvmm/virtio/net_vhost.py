"""A pair of queues of a network card that vhost-net serves: its kernel thread carries frames between the rings and a
TAP interface, and neither the card nor this process sees them."""

from __future__ import annotations

from typing import Final

from pyvmm.backends.wire import LendingWire
from pyvmm.virtio.offload import NO_FD, Offload
from pyvmm.virtio.vhost import RingServers

RINGS: Final = (0, 1)
"""Receive and transmit, as vhost-net numbers them (VHOST_NET_VQ_RX, VHOST_NET_VQ_TX)."""


class ServedPair:
    """Of the queues that its *offload* makes, receive first."""

    def __init__(self, servers: RingServers, wire: LendingWire) -> None:
        """Raises UserError."""
        self._servers = servers
        self._wire = wire
        self._server = servers.net()
        self.features = self._server.get_features()
        """Of a card's: what vhost-net can do."""
        self.offload = Offload(servers, self._server, self._begin, self._end)

    def _begin(self) -> None:
        fd = self._wire.lend()
        for ring in RINGS:
            self._server.set_backend(ring, fd)

    def _end(self) -> None:
        try:
            for ring in RINGS:
                self._server.set_backend(ring, NO_FD)
        finally:
            self._wire.take_back()

    def close(self) -> None:
        self.offload.close()
        self._servers.release(self._server)
