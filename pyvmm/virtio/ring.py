"""What split and packed virtqueues have in common: descriptor chains, and how a broken ring is told.

Virtio 1.2, sections 2.6 to 2.8. Ring fields that the driver changes while we look are read and written as whole
16-bit or 32-bit words (memoryview.cast), never byte by byte; descriptors are copied before they are judged.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from pyvmm.memory import Filler, GuestMemory, GuestMemoryError
from pyvmm.virtio.abi import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE

MAX_INDIRECT: Final = 1024
"""Entries of an indirect table that are followed; as QEMU's VIRTQUEUE_MAX_SIZE."""
MAX_CHAIN_BYTES: Final = 1 << 32
"""Section 2.6: the driver must not make a chain longer than 2^32 bytes in total."""
DESCRIPTOR: Final = struct.Struct("<QIHH")
"""struct vring_desc (addr, len, flags, next) and vring_packed_desc (addr, len, id, flags): 16 bytes each."""

_fence = threading.Lock()


def memory_barrier() -> None:
    """A full barrier between our store and the load after it, which the driver's side pairs with (virtio_mb).

    x86 reorders only a store with a later load, and a locked instruction stops that; taking a lock executes one.
    """
    with _fence:
        pass


class QueueError(Exception):
    """The driver has broken the rules of the ring; the device needs a reset."""


class Chain:
    """One buffer that the driver made available: what the device reads, and after it what it writes."""

    __slots__ = ("descriptors", "id", "readable", "ring", "slots", "writable")

    def __init__(self, ring: Ring, id: int, slots: int, builder: ChainBuilder) -> None:
        self.ring = ring
        self.id = id
        self.slots = slots
        """Descriptors of the ring that it takes."""
        self.descriptors = builder.descriptors
        """Descriptors that were read for it, those of its indirect table included."""
        self.readable = builder.readable
        self.writable = builder.writable

    def __str__(self) -> str:
        """As the trace shows it."""
        return f"chain {self.id}: DMA reads {self.readable_size} bytes, may write {self.writable_size}"

    @property
    def readable_size(self) -> int:
        """Bytes that the device may read."""
        return sum(map(len, self.readable))

    @property
    def writable_size(self) -> int:
        """Bytes that the device may write."""
        return sum(map(len, self.writable))

    def read(self, limit: int) -> bytes:
        """The first *limit* readable bytes, fewer if there are fewer."""
        data = bytearray()
        for view in self.readable:
            data += view[: limit - len(data)]
            if len(data) >= limit:
                break
        return bytes(data)

    def write(self, data: bytes) -> int:
        """Fill the writable buffers from their start; returns how many bytes found room."""
        done = 0
        for view in self.writable:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
            if done == len(data):
                break
        return done


class Ring(Protocol):
    """A virtqueue's memory, seen from the device. pop raises QueueError when the driver has broken it."""

    size: int

    def pop(self) -> Chain | None:
        """The next available chain, None if there is none."""

    def push(self, chain: Chain, written: int) -> None:
        """Give *chain* back with *written* bytes in it; the driver sees it at the next flush."""

    def fill(self, data: bytes, most: int, count_at: int) -> int:
        """Pop chains for the whole of *data*, at most *most*, write it there and push them, all at once; their number
        is stored at *count_at* in the first, in two bytes. Returns it; 0 where it is not to be had so: pop() says why.
        """

    def flush(self) -> bool:
        """Show the driver all that was pushed, at once; true if it wants an interrupt for that."""

    def set_kicks(self, wanted: bool) -> None:
        """Ask for a kick at the chain after the last that pop found, or for none.

        Pop once more after asking: one may have come before the driver could know.
        """

    def progress(self, held: Sequence[Chain]) -> tuple[int, ...]:
        """How far both sides have got, as if the last chains popped, *held*, had not been."""

    def go_on_at(self, progress: tuple[int, ...]) -> None:
        """Be as far as another ring was."""


class RingFiller:
    """The Filler of one ring, made anew by *make* when RAM has come or gone; None while Python has to do it."""

    def __init__(self, memory: GuestMemory, make: Callable[[], Filler | None]) -> None:
        self._memory = memory
        self._make = make
        self._filler: Filler | None = None
        self._layout = 0
        """Of memory, for which that is good."""

    def get(self) -> Filler | None:
        memory = self._memory
        if memory.written is not None:  # somebody asks which pages
            return None
        if self._layout != memory.layout:
            self._filler = self._make()
            self._layout = memory.layout
        return self._filler


class ChainBuilder:
    """Collects descriptors of one chain, in order, and judges them."""

    __slots__ = ("_bytes", "_memory", "descriptors", "readable", "writable")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.descriptors = 0
        self._bytes = 0

    def add(self, address: int, length: int, flags: int) -> None:
        """One buffer; a length of zero is allowed and carries nothing."""
        self.descriptors += 1
        self._bytes += length
        if self._bytes > MAX_CHAIN_BYTES:
            raise QueueError("a chain of more than 4 GiB")
        views = self.readable
        if flags & VRING_DESC_F_WRITE:
            views = self.writable
        elif self.writable:
            raise QueueError("a readable descriptor after a writable one")
        if length:
            try:
                views.append(self._memory.view(address, length))
            except GuestMemoryError as error:
                raise QueueError(str(error)) from None

    def table(self, address: int, length: int) -> memoryview:
        """The indirect table at *address*."""
        if length == 0 or length % DESCRIPTOR.size:
            raise QueueError(f"an indirect table of {length} bytes")
        try:
            return self._memory.view(address, length)
        except GuestMemoryError as error:
            raise QueueError(str(error)) from None


def ring_area(memory: GuestMemory, what: str, address: int, length: int, align: int) -> memoryview:
    """A part of a ring, which must be aligned (section 2.7, table; 2.8.10) and in RAM."""
    if address % align:
        raise QueueError(f"{what} at {address:#x} is not aligned to {align}")
    try:
        return memory.lasting_view(address, length)
    except GuestMemoryError as error:
        raise QueueError(f"{what}: {error}") from None


def walk_indirect(builder: ChainBuilder, address: int, length: int, packed: bool) -> None:
    """Add the buffers of an indirect table: linked by next in a split ring, one after the other in a packed one."""
    table = builder.table(address, length)
    entries = length // DESCRIPTOR.size
    if packed:
        if entries > MAX_INDIRECT:
            raise QueueError(f"an indirect table of {entries} descriptors")
        for index in range(entries):
            addr, size, _, flags = DESCRIPTOR.unpack_from(table, index * DESCRIPTOR.size)
            if flags & VRING_DESC_F_INDIRECT:
                raise QueueError("an indirect table inside an indirect table")
            builder.add(addr, size, flags)
        return
    index = 0
    for _ in range(min(entries, MAX_INDIRECT)):
        if index >= entries:
            raise QueueError(f"next {index} of an indirect table of {entries}")
        addr, size, flags, following = DESCRIPTOR.unpack_from(table, index * DESCRIPTOR.size)
        if flags & VRING_DESC_F_INDIRECT:
            raise QueueError("an indirect table inside an indirect table")
        builder.add(addr, size, flags)
        if not flags & VRING_DESC_F_NEXT:
            return
        index = following
    raise QueueError("a chain in an indirect table that is too long or loops")
