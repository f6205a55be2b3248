"""A guest that makes long chains can't hold a device for long: they are taken in turns, and none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.testing.pci import Board
from pyvmm.virtio.console import MAX_PORTS, MAX_WRITE, VirtioConsole
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.input import VirtioKeyboard
from pyvmm.virtio.queue import CHAIN_COST, COPY_COST, TURN, VirtQueue
from pyvmm.virtio.ring import MAX_INDIRECT, ChainBuilder
from pyvmm.virtio.rng import VirtioRng
from tests.rig.virtio_driver import Driver, Virtio

VERSION_1, INDIRECT, PACKED = 1 << 32, 1 << 28, 1 << 34
DATA, TABLES = 0x100000, 0x200000
CHAINS = 64


class Keys(VirtioKeyboard):
    """Sends enough, once its driver is there, for every buffer of the event queue."""

    def driver_ok_changed(self, ok: bool) -> None:
        super().driver_ok_changed(ok)
        for number in range(CHAINS // 2 if ok else 0):
            self.key(30, 1 - number % 2)


DEVICES: list[tuple[str, Callable[[], VirtioDevice], int, bool]] = [
    ("rng", lambda: VirtioRng(bytes), 0, True),
    ("eventq", lambda: Keys("standard"), 0, True),
    ("console", lambda: VirtioConsole(("a",)), 1, False),
    ("console's control", lambda: VirtioConsole(("a",)), 3, False),
    ("statusq", lambda: VirtioKeyboard("standard"), 1, False),
]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many descriptors were read; a test adds a zero for each turn."""
    read = [0]
    add = ChainBuilder.add

    def counted(self: ChainBuilder, address: int, length: int, flags: int) -> None:
        read[-1] += 1
        add(self, address, length, flags)

    monkeypatch.setattr(ChainBuilder, "add", counted)
    return read


def make_available(driver: Driver, descriptors: int, write: bool) -> None:
    """As many chains as the ring has room for; their first buffer is eight bytes long, the others are empty."""
    for number in range(CHAINS):
        buffers = [(DATA, 0 if n else 8, write) for n in range(descriptors)]
        assert driver.add(buffers, TABLES + number * 16 * MAX_INDIRECT) is not None


@pytest.mark.parametrize("features", [0, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize(("make", "index", "write"), [row[1:] for row in DEVICES], ids=[row[0] for row in DEVICES])
@pytest.mark.parametrize("descriptors", [1, MAX_INDIRECT])
def test_every_chain_comes_back_a_few_at_a_time(
    make: Callable[[], VirtioDevice], index: int, write: bool, features: int, descriptors: int, turns: list[int]
) -> None:
    board = Board()
    later = board.later
    guest = Virtio.of(make(), board)
    driver = guest.setup(VERSION_1 | INDIRECT | features)[index]
    make_available(driver, descriptors, write)
    guest.kick(index)
    back = [len(driver.used())]
    while later:
        turns.append(0)
        assert len(later) == 1
        later.pop()()
        back.append(len(driver.used()))
    assert sum(turns) == CHAINS * descriptors and sum(back) == CHAINS
    assert max(turns) < TURN + MAX_INDIRECT
    assert len(back) == 1 if descriptors == 1 else len(back) >= CHAINS * descriptors // TURN


@pytest.mark.parametrize("features", [0, PACKED], ids=["split", "packed"])
def test_a_kick_in_between_takes_a_turn_and_nothing_twice(features: int, turns: list[int]) -> None:
    board = Board()
    later = board.later
    guest = Virtio.of(VirtioRng(bytes), board)
    driver = guest.setup(VERSION_1 | INDIRECT | features)[0]
    make_available(driver, MAX_INDIRECT, True)
    back = []
    for _ in range(40):
        guest.kick(0)
        assert len(later) <= 1
        back += driver.used()
    assert len(back) == len({chain for chain, _ in back}) == CHAINS
    later.pop()()
    assert driver.used() == [] and not later and sum(turns) == CHAINS * MAX_INDIRECT


def test_a_reset_in_between_ends_it(turns: list[int]) -> None:
    board = Board()
    later = board.later
    guest = Virtio.of(VirtioRng(bytes), board)
    driver = guest.setup(VERSION_1 | INDIRECT)[0]
    make_available(driver, MAX_INDIRECT, True)
    guest.kick(0)
    taken = len(driver.used())
    guest.status = 0
    later.pop()()
    assert 0 < taken < CHAINS and driver.used() == [] and not later
    driver = guest.setup(VERSION_1 | INDIRECT)[0]
    make_available(driver, TURN // CHAINS - CHAIN_COST, True)
    guest.kick(0)
    assert len(driver.used()) == CHAINS, "a whole turn, whatever was left of the last"


class Many(VirtioDevice):
    """With a queue for each processor, as a disk has them."""

    device_id = 63
    queue_sizes = (CHAINS,) * 16

    def handle_queue(self, queue: VirtQueue) -> None:
        for chain in queue:
            queue.push(chain, 0)


@pytest.mark.parametrize("how", ["bus master", "DRIVER_OK"])
def test_queues_that_are_looked_at_together_share_a_turn(how: str, turns: list[int]) -> None:
    board = Board()
    guest = Virtio.of(Many(), board)
    guest.config.write(4, 2, 2)
    drivers = guest.setup(VERSION_1 | INDIRECT)
    for driver in drivers:
        make_available(driver, MAX_INDIRECT, True)
    if how == "DRIVER_OK":
        assert guest.accept(VERSION_1 | INDIRECT)
        guest.config.write(4, 2, 6)
        for index, driver in enumerate(drivers):
            guest.program(index, driver)
        guest.status = 15
    else:
        guest.config.write(4, 2, 6)
    while board.later:
        turns.append(0)
        board.later.pop(0)()
    assert max(turns) < TURN + MAX_INDIRECT
    assert [len(driver.used()) for driver in drivers] == [CHAINS] * len(drivers)


def test_what_is_copied_for_all_ports_of_a_console_has_an_end() -> None:
    """A kick for one has it look at all of them."""
    board = Board()
    device = VirtioConsole([f"p{number}" for number in range(MAX_PORTS)])
    copied = [0]

    def count(data: bytes) -> None:
        copied[-1] += len(data)

    guest = Virtio.of(device, board)
    drivers = guest.setup(VERSION_1)
    for port in device.ports:
        port.output = count
        for _ in range(4):
            assert drivers[port.transmitq.index].add([(DATA, MAX_WRITE, False)]) is not None
    guest.kick(device.ports[3].transmitq.index)
    assert not device.ports[-1].drained
    while board.later:
        copied.append(0)
        board.later.pop(0)()
    assert max(copied) < TURN * COPY_COST + MAX_WRITE
    assert sum(copied) == 4 * MAX_PORTS * MAX_WRITE and all(port.drained for port in device.ports)
