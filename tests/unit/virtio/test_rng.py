"""virtio-rng: the guest gets entropy, as much as is asked for and no more than a bound."""

from __future__ import annotations

import pytest

from pyvmm.virtio.device import RING_FEATURES
from pyvmm.virtio.rng import MAX_REQUEST, VirtioRng
from tests.rig.virtio_driver import Virtio

DATA = 0x100000


@pytest.mark.parametrize("features", [1 << 32, RING_FEATURES])
def test_bytes_arrive(features: int) -> None:
    asked = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return bytes((i * 7 + 1) & 0xFF for i in range(count))

    guest = Virtio.of(VirtioRng(entropy))
    assert guest.config.read(2, 2) == 0x1044 and guest.config.read(8, 1) == 1
    queue = guest.setup(features)[0]
    queue.add([(DATA, 10, True), (DATA + 100, 6, True)])
    queue.add([(DATA + 0x1000, MAX_REQUEST * 3, True)])
    queue.add([(DATA, 16, False)])
    guest.kick(0)
    assert [length for _, length in queue.used()] == [16, MAX_REQUEST, 0]
    assert asked == [16, MAX_REQUEST, 0]
    assert guest.board.ram.read(DATA, 10) == entropy(10)
    assert guest.board.ram.read(DATA + 100, 6) == entropy(16)[10:]
    assert guest.board.ram.read(DATA + 0x1000 + MAX_REQUEST, 1) == b"\0"


def test_the_default_is_the_hosts_entropy() -> None:
    guest = Virtio.of(VirtioRng())
    queue = guest.setup(1 << 32)[0]
    queue.add([(DATA, 256, True)])
    guest.kick(0)
    first = guest.board.ram.read(DATA, 256)
    queue.add([(DATA, 256, True)])
    guest.kick(0)
    assert first != guest.board.ram.read(DATA, 256) and len(set(first)) > 64
