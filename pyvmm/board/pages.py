"""The pages of snapshots: what of guest RAM was touched, and who has which page.

The first snapshot copies each page that is not zero. From then on KVM logs what the guest writes, and GuestMemory which
pages views were given of; a further snapshot is a level that has only the pages written since the one before. To go
back to any of them, the pages written since are put back, and those that the levels between have. This is the one owner
of RAM's dirty log, which is on only while there is a snapshot.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kvm_cffi import Vm, pages
from pyvmm.board.memslots import MemorySlots
from pyvmm.memory import GuestMemory, Region

PAGE: Final = pages.PAGE_SIZE


@dataclass(eq=False)
class Level:
    """The pages that one snapshot has, by region, over those of *parent*."""

    parent: Level | None
    own: list[bytearray]
    """A bit a page."""
    stores: list[mmap.mmap]
    count: int = 0
    """Pages."""

    def chain(self) -> list[Level]:
        """This one, and those below."""
        levels, level = [], self
        while True:
            levels.append(level)
            if level.parent is None:
                return levels
            level = level.parent


class Pages:
    """What RAM was like at a moment, while somebody holds it. Of one machine."""

    def __init__(self, level: Level, regions: list[Region]) -> None:
        self.level = level
        self.levels = level.chain()
        self._lookups = [
            pages.Levels([(level.stores[n], level.own[n]) for level in self.levels]) for n in range(len(regions))
        ]

    @property
    def size(self) -> int:
        """Bytes of RAM that it has of its own, beside those of the snapshots before it."""
        return self.level.count * PAGE

    def put_back(self, number: int, dirty: bytearray, memory: memoryview) -> None:
        """The pages of *dirty* into region *number*, whose buffer is *memory*."""
        self._lookups[number].put_back(dirty, memory)


class RamPages:
    """Of *memory*, which is *slots* in *vm*; all of it while no vCPU runs, but release()."""

    def __init__(self, vm: Vm, memory: GuestMemory, slots: MemorySlots) -> None:
        self._vm = vm
        self._memory = memory
        self._slots = slots
        self._regions: list[Region] = []
        self._dirty: list[bytearray] = []
        self._scratch: list[bytearray] = []
        self._base: Level | None = None
        self._taken: weakref.WeakSet[Pages] = weakref.WeakSet()

    @property
    def logging(self) -> bool:
        """The dirty log is on."""
        return self._base is not None

    def take(self) -> Pages:
        """What RAM is like now. Raises OSError where this host gives no memory for it."""
        if self._base is None:
            taken = self._take_all()
        else:
            self.harvest()
            taken = self._take_dirty(self._base)
        self._base = taken.level
        self._taken.add(taken)
        return taken

    def _take_all(self) -> Pages:
        self._regions = list(self._memory.ram)
        sizes = [len(region.buffer) for region in self._regions]
        level = Level(None, [pages.bitmap(size) for size in sizes], [pages.store(size) for size in sizes])
        self._dirty = [pages.bitmap(size) for size in sizes]
        self._scratch = [pages.bitmap(size) for size in sizes]
        for region, own, store in zip(self._regions, level.own, level.stores, strict=True):
            level.count += pages.copy_touched(region.buffer, store, own)
            self._slots.log(region, True)
        self._memory.written = set()
        return Pages(level, self._regions)

    def _take_dirty(self, parent: Level) -> Pages:
        level = Level(parent, [], [])
        for region, dirty in zip(self._regions, self._dirty, strict=True):
            store = pages.store(len(region.buffer))
            level.count += pages.copy_dirty(dirty, region.buffer, store)
            level.own.append(bytearray(dirty))
            level.stores.append(store)
            dirty[:] = bytes(len(dirty))
        return Pages(level, self._regions)

    def put_back(self, taken: Pages) -> None:
        """Make RAM what it was when *taken* was taken."""
        self.harvest()
        if self._base is not taken.level:
            self._add_difference(taken)
        for number, region in enumerate(self._regions):
            taken.put_back(number, self._dirty[number], region.buffer)
        self._base = taken.level

    def holds(self, taken: Pages) -> bool:
        """*taken* is of this RAM, and can be put back."""
        return taken in self._taken

    def release_unused(self) -> None:
        """End the log where no snapshot is left; at any time, under the machine lock."""
        if self._base is not None and not self._taken:
            for region in self._regions:
                self._slots.log(region, False)
            self._base = self._memory.written = None
            self._regions, self._dirty, self._scratch = [], [], []

    def harvest(self) -> None:
        """Into the bitmaps: what the guest has written, and what views were given of."""
        for region, dirty, scratch in zip(self._regions, self._dirty, self._scratch, strict=True):
            slot = self._slots.slot(region.gpa)
            pages.harvest(self._vm.fd, slot, dirty, scratch, len(region.buffer))
        written = self._memory.written
        if written is not None:
            self._mark(written)
            written.clear()
        self._mark(self._memory.lasting)

    def _mark(self, numbers: Iterable[int]) -> None:
        bounds = [(region.gpa // PAGE, len(region.buffer) // PAGE) for region in self._regions]
        for number in numbers:
            for (first, count), dirty in zip(bounds, self._dirty, strict=True):
                if 0 <= number - first < count:
                    dirty[number - first >> 3] |= 1 << (number - first & 7)

    def _add_difference(self, taken: Pages) -> None:
        """The pages that the levels do not have in common."""
        assert self._base is not None
        ours, theirs = self._base.chain(), taken.levels
        for level in set(ours) ^ set(theirs):
            for dirty, own in zip(self._dirty, level.own, strict=True):
                together = int.from_bytes(dirty, "little") | int.from_bytes(own, "little")
                dirty[:] = together.to_bytes(len(dirty), "little")
