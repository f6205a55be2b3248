"""Frames that wait for a stream socket: nothing is lost or in another order, and nothing breaks off inside a frame that
need not."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.backends.batches import TOGETHER, Batches
from pyvmm.backends.wire import MAX_FRAME
from pyvmm.units import KIB

BUFFER: Final = 36 * KIB
"""Of the kernel's, about."""


class Socket:
    """Has room for as many buffers as the next of *rooms* says, call for call, and then for everything. It fills each
    with what is left of a call."""

    def __init__(self, *rooms: int) -> None:
        self._rooms = list(rooms)
        self.buffers: list[bytes] = []

    def send(self, data: bytes | bytearray) -> int:
        buffers = [bytes(data[at : at + BUFFER]) for at in range(0, len(data), BUFFER)]
        if self._rooms:
            del buffers[self._rooms.pop(0) :]
        if not buffers:
            raise BlockingIOError
        self.buffers += buffers
        return sum(map(len, buffers))


def send(batches: Batches, to: Any) -> None:
    with contextlib.suppress(BlockingIOError):
        batches.send(to)


def framed(size: int, number: int) -> tuple[bytes, bytes]:
    return size.to_bytes(4, "big"), bytes([number]) * size


sizes = st.one_of(st.integers(14, 2000), st.integers(14, 65535), st.integers(TOGETHER - 6, TOGETHER))


@given(st.lists(st.tuples(sizes, st.booleans()), max_size=40), st.lists(st.integers(0, 2), max_size=20))
def test_a_frame_is_in_two_buffers_at_most_and_at_the_start_of_the_first(
    frames: list[tuple[int, bool]], rooms: list[int]
) -> None:
    batches, to = Batches(), Socket(*rooms)
    whole, starts = b"", []
    for number, (size, now) in enumerate(frames):
        starts.append(len(whole))
        whole += b"".join(framed(size, number))
        batches.add(*framed(size, number))
        if now:
            send(batches, to)
        assert batches.size == len(whole) - sum(map(len, to.buffers))
    while batches.size:
        send(batches, to)
    assert b"".join(to.buffers) == whole
    at = 0
    for buffer in to.buffers:
        if at not in starts:
            begun = max(start for start in starts if start < at)
            assert at - begun == BUFFER and at + len(buffer) in (*starts, len(whole))
            assert not any(at < start < at + len(buffer) for start in starts), "the rest of a frame is alone"
        at += len(buffer)


def test_what_the_socket_has_of_a_frame_does_not_wait() -> None:
    batches, to = Batches(), Socket()
    batches.add(*framed(60_000, 1), BUFFER)
    batches.add(*framed(100, 2))
    assert batches.size == 60_004 - BUFFER + 104
    send(batches, to)
    assert to.buffers == [bytes([1]) * (60_004 - BUFFER), b"".join(framed(100, 2))]


def test_nothing_waits_after_it_was_cleared() -> None:
    batches, to = Batches(), Socket()
    batches.add(*framed(60_000, 1), BUFFER)
    batches.clear()
    assert batches.size == 0
    for number in (2, 3):
        batches.add(*framed(100, number))
    send(batches, to)
    assert to.buffers == [b"".join([*framed(100, 2), *framed(100, 3)])], "small ones go together"


def test_this_kernel_has_room_for_them_in_one_buffer() -> None:
    parts = set()
    for size in range(80, 240):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size * KIB // 2)
            with contextlib.suppress(BlockingIOError):
                while (done := ours.send(bytes(MAX_FRAME))) == MAX_FRAME:
                    pass
                parts.add(done)
    assert parts and min(parts) >= TOGETHER and max(parts) * 2 >= MAX_FRAME + 4, parts
