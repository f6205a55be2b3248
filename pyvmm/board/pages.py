"""The pages of snapshots: what of guest RAM was touched, and who has which page.

The first snapshot copies each page that is not zero. From then on KVM logs what the guest writes, and GuestMemory which
pages views were given of; a further snapshot is a level that has only the pages written since the one before. To go
back to any of them, the pages written since are put back, and those that the levels between have. A level whose
snapshot is let go joins what stands on it or lies below, so that there are at most twice as many as snapshots. This is
the one owner of RAM's dirty log, which is on only while there is a snapshot.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from kvm_cffi import Vm, pages
from pyvmm.board.memslots import MemorySlots
from pyvmm.memory import GuestMemory, Region

PAGE: Final = pages.PAGE_SIZE
_FULL: Final = (1 << 64) - 1


Progress = Callable[[int, int], None]
"""Told bytes done, of how many."""


@dataclass(eq=False)
class Level:
    """The pages that one snapshot has, by region, over those of *parent*."""

    parent: Level | None
    own: list[bytearray]
    """A bit a page."""
    stores: list[mmap.mmap]

    def chain(self) -> list[Level]:
        """This one, and those below."""
        levels, level = [], self
        while True:
            levels.append(level)
            if level.parent is None:
                return levels
            level = level.parent

    def add_region(self, store: mmap.mmap) -> None:
        """One more, of whose pages it has none."""
        self.own.append(pages.bitmap(len(store)))
        self.stores.append(store)

    def take_over(self) -> None:
        """Have the parent's pages too, and its place; this one's go before them. The lesser part is copied."""
        below = self.parent
        assert below is not None
        for n, (ours, theirs) in enumerate(zip(self.own, below.own, strict=True)):
            theirs_alone = _bits(theirs) & ~_bits(ours)
            if theirs_alone.bit_count() < _bits(ours).bit_count():
                pages.copy_dirty(_bitmap(theirs_alone, len(ours)), memoryview(below.stores[n]), self.stores[n])
            else:
                pages.copy_dirty(ours, memoryview(self.stores[n]), below.stores[n])
                self.stores[n] = below.stores[n]
            ours[:] = _bitmap(theirs_alone | _bits(ours), len(ours))
        self.parent = below.parent


def runs_of(own: bytearray) -> Iterator[tuple[int, int]]:
    """The pages of a bitmap that follow each other: number of the first, and how many."""
    first: int | None = None
    for at, word in enumerate(memoryview(own).cast("Q")):
        if word == (0 if first is None else _FULL):  # all as before
            continue
        for number in range(64 * at, 64 * at + 64):
            there = word >> (number & 63) & 1
            if there and first is None:
                first = number
            elif not there and first is not None:
                yield first, number - first
                first = None
    if first is not None:
        yield first, 8 * len(own) - first


def _bits(own: bytearray) -> int:
    return int.from_bytes(own, "little")


def _bitmap(bits: int, length: int) -> bytearray:
    return bytearray(bits.to_bytes(length, "little"))


class Pages:
    """What RAM was like at a moment, while somebody holds it. Of one machine."""

    def __init__(self, level: Level, size: int) -> None:
        self.level = level
        self.size: Final = size
        """Bytes of RAM that were copied for it."""
        self._looked_up: list[Level] = []
        self._lookups: list[pages.Levels] = []

    def put_back(self, number: int, dirty: bytearray, memory: memoryview) -> None:
        """The pages of *dirty* into region *number*, whose buffer is *memory*."""
        levels = self.level.chain()
        if levels != self._looked_up:
            of_region = zip(*(zip(level.stores, level.own, strict=True) for level in levels), strict=True)
            self._lookups = [pages.Levels(stores) for stores in of_region]
            self._looked_up = levels
        self._lookups[number].put_back(dirty, memory)

    def runs(self, number: int) -> list[tuple[int, memoryview]]:
        """All that is not zero of region *number*, ascending: where in the region, in bytes, and what is there."""
        found: list[tuple[int, memoryview]] = []
        above = 0
        for level in self.level.chain():
            own, store = level.own[number], memoryview(level.stores[number])
            for first, count in runs_of(_bitmap(_bits(own) & ~above, len(own))):
                found.append((first * PAGE, store[first * PAGE : (first + count) * PAGE]))
            above |= _bits(own)
        return sorted(found, key=lambda run: run[0])

    def forget_lookups(self) -> None:
        """The levels below have changed."""
        self._looked_up, self._lookups = [], []


class RamPages:
    """Of *memory*, which is *slots* in *vm*; all of it while no vCPU runs, but release()."""

    def __init__(
        self,
        vm: Vm,
        memory: GuestMemory,
        slots: MemorySlots,
        image: Callable[[], Level] | None = None,
        plugged_from: int = 1 << 64,
    ) -> None:
        """RAM that was mapped from a file has that as its *image*, below the first snapshot. What is at *plugged_from*
        or above comes and goes."""
        self._image = image
        self._plugged_from = plugged_from
        self._readers = 0
        self._shape = threading.Lock()
        """Levels are joined by who has it, and while nobody reads."""
        self._vm = vm
        self._memory = memory
        self._slots = slots
        self._places: list[tuple[int, int]] = []
        """Where the regions of RAM are, and their sizes, by number ..."""
        self._regions: list[Region | None] = []
        """... and those regions; None where one is gone."""
        self._dirty: list[bytearray] = []
        self._scratch: list[bytearray] = []
        self._base: Level | None = None
        self._taken: weakref.WeakSet[Pages] = weakref.WeakSet()
        memory.watch(self)

    # A Listener

    def added(self, region: Region) -> None:
        """While there are snapshots. It is zero, so that to those that stand what they have of a region that was at its
        place is new."""
        if region.kind != "ram" or self._base is None:
            return
        place = region.gpa, len(region.buffer)
        number = self._places.index(place) if place in self._places else self._new_place(place)
        self._slots.log(region, True)
        self._regions[number] = region
        theirs = 0
        for level in self.levels:
            theirs |= _bits(level.own[number])
        self._dirty[number][:] = _bitmap(theirs, len(self._dirty[number]))

    def _new_place(self, place: tuple[int, int]) -> int:
        """Its number; no snapshot has pages there."""
        size, levels = place[1], self.levels
        stores = [pages.store(size) for _ in levels]  # all of them, before anything has changed
        for level, store in zip(levels, stores, strict=True):
            level.add_region(store)
        self._places.append(place)
        self._regions.append(None)
        self._dirty.append(pages.bitmap(size))
        self._scratch.append(pages.bitmap(size))
        for taken in self._taken:
            taken.forget_lookups()
        return len(self._places) - 1

    def removed(self, region: Region) -> None:
        for number, ours in self._there():
            if ours.gpa == region.gpa:
                self._regions[number] = None

    def _there(self) -> list[tuple[int, Region]]:
        """The regions that guest memory has, with their numbers."""
        return [(number, region) for number, region in enumerate(self._regions) if region is not None]

    @property
    def mapped_from_file(self) -> bool:
        """RAM was: what nobody has touched is in the file, and not zero."""
        return self._image is not None

    @property
    def logging(self) -> bool:
        """The dirty log is on."""
        return self._base is not None

    @property
    def levels(self) -> list[Level]:
        """That there are, each after those that it stands on."""
        found: dict[Level, None] = {}
        for top in self._tops():
            found.update(dict.fromkeys(reversed(top.chain())))
        return list(found)

    def _tops(self) -> list[Level]:
        """Those that somebody holds, and that which the dirty log counts from."""
        return [taken.level for taken in self._taken] + ([] if self._base is None else [self._base])

    def take(self, progress: Progress | None = None) -> Pages:
        """What RAM is like now. Raises OSError where this host gives no memory for it."""
        if self._base is None:
            taken = self._take_all(progress)
        else:
            self.harvest()
            taken = self._take_dirty(self._base)
        self._base = taken.level
        self._taken.add(taken)
        self._join_levels()
        return taken

    def _take_all(self, progress: Progress | None) -> Pages:
        regions = self._memory.ram
        sizes = [len(region.buffer) for region in regions]
        self._places = [(region.gpa, size) for region, size in zip(regions, sizes, strict=True)]
        self._regions = list(regions)
        below = None if self._image is None else self._image()
        if below is not None:
            for size in sizes[len(below.own) :]:
                below.add_region(pages.store(size))
        level = Level(below, [pages.bitmap(size) for size in sizes], [pages.store(size) for size in sizes])
        self._dirty = [pages.bitmap(size) for size in sizes]
        self._scratch = [pages.bitmap(size) for size in sizes]
        copied = done = 0
        for region, own, store in zip(regions, level.own, level.stores, strict=True):

            def tell(count: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + count * PAGE, sum(sizes))

            copied += pages.copy_touched(
                region.buffer, store, own, region.fd, region.fd_offset, tell, zeros=below is not None
            )
            self._slots.log(region, True)
            done += len(region.buffer)
        self._memory.written, self._memory.all_written = set(), False
        return Pages(level, copied * PAGE)

    def _take_dirty(self, parent: Level) -> Pages:
        level, copied = Level(parent, [], []), 0
        for region, (_, size), dirty in zip(self._regions, self._places, self._dirty, strict=True):
            level.add_region(pages.store(size))
            if region is not None:
                copied += pages.copy_dirty(dirty, region.buffer, level.stores[-1])
                level.own[-1][:] = dirty
            dirty[:] = bytes(len(dirty))
        return Pages(level, copied * PAGE)

    def put_back(self, taken: Pages) -> None:
        """Make RAM what it was when *taken* was taken."""
        self.harvest()
        if self._base is not taken.level:
            self._add_difference(taken)
        for number, region in self._there():
            taken.put_back(number, self._dirty[number], region.buffer)
        self._base = taken.level
        self._join_levels()

    def holds(self, taken: Pages) -> bool:
        """*taken* is of this RAM, and can be put back."""
        return taken in self._taken

    def release_unused(self) -> None:
        """What no snapshot needs any more, the log too where there is none; at any time, under the machine lock."""
        if self._base is None:
            return
        if list(self._taken):  # its length counts one that is just being let go, and this is called for that
            self._join_levels()
            return
        for _, region in self._there():
            self._slots.log(region, False)
        self._base = self._memory.written = None
        self._places, self._regions, self._dirty, self._scratch = [], [], [], []

    def runs(self, taken: Pages, plugged: Mapping[tuple[int, int], int]) -> list[tuple[int, memoryview]]:
        """All of RAM that is not zero in *taken*, ascending: where it is in a file or memfd with all RAM, in bytes, and
        what is there. *plugged* is where RAM begins that was plugged in then, by (address, bytes). Only inside
        reading()."""
        found: list[tuple[int, memoryview]] = []
        for number, (place, region) in enumerate(zip(self._places, self._regions, strict=True)):
            start = plugged.get(place)
            if place[0] < self._plugged_from and region is not None:
                start = region.fd_offset
            if start is not None:
                found += ((start + offset, data) for offset, data in taken.runs(number))
        return sorted(found, key=lambda run: run[0])

    def _join_levels(self) -> None:
        """Join each level that nobody holds with the only one that stands on it; where the log counts from one that
        nobody holds and nothing stands on, have it count from the one below."""
        held = {taken.level for taken in self._taken}
        base = self._base
        assert base is not None
        above = Counter(level.parent for level in self.levels)
        while base not in held and not above[base] and base.parent is not None:
            self._mark_levels([base])
            above[base.parent] -= 1
            base = base.parent
        self._base = base
        with self._shape:
            for level in [] if self._readers else self.levels:
                while (below := level.parent) is not None and above[below] == 1 and below not in held | {base}:
                    level.take_over()
                    for taken in self._taken:
                        taken.forget_lookups()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What snapshots have stays where it is inside; from any thread. release_unused() makes up for it."""
        with self._shape:
            self._readers += 1
        try:
            yield
        finally:
            with self._shape:
                self._readers -= 1

    def harvest(self) -> None:
        """Into the bitmaps: what the guest has written, and what views were given of."""
        for number, region in self._there():
            slot, dirty, scratch = self._slots.slot(region.gpa), self._dirty[number], self._scratch[number]
            self._vm.harvest_dirty_log(slot, dirty, scratch, len(region.buffer))
        written = self._memory.written
        if written is not None:
            self._mark(written)
            written.clear()
        self._mark(self._memory.lasting)
        if self._memory.all_written:
            self._memory.all_written = False
            for (_, size), dirty in zip(self._places, self._dirty, strict=True):
                dirty[:] = _bitmap((1 << size // PAGE) - 1, len(dirty))

    def _mark(self, numbers: Iterable[int]) -> None:
        bounds = [(gpa // PAGE, size // PAGE) for gpa, size in self._places]
        for number in numbers:
            for (first, count), dirty in zip(bounds, self._dirty, strict=True):
                if 0 <= number - first < count:
                    dirty[number - first >> 3] |= 1 << (number - first & 7)

    def _add_difference(self, taken: Pages) -> None:
        """The pages that the levels do not have in common."""
        assert self._base is not None
        self._mark_levels(set(self._base.chain()) ^ set(taken.level.chain()))

    def _mark_levels(self, levels: Iterable[Level]) -> None:
        """As dirty, the pages that they have."""
        for level in levels:
            for dirty, own in zip(self._dirty, level.own, strict=True):
                dirty[:] = _bitmap(_bits(dirty) | _bits(own), len(dirty))
