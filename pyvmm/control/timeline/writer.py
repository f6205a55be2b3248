"""A Perfetto trace of records: protobuf messages (perfetto/trace/perfetto_trace.proto), one after another.

A trace is a sequence of TracePackets, each behind the tag of Trace.packet and its length, so it is written as it comes
and may end anywhere. Names that come again are written once and called by number (InternedData); the guest chooses
addresses, and so names: beyond NAMES they are written out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from pyvmm.control.timeline.perfetto import messages
from pyvmm.control.timeline.record import NO_VALUE, POINT, Record

NAMES: Final = 4096
"""Names that are kept."""
SEQUENCE: Final = 1
"""trusted_packet_sequence_id: who writes, and whose numbers of names these are."""
CLOCK_MONOTONIC: Final = 3
"""BUILTIN_CLOCK_MONOTONIC."""
CATEGORY_EXIT, CATEGORY_PART, CATEGORY_CALL = "exit", "part", "call"
VALUE: Final = "value"
"""The annotation with what was read or written."""
PROCESS: Final = 1
"""The uuid of the track that the others are under."""
PARTS: Final = 2
"""That of the track that those of the parts are under."""
FIRST: Final = 16
"""The first of the others."""


class File(Protocol):
    def write(self, data: bytes, /) -> object: ...


class PerfettoWriter:
    """Writes records to *file*; *title* is whose they are, *pid* the process, *now* the time of the beginning in
    nanoseconds of CLOCK_MONOTONIC. Raises UserError without Perfetto's package, OSError as *file* does."""

    def __init__(self, file: File, title: str, pid: int, now: int) -> None:
        self._file = file
        self._messages: Any = messages()
        self._tracks: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._packet = self._messages.TracePacket(trusted_packet_sequence_id=SEQUENCE, sequence_flags=2)
        self._event = self._packet.track_event
        self._begin(title, pid, now)

    def _put(self, packet: Any) -> None:
        self._file.write(framed(packet.SerializeToString()))

    def _begin(self, title: str, pid: int, now: int) -> None:
        m = self._messages
        first = m.TracePacket(trusted_packet_sequence_id=SEQUENCE, sequence_flags=1)  # SEQ_INCREMENTAL_STATE_CLEARED
        first.trace_packet_defaults.timestamp_clock_id = CLOCK_MONOTONIC
        first.clock_snapshot.primary_trace_clock = CLOCK_MONOTONIC
        first.clock_snapshot.clocks.add(clock_id=CLOCK_MONOTONIC, timestamp=now)
        for number, category in enumerate((CATEGORY_EXIT, CATEGORY_PART, CATEGORY_CALL), 1):
            first.interned_data.event_categories.add(iid=number, name=category)
        first.interned_data.debug_annotation_names.add(iid=1, name=VALUE)
        self._put(first)
        process = m.TracePacket(trusted_packet_sequence_id=SEQUENCE)
        process.track_descriptor.uuid = PROCESS
        process.track_descriptor.process.pid = pid
        process.track_descriptor.process.process_name = _utf8(title)
        self._put(process)
        self._describe(PARTS, "parts", PROCESS)

    def _describe(self, uuid: int, name: str, parent: int) -> None:
        packet = self._messages.TracePacket(trusted_packet_sequence_id=SEQUENCE)
        descriptor = packet.track_descriptor
        descriptor.uuid, descriptor.name, descriptor.parent_uuid = uuid, _utf8(name), parent
        self._put(packet)

    def _track(self, name: str) -> int:
        """Its uuid; it is described the first time."""
        uuid = self._tracks.get(name)
        if uuid is None:
            uuid = self._tracks[name] = FIRST + len(self._tracks)
            self._describe(uuid, name, PROCESS if _category(name) != 2 else PARTS)
        return uuid

    def _number(self, name: str) -> int:
        """The number of *name*; 0 where there are too many, and it is to be written out."""
        number = self._names.get(name)
        if number is None:
            if len(self._names) >= NAMES:
                return 0
            number = self._names[name] = len(self._names) + 1
            packet = self._messages.TracePacket(trusted_packet_sequence_id=SEQUENCE, sequence_flags=2)
            packet.interned_data.event_names.add(iid=number, name=_utf8(name))
            self._put(packet)
        return number

    def write(self, records: Iterable[Record]) -> None:
        """Put them into the file."""
        for record in records:
            self._write(record)

    def _write(self, record: Record) -> None:
        track, began, ended, name, value, through, ending = record
        packet, event, types = self._packet, self._event, self._messages.TrackEvent
        uuid, category = self._track(track), _category(track)
        event.Clear()
        event.track_uuid = uuid
        event.category_iids.append(category)
        number = self._number(name) if category != 2 else 0  # what parts say is hardly ever the same again
        if number:
            event.name_iid = number
        else:
            event.name = _utf8(name)
        if value != NO_VALUE:
            event.debug_annotations.add(name_iid=1, uint_value=value & 0xFFFFFFFFFFFFFFFF)
        event.flow_ids.extend(through)
        event.terminating_flow_ids.extend(ending)
        event.type = types.TYPE_INSTANT if ended == POINT else types.TYPE_SLICE_BEGIN
        packet.timestamp = began
        self._put(packet)
        if ended != POINT:
            event.Clear()
            event.track_uuid = uuid
            event.type = types.TYPE_SLICE_END
            packet.timestamp = ended
            self._put(packet)


def _utf8(text: str) -> str:
    """*text* as a message takes it: bytes of a path that are no UTF-8 are spelled as \\udcNN."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _category(track: str) -> int:
    """The number of what happens on *track*."""
    if track.startswith("vCPU "):
        return 1
    return 3 if track.startswith("thread ") else 2


def framed(packet: bytes) -> bytes:
    """A TracePacket as a field of a Trace: its tag, its length as a varint, and itself."""
    length, head = len(packet), bytearray(b"\x0a")
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + packet
