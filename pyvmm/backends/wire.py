"""What a network card needs of the other end of its cable. It knows no card, and no card knows more of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

HEADER_SIZE: Final = 14
"""Bytes of an Ethernet header: destination, source, EtherType (IEEE 802.3, section 3.1.1)."""
MAX_FRAME: Final = HEADER_SIZE + 65535


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

    def send(self, frame: bytes | bytearray | memoryview) -> None:
        """Put *frame* on the wire. Never blocks: what the back end does not take is dropped and counted."""

    def listen(self, receive: Callable[[bytes], bool] | None) -> None:
        """Give *receive* one frame a call, in the loop under the machine lock; None: nobody listens.

        It returns False where it has no room now: the wire keeps that frame and reads no more until ready().
        """

    def ready(self) -> None:
        """The card has room again. May call `receive` before it returns."""

    def close(self) -> None:
        """Let go of the back end; once is enough."""
