"""Commands in a guest by its agent, at the other end of a port: what they print, apart, and how they end.

    frame: a type, a length of 24 bits, little-endian, and so many bytes; a type of 0 is a frame of one byte

pyvmm/boot/agent.c is the other side, and says what the types mean. Here is what goes over the wire, and no wire.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

PORT: Final = "pyvmm.agent"
"""What the port is called in the guest, /sys/class/virtio-ports/*/name."""
LONGEST: Final = 4096
"""Bytes of a frame for the agent."""
MOST: Final = 32768
"""Of one from it."""
ROOM: Final = 65536
"""Bytes of a command's input that the agent takes before it has passed them on."""
WORDS: Final = 131072
"""Bytes of a command's words, with a NUL each."""
MOST_WORDS: Final = 4096
_FROM_AGENT: Final = frozenset(b"HOXCS")


class AgentError(AssertionError):
    """What came is not what an agent says, or it has begun anew: the guest was reset."""


class CommandEnded(NamedTuple):
    """How a command ended."""

    status: int
    """Its exit status; 128 + n where signal n ended it, 127 where it could not be executed."""
    stdout: bytes
    stderr: bytes


def frame(kind: bytes, data: bytes = b"") -> bytes:
    return kind + len(data).to_bytes(3, "little") + data


class Conversation:
    """One command: feed() takes what comes, take() gives what is to be sent. It begins with as many zeros as an agent
    may still wait for of what somebody else had begun to send; what comes before the answer is somebody else's too."""

    def __init__(self, words: Sequence[str | bytes], stdin: bytes | None = b"") -> None:
        """*stdin* is all of the input; None where give() and finish() bring it. ValueError for words that no command
        can have."""
        encoded = b"".join(os.fsencode(word) + b"\0" for word in words)
        if not words or encoded.count(b"\0") != len(words):
            raise ValueError("a command has words, without NUL in them")
        if len(encoded) > WORDS or len(words) > MOST_WORDS:
            raise ValueError(f"a command of more than {WORDS} bytes or {MOST_WORDS} words")
        self._nonce = os.urandom(8)
        self._hello = frame(b"H", self._nonce)
        self._send = bytearray(bytes(LONGEST + 4) + frame(b"B", self._nonce))
        for at in range(0, len(encoded), LONGEST):
            self._send += frame(b"A", encoded[at : at + LONGEST])
        self._send += frame(b"R")
        self._came = bytearray()
        self._credit = ROOM
        self._input = bytearray()
        self._finished = self._told_end = False
        self.answered = False
        """The agent is there."""
        self.status: int | None = None
        """Once the command has ended."""
        if stdin is not None:
            self.give(stdin)
            self.finish()

    def give(self, data: bytes) -> None:
        """More of its input."""
        self._input += data
        self._fill()

    def finish(self) -> None:
        """Its input ends."""
        self._finished = True
        self._fill()

    @property
    def hungry(self) -> bool:
        """More of its input would be sent at once."""
        return self.status is None and not self._finished and len(self._input) < ROOM

    def _fill(self) -> None:
        while self._credit and self._input:
            piece = bytes(self._input[: min(LONGEST, self._credit)])
            del self._input[: len(piece)]
            self._credit -= len(piece)
            self._send += frame(b"I", piece)
        if self._finished and not self._input and not self._told_end:
            self._told_end = True
            self._send += frame(b"E")

    def take(self) -> bytes:
        """What is to be sent now."""
        data = bytes(self._send)
        self._send.clear()
        return data

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """What the command has written since: (1 or 2, bytes). Raises AgentError."""
        self._came += data
        if not self.answered:
            at = self._came.find(self._hello)
            if at < 0:
                del self._came[: max(0, len(self._came) - len(self._hello) + 1)]
                return []
            self.answered = True
            del self._came[: at + len(self._hello)]
        written: list[tuple[int, bytes]] = []
        while self.status is None and len(self._came) >= 4:
            kind, length = self._came[0], int.from_bytes(self._came[1:4], "little")
            if kind not in _FROM_AGENT or length > MOST:
                raise AgentError("what comes from the port is no agent's: does somebody else write to it?")
            if len(self._came) < 4 + length:
                break
            payload = bytes(self._came[4 : 4 + length])
            del self._came[: 4 + length]
            self._hear(kind, payload, written)
        return written

    def _hear(self, kind: int, payload: bytes, written: list[tuple[int, bytes]]) -> None:
        match chr(kind):
            case "O":
                written.append((1, payload))
            case "X":
                written.append((2, payload))
            case "C":
                self._credit = min(ROOM, self._credit + int.from_bytes(payload[:4], "little"))
                self._fill()
            case "S":
                self.status = int.from_bytes(payload[:4], "little") & 0xFF
            case _:
                raise AgentError("the agent has begun anew: somebody else runs a command, or the guest was reset")
