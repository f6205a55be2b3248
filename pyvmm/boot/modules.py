"""Files that a kernel finds in RAM beside itself: at the top of RAM, or right behind the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.boot.e820 import E820_TYPE_RAM, E820Entry
from pyvmm.boot.error import BootError
from pyvmm.boot.image import Image
from pyvmm.boot.lowmem import FOUR_GIB, HIGH_MEMORY_GPA, align_up
from pyvmm.units import MIB, PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.config import Module
    from pyvmm.memory import GuestMemory


class Placed(NamedTuple):
    """*size* bytes of guest RAM at *gpa*."""

    gpa: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind them."""
        return self.gpa + self.size


@contextmanager
def opened(modules: Iterable[Module], what: str) -> Iterator[list[Image]]:
    """The files of *modules*, each called *what* in messages; raises BootError where one cannot be read."""
    with ExitStack() as files:
        yield [files.enter_context(Image(module.file, what)) for module in modules]


def load_at_top(
    memory: GuestMemory,
    images: Sequence[Image],
    e820: Iterable[E820Entry],
    *,
    align: int = PAGE_SIZE,
    floor: int,
    limit: int = FOUR_GIB,
) -> list[Placed]:
    """Load *images* one behind the other, each at a multiple of *align*, as high as they go between *floor* and *limit*
    (exclusive) in RAM below 4 GiB; the first is page-aligned, and what is between them is cleared.

    Raises BootError when there is no room.
    """
    places = []
    size = 0
    for image in images:
        places.append(Placed(align_up(size, align), image.size))
        size = places[-1].end
    top = floor
    for start, end in _ram(e820, floor, limit, highest_first=True):
        top = max(top, end)
        gpa = (end - size) & -PAGE_SIZE
        if gpa >= start:
            placed = [Placed(gpa + place.gpa, place.size) for place in places]
            for before, behind in pairwise(placed):
                memory.write(before.end, bytes(behind.gpa - before.end))
            for image, place in zip(images, placed, strict=True):
                image.load(memory, place.gpa, 0, place.size)
            return placed
    name = images[0].name if len(images) == 1 else f"{len(images)} initrds or modules"
    advice = "this kernel takes none above: use a smaller one" if top == limit else "give the guest more RAM"
    raise _no_room(memory, name, size, floor, top, advice)


def load_behind(memory: GuestMemory, images: Sequence[Image], e820: Iterable[E820Entry], *, floor: int) -> list[Placed]:
    """Load *images* upwards from *floor* in RAM between 1 MiB and 4 GiB, each page-aligned, in their order.

    Raises BootError when there is no room.
    """
    ram = list(_ram(e820, floor, FOUR_GIB))
    placed: list[Placed] = []
    gpa = floor
    for image in images:
        for start, end in ram:
            at = align_up(max(start, gpa), PAGE_SIZE)
            if at + image.size <= end:
                break
        else:
            top = max((end for _, end in ram), default=gpa)
            raise _no_room(memory, image.name, image.size, gpa, top, "give the guest more RAM")
        image.load(memory, at, 0, image.size)
        placed.append(Placed(at, image.size))
        gpa = at + image.size
    return placed


def _ram(e820: Iterable[E820Entry], floor: int, limit: int, highest_first: bool = False) -> Iterator[tuple[int, int]]:
    """What of RAM lies between 1 MiB and 4 GiB, and between *floor* and *limit*."""
    for entry in sorted(e820, reverse=highest_first):
        start, end = max(entry.addr, floor, HIGH_MEMORY_GPA), min(entry.end, limit, FOUR_GIB)
        if entry.type == E820_TYPE_RAM and start < end:
            yield start, end


def _no_room(memory: GuestMemory, name: str, size: int, floor: int, top: int, advice: str) -> BootError:
    if size > memory.size:
        return BootError(f"{name}: {size / MIB:.1f} MiB, larger than RAM: give the guest more RAM")
    room = f"{max(0, top - floor) / MIB:.1f} MiB between {floor:#x} and {top:#x}"
    return BootError(f"{name}: {size / MIB:.1f} MiB do not fit into the {room}: {advice}")
