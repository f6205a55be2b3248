"""What a network card needs of the other end of its cable. It knows no card, and no card knows more of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

HEADER_SIZE: Final = 14
"""Bytes of an Ethernet header: destination, source, EtherType (IEEE 802.3, section 3.1.1)."""
MAX_FRAME: Final = HEADER_SIZE + 65535
VNET_HEADER: Final = 12
"""Bytes of a struct virtio_net_hdr, num_buffers included (virtio 1.2, section 5.1.6)."""


class Wire(Protocol):
    """The other end of a network card's cable: Ethernet frames of 14 to 65,535 + 14 bytes, without preamble and FCS.

    All of it is called under the machine lock.
    """

    sent: int
    """Frames of the guest's that the back end took."""
    received: int
    """Frames that the card took."""
    dropped: int
    """Frames that were lost on the way, either way."""

    def send(self, frame: bytes | bytearray | memoryview, more: bool = False) -> None:
        """Put *frame* on the wire. Never blocks: what the back end does not take is dropped and counted. With *more*
        another comes before the lock is let go, and this one may wait for it."""

    def listen(self, receive: Callable[[bytes], bool] | None, caught_up: Callable[[], None] | None = None) -> None:
        """Give *receive* one frame a call, in the loop under the machine lock; None: nobody listens.

        It returns False where it has no room now: the wire keeps that frame and reads no more until ready(). After the
        last of several calls, before the lock is let go, comes one of *caught_up*.
        """

    def ready(self) -> None:
        """The card has room again. May call `receive` before it returns."""

    def close(self) -> None:
        """Let go of the back end; once is enough."""


@runtime_checkable
class Carrier(Protocol):
    """A wire that knows whether anybody is at its other end."""

    connected: bool
    link_changed: Callable[[], None]
    """Called when `connected` has changed; the card sets it."""


@runtime_checkable
class OffloadWire(Protocol):
    """A wire that may leave checksums and segments to the card and its driver, or take them from it: before each frame,
    both ways, is a struct virtio_net_hdr of VNET_HEADER bytes, and a frame may be longer than the MTU."""

    offloads: int
    """VIRTIO_NET_F_*CSUM, *TSO4 … as bits: of the two ways, what it can do."""

    def offload(self, features: int) -> None:
        """Of `offloads` the driver takes *features*, and nothing else may come; 0 until this is called."""


@runtime_checkable
class QueuedWire(Protocol):
    """A wire of several queues, between which the host spreads connections; it is the first of them itself."""

    others: Sequence[Wire]

    def use(self, count: int) -> None:
        """From now on the first *count* carry frames; 1 until this is called."""


@runtime_checkable
class LendingWire(Protocol):
    """A wire whose frames the host's kernel can carry by itself."""

    def lend(self) -> int:
        """The descriptor that frames are read from and written to, each behind a struct virtio_net_hdr of VNET_HEADER
        bytes: the wire touches it no more. Raises OSError where it has gone."""

    def take_back(self) -> None:
        """The wire reads again; where it has not been lent nothing happens."""


class Networks(Protocol):
    """Opens wires for the cards of one machine."""

    home: bytes
    """Of this machine in this process: a card whose state comes from elsewhere has moved."""

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
        """A wire *to* "user", "tap" or "socket:PATH"; see docs/networks.md for the words. With *headers* the card knows
        what to do with an OffloadWire, of more than one of *queues* with a QueuedWire, and to *lend* with a
        LendingWire. Raises UserError."""
