"""What a virtio device is: an ID, queues, a configuration structure, and what it does when a queue is kicked.

    class VirtioEcho(VirtioDevice):
        device_id = 0x3F
        queue_sizes = (64,)

        def handle_queue(self, queue: VirtQueue) -> None:
            for chain in queue:
                queue.push(chain, chain.write(chain.read(4096)))

It knows neither PCI nor interrupts: a Transport (VirtioPci has one) connects it to its driver. Virtio 1.2, chapter 2.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pyvmm.state import Plain
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from pyvmm.virtio.queue import NO_TRANSPORT, TURN, Transport, Turn, VirtQueue

SPLIT_RING_FEATURES = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC
RING_FEATURES = SPLIT_RING_FEATURES | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_F_RING_PACKED


class VirtioDevice:
    """A virtio device of any transport. Derive from it; override what the device does."""

    device_id: ClassVar[int]
    """VIRTIO_ID_*."""
    queue_sizes: ClassVar[tuple[int, ...]]
    """The largest size of each queue, in descriptors; powers of two."""
    class_code: ClassVar[int] = 0x00FF00
    """The PCI class on a PCI transport."""
    features: int = RING_FEATURES
    """The feature bits to offer, those of the ring (section 6) included."""
    STATE: ClassVar[tuple[str, ...]] = ("queues", "driver_features", "driver_ok", "config")
    """What a snapshot keeps, see pyvmm/state.py: each class that is derived names the attributes that it adds."""
    config: bytes | bytearray = b""
    """The device configuration structure, for a device that does not override config_read."""

    def __init__(self, trace: Channel = OFF, queue_sizes: tuple[int, ...] | None = None) -> None:
        """*queue_sizes* are those of a device that may have more or fewer queues than its class says."""
        self.trace = trace
        self.queues = tuple(self.make_queue(index, size) for index, size in enumerate(queue_sizes or self.queue_sizes))
        self.driver_features = 0
        self.driver_ok = False
        """Whether the driver has set DRIVER_OK and the device is fit to work."""
        self.transport: Transport = NO_TRANSPORT
        self.turn = Turn()
        for queue in self.queues:
            queue.kicked = partial(self.kick, queue)
            queue.turn = self.turn

    def make_queue(self, index: int, size: int) -> VirtQueue:
        """Queue *index*, when the device is made; another kind where somebody else serves it (offload.py)."""
        return VirtQueue(index, size)

    def connect(self, transport: Transport) -> None:
        """Called by what carries the device: *transport* leads to its driver."""
        self.transport = transport
        for queue in self.queues:
            queue.transport = transport

    def kick(self, queue: VirtQueue) -> None:
        """Somebody has kicked *queue*: let the device look at it, if it runs."""
        if queue.trace.enabled:
            queue.trace(f"queue {queue.index} is kicked", ("kick", queue.index))
        if queue.running:
            queue.begin_turn()
            self.handle_queue(queue)
            queue.notify()

    def kick_all(self) -> None:
        """As if the driver had kicked each of its queues; what is beyond a turn of all together comes by and by."""
        left = TURN
        for queue in self.queues:
            if left <= 0:
                queue.kick_later()
            else:
                queue.kicked()
                left -= TURN - self.turn.left if queue.running else 0

    def config_changed(self) -> None:
        """Call it after changing `config`: the driver is told (section 2.5)."""
        self.transport.config_changed()

    def agrees(self, features: int) -> bool:
        """Whether the device works with *features* of what it offers: FEATURES_OK stays off else (section 2.2.1)."""
        return True

    def handle_queue(self, queue: VirtQueue) -> None:
        """The driver has kicked *queue*, or it has just been started. Chains pushed are shown when this returns."""

    def driver_ok_changed(self, ok: bool) -> None:
        """`driver_ok` has changed: DRIVER_OK was set, or a reset or an error ended it."""

    def reset(self) -> None:
        """The driver has reset the device; queues and features are already back."""

    @property
    def busy(self) -> bool:
        """Whether something of before a reset is still under way: the driver sees the reset end when it has ended."""
        return False

    def check_saved(self, saved: Plain) -> None:
        """Raise StateError where what was *saved* of the device cannot be loaded any more; nothing is changed."""

    def portable(self, saved: Plain) -> Plain:
        """What was *saved*, as another process can load it; from any thread. Raises StateError."""
        return saved

    def close(self) -> None:
        """The device is thrown away; see PciDevice.close()."""

    def config_read(self, offset: int, size: int) -> int:
        """The driver reads the configuration structure; zero beyond its end."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver writes the configuration structure."""
