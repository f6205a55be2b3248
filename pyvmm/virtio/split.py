"""The split virtqueue, virtio 1.2 section 2.7: descriptor table, available ring and used ring.

descriptors  16 bytes each: addr, len, flags, next
available    le16 flags, idx, ring[size], used_event      written by the driver
used         le16 flags, idx, {le32 id, len}[size], le16 avail_event      written by the device
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from pyvmm.memory import GuestMemory
from pyvmm.virtio.abi import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_USED_F_NO_NOTIFY,
)
from pyvmm.virtio.ring import (
    DESCRIPTOR,
    Chain,
    ChainBuilder,
    QueueError,
    RingFiller,
    memory_barrier,
    ring_area,
    walk_indirect,
)

_USED_ELEMENT: Final = struct.Struct("<II")


class SplitRing:
    """A split ring of *size* (a power of two, at most 32768), its three parts in guest RAM at the given addresses."""

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        *,
        indirect: bool = True,
        event_idx: bool = False,
    ) -> None:
        if not 0 < size <= 32768 or size & (size - 1):
            raise QueueError(f"a split queue of {size} entries")
        self.size = size
        self._memory = memory
        self._desc = ring_area(memory, "descriptor table", desc, 16 * size, 16)
        event = 2 if event_idx else 0  # used_event and avail_event are there only if negotiated
        self._avail = ring_area(memory, "available ring", avail, 4 + 2 * size + event, 2).cast("H")
        self._used_bytes = ring_area(memory, "used ring", used, 4 + 8 * size + event, 4)
        self._used = self._used_bytes.cast("H")
        parts = self._desc, self._avail, self._used_bytes
        self._filler = RingFiller(memory, lambda: memory.split_filler(*parts, size))
        self._indirect = indirect
        self._event_idx = event_idx
        self._next_avail = 0
        self._next_used = 0
        self._shown = 0

    def pop(self) -> Chain | None:
        ready = (self._avail[1] - self._next_avail) & 0xFFFF
        if ready == 0:
            return None
        if ready > self.size:
            raise QueueError(f"the available index jumped by {ready}, the queue has {self.size}")
        head = self._avail[2 + self._next_avail % self.size]
        chain = self._walk(head)
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return chain

    def _walk(self, head: int) -> Chain:
        builder = ChainBuilder(self._memory)
        index = head
        for count in range(1, self.size + 1):
            if index >= self.size:
                raise QueueError(f"descriptor {index} of {self.size}")
            address, length, flags, following = DESCRIPTOR.unpack_from(self._desc, index * 16)
            if flags & VRING_DESC_F_INDIRECT:
                if not self._indirect or flags & VRING_DESC_F_NEXT:
                    raise QueueError("an indirect descriptor that was not negotiated or has a next")
                walk_indirect(builder, address, length, packed=False)
                flags = 0
            else:
                builder.add(address, length, flags)
            if not flags & VRING_DESC_F_NEXT:
                return Chain(self, head, count, builder)
            index = following
        raise QueueError("a descriptor chain that loops")

    def push(self, chain: Chain, written: int) -> None:
        _USED_ELEMENT.pack_into(self._used_bytes, 4 + 8 * (self._next_used % self.size), chain.id, written)
        self._next_used = (self._next_used + 1) & 0xFFFF

    def fill(self, data: bytes, most: int, count_at: int) -> int:
        filler = self._filler.get()
        if filler is None:
            return 0
        count = filler.fill(self._next_avail, self._next_used, data, most, count_at)
        self._next_avail = (self._next_avail + count) & 0xFFFF
        self._next_used = (self._next_used + count) & 0xFFFF
        return count

    def flush(self) -> bool:
        old, new = self._shown, self._next_used
        if old == new:
            return False
        self._used[1] = new
        self._shown = new
        memory_barrier()
        if self._event_idx:
            used_event = self._avail[2 + self.size]
            return (new - used_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._avail[0] & VRING_AVAIL_F_NO_INTERRUPT

    def progress(self, held: Sequence[Chain]) -> tuple[int, ...]:
        return (self._next_avail - len(held)) & 0xFFFF, self._next_used, self._shown

    def go_on_at(self, progress: tuple[int, ...]) -> None:
        self._next_avail, self._next_used, self._shown = progress

    def set_kicks(self, wanted: bool) -> None:
        if self._event_idx:
            # An index just passed comes round again only after 65535 more.
            self._used[2 + 4 * self.size] = self._next_avail if wanted else (self._next_avail - 1) & 0xFFFF
        else:
            self._used[0] = 0 if wanted else VRING_USED_F_NO_NOTIFY
        memory_barrier()
