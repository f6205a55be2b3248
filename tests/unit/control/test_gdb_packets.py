"""The remote protocol's framing: what is sent arrives, whatever pieces it comes in, and garbage is no packet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control.gdb.packets import PACKET_LIMIT, Acknowledgement, Interrupt, Packet, Reader, frame, unescape


def test_the_manuals_example() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert Reader().feed(b"+$qC#b4\x03-") == [
        Acknowledgement(True),
        Packet(b"qC"),
        Interrupt(),
        Acknowledgement(False),
    ]


@given(st.lists(st.binary(max_size=60), max_size=6), st.data())
def test_what_is_framed_arrives_in_any_pieces(packets: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(frame(packet) for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    reader, events = Reader(), []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        events += reader.feed(wire[start:end])
    assert events == [Packet(packet) for packet in packets]


@given(st.binary(max_size=400))
def test_garbage_is_told_as_damaged_or_is_nothing(garbage: bytes) -> None:
    reader = Reader()
    for event in reader.feed(garbage):
        if isinstance(event, Packet) and event.intact:
            assert b"$" in garbage and b"#" in garbage
    assert reader.feed(b"$#00" + frame(b"g"))[-1] == Packet(b"g"), "and then it is in step again"


@given(st.binary())
def test_an_escape_at_the_end_is_left_out(body: bytes) -> None:
    assert len(unescape(body)) <= len(body)
    assert unescape(body.replace(b"}", b"") + b"}") == body.replace(b"}", b"")


def test_a_packet_without_end_does_not_grow() -> None:
    reader = Reader()
    for _ in range(100):
        assert reader.feed(b"$" + b"a" * PACKET_LIMIT * 2) == []
    damaged = reader.feed(b"#00")
    assert damaged == [Packet(b"a" * (PACKET_LIMIT + 1), intact=False)]
