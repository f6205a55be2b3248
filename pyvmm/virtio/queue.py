"""A virtqueue as a device holds it: chains come out, chains go back, and no guest can break the loop around them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final, Protocol

from pyvmm.memory import GuestMemory
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_MSI_NO_VECTOR,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from pyvmm.virtio.packed import PackedRing
from pyvmm.virtio.ring import Chain, QueueError, Ring
from pyvmm.virtio.split import SplitRing

TURN: Final = 4096
"""Descriptors that are read, indirect ones included, before the rest is put off: a few milliseconds."""
CHAIN_COST: Final = 32
"""What a device does with a chain counts as reading so many descriptors more."""
COPY_COST: Final = 1024
"""So many bytes that a device copies without anybody who slows it down count as reading a descriptor."""


class Turn:
    """What may still be done for a kick, in descriptors: the queues of a device share one, for a kick of one may have
    the device look at others."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = TURN


class Transport(Protocol):
    """What a device and its queues need of whatever leads to the driver: PCI, a test, a server elsewhere."""

    def interrupt(self, queue: VirtQueue) -> None:
        """Tell the driver that *queue* has used buffers (section 2.3)."""

    def config_changed(self) -> None:
        """Tell the driver that the device configuration has changed."""

    def needs_reset(self, why: str) -> None:
        """The driver broke the rules: stop, and tell it by DEVICE_NEEDS_RESET (section 2.1.2)."""

    def defer(self, call: Callable[[], None]) -> None:
        """Run *call* a little later, once, under the machine lock."""

    def call_fd(self, queue: VirtQueue) -> int | None:
        """An eventfd that does what interrupt() does, until the queue's call_changed(); None where there is none."""


class NoTransport:
    """Where a device is that has no transport yet: its driver is not there."""

    def interrupt(self, queue: VirtQueue) -> None: ...

    def config_changed(self) -> None: ...

    def needs_reset(self, why: str) -> None: ...

    def defer(self, call: Callable[[], None]) -> None: ...

    def call_fd(self, queue: VirtQueue) -> int | None:
        return None


NO_TRANSPORT: Final = NoTransport()


