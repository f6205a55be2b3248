"""Guest RAM as a traced device sees it: the same memory, with a line for each transfer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.trace import Channel

SHOWN: Final = 16
"""Bytes of a transfer that its line shows."""


class TracedMemory(GuestMemory):
    """*memory*, which a device takes anew for each transfer, while somebody watches the device on *trace*."""

    __slots__ = ("_trace",)  # the attributes are *memory*'s own, shared: its regions come and go

    def __init__(self, memory: GuestMemory, trace: Channel) -> None:
        self.__dict__ = memory.__dict__
        self._trace = trace

    def read(self, gpa: int, length: int) -> bytes:
        with self._telling(f"DMA read {gpa:#x}, {length} bytes"):
            data = super().read(gpa, length)
        self._trace(f"DMA read {gpa:#x}, {length} bytes: {_shown(data)}")
        return data

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        with self._telling(f"DMA write {gpa:#x}, {len(data)} bytes"):
            super().view(gpa, len(data))[:] = data
        self._trace(f"DMA write {gpa:#x}, {len(data)} bytes: {_shown(data)}")

    def view(self, gpa: int, length: int) -> memoryview:
        with self._telling(f"DMA view of {gpa:#x}, {length} bytes"):
            view = super().view(gpa, length)
        self._trace(f"DMA view of {gpa:#x}, {length} bytes")
        return view

    def lasting_view(self, gpa: int, length: int) -> memoryview:
        with self._telling(f"DMA view of {gpa:#x}, {length} bytes, kept"):
            view = super().lasting_view(gpa, length)
        self._trace(f"DMA view of {gpa:#x}, {length} bytes, kept")
        return view

    def read_int(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.read(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        self.write(gpa, (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little"))

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """A transfer that comes to nothing is told too."""
        try:
            yield
        except GuestMemoryError:
            self._trace(f"{what}: {'no RAM there' if self.ram else 'bus mastering is off'}")
            raise


def _shown(data: bytes | bytearray | memoryview) -> str:
    return bytes(data[:SHOWN]).hex(" ") + (" …" if len(data) > SHOWN else "")
