"""Port and memory-mapped I/O: which device answers at an address, and what is read where nothing is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, Protocol

ALL_ONES: Final = (0, 0xFF, 0xFFFF, 0, 0xFFFFFFFF, 0, 0, 0, 0xFFFFFFFFFFFFFFFF)
"""By size: what an access of 1, 2, 4 or 8 bytes reads where no device answers. A tuple, for each read looks here."""


class Device(Protocol):
    """What the guest reaches by I/O. Offsets are the device's own; sizes are 1, 2, 4 or 8 bytes.

    Neither method may raise, whatever the guest does. The bus truncates what read returns to *size* bytes,
    and *value* is already within *size* bytes.
    """

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


Range = tuple[int, int, Device, int]
"""(start, end, device, offset of start within the device); end is exclusive."""

Hit = tuple[Callable[[int, int], int], Callable[[int, int, int], None], int, int]
"""(the device's read, its write, the offset of an address within the device, how many bytes the range goes on)."""

HITS: Final = 4096
"""The guest chooses which addresses a bus remembers: so many, then it begins anew."""


class Nobody:
    """What answers where no device is mapped."""

    def read(self, offset: int, size: int) -> int:
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        pass


NOBODY: Final = Nobody()


class Bus:
    """One address space. The table is immutable and replaced whole: a device may map and unmap from inside a write."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self._limit = limit
        self._table: tuple[tuple[int, ...], tuple[Range, ...]] = ((), ())
        self.changed: Callable[[], None] | None = None
        """Who is told that the map is another now."""
        self._hits: dict[int, Hit] = {}  # by address, where the guest has been: an access costs one look

    def map(self, start: int, length: int, device: Device, offset: int = 0) -> None:
        """Let *device* answer [start, start+length); raises ValueError where that overlaps or leaves the bus."""
        end = start + length
        if length <= 0 or start < 0 or end > self._limit:
            raise ValueError(f"{self.name}: {start:#x}+{length:#x} is outside the address space")
        ranges = list(self._table[1])
        for other_start, other_end, other, _ in ranges:
            if start < other_end and other_start < end:
                raise ValueError(f"{self.name}: {start:#x}-{end - 1:#x} overlaps {type(other).__name__}")
        ranges.append((start, end, device, offset))
        self._replace(ranges)

    def unmap(self, start: int, length: int) -> None:
        """Take away exactly the range that was mapped as (start, length); raises ValueError if there is none."""
        end = start + length
        ranges = [r for r in self._table[1] if (r[0], r[1]) != (start, end)]
        if len(ranges) == len(self._table[1]):
            raise ValueError(f"{self.name}: nothing is mapped at exactly {start:#x}-{end - 1:#x}")
        self._replace(ranges)

    def _replace(self, ranges: list[Range]) -> None:
        ranges.sort(key=lambda r: r[0])
        self._table = (tuple(r[0] for r in ranges), tuple(ranges))
        self._hits = {}
        if self.changed is not None:
            self.changed()

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What is mapped now, lowest address first."""
        return self._table[1]

    def read(self, address: int, size: int) -> int:
        """What the guest reads: the device's answer, all ones where nothing is mapped.

        An access that only partly hits a range is split into bytes, as a PC's bridges split it.
        """
        read, _, offset, room = self._hits.get(address) or self._find(address, size)
        if size > room:
            return self._read_bytes(address, size)
        answer = read(offset, size)  # has a name for machine.fault, which asks this frame when it is no int
        return answer & ALL_ONES[size]

    def read_string(self, address: int, size: int, count: int) -> bytes | None:
        """*count* reads in a row, *size* bytes each, little-endian; None where they are to come one by one. A device
        that knows better than that has a read_string(offset, size, count) of its own."""
        read, _, offset, room = self._hits.get(address) or self._find(address, size)
        read_string = getattr(getattr(read, "__self__", None), "read_string", None)
        if size > room or read_string is None:
            return None
        data: bytes | None = read_string(offset, size, count)
        return data

    def write(self, address: int, size: int, value: int) -> None:
        """Hand the guest's write to the device; dropped where nothing is mapped, split as in read."""
        _, write, offset, room = self._hits.get(address) or self._find(address, size)
        if size <= room:
            write(offset, size, value)
        else:
            self._write_bytes(address, size, value)

    def _find(self, address: int, size: int) -> Hit:
        """Where an access goes that begins at *address*, for next time too if a device is there."""
        hits = self._hits  # before the table: what is found in an old one must not be remembered with a new one
        starts, ranges = self._table
        index = bisect_right(starts, address) - 1
        if index >= 0:
            start, end, device, offset = ranges[index]
            if address < end:
                hit = (device.read, device.write, address - start + offset, end - address)
                if len(hits) >= HITS:
                    hits.clear()
                hits[address] = hit
                return hit
        partly = index + 1 < len(starts) and starts[index + 1] < address + size
        return (NOBODY.read, NOBODY.write, 0, 0 if partly else size)

    def _read_bytes(self, address: int, size: int) -> int:
        value = 0
        for i in range(size):
            value |= self.read(address + i, 1) << (8 * i)
        return value

    def _write_bytes(self, address: int, size: int, value: int) -> None:
        for i in range(size):
            self.write(address + i, 1, (value >> (8 * i)) & 0xFF)
