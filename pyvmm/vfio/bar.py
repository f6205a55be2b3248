"""What answers in a BAR of a device of the host where the guest does not reach the device itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvm_cffi.vfio import VfioRegion
from pyvmm.bus import ALL_ONES, Device
from pyvmm.pci.bar import Span
from pyvmm.pci.msi import Msix
from pyvmm.units import PAGE_SIZE
from pyvmm.vfio.access import Access


class HostBar:
    """Passes accesses on to the device, but for those to *ours*: (start, end, who answers, from its offset 0)."""

    def __init__(self, access: Access, region: VfioRegion, ours: Sequence[tuple[int, int, Device]]) -> None:
        self._access = access
        self._region = region
        self._ours = ours

    def read(self, offset: int, size: int) -> int:
        for start, end, device in self._ours:
            if start <= offset < end:
                return device.read(offset - start, size)
        if not self._region.readable:
            return ALL_ONES[size]
        return int.from_bytes(self._access.read(self._region, offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for start, end, device in self._ours:
            if start <= offset < end:
                device.write(offset - start, size, value)
                return
        if self._region.writable:
            self._access.write(self._region, offset, value.to_bytes(size, "little"))


class MsixTable:
    """The vector table of *msix*, which has it at its offset 0; *written* is called after the guest has written."""

    def __init__(self, msix: Msix, written: Callable[[], None]) -> None:
        self._msix = msix
        self._written = written

    def read(self, offset: int, size: int) -> int:
        return self._msix.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._msix.write(offset, size, value)
        self._written()


class PendingBits:
    """The pending bit array, read-only. *pending* says which of a range of vectors wait: bit 0 for the first."""

    def __init__(self, vectors: int, pending: Callable[[range], int]) -> None:
        self._vectors = vectors
        self._pending = pending

    def read(self, offset: int, size: int) -> int:
        return self._pending(range(8 * offset, min(8 * (offset + size), self._vectors)))

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def mappable(region: VfioRegion, traps: Iterable[Span]) -> list[Span]:
    """The [start, end), whole pages, that a guest may reach in *region* by itself: none of *traps*.

    A BAR of less than a page has none: a guest may put it anywhere in one of its own, beside something else.
    """
    if region.size < PAGE_SIZE:
        return []
    free = [(_up(start), _down(start + size)) for start, size in region.mappable]
    for low, high in traps:
        low, high = _down(low), _up(high)
        free = [piece for start, end in free for piece in ((start, min(end, low)), (max(start, high), end))]
        free = [(start, end) for start, end in free if start < end]
    return sorted((start, end) for start, end in free if start < end)


def _down(offset: int) -> int:
    return offset // PAGE_SIZE * PAGE_SIZE


def _up(offset: int) -> int:
    return -(-offset // PAGE_SIZE) * PAGE_SIZE
