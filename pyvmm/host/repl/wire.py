"""What a prompt's two ends say to one another: messages of a kind, a length and a text, on a stream of bytes.

    byte 0     kind, a letter          byte 1-4   length of the text in bytes, little-endian
    byte 5-    the text, UTF-8

From the user: LINE (one line, without its end), COMPLETE (what is to be completed), INTERRUPT, LEAVE. From the machine:
OUTPUT, READY (the prompt to show; nothing else is said until a LINE or COMPLETE), COMPLETIONS (one a line), BYE.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

LINE, COMPLETE, INTERRUPT, LEAVE = "L", "C", "I", "Q"
OUTPUT, READY, COMPLETIONS, BYE = "O", "R", "c", "B"
HEAD: Final = 5
LONGEST: Final = 1 << 20
"""Bytes of a text."""


class Message(NamedTuple):
    kind: str
    text: str = ""


class WireError(Exception):
    """The other end does not speak this."""


def packed(kind: str, text: str = "") -> bytes:
    """A message as it is sent; a text that is too long is cut."""
    data = text.encode(errors="backslashreplace")[:LONGEST]
    return kind.encode() + len(data).to_bytes(4, "little") + data


class MessageReader:
    """feed() it what comes, in any pieces. Raises WireError."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole with *data*."""
        self._data += data
        while len(self._data) >= HEAD:
            kind = self._data[0]
            length = int.from_bytes(self._data[1:HEAD], "little")
            if not chr(kind).isascii() or not chr(kind).isalpha() or length > LONGEST:
                raise WireError
            if len(self._data) < HEAD + length:
                return
            text = self._data[HEAD : HEAD + length].decode(errors="replace")
            del self._data[: HEAD + length]
            yield Message(chr(kind), text)
