"""The packed virtqueue, virtio 1.2 section 2.8: one ring that both sides write, and two event structures.

descriptors  16 bytes each: addr, len, id, flags; available where AVAIL is the wrap counter and USED is not
driver event, device event   le16 off_wrap, le16 flags: when that side wants to be told
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from pyvmm.memory import GuestMemory
from pyvmm.virtio.abi import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
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

_LEN_ID: Final = struct.Struct("<IH")
_AVAIL_USED: Final = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED


class PackedRing:
    """A packed ring of *size* (1 to 32768) descriptors at *desc*, with the event structures of driver and device."""

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        indirect: bool = True,
        event_idx: bool = False,
    ) -> None:
        if not 0 < size <= 32768:
            raise QueueError(f"a packed queue of {size} descriptors")
        self.size = size
        self._memory = memory
        self._desc = ring_area(memory, "descriptor ring", desc, 16 * size, 16)
        self._words = self._desc.cast("H")
        self._driver = ring_area(memory, "driver event", driver, 4, 4).cast("I")
        self._device = ring_area(memory, "device event", device, 4, 4).cast("H")
        ring = self._desc
        self._filler = RingFiller(memory, lambda: memory.packed_filler(ring, size))
        self._indirect = indirect
        self._event_idx = event_idx
        self._next_avail = 0
        self._avail_wrap = 1
        self._next_used = 0
        self._used_wrap = 1
        self._pushed: list[tuple[int, int]] = []
        self._pushed_slots = 0

    def pop(self) -> Chain | None:
        flags = self._words[8 * self._next_avail + 7]
        expected = VRING_PACKED_DESC_F_AVAIL if self._avail_wrap else VRING_PACKED_DESC_F_USED
        if flags & _AVAIL_USED != expected:
            return None
        chain = self._walk(self._next_avail)
        self._took(chain.slots)
        return chain

    def _took(self, slots: int) -> None:
        self._next_avail += slots
        if self._next_avail >= self.size:
            self._next_avail -= self.size
            self._avail_wrap ^= 1

    def _walk(self, index: int) -> Chain:
        builder = ChainBuilder(self._memory)
        for count in range(1, self.size + 1):
            address, length, buffer_id, flags = DESCRIPTOR.unpack_from(self._desc, index * 16)
            if flags & VRING_DESC_F_INDIRECT:
                if not self._indirect or flags & VRING_DESC_F_NEXT or count > 1:
                    raise QueueError("an indirect descriptor that was not negotiated or is part of a chain")
                walk_indirect(builder, address, length, packed=True)
            else:
                builder.add(address, length, flags)
            if not flags & VRING_DESC_F_NEXT:
                return Chain(self, buffer_id, count, builder)
            index = index + 1 if index + 1 < self.size else 0
        raise QueueError("a descriptor chain longer than the ring")

    def push(self, chain: Chain, written: int) -> None:
        _LEN_ID.pack_into(self._desc, 16 * self._next_used + 8, written, chain.id)
        self._gave(chain.slots, VRING_DESC_F_WRITE if written else 0)

    def _gave(self, slots: int, flags: int) -> None:
        """The next *slots* descriptors are used; the first one's flags wait for the flush."""
        self._pushed.append((8 * self._next_used + 7, flags | _AVAIL_USED if self._used_wrap else flags))
        self._pushed_slots += slots
        self._next_used += slots
        if self._next_used >= self.size:
            self._next_used -= self.size
            self._used_wrap ^= 1

    def fill(self, data: bytes, most: int, count_at: int) -> int:
        filler = self._filler.get()
        if filler is None:
            return 0
        avail_at, used_at = self._next_avail | self._avail_wrap << 15, self._next_used | self._used_wrap << 15
        count = filler.fill(avail_at, used_at, data, most, count_at)
        if count:
            self._took(count)
            self._gave(count, VRING_DESC_F_WRITE)
        return count

    def flush(self) -> bool:
        if not self._pushed:
            return False
        # The driver looks at them in order, so it sees none until the first one's flags change.
        for at, flags in reversed(self._pushed):
            self._words[at] = flags
        used = self._pushed_slots
        self._pushed.clear()
        self._pushed_slots = 0
        memory_barrier()
        event = self._driver[0]
        wanted = event >> 16 & 3
        if wanted == VRING_PACKED_EVENT_FLAG_DESC and self._event_idx:
            offset = event & 0x7FFF
            if event >> 15 & 1 != self._used_wrap:
                offset -= self.size
            return (self._next_used - offset - 1) & 0xFFFF < used
        return wanted != VRING_PACKED_EVENT_FLAG_DISABLE

    def progress(self, held: Sequence[Chain]) -> tuple[int, ...]:
        next_avail, wrap = self._next_avail - sum(chain.slots for chain in held), self._avail_wrap
        if next_avail < 0:
            next_avail, wrap = next_avail + self.size, wrap ^ 1
        pushed = [number for word in self._pushed for number in word]
        return next_avail, wrap, self._next_used, self._used_wrap, self._pushed_slots, *pushed

    def go_on_at(self, progress: tuple[int, ...]) -> None:
        self._next_avail, self._avail_wrap, self._next_used, self._used_wrap, self._pushed_slots, *pushed = progress
        self._pushed = list(zip(pushed[::2], pushed[1::2], strict=True))

    def set_kicks(self, wanted: bool) -> None:
        if not wanted:
            self._device[1] = VRING_PACKED_EVENT_FLAG_DISABLE
        elif self._event_idx:
            self._device[0] = self._next_avail | self._avail_wrap << 15
            self._device[1] = VRING_PACKED_EVENT_FLAG_DESC
        else:
            self._device[1] = VRING_PACKED_EVENT_FLAG_ENABLE
        memory_barrier()
