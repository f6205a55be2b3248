"""What devices of this host reach by DMA: guest RAM, and pieces of each other's BARs where that is allowed.

Guest RAM is mapped at its own addresses (an I/O virtual address is a guest physical one), all of it, and pinned for as
long as a device is there: a device may read and write it at any time. Nothing else is mapped, so that is all that it
reaches.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Sequence
from weakref import ref as weakref

from kvm_cffi import KvmError, address_of
from kvm_cffi.iommufd import IommuFd
from kvm_cffi.vfio import Container
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory, Region
from pyvmm.units import KIB


class DmaMap:
    """A Listener that keeps guest RAM, as it comes and goes, in the I/O address space of *container*."""

    def __init__(
        self, container: Container | IommuFd, memory: GuestMemory, else_ranges: Sequence[tuple[int, int]] = ()
    ) -> None:
        """*else_ranges* counts where the kernel is too old to say which addresses can be mapped."""
        self._container = container
        self._memory = memory
        self.ranges = container.iova_ranges() or list(else_ranges)
        """(first, last) that the host can map; none where it does not say."""

    def added(self, region: Region) -> None:
        """Raises UserError."""
        if region.kind != "ram":
            return
        first, last = region.gpa, region.gpa + len(region.buffer) - 1
        if self.ranges and not any(low <= first and last <= high for low, high in self.ranges):
            reach = ", ".join(f"{low:#x}-{high:#x}" for low, high in self.ranges)
            raise UserError(
                f"guest RAM at {first:#x}-{last:#x} is not where this host's IOMMU maps ({reach}): give the guest less "
                "memory (-m), or leave the device away"
            )
        try:
            self._container.map_dma(region.gpa, region.buffer)
        except KvmError as error:
            if error.errno == errno.ENOMEM:
                raise UserError(_too_little_locked(max(self._memory.size, len(region.buffer)))) from None
            raise UserError(f"guest RAM at {first:#x}-{last:#x} cannot be given to devices: {error}") from None

    def removed(self, region: Region) -> None:
        if region.kind == "ram":
            self._container.unmap_dma(region.gpa, len(region.buffer))


class PeerWindows:
    """Keeps the pieces of BARs that other devices may reach in the I/O address space of *space*, where the guest has
    them. See memslots.WindowListener."""

    def __init__(self, space: Container | IommuFd, say: Callable[[str], None]) -> None:
        self._space = space
        self._say = say
        self._allowed: list[weakref[memoryview]] = []
        """Something else may be where one was, once it is gone."""
        self._mapped: dict[int, memoryview] = {}
        self._told = False

    def allow(self, memory: memoryview) -> None:
        self._allowed = [view for view in self._allowed if view() is not None]
        self._allowed.append(weakref(memory))

    def opened(self, address: int, buffer: memoryview) -> None:
        start = address_of(buffer)
        pieces = ((address_of(piece), len(piece)) for view in self._allowed if (piece := view()) is not None)
        if not any(low <= start < low + size for low, size in pieces):
            return
        try:
            self._space.map_dma(address, buffer)
        except OSError as error:
            if not self._told:  # a guest moves it as often as it likes
                self._told = True
                self._say(f"p2p: devices cannot reach the BAR at {address:#x}: {error}: leave p2p=on away")
            return
        self._mapped[address] = buffer

    def closed(self, address: int) -> None:
        buffer = self._mapped.pop(address, None)
        if buffer is not None:
            self._space.unmap_dma(address, len(buffer))

    def find(self, address: int) -> int | None:
        """Where in this process the memory is that devices reach at *address*."""
        for start, buffer in self._mapped.items():
            if start <= address < start + len(buffer):
                return address_of(buffer) + address - start
        return None


def _too_little_locked(size: int) -> str:
    """Devices pin guest RAM, which counts as locked."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return f"this host has not {size // KIB} KiB of memory to pin for a device: ask for less (-m)"
    return (
        f"a device pins all of guest RAM, {size // KIB} KiB, and this process may lock {limit // KIB}: raise ulimit -l "
        "(memlock in /etc/security/limits.conf), or ask for less (-m)"
    )
