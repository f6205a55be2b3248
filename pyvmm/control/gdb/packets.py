"""How the remote protocol frames what it says: $data#checksum, acknowledged by + or -, and a byte 03 that interrupts.

Source: the gdb manual, E.1 Overview. The other end may send anything: what is too long or has the wrong checksum is
told as damaged, and nothing grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PACKET_LIMIT: Final = 0x4000
"""Bytes between $ and #, as they go over the wire; told to gdb as PacketSize."""
INTERRUPT: Final = 0x03
_ESCAPE: Final = ord("}")
_ESCAPED: Final = b"#$}*"


@dataclass(frozen=True)
class Packet:
    """A command, unescaped; *intact* says that its checksum is right."""

    data: bytes
    intact: bool = True


@dataclass(frozen=True)
class Interrupt:
    """Ctrl-C."""


@dataclass(frozen=True)
class Acknowledgement:
    """Of what was sent last: + or -."""

    good: bool


Event = Packet | Interrupt | Acknowledgement


def frame(data: bytes) -> bytes:
    """*data* as it goes over the wire."""
    body = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            body += bytes((_ESCAPE, byte ^ 0x20))
        else:
            body.append(byte)
    return b"$%b#%02x" % (bytes(body), sum(body) & 0xFF)


def unescape(body: bytes) -> bytes:
    """What frame() escaped; an escape with nothing behind it is left out."""
    if _ESCAPE not in body:
        return body
    head, *parts = body.split(b"}")
    out = bytearray(head)
    escaped = False  # an escaped } leaves an empty part behind it
    for part in parts:
        if escaped:
            out += part
            escaped = False
        elif part:
            out.append(part[0] ^ 0x20)
            out += part[1:]
        else:
            escaped = True
    return bytes(out)


class Reader:
    """Takes bytes as they come, gives what they say."""

    def __init__(self) -> None:
        self._body: bytearray | None = None
        """Of a packet that has begun."""
        self._checksum = b""
        self._ended = False
        """# has come: the checksum is next."""

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for byte in data:
            if self._body is None:
                if byte == ord("$"):
                    self._begin()
                elif byte == INTERRUPT:
                    events.append(Interrupt())
                elif byte in b"+-":
                    events.append(Acknowledgement(byte == ord("+")))
            elif self._ended:
                self._checksum += bytes((byte,))
                if len(self._checksum) == 2:
                    events.append(self._end(self._body))
            elif byte == ord("#"):
                self._ended = True
            elif byte == ord("$"):  # never inside one: the rest of the last was lost
                self._begin()
            elif len(self._body) <= PACKET_LIMIT:
                self._body.append(byte)
        return events

    def _begin(self) -> None:
        self._body, self._checksum, self._ended = bytearray(), b"", False

    def _end(self, body: bytearray) -> Packet:
        self._body = None
        try:
            wanted = int(self._checksum.decode("ascii"), 16)
        except ValueError:
            wanted = -1
        return Packet(unescape(bytes(body)), len(body) <= PACKET_LIMIT and sum(body) & 0xFF == wanted)
