"""virtio-rng: the host's entropy for the guest (virtio 1.2, section 5.4).

One queue; the device fills each buffer with random bytes and says how many. It has no features and no configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import VIRTIO_ID_RNG
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.queue import VirtQueue

MAX_REQUEST: Final = 4096
"""Bytes given for one buffer at most, however large it is; the driver asks again."""


class VirtioRng(VirtioDevice):
    """The host's entropy for the guest. *entropy* returns as many random bytes as it is asked for, without blocking."""

    device_id = VIRTIO_ID_RNG
    queue_sizes = (64,)
    STATE = ()

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom, trace: Channel = OFF) -> None:
        super().__init__(trace)
        self._entropy = entropy

    def handle_queue(self, queue: VirtQueue) -> None:
        for chain in queue:
            queue.push(chain, chain.write(self._entropy(min(chain.writable_size, MAX_REQUEST))))
