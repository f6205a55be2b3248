"""Reading a Perfetto trace back, event by event: those that pyvmm wrote, and whatever else a file may hold.

Nothing is trusted: a length is checked before it is read, and what Perfetto's messages refuse is the user's mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from pyvmm.control.timeline.perfetto import messages
from pyvmm.errors import UserError, printable

LONGEST: Final = 1 << 20
"""Bytes of a packet; ours are some hundred at the most."""
TAG: Final = b"\x0a"
"""Of Trace.packet: field 1, with a length."""


class TraceEvent(NamedTuple):
    """A slice or an instant; *ended* is None for the latter, times are nanoseconds."""

    track: str
    category: str
    name: str
    began: int
    ended: int | None
    flows: tuple[int, ...]
    ending: tuple[int, ...]


def events(path: Path) -> Iterator[TraceEvent]:
    """What *path* holds, in the order in which the events end. Raises UserError, which names the file."""
    yield from _Reader(messages()).events(path)


class _Reader:
    def __init__(self, module: Any) -> None:
        self._messages = module
        self._names: dict[int, str] = {}
        self._categories: dict[int, str] = {}
        self._tracks: dict[int, str] = {}
        self._open: dict[int, list[TraceEvent]] = {}

    def events(self, path: Path) -> Iterator[TraceEvent]:
        shown = printable(str(path))
        try:
            with open(path, "rb") as file:
                for at, data in _packets(file):
                    if data is None:
                        raise UserError(f"{shown}: it is cut off at byte {at}, or no Perfetto trace")
                    try:
                        packet = self._messages.TracePacket.FromString(data)
                    except Exception:  # google.protobuf.message.DecodeError, of a package that is imported late
                        raise UserError(f"{shown}: what is at byte {at} is no packet of a Perfetto trace") from None
                    yield from self._of(packet)
        except OSError as error:
            raise UserError(f"{shown}: {error.strerror}") from None

    def _of(self, packet: Any) -> Iterator[TraceEvent]:
        if packet.HasField("interned_data"):
            self._names |= {name.iid: _text(name.name) for name in packet.interned_data.event_names}
            self._categories |= {name.iid: _text(name.name) for name in packet.interned_data.event_categories}
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            self._tracks[descriptor.uuid] = _text(descriptor.name or descriptor.process.process_name)
        if packet.HasField("track_event"):
            yield from self._event(packet.timestamp, packet.track_event)

    def _event(self, now: int, event: Any) -> Iterator[TraceEvent]:
        track = event.track_uuid
        if event.type == event.TYPE_SLICE_END:
            began = self._open.get(track)
            if began:
                yield began.pop()._replace(ended=now)
            return
        one = TraceEvent(
            self._tracks.get(track, ""),
            ", ".join(self._categories.get(iid, "") for iid in event.category_iids),
            _text(event.name) or self._names.get(event.name_iid, ""),
            now,
            None,
            tuple(event.flow_ids),
            tuple(event.terminating_flow_ids),
        )
        if event.type == event.TYPE_SLICE_BEGIN:
            self._open.setdefault(track, []).append(one)
        elif event.type == event.TYPE_INSTANT:
            yield one


def _text(said: str | bytes) -> str:
    """A string of a message, which is bytes where it is no UTF-8."""
    return said if isinstance(said, str) else said.decode(errors="replace")


def _packets(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(where, a packet's bytes) one after another; None for what is not whole, which is the last then."""
    at = 0  # counted, and not asked of the file: a pipe does not know
    while tag := file.read(1):
        length, size = _varint(file) if tag == TAG else (None, 0)
        data = file.read(length) if length is not None and length <= LONGEST else b""
        if length is None or len(data) != length:
            yield at, None
            return
        yield at, data
        at += len(TAG) + size + length


def _varint(file: BinaryIO) -> tuple[int | None, int]:
    """A length, and of how many bytes: four at most; None where it is longer, or the file ends."""
    value = 0
    for size in range(1, 5):
        byte = file.read(1)
        if not byte:
            return None, size
        value |= (byte[0] & 0x7F) << 7 * (size - 1)
        if byte[0] < 0x80:
            return value, size
    return None, size
