"""Guest RAM as the devices see it: bounds-checked, zero-copy views of guest physical addresses."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

_ZEROES: Final = bytes(1 << 20)


class GuestMemoryError(ValueError):
    """A guest physical range that is not wholly inside one region of guest RAM."""

    def __init__(self, gpa: int, length: int) -> None:
        super().__init__(f"no guest RAM at {gpa:#x}, length {length:#x}")
        self.gpa = gpa
        self.length = length


class GuestMemory:
    """The guest's RAM: an ordered set of (gpa, buffer) regions that do not overlap.

    Every access names a guest physical address and a length in bytes; an access that leaves a region raises
    GuestMemoryError, and nothing outside guest RAM can be reached through this class.
    """

    def __init__(self, regions: Iterable[tuple[int, memoryview]]) -> None:
        ordered = sorted(regions, key=lambda region: region[0])
        end = 0
        for gpa, buffer in ordered:
            if gpa < end:
                raise ValueError(f"guest RAM regions overlap at {gpa:#x}")
            end = gpa + len(buffer)
        self._starts = tuple(gpa for gpa, _ in ordered)
        self._buffers = tuple(buffer.cast("B") for _, buffer in ordered)

    @classmethod
    def of_size(cls, size: int, gpa: int = 0) -> GuestMemory:
        """Plain RAM of *size* bytes at *gpa* with no VM behind it: what the unit tests of devices use."""
        return cls([(gpa, memoryview(bytearray(size)))])

    @property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """The (gpa, length) of each region, lowest first."""
        return tuple((gpa, len(buffer)) for gpa, buffer in zip(self._starts, self._buffers, strict=True))

    @property
    def size(self) -> int:
        """All RAM, in bytes."""
        return sum(len(buffer) for buffer in self._buffers)

    def release(self) -> None:
        """Let the buffers go: from now on there is no RAM at all."""
        buffers, self._starts, self._buffers = self._buffers, (), ()
        for buffer in buffers:
            buffer.release()

    def view(self, gpa: int, length: int) -> memoryview:
        """A writable view of [gpa, gpa+length); raises GuestMemoryError unless all of it is RAM of one region."""
        index = bisect_right(self._starts, gpa) - 1
        if index >= 0 and length >= 0:
            buffer = self._buffers[index]
            offset = gpa - self._starts[index]
            if offset + length <= len(buffer):
                return buffer[offset : offset + length]
        raise GuestMemoryError(gpa, length)

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of [gpa, gpa+length)."""
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy *data* to *gpa*."""
        self.view(gpa, len(data))[:] = data

    def clear(self, gpa: int, length: int) -> None:
        """Make [gpa, gpa+length) zero. What is zero already is only read: pages that the host has not yet given to the
        guest stay so."""
        view = self.view(gpa, length)
        for start in range(0, length, len(_ZEROES)):
            piece = view[start : start + len(_ZEROES)]
            zeroes = _ZEROES[: len(piece)]
            if bytes(piece) != zeroes:
                piece[:] = zeroes

    def read_int(self, gpa: int, size: int) -> int:
        """The little-endian integer of *size* bytes at *gpa*."""
        return int.from_bytes(self.view(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        """Store *value*, truncated to *size* bytes, little-endian, at *gpa*."""
        self.view(gpa, size)[:] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
