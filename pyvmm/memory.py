"""Guest RAM as the devices see it: bounds-checked, zero-copy views of guest physical addresses."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from pyvmm.units import PAGE_SIZE

Kind = Literal["ram", "video", "rom"]
"""RAM, which DMA reaches too; a window onto a device's own memory, whose changes are looked for; or what the guest can
only read and execute."""

_ZEROES: Final = bytes(1 << 20)


def _page_numbers(gpa: int, length: int) -> range:
    """Of the pages that [gpa, gpa+length) touches; *length* is not 0."""
    return range(gpa // PAGE_SIZE, (gpa + length - 1) // PAGE_SIZE + 1)


class GuestMemoryError(ValueError):
    """A guest physical range that is not wholly inside one region of guest RAM."""

    def __init__(self, gpa: int, length: int) -> None:
        super().__init__(f"no guest RAM at {gpa:#x}, length {length:#x}")
        self.gpa = gpa
        self.length = length


class Region(NamedTuple):
    """One piece of memory that the guest reaches without an exit."""

    gpa: int
    buffer: memoryview
    fd: int | None = None
    """The memfd that it is in; None where no other process can map it."""
    fd_offset: int = 0
    """Where *buffer* begins in *fd*, in bytes."""
    kind: Kind = "ram"


class Listener(Protocol):
    """Somebody who follows which regions there are."""

    def added(self, region: Region) -> None: ...

    def removed(self, region: Region) -> None:
        """The region's buffer is still there, and is released only after every listener has heard of it."""


class Filler(Protocol):
    """Moves bytes to where a driver's ring says, without Python (kvm_cffi.rings)."""

    def fill(self, avail_at: int, used_at: int, data: bytes, most: int, count_at: int) -> int: ...


class MakeSplitFiller(Protocol):
    """Makes one, of a split ring's three parts, its size, and the regions of RAM."""

    def __call__(
        self, desc: memoryview, avail: memoryview, used: memoryview, size: int, ram: Sequence[tuple[int, memoryview]], /
    ) -> Filler: ...


class MakePackedFiller(Protocol):
    """Makes one, of a packed ring, its size, and the regions of RAM."""

    def __call__(self, desc: memoryview, size: int, ram: Sequence[tuple[int, memoryview]], /) -> Filler: ...


