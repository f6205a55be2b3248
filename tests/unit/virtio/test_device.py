"""A virtio device whose transport is neither PCI nor a machine."""

from __future__ import annotations

import pytest

from pyvmm.memory import GuestMemory
from pyvmm.virtio.device import RING_FEATURES, VirtioDevice
from pyvmm.virtio.queue import CHAIN_COST, TURN, FakeTransport, VirtQueue
from tests.rig.virtio_driver import SplitDriver

VERSION_1, INDIRECT, EVENT_IDX = 1 << 32, 1 << 28, 1 << 29
DATA = 0x40000


class Counter(VirtioDevice):
    device_id = 63
    queue_sizes = (256, 256)
    features = RING_FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def handle_queue(self, queue: VirtQueue) -> None:
        for chain in queue:
            self.taken += 1
            queue.push(chain, 0)


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.of_size(1 << 20)


def started(device: VirtioDevice, memory: GuestMemory, index: int = 0) -> SplitDriver:
    queue = device.queues[index]
    driver = SplitDriver(memory, 0x1000 + 0x8000 * index, queue.size)
    queue.desc, queue.driver, queue.device = driver.desc, driver.driver, driver.device
    queue.start(memory, VERSION_1 | INDIRECT)
    device.driver_ok = True
    return driver


def test_without_a_transport_nothing_happens(memory: GuestMemory) -> None:
    device = Counter()
    device.config_changed()
    device.queues[0].kicked()
    device.queues[0].fail("an index that jumped")
    assert device.taken == 0


def test_interrupts_and_changes_go_to_the_transport(memory: GuestMemory) -> None:
    device, transport = Counter(), FakeTransport()
    device.connect(transport)
    drivers = [started(device, memory, index) for index in (0, 1)]
    for index in (1, 0):
        drivers[index].add([(DATA, 8, False)])
        device.queues[index].kicked()
    device.config_changed()
    assert transport.interrupts == [1, 0] and transport.config_changes == 1 and not transport.later
    drivers[1].add([(1 << 40, 8, False)])
    device.queues[1].kicked()
    assert transport.broken == ["queue 1: no guest RAM at 0x10000000000, length 0x8"]
    assert not device.queues[1].running and device.queues[0].running


def test_what_a_turn_leaves_is_put_off_once(memory: GuestMemory) -> None:
    device, transport = Counter(), FakeTransport()
    device.connect(transport)
    driver = started(device, memory)
    for _ in range(256):
        assert driver.add([(DATA, 8, False)]) is not None
    a_turn = -(-TURN // (CHAIN_COST + 1))
    device.queues[0].kicked()
    assert device.taken == a_turn and len(transport.later) == 1
    device.queues[0].kicked()
    assert device.taken == 2 * a_turn and len(transport.later) == 1
    transport.run_later()
    assert device.taken == 256 and not transport.later
    assert len(driver.used()) == 256