class VirtQueue:
    """One queue. While the driver has not set it up, or after it broke it, it is empty and takes nothing back.

        for chain in queue:
            queue.push(chain, chain.write(answer(chain.read(4096))))

    Its device shows the driver what was pushed when handle_queue returns; anyone else calls notify().
    A driver can't hold us, however long its chains are and however fast it adds: when its turn is over (TURN) the queue
    is as if empty, and a call put off to the loop kicks it again.
    """

    # fmt: off
    STATE: ClassVar[tuple[str, ...]] = (
        "size", "enabled", "vector", "desc", "driver", "device", "paused", "progress",
    )
    # fmt: on

    kick_fd: int | None = None
    """The eventfd of whoever else serves it, which hears of kicks in our stead."""

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.transport: Transport = NO_TRANSPORT
        self.trace: Channel = OFF
        """Where its chains are told of."""
        self.kicked: Callable[[], None] = lambda: None
        """What its device does when somebody has kicked it."""
        self.paused = False
        """True while the function may not do DMA."""
        self._ring: Ring | None = None
        self._loaded: tuple[int, ...] | None = None
        self._held: deque[Chain] = deque()
        self._deferred = False
        self.turn = Turn()
        """Its own, until a device has it."""
        self.reset()

    def reset(self) -> None:
        """Back to what a driver finds: not enabled, largest size, no addresses, no vector."""
        self.stop()
        self.size = self.max_size
        self.enabled = False
        self.vector = VIRTIO_MSI_NO_VECTOR
        self.desc = 0
        self.driver = 0
        self.device = 0

    def start(self, memory: GuestMemory, features: int) -> None:
        """Take the ring into use as the registers say; a ring that can't be one breaks the device."""
        try:
            self._ring = self._make_ring(memory, features)
            self.set_kicks(True)
        except QueueError as error:
            self.fail(str(error))

    def _make_ring(self, memory: GuestMemory, features: int) -> Ring:
        ring = PackedRing if features >> VIRTIO_F_RING_PACKED & 1 else SplitRing
        if self.size > self.max_size:
            raise QueueError(f"{self.size} entries where {self.max_size} is the most")
        return ring(
            memory,
            self.size,
            self.desc,
            self.driver,
            self.device,
            indirect=bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1),
            event_idx=bool(features >> VIRTIO_RING_F_EVENT_IDX & 1),
        )

    @property
    def progress(self) -> tuple[int, ...] | None:
        """How far the ring has been worked through, as a snapshot keeps it; None where it is not in use. Chains that
        wait here are still in the ring then."""
        return None if self._ring is None else self._ring.progress(self._held)

    @progress.setter
    def progress(self, loaded: tuple[int, ...] | None) -> None:
        self.stop()
        self._loaded = loaded

    def resume(self, memory: GuestMemory, features: int) -> None:
        """After a load: take the ring into use where it was, writing nothing."""
        self.begin_turn()
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            try:
                ring = self._make_ring(memory, features)
                ring.go_on_at(loaded)
                self._ring = ring
            except QueueError as error:
                self.fail(str(error))

    def stop(self) -> None:
        """Let go of the ring; its registers stay."""
        self._ring = None
        self._held.clear()

    @property
    def started(self) -> bool:
        """Whether the ring has been taken into use."""
        return self._ring is not None

    def lies_in(self, gpa: int, length: int) -> bool:
        """Whether the ring is in use and a part of it begins in [gpa, gpa+length); a part is never in two regions."""
        return self.started and any(gpa <= part < gpa + length for part in (self.desc, self.driver, self.device))

    @property
    def running(self) -> bool:
        """Whether there is a ring to work on now."""
        return self._ring is not None and not self.paused

    def fail(self, reason: str) -> None:
        """The driver has broken this queue: the device needs a reset."""
        self.stop()
        self.transport.needs_reset(f"queue {self.index}: {reason}")

    def begin_turn(self) -> None:
        """Somebody has kicked: TURN descriptors may be read for that."""
        self.turn.left = TURN

    def copied(self, size: int) -> None:
        """The device has copied *size* bytes of a chain's, which its turn is shorter by."""
        self.turn.left -= size // COPY_COST

    def pop(self) -> Chain | None:
        """The next chain; None if there is none, its turn has come to an end, or the queue is not running."""
        return self._pop(CHAIN_COST)

    def _pop(self, cost: int) -> Chain | None:
        if self._ring is None or self.paused:
            return None
        if self._held:
            return self._held.popleft()
        if self.turn.left <= 0:
            self.kick_later()
            return None
        try:
            chain = self._ring.pop()
        except QueueError as error:
            self.fail(str(error))
            return None
        if chain is not None:
            self.turn.left -= cost + chain.descriptors
            if self.trace.enabled:
                self.trace(f"queue {self.index}: {chain}", ("chain", self.index, chain.id))
        return chain

    def pop_exactly(self, count: int) -> list[Chain] | None:
        """*count* chains, or None while there are fewer; those wait here, so that a kick is asked for beyond them.

        What is done with them counts for nothing: a few bytes each.
        """
        chains: list[Chain] = []
        while len(chains) < count:
            chain = self._pop(0)
            if chain is None:
                if self._ring is not None:  # else pop has just found it broken
                    self._held.extend(chains)
                return None
            chains.append(chain)
        return chains

    def pop_or_ask(self) -> Chain | None:
        """As pop(); where there is none, the driver is asked to kick for the next."""
        chain = self.pop()
        if chain is None:
            self.set_kicks(True)
            chain = self.pop()
        return chain

    def put_back(self, chains: Sequence[Chain]) -> None:
        """*chains*, the last that were popped, are of no use yet: they come out again next, in the same order."""
        if self._ring is not None:  # else there is nobody who would have them back
            self._held.extendleft(reversed(chains))

    def count(self) -> int:
        """How many chains the driver has made available that nobody has taken; they wait here as pop_exactly()'s do,
        and it is asked to kick for the next."""
        if self.pop_exactly(self.size + 1) is None:
            self.set_kicks(True)
            self.pop_exactly(self.size + 1)
        return len(self._held)

    @property
    def put_off(self) -> bool:
        """Its turn has come to an end before its chains did: it is kicked again by and by."""
        return self._deferred

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back with *written* bytes in it. One from before a reset is dropped."""
        if chain.ring is self._ring and not self.paused:
            if self.trace.enabled:
                message = f"queue {self.index}: chain {chain.id} is used, {written} bytes written"
                self.trace(message, ("used", self.index, chain.id))
            chain.ring.push(chain, written)

    def fill(self, data: bytes, most: int, count_at: int) -> int:
        """Give chains back with *data* in them, *most* at most, without looking at each here: see Ring.fill(). How
        many; with 0 nothing has happened, and pop() is the way."""
        if self._ring is None or self.paused or self._held or self.turn.left <= 0 or self.trace.enabled:
            return 0
        count = self._ring.fill(data, most, count_at)
        self.turn.left -= count
        return count

    def holds(self, chain: Chain) -> bool:
        """Whether *chain* is still the driver's to have back: no reset came in between."""
        return chain.ring is self._ring

    def notify(self) -> None:
        """Show the driver all that was pushed, and interrupt it if it asked for that."""
        if self._ring is not None and not self.paused and self._ring.flush():
            self.transport.interrupt(self)

    def set_kicks(self, wanted: bool) -> None:
        """Whether the driver should kick when it makes a chain available. After asking for kicks, pop once more."""
        if self._ring is not None and not self.paused:
            self._ring.set_kicks(wanted)

    def call_changed(self) -> None:
        """Its Transport may have another call_fd() for it."""

    def __iter__(self) -> Iterator[Chain]:
        """The chains that are there, until there are none; the driver need not kick meanwhile.

        Whoever leaves before the end (`break`) is kicked for what the driver adds then, and looks for what is there
        already when it can go on.
        """
        self.set_kicks(False)
        while True:
            chain = self.pop()
            if chain is None:
                self.set_kicks(True)
                chain = self.pop()
                if chain is None:
                    return
                self.set_kicks(False)
            try:
                yield chain
            except GeneratorExit:
                self.set_kicks(True)
                raise

    def kick_later(self) -> None:
        """Have it kicked by the loop, by and by: what is there now is too much, or its turn has come to an end."""
        if not self._deferred:
            self._deferred = True  # one at a time: each kick of such a driver would add another
            self.transport.defer(self._go_on)

    def _go_on(self) -> None:
        self._deferred = False
        self.kicked()


class FakeTransport:
    """The transport of the unit tests: remembers what it was told; run_later() is a turn of the loop."""

    def __init__(self) -> None:
        self.interrupts: list[int] = []
        self.config_changes = 0
        self.broken: list[str] = []
        self.call_fds: dict[int, int] = {}
        """By the index of a queue, what leads straight to the driver."""
        self.later: list[Callable[[], None]] = []

    def interrupt(self, queue: VirtQueue) -> None:
        self.interrupts.append(queue.index)

    def config_changed(self) -> None:
        self.config_changes += 1

    def needs_reset(self, why: str) -> None:
        self.broken.append(why)

    def defer(self, call: Callable[[], None]) -> None:
        self.later.append(call)

    def call_fd(self, queue: VirtQueue) -> int | None:
        return self.call_fds.get(queue.index)

    def run_later(self) -> None:
        calls, self.later[:] = self.later[:], []
        for call in calls:
            call()
