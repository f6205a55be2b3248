"""Queues that somebody else serves: vhost in the kernel, by ring addresses, a kick and a call eventfd each.

    class VhostThing(VirtioDevice):
        def __init__(self, vhost: RingServers) -> None:
            self._server = vhost.thing()
            self._offload = Offload(vhost, self._server, self._begin, self._end)
            super().__init__()

        def make_queue(self, index: int, size: int) -> VirtQueue:
            return self._offload.queue(index, size)

A kick goes by ioeventfd to the server. An interrupt goes by irqfd to the guest while the queue has an MSI-X vector,
else by way of the loop to the Transport. The rings are served while all queues of an Offload are in use, and taken back
with their indices when one is not any more (reset, no bus master, an error), and while the machine stands still: so
what a snapshot keeps is right, and nobody writes to memory that is being copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from pyvmm.memory import GuestMemory
from pyvmm.virtio.abi import VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX
from pyvmm.virtio.queue import VirtQueue
from pyvmm.virtio.ring import Chain, QueueError, Ring, ring_area
from pyvmm.virtio.vhost import RingServer, RingServers

NO_FD: Final = -1


class OffloadedRing:
    """A split ring, see split.SplitRing, of which we know where it is and how far it was when it was taken back."""

    def __init__(
        self, memory: GuestMemory, vhost: RingServers, size: int, desc: int, avail: int, used: int, event: int
    ) -> None:
        """*event* is 2 where the rings end with an event index. Raises QueueError."""
        if not 0 < size <= 32768 or size & (size - 1):
            raise QueueError(f"a split queue of {size} entries")
        self.size = size
        self.desc = vhost.address(ring_area(memory, "descriptor table", desc, 16 * size, 16))
        self.avail = vhost.address(ring_area(memory, "available ring", avail, 4 + 2 * size + event, 2))
        self.used = vhost.address(ring_area(memory, "used ring", used, 4 + 8 * size + event, 4))
        self.base = 0
        """The available index to go on at."""

    def pop(self) -> Chain | None:
        return None

    def push(self, chain: Chain, written: int) -> None: ...

    def fill(self, data: bytes, most: int, count_at: int) -> int:
        return 0

    def flush(self) -> bool:
        return False

    def set_kicks(self, wanted: bool) -> None: ...

    def progress(self, held: Sequence[Chain]) -> tuple[int, ...]:
        return (self.base,)

    def go_on_at(self, progress: tuple[int, ...]) -> None:
        (self.base,) = progress


class OffloadedQueue(VirtQueue):
    """A queue of *offload*: to its device it is always empty."""

    STATE = ()

    kick_fd: int

    def __init__(self, index: int, max_size: int, offload: Offload, vhost: RingServers) -> None:
        self._offload = offload
        self._vhost = vhost
        self._paused = False
        self.kick_fd = vhost.eventfd()
        self.call_fd = vhost.watch(self._called)
        """For the server to signal where no eventfd leads straight to the guest."""
        super().__init__(index, max_size)

    @property
    def ring(self) -> OffloadedRing | None:
        """Where it is, while it is in use."""
        ring = self._ring
        return ring if isinstance(ring, OffloadedRing) else None

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self._offload.follow()

    def _make_ring(self, memory: GuestMemory, features: int) -> Ring:
        if features >> VIRTIO_F_RING_PACKED & 1:
            raise QueueError("a packed ring, which was not offered")
        if self.size > self.max_size:
            raise QueueError(f"{self.size} entries where {self.max_size} is the most")
        event = 2 if features >> VIRTIO_RING_F_EVENT_IDX & 1 else 0
        return OffloadedRing(memory, self._vhost, self.size, self.desc, self.driver, self.device, event)

    def start(self, memory: GuestMemory, features: int) -> None:
        super().start(memory, features)
        self._offload.follow(features)

    def resume(self, memory: GuestMemory, features: int) -> None:
        super().resume(memory, features)
        self._offload.follow(features)

    def stop(self) -> None:
        self._offload.take_back()
        super().stop()

    @property
    def progress(self) -> tuple[int, ...] | None:
        self._offload.ask()
        return None if self._ring is None else self._ring.progress(())

    @progress.setter
    def progress(self, loaded: tuple[int, ...] | None) -> None:
        self.stop()
        self._loaded = loaded

    def call_changed(self) -> None:
        self._offload.call_changed(self)

    def ring_doorbell(self) -> None:
        """Let the server look at it."""
        os.eventfd_write(self.kick_fd, 1)

    def _called(self) -> None:
        if self.running:
            self.transport.interrupt(self)

    def close(self) -> None:
        self._vhost.close_eventfd(self.kick_fd)
        self._vhost.close_eventfd(self.call_fd)


class Offload:
    """The queues of one server, made with queue() in the server's order. *begin* has it serve rings that are set, *end*
    touch them no more; both may raise OSError. All of it under the machine lock."""

    def __init__(
        self, vhost: RingServers, server: RingServer, begin: Callable[[], None], end: Callable[[], None]
    ) -> None:
        self.server = server
        """Another one only while it serves nothing."""
        self.allowed = True
        """False: it is to serve nothing, whatever the driver does."""
        self.queues: list[OffloadedQueue] = []
        self.serving = False
        self._vhost = vhost
        self._begin, self._end = begin, end
        self._features = 0
        self._resting = False
        vhost.enlist(self)

    def queue(self, index: int, size: int) -> OffloadedQueue:
        """The next of its queues, queue *index* of the device."""
        queue = OffloadedQueue(index, size, self, self._vhost)
        self.queues.append(queue)
        return queue

    def follow(self, features: int | None = None) -> None:
        """A queue may have come into use, with *features* of the driver, or not be so any more."""
        if features is not None:
            self._features = features
        may = self.allowed and not self._resting and bool(self.queues)
        wanted = may and all(queue.running for queue in self.queues)
        if wanted and not self.serving:
            self._hand_over()
        elif not wanted:
            self.take_back()

    def allow(self, allowed: bool) -> None:
        self.allowed = allowed
        self.follow()

    def _hand_over(self) -> None:
        server = self.server
        try:
            server.set_features(self._features & server.get_features())  # a driver has agreed with the device to more
            for number, queue in enumerate(self.queues):
                ring = queue.ring
                assert ring is not None
                server.set_vring_num(number, ring.size)
                server.set_vring_base(number, ring.base)
                server.set_vring_addr(number, ring.desc, ring.avail, ring.used)
                server.set_vring_kick(number, queue.kick_fd)
                server.set_vring_call(number, self._call(queue))
            self._begin()
        except OSError as error:
            with suppress(OSError):
                self._let_go()
            self.queues[0].fail(f"it cannot be served: {error}")
            return
        self.serving = True
        for queue in self.queues:
            queue.ring_doorbell()  # what was kicked meanwhile nobody has heard

    def _call(self, queue: OffloadedQueue) -> int:
        fd = queue.transport.call_fd(queue)
        return queue.call_fd if fd is None else fd

    def call_changed(self, queue: VirtQueue) -> None:
        """The guest may want the interrupts of *queue* otherwise."""
        if self.serving:
            for number, one in enumerate(self.queues):
                if one is queue:
                    self.server.set_vring_call(number, self._call(one))

    def ask(self) -> None:
        """How far the rings have got."""
        if self.serving:
            for number, queue in enumerate(self.queues):
                if queue.ring is not None:
                    queue.ring.base = self.server.get_vring_base(number)

    def take_back(self) -> None:
        """The rings are ours again, if they were not."""
        if not self.serving:
            return
        self._let_go()
        self.ask()
        self.serving = False
        self._vhost.written()

    def _let_go(self) -> None:
        self._end()
        for number in range(len(self.queues)):
            self.server.set_vring_kick(number, NO_FD)
            self.server.set_vring_call(number, NO_FD)

    def rest(self) -> None:
        """The machine stands still."""
        self._resting = True
        self.take_back()

    def go_on(self) -> None:
        self._resting = False
        self.follow()

    def close(self) -> None:
        """Once is enough; the server stays open."""
        self._resting = True
        self.take_back()
        self._vhost.dismiss(self)
        for queue in self.queues:
            queue.close()
        self.queues.clear()