class GuestMemory:
    """The guest's memory: an ordered set of regions that do not overlap.

    Every access names a guest physical address and a length in bytes; an access that leaves a region of RAM raises
    GuestMemoryError, and nothing outside guest RAM can be reached through this class. Regions come and go while the
    machine runs, under the machine lock; whoever must know of them (KVM's slots, the PCI decoder) is a listener.
    """

    def __init__(self, regions: Iterable[Region | tuple[int, memoryview]] = ()) -> None:
        self._regions: list[Region] = []
        self._listeners: list[Listener] = []
        self.written: set[int] | None = None
        """Page numbers that views were given of since somebody began to ask (a snapshot: KVM logs only what the guest
        writes); None while nobody does."""
        self.all_written = False
        """Some of RAM was written meanwhile, and nobody knows which pages."""
        self.lasting: set[int] = set()
        """Page numbers that lasting views were ever given of."""
        self.make_split_filler: MakeSplitFiller | None = None
        self.make_packed_filler: MakePackedFiller | None = None
        """None: such rings are walked in Python alone."""
        self.layout = 0
        """Another number whenever RAM has come or gone."""
        self._starts: tuple[int, ...] = ()
        self._buffers: tuple[memoryview, ...] = ()
        for region in regions:
            self.add(Region(*region))

    def add(self, region: Region) -> None:
        """Give the guest a region; ValueError where another is."""
        end = region.gpa + len(region.buffer)
        for other in self._regions:
            if region.gpa < other.gpa + len(other.buffer) and other.gpa < end:
                raise ValueError(f"guest RAM regions overlap at {max(region.gpa, other.gpa):#x}")
        region = region._replace(buffer=region.buffer.cast("B"))
        self._regions.append(region)
        self._regions.sort(key=lambda region: region.gpa)
        self._arrange()
        told: list[Listener] = []
        try:
            for listener in self._listeners:
                listener.added(region)
                told.append(listener)
        except BaseException:
            for listener in reversed(told):
                listener.removed(region)
            self._regions.remove(region)
            self._arrange()
            raise

    def remove(self, gpa: int) -> None:
        """Take away the region that begins at *gpa*; ValueError where none does."""
        region = self.region_at(gpa)
        for listener in reversed(self._listeners):
            listener.removed(region)
        self._regions.remove(region)
        gone = _page_numbers(gpa, len(region.buffer))
        self.lasting -= {number for number in self.lasting if number in gone}
        self._arrange()

    def region_at(self, gpa: int) -> Region:
        """The region that begins at *gpa*; ValueError where none does."""
        for region in self._regions:
            if region.gpa == gpa:
                return region
        raise ValueError(f"no region of guest memory begins at {gpa:#x}")

    def watch(self, listener: Listener) -> None:
        """Tell *listener* of the regions that there are, at once, and of those that come and go."""
        for region in list(self._regions):
            listener.added(region)
        self._listeners.append(listener)

    def unwatch(self, listener: Listener) -> None:
        """Tell *listener* no more; nothing where it does not listen."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _arrange(self) -> None:
        ram = [region for region in self._regions if region.kind == "ram"]
        self._starts = tuple(region.gpa for region in ram)
        self._buffers = tuple(region.buffer for region in ram)
        self.layout += 1

    def split_filler(self, desc: memoryview, avail: memoryview, used: memoryview, size: int) -> Filler | None:
        """For a split ring of *size* entries, good as long as `layout` is what it is; None where there is none."""
        make = self.make_split_filler
        return None if make is None else make(desc, avail, used, size, self._pieces())

    def packed_filler(self, desc: memoryview, size: int) -> Filler | None:
        """For a packed ring of *size* descriptors, likewise."""
        make = self.make_packed_filler
        return None if make is None else make(desc, size, self._pieces())

    def _pieces(self) -> list[tuple[int, memoryview]]:
        return list(zip(self._starts, self._buffers, strict=True))

    @classmethod
    def of_size(cls, size: int, gpa: int = 0) -> GuestMemory:
        """Plain RAM of *size* bytes at *gpa* with no VM behind it: what the unit tests of devices use."""
        return cls([(gpa, memoryview(bytearray(size)))])

    @property
    def ram(self) -> tuple[Region, ...]:
        """The regions of RAM, lowest first."""
        return tuple(region for region in self._regions if region.kind == "ram")

    @property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """The (gpa, length) of each region of RAM, lowest first."""
        return tuple((gpa, len(buffer)) for gpa, buffer in zip(self._starts, self._buffers, strict=True))

    @property
    def size(self) -> int:
        """All RAM, in bytes."""
        return sum(len(buffer) for buffer in self._buffers)

    def release(self) -> None:
        """Let the buffers go: from now on there is no RAM at all."""
        buffers = [region.buffer for region in self._regions]
        self._regions.clear()
        self._listeners.clear()
        self._arrange()
        for buffer in buffers:
            buffer.release()

    def view(self, gpa: int, length: int) -> memoryview:
        """A writable view of [gpa, gpa+length), to be written through before the guest runs on; raises GuestMemoryError
        unless all of it is RAM of one region."""
        if self.written is not None and length:
            view = self._view(gpa, length)
            self.written.update(_page_numbers(gpa, length))
            return view
        return self._view(gpa, length)

    def written_anywhere(self) -> None:
        """Somebody outside has written to RAM, and does not say where: every page counts as written."""
        if self.written is not None:
            self.all_written = True

    def lasting_view(self, gpa: int, length: int) -> memoryview:
        """As view(), for who keeps it and may write through it at any time."""
        view = self._view(gpa, length)
        if length:
            self.lasting.update(_page_numbers(gpa, length))
        return view

    def _view(self, gpa: int, length: int) -> memoryview:
        index = bisect_right(self._starts, gpa) - 1
        if index >= 0 and length >= 0:
            buffer = self._buffers[index]
            offset = gpa - self._starts[index]
            if offset + length <= len(buffer):
                return buffer[offset : offset + length]
        raise GuestMemoryError(gpa, length)

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of [gpa, gpa+length)."""
        return bytes(self._view(gpa, length))

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
        return int.from_bytes(self._view(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        """Store *value*, truncated to *size* bytes, little-endian, at *gpa*."""
        self.view(gpa, size)[:] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
