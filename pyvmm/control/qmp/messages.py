"""How the protocol frames what it says: JSON objects one behind the other, ours with CR LF behind each.

Source: QEMU, docs/interop/qmp-spec; the words of an error are those of QEMU's qapi/qmp-dispatch.c. The other end may
send anything: what is no JSON, is too deep or too long is told as Garbage, and nothing grows.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

REQUEST_LIMIT: Final = 0x10000
"""Bytes of one request; who sends more is let go."""
DEPTH_LIMIT: Final = 64
"""Of objects and arrays inside each other in a request."""

GENERIC_ERROR: Final = "GenericError"
COMMAND_NOT_FOUND: Final = "CommandNotFound"
DEVICE_NOT_FOUND: Final = "DeviceNotFound"
"""The error classes (QEMU, qapi/error.json) that we have a use for."""

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_OUTSIDE: Final = re.compile(rb'["{}\[\]]')
_INSIDE: Final = re.compile(rb'["\\\n]')
_MEMBERS: Final = ("execute", "arguments", "id")


class QmpError(Exception):
    """A command that is refused: *kind* is the error class, str(error) the description."""

    def __init__(self, description: str, kind: str = GENERIC_ERROR) -> None:
        super().__init__(description)
        self.kind = kind


@dataclass(frozen=True)
class QmpRequest:
    """A command; what *tag* holds, {"id": …} or nothing, goes back with the answer."""

    execute: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tag: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Garbage:
    """What is no request: *why*, and whether what follows can be made out (*last* says no)."""

    why: str
    tag: Mapping[str, Any] = field(default_factory=dict)
    last: bool = False


class RequestReader:
    """Takes bytes in whatever pieces they come, and gives requests."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._seen = 0
        """Up to where _text has been looked through."""
        self._depth = 0
        self._quoted = False

    def feed(self, data: bytes) -> Iterator[QmpRequest | Garbage]:
        """What *data* completes; after Garbage that is the last, what comes is not to be trusted."""
        self._text += data
        while (text := self._take()) is not None:
            if isinstance(text, Garbage):
                yield text
            elif text:
                yield _request(text)
        if len(self._text) > REQUEST_LIMIT:
            self._reset(len(self._text))
            yield Garbage(f"a request has at most {REQUEST_LIMIT} bytes", last=True)

    def _reset(self, end: int) -> None:
        del self._text[:end]
        self._seen, self._depth, self._quoted = 0, 0, False

    def _take(self) -> bytes | Garbage | None:
        """The bytes of one JSON value from its first bracket to its last; of what has none, of one line."""
        text = self._text
        if self._depth == 0:
            space = _SPACE.match(text)
            assert space is not None
            self._reset(space.end())
            if not text:
                return None
            if text[0] not in b"{[":
                return self._cut(text.find(b"\n") + 1)
        while True:
            found = (_INSIDE if self._quoted else _OUTSIDE).search(text, self._seen)
            if found is None:
                self._seen = len(text)
                return None
            self._seen = found.end()
            match found[0]:
                case b"\\":
                    if self._seen == len(text):  # what is escaped is still to come
                        self._seen -= 1
                        return None
                    self._seen += 1
                case b'"':
                    self._quoted = not self._quoted
                case b"\n":  # no string has one: this is no JSON, and what follows may be
                    return self._cut(self._seen)
                case b"{" | b"[":
                    self._depth += 1
                    if self._depth > DEPTH_LIMIT:
                        self._reset(len(text))
                        return Garbage(f"JSON nests at most {DEPTH_LIMIT} levels deep", last=True)
                case _:
                    self._depth -= 1
                    if self._depth == 0:
                        return self._cut(self._seen)

    def _cut(self, end: int) -> bytes | None:
        if end == 0:
            return None
        taken = bytes(self._text[:end])
        self._reset(end)
        return taken


def _request(text: bytes) -> QmpRequest | Garbage:
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except ValueError as error:
        return Garbage(f"JSON parse error, {error}")
    if not isinstance(value, dict):
        return Garbage("QMP input must be a JSON object")
    tag = {"id": value["id"]} if "id" in value else {}
    for name in value:
        if name not in _MEMBERS:
            return Garbage(f"QMP input member '{name}' is unexpected", tag)
    if "execute" not in value:
        return Garbage("QMP input lacks member 'execute'", tag)
    if not isinstance(value["execute"], str):
        return Garbage("QMP input member 'execute' must be a string", tag)
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return Garbage("QMP input member 'arguments' must be an object", tag)
    return QmpRequest(value["execute"], arguments, tag)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("duplicate key")
    return made


def _no_number(word: str) -> None:
    raise ValueError(f"invalid keyword '{word}'")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):  # which no JSON can say back
        raise ValueError(f"number {text} is out of range")
    return number


def encode(message: Mapping[str, Any]) -> bytes:
    """As it goes over the wire."""
    return json.dumps(message).encode() + b"\r\n"


def error_reply(error: QmpError, tag: Mapping[str, Any]) -> bytes:
    return encode({"error": {"class": error.kind, "desc": str(error)}, **tag})


def event(name: str, data: Mapping[str, Any] | None = None) -> bytes:
    """Of now, by the host's clock."""
    microseconds = time.time_ns() // 1000
    stamp = {"seconds": microseconds // 1_000_000, "microseconds": microseconds % 1_000_000}
    return encode({"event": name, "timestamp": stamp} | ({} if data is None else {"data": data}))
